"""The training loop of unlearning: steps over tasks, the dual variable, the watch over the spans, checkpoints."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from mitigate.adapters.trained import in_shards, is_sharded, whole_of
from mitigate.artifacts.checkpoints import (
    Checkpoints,
    open_checkpoints,
    optimizer_parts,
    optimizer_state,
    parts_named,
)
from mitigate.artifacts.files import fingerprint
from mitigate.artifacts.temporaries import partial_of
from mitigate.errors import MitigateError, NothingToUnlearnError
from mitigate.runtime import process_state, progress, together
from mitigate.tokens.batches import Batch, half_as_many
from mitigate.unlearning.material.control import Control
from mitigate.unlearning.material.data import UnlearningData
from mitigate.unlearning.material.tasks import Task, dealt, micro_batches, tasks_of_step, units_in
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainable import State, Trainable
from mitigate.unlearning.training.losses import Losses, step_totals
from mitigate.unlearning.training.nearest import Nearest
from mitigate.unlearning.training.steering import Steering
from mitigate.unlearning.training.watch import look, no_higher, reason_to_stop

logger = logging.getLogger(__name__)
FURTHER = 4  # one of so many retain documents of a step is of those given besides the audit's own
STEP_LIMIT = "step limit"


class Loop:
    """Trains, watches, and goes on from its checkpoint.

    Args:
        accelerator: the processes.
        trainable: what is trained.
        losses: of batches.
        settings: schedule.
        data: the tasks.
        control: see `control_level`.
        seed: of the order.
        plan: all that decides the result.
        partial: the result's directory; checkpoints lie beside it.
        rounds: records of the rounds before this one.
        added: the spans that they added to the audit's, as JSON.
        after: the round before, whose module and optimizer go on.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        trainable: Trainable,
        losses: Losses,
        settings: Unlearn,
        data: UnlearningData,
        *,
        control: Control,
        seed: int,
        plan: Mapping[str, Any],
        partial: Path,
        rounds: Sequence[Mapping[str, Any]] = (),
        added: Sequence[Mapping[str, Any]] = (),
        after: Loop | None = None,
    ) -> None:
        self.accelerator, self.trainable, self.losses = accelerator, trainable, losses
        self.settings, self.data, self.control = settings, data, control
        self.seed, self.plan = seed, plan
        self.rounds, self.added = list(rounds), list(added)
        self.checkpoints = Checkpoints(partial_of(partial))
        self.steering = Steering(settings, trusted=losses.anchor == "kl")
        self.kept: State = {}  # the trained weights before this round, to go back to; none before the first
        self.nearest = Nearest(trainable)
        self.module: torch.nn.Module
        self.optimizer: AcceleratedOptimizer
        if after is None:
            trained = [p for p in trainable.module.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
            self.module, self.optimizer = accelerator.prepare(trainable.module, optimizer)
        else:
            self.module, self.optimizer = after.module, after.optimizer
            self.steering.go_on_from(after.steering)
        self.parameters = [
            p for p in trainable.module.parameters() if p.requires_grad
        ]  # FSDP puts its own in their place
        losses.module = self.module
        self.sharded = is_sharded(trainable.module)
        if self.sharded:
            losses.before.most = self._most

    def train(self, *, resume: bool) -> tuple[list[dict[str, Any]], str, int]:
        """Train to the control level or the step limit.

        Where an adapter is trained, the weights are then those of the look that was nearest to the control.

        Returns:
            the history of the watch, why it stopped, and the step of the look whose weights these are.
        """
        settings = self.settings
        if not self.trainable.can_step_back:
            visited = {task.key: task for step in range(settings.max_steps) for task in self.tasks(step)}
            self.losses.before.fill(list(visited.values()), description="The model before")
        step, history = self._begin(resume=resume)
        if self.trainable.can_step_back:
            for earlier in range(step):  # in the batches that the interrupted run asked in, for equal rounding
                self._ask_before(earlier)
        if not history:
            history.append(self._watch(step=0))
            self._steer(history)
            if settings.stop_at_control and not self.rounds and no_higher(history[0], self.control):
                raise NothingToUnlearnError(
                    "the selected tokens are already at the control level: their log-ratio to the OUT references is "
                    f"{history[0]['selected_log_ratio']:.2f} nats, that of unseen text {self.control.log_ratio:.2f}; "
                    "there is nothing to unlearn; to train nevertheless, set unlearn.stop_at_control: false"
                )
        with progress(settings.max_steps, "Unlearning", unit="step") as bar:
            bar.update(step)
            while step < settings.max_steps and self._reason_to_stop(history) is None:
                loss = self.step(step)
                step += 1
                if not math.isfinite(loss):
                    raise MitigateError(
                        f"unlearning: the loss became {loss} at step {step}; lower unlearn.learning_rate"
                    )
                if step % settings.check_every == 0 or step == settings.max_steps:
                    history.append(self._watch(step=step))
                    self._steer(history)
                    if settings.stop_at_control:
                        self.nearest.offer(history[-1])
                    self.steering.warn_of_harm(step)
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", leak=f"{history[-1]['selected_log_ratio']:.2f}", refresh=False)
                if step % settings.checkpoint_every == 0 and step < settings.max_steps:
                    self._save(step, history)
        return history, self._reason_to_stop(history) or STEP_LIMIT, self.nearest.back_from(history[-1])

    def keep(self) -> None:
        """Write a checkpoint of a round that has not begun."""
        self._save(0, [])

    def forget_checkpoint(self) -> None:
        """Remove the checkpoints of a finished run."""
        self.checkpoints.forget()

    def _steer(self, history: Sequence[Mapping[str, Any]]) -> None:
        if self.settings.stop_at_control:
            self.steering.after_look(history, self.control)
            self.losses.tilt = self.steering.tilt

    def _reason_to_stop(self, history: Sequence[dict[str, Any]]) -> str | None:
        return reason_to_stop(history, self.control) if self.settings.stop_at_control else None

    def tasks(self, step: int) -> list[Task]:
        """The tasks of a step, over all processes; one that two passes bring together is there once."""
        forget = tasks_of_step(self.data.forget, self.settings.batch_size, step, seed=self.seed)
        count, own, extra = self.settings.retain_batch_size, self.data.hold, self.data.extra
        if own and extra and count > 1:  # what was trained on with the secrets is carried away first
            further = max(1, count // FURTHER)
            hold = tasks_of_step(own, count - further, step, seed=self.seed + 1)
            hold += tasks_of_step(extra, further, step, seed=self.seed + 2)
        else:
            hold = tasks_of_step([*own, *extra], count, step, seed=self.seed + 1)
        return list({task.key: task for task in forget + hold}.values())

    def _ask_before(self, step: int) -> None:
        """Have p_0 at this process's tasks of a step."""
        tasks = self.tasks(step)
        mine = dealt(tasks, self.accelerator.num_processes)[self.accelerator.process_index]
        self.losses.before.fill(mine or tasks[:1])

    def step(self, step: int) -> float:
        """One optimizer step. Losses are normalized by the counts of the whole step, over all processes."""
        accelerator, tasks = self.accelerator, self.tasks(step)
        totals = step_totals(tasks)
        shares = dealt(tasks, accelerator.num_processes)
        mine = shares[accelerator.process_index]
        if self.trainable.can_step_back:
            self._ask_before(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.steering.rate(step)
        sums = None
        while sums is None:
            rounds = max(len(self._micro_batches(share)) for share in shares)
            batches = self._micro_batches(mine)
            filler = self._micro_batches(mine[:1] or tasks[:1])[0]  # every process takes part in every collective
            work = [(batch, 1.0) for batch in batches] + [(filler, 0.0)] * (rounds - len(batches))
            try:
                sums = self._gradient(work, totals)
            except torch.OutOfMemoryError as error:
                if accelerator.num_processes > 1:  # the others wait in a collective
                    raise MitigateError(
                        f"unlearning: a batch of {self.losses.batch_tokens} tokens does not fit in the memory of one "
                        "of the devices: set unlearn.batch_tokens lower, or unlearn.gradient_checkpointing: true"
                    ) from error
            if sums is None:
                self._make_room(batches)
        accelerator.clip_grad_norm_(self.parameters, self.settings.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        forgotten, held, ratio = accelerator.reduce(sums, reduction="sum").tolist()
        loss = float(forgotten + self.steering.dual * held)
        self.steering.after_step(held, ratio)
        return loss

    def _gradient(self, work: Sequence[tuple[Batch, float]], totals: Mapping[str, float]) -> torch.Tensor:
        """Add the gradient of a step's batches, each with its weight; the sums of what `Losses.of` gives."""
        accelerator = self.accelerator
        sums = torch.zeros(3, device=accelerator.device)
        for number, (batch, weight) in enumerate(work):
            last = number == len(work) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module):
                forgetting, anchors, ratio = self.losses.of(batch, totals)
                loss = forgetting + self.steering.dual * anchors
                accelerator.backward(weight * loss * accelerator.num_processes)  # DDP averages: undo it
                sums += weight * torch.stack([forgetting.detach(), anchors.detach(), ratio])
        return sums

    def _make_room(self, batches: Sequence[Batch]) -> None:
        """Cut a step's batches smaller, where the device's memory did not hold one."""
        self.optimizer.zero_grad()
        largest = max(batches, key=lambda batch: (units_in(batch) > 1, batch.input_ids.numel()))
        fewer = half_as_many(largest)
        if fewer is None or units_in(largest) == 1:
            raise MitigateError(
                "unlearning: a window does not fit in the device's memory: set unlearn.gradient_checkpointing: true, "
                "models.load_in: 8bit, or models.dtype: bfloat16"
            )
        self.losses.batch_tokens = fewer

    def _most(self, count: int) -> int:
        """The largest of the processes' numbers."""
        counts: torch.Tensor = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.max())

    def _micro_batches(self, tasks: Sequence[Task]) -> list[Batch]:
        return micro_batches(tasks, batch_tokens=self.losses.batch_tokens, device=self.accelerator.device)

    def _watch(self, *, step: int) -> dict[str, Any]:
        """What `look` says; the anchors' mean at the last step (`held`), their weight, what is left of the rate."""
        seen = look(
            self.data.forget,
            spans=self.data.spans,
            forward=self.losses.forward,
            batched=self._micro_batches,
            accelerator=self.accelerator,
            never_seen=self.data.never_seen,
        )
        steering = self.steering
        held = None if steering.held is None else round(steering.held, 6)
        share = round(steering.share * steering.near, 4)
        return {
            "step": step,
            **seen,
            "held": held,
            "anchor_weight": round(steering.dual, 6),
            "rate_share": share,
            "tilt": round(steering.tilt, 4),
        }

    def _save(self, step: int, history: list[dict[str, Any]]) -> None:
        trained = self.trainable.state()
        optimizer, parts = optimizer_parts(self.optimizer.state_dict())
        moments = {name: whole_of(tensor) for name, tensor in parts.items()}
        state = {
            "plan": fingerprint(self.plan),
            "history": history,
            "optimizer": optimizer,
            "steering": self.steering.state(),
            "nearest": self.nearest.look,
            "in_round": step,
            "rounds": self.rounds,
            "added": self.added,
        }
        tensors = {f"trained.{n}": t for n, t in trained.items()} | {f"kept.{n}": t for n, t in self.kept.items()}
        tensors |= {f"nearest.{n}": t for n, t in self.nearest.state.items()}
        tensors |= {**moments, "random": torch.get_rng_state()}
        with together(process_state(self.accelerator.device.type)):
            if self.accelerator.is_main_process:
                self.checkpoints.save(sum(one["steps"] for one in self.rounds) + step, state, tensors)

    def _begin(self, *, resume: bool) -> tuple[int, list[dict[str, Any]]]:
        """The step and the history of this round to go on from, where there is a checkpoint."""
        newest = open_checkpoints(self.checkpoints.directory, self.accelerator, resume=resume)
        return (0, []) if newest is None else self._restore(*newest)

    def _restore(
        self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> tuple[int, list[dict[str, Any]]]:
        if state["plan"] != fingerprint(self.plan) or "steering" not in state:
            raise MitigateError(
                f"{self.checkpoints.directory}: an interrupted run of another audit, other settings or an earlier "
                "version; remove it, or choose another --out"
            )
        trained, self.kept = (parts_named(tensors, of) for of in ("trained", "kept"))
        self.trainable.restore(trained)
        optimizer = optimizer_state(state["optimizer"], tensors)
        for number, moments in optimizer["state"].items() if self.sharded else ():
            like = self.parameters[number]
            optimizer["state"][number] = {n: in_shards(t, like) if t.ndim else t for n, t in moments.items()}
        self.optimizer.load_state_dict(optimizer)
        self.steering.restore(state["steering"])
        self.nearest.look, self.nearest.state = state["nearest"], parts_named(tensors, "nearest")
        self.losses.tilt = self.steering.tilt
        torch.set_rng_state(tensors["random"])
        if state["in_round"]:
            logger.info("resuming at step %d of round %d", state["in_round"], 1 + len(self.rounds))
        return state["in_round"], state["history"]
