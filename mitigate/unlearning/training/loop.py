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

from mitigate.adapters.trained import is_sharded
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
from mitigate.models.fitting.pace import rate_factor
from mitigate.runtime import process_state, progress, together
from mitigate.tokens.batches import Batch
from mitigate.unlearning.material.control import Control
from mitigate.unlearning.material.data import UnlearningData
from mitigate.unlearning.material.tasks import Task, dealt, micro_batches, tasks_of_step
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainable import State, Trainable
from mitigate.unlearning.training.losses import Losses, step_totals
from mitigate.unlearning.training.nearest import Nearest
from mitigate.unlearning.training.watch import cooled, corrected, look, no_higher, reason_to_stop

logger = logging.getLogger(__name__)
FURTHER = 4  # one of so many retain documents of a step is of those given besides the audit's own
STEP_LIMIT = "step limit"
HARM = 0.5  # nats a token by which the anchors may move before it is said
_SLOWER, _FASTER, _LEAST_SHARE = 0.8, 1.1, 1 / 64
_RISE, _MEMORY = 1.1, 0.8  # of the anchors' mean over its running mean: a rise; of the running mean at a step
_DUAL_RATE = 0.1
_DUAL_RANGE = (1e-3, 1e4)


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
        self.parameters = [p for p in trainable.module.parameters() if p.requires_grad]
        self.dual = settings.retain.weight or 0.0  # the anchors' weight
        self.held: float | None = None  # the anchors' mean at the last step
        self.share = 1.0  # of the learning rate that is left of it
        self.drift: float | None = None  # running mean of `held`
        self.warmth = 1.0  # ... and what is left of it once the tokens have come down
        self.kept: State = {}  # the trained weights before this round, to go back to; none before the first
        self.nearest = Nearest(trainable)
        self.warned = False
        self.module: torch.nn.Module
        self.optimizer: AcceleratedOptimizer
        if after is None:
            optimizer = torch.optim.AdamW(
                self.parameters, lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.95)
            )
            self.module, self.optimizer = accelerator.prepare(trainable.module, optimizer)
        else:
            self.module, self.optimizer = after.module, after.optimizer
            self.dual, self.share, self.warned = after.dual, after.share, after.warned
            self.drift = after.drift
        losses.module = self.module

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
                    if settings.stop_at_control:
                        self.losses.level = corrected(self.losses.level, history, self.control)
                        self.warmth = cooled(self.warmth, history[-1], self.control)
                        self.nearest.offer(history[-1], accelerator=self.accelerator, module=self.module)
                    self._warn_of_harm(step)
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

    def _warn_of_harm(self, step: int) -> None:
        """Say once, while it can still be stopped, that other text moves along."""
        if not self.warned and self.held is not None and self.held > HARM:
            self.warned = True
            logger.warning(
                "step %d: other text moves with what is to be forgotten, by %.2f nats a token; lower "
                "unlearn.learning_rate, raise unlearn.retain.weight, or give more text to hold still (data.anchors)",
                step,
                self.held,
            )

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
        rounds = max(len(self._micro_batches(share)) for share in shares)
        mine = shares[accelerator.process_index]
        if self.trainable.can_step_back:
            self._ask_before(step)
        batches = self._micro_batches(mine)
        filler = self._micro_batches(mine[:1] or tasks[:1])[0]  # every process takes part in every collective
        idle = [(filler, 0.0)] * (rounds - len(batches))
        work = [(batch, 1.0) for batch in batches] + idle
        factor = self.share * self.warmth * rate_factor(step, self.settings.max_steps, warmup_share=0.05)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        sums = torch.zeros(2, device=accelerator.device)  # the objective, the anchors
        for number, (batch, weight) in enumerate(work):
            last = number == len(work) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module):
                forgetting, anchors = self.losses.of(batch, totals)
                loss = forgetting + self.dual * anchors
                accelerator.backward(weight * loss * accelerator.num_processes)  # DDP averages: undo it
                sums += weight * torch.stack([forgetting.detach(), anchors.detach()])
        accelerator.clip_grad_norm_(self.parameters, self.settings.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        forgotten, held = accelerator.reduce(sums, reduction="sum").tolist()
        loss_now = forgotten + self.dual * held
        self._update_dual(held)
        self._update_share(held)
        self.held = held
        return loss_now

    def _update_dual(self, held: float) -> None:
        """Exponentiated-gradient ascent on the dual variable of `held <= budget`: it stays positive, and bounded."""
        budget = self.settings.retain.budget
        if budget is not None and math.isfinite(held):
            factor = math.exp(_DUAL_RATE * max(-1.0, min(3.0, held / budget - 1)))
            self.dual = min(max(self.dual * factor, _DUAL_RANGE[0]), _DUAL_RANGE[1])

    def _update_share(self, held: float) -> None:
        """Trust region: where other text has moved far and still moves further, the next steps are shorter.

        How far it must move is the task's; a plateau, where the anchors balance what is forgotten, slows nothing.
        """
        trust = self.settings.retain.trust
        if trust is None or self.losses.anchor != "kl" or not math.isfinite(held):
            return
        further = held > trust and self.drift is not None and held > _RISE * self.drift
        self.share = min(1.0, max(_LEAST_SHARE, self.share * (_SLOWER if further else _FASTER)))
        self.drift = held if self.drift is None else _MEMORY * self.drift + (1 - _MEMORY) * held

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
        held = None if self.held is None else round(self.held, 6)
        weight, share = round(self.dual, 6), round(self.share * self.warmth, 4)
        return {"step": step, **seen, "held": held, "anchor_weight": weight, "rate_share": share}

    def _save(self, step: int, history: list[dict[str, Any]]) -> None:
        if is_sharded(self.trainable.module):
            logger.warning("step %d: no checkpoint, since the weights are sharded (FSDP); a restart begins anew", step)
            return
        trained = self.trainable.state(self.accelerator, self.module)
        optimizer, moments = optimizer_parts(self.optimizer.state_dict())
        state = {
            "plan": fingerprint(self.plan),
            "history": history,
            "optimizer": optimizer,
            "dual": self.dual,
            "share": self.share,
            "warmth": self.warmth,
            "drift": self.drift,
            "level": self.losses.level,
            "held": self.held,
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
        if state["plan"] != fingerprint(self.plan):
            raise MitigateError(
                f"{self.checkpoints.directory}: an interrupted run of another audit or other settings; "
                "remove it, or choose another --out"
            )
        trained, self.kept = (parts_named(tensors, of) for of in ("trained", "kept"))
        self.trainable.restore(trained)
        self.optimizer.load_state_dict(optimizer_state(state["optimizer"], tensors))
        self.dual, self.share = state["dual"], state["share"]
        self.held, self.drift, self.warmth = state["held"], state["drift"], state["warmth"]
        self.nearest.look, self.nearest.state = state["nearest"], parts_named(tensors, "nearest")
        self.losses.level = state["level"]
        torch.set_rng_state(tensors["random"])
        if state["in_round"]:
            logger.info("resuming at step %d of round %d", state["in_round"], 1 + len(self.rounds))
        return state["in_round"], state["history"]
