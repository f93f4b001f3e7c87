"""Train an adapter that forgets the selected tokens and keeps everything else where it was.

    result = unlearn(audit, retain=documents, settings=Unlearn(objective="hinge"), out="adapter")

Each step sees some documents with selected tokens and some retain documents. The loss is the objective's mean over
selected tokens plus `anchor_weight` × the mean KL(p_0 ‖ p_θ) over all other tokens, p_0 being the model before: with
the new adapter off and, if the leaky target is itself an adapter, that one on. Training watches the selected spans and
stops when they have come down to the control level. Base weights are never touched.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from peft import set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field

from mitigate.artifacts import check_free, fingerprint, new_directory, new_file, read_json, write_json
from mitigate.batches import Batch, Piece, make_batches
from mitigate.detection.audit import Audit, load_audited
from mitigate.documents import Documents, read_documents
from mitigate.errors import MitigateError, NothingToUnlearnError
from mitigate.models import Model, ModelStore, kept_logits
from mitigate.runtime import is_main, progress, seed_everything
from mitigate.training import Lora, rate_factor
from mitigate.unlearning.adapter import (
    ADAPTER,
    adapter_state,
    add_adapter,
    as_before,
    base_checksum,
    is_sharded,
    save_adapter,
)
from mitigate.unlearning.data import UnlearningData
from mitigate.unlearning.objectives import NEEDS_OUT_DISTRIBUTION, Selected, anchor, objective_loss, parse_objective

logger = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"


class Unlearn(BaseModel):
    """Settings of unlearning."""

    model_config = ConfigDict(extra="forbid")

    objective: str | dict[str, float] = Field(
        default_factory=lambda: {"hinge": 1.0, "distill": 0.5},
        description="npo, hinge, distill or grad_diff; several with weights: hinge=1,distill=0.5",
    )
    beta: float = Field(1.0, gt=0, description="npo: inverse temperature")
    margin: float | None = Field(
        None, description="hinge: nats above the OUT level that are left standing; default: the control level"
    )
    anchor_weight: float = Field(3.0, ge=0, description="weight of KL(p_0 || p) on the tokens that are kept")
    lora: Lora = Field(default_factory=lambda: Lora(), description="shape of the adapter")
    learning_rate: float = Field(2e-4, gt=0, description="peak of a linear warm-up and cosine decay to a tenth")
    max_steps: int = Field(400, ge=1, description="at most this many steps; the control usually stops earlier")
    batch_size: int = Field(8, ge=1, description="documents with selected tokens in a step, all processes together")
    retain_batch_size: int = Field(8, ge=0, description="retain documents in a step, all processes together")
    batch_tokens: int | None = Field(None, ge=1, description="padded tokens in one forward; gradients accumulate")
    stop_at_control: bool = Field(True, description="stop when the selected spans are at the control level")
    check_every: int = Field(20, ge=1, description="steps between two looks at the selected spans")
    checkpoint_every: int = Field(100, ge=1, description="steps between two checkpoints")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")


@dataclass(frozen=True)
class Unlearned:
    """The adapter that unlearning made, and how it went.

    Attributes:
        directory: PEFT adapter directory (safetensors); load it over the target's base with PEFT, or give its path
            wherever `mitigate` takes a model.
        summary: objective, steps, why it stopped, history of the watch, parameter counts, fingerprints.
    """

    directory: Path
    summary: dict[str, Any]

    @classmethod
    def load(cls, directory: str | Path) -> Unlearned:
        """Read a finished adapter directory.

        Raises:
            MitigateError: unlearning did not finish there.
        """
        return cls(Path(directory), read_json(Path(directory) / "unlearn.json"))


def unlearn(
    audit: Audit | str | Path,
    *,
    out: str | Path,
    retain: Documents | str | Path | None = None,
    settings: Unlearn | None = None,
    target: str | Path | None = None,
    store: ModelStore | None = None,
    seed: int = 0,
    resume: bool = True,
) -> Unlearned:
    """Train the adapter that removes an audit's selected tokens.

    Runs in one process or in several (torchrun, `accelerate launch`), with the same result.

    Args:
        audit: the audit, or its directory.
        out: where the adapter goes. Checkpoints live in `out + ".partial"` until it is done.
        retain (*optional*): documents to hold still, besides the audit's own retain documents and the other tokens of
            the documents with selected spans.
        settings (*optional*): objective, adapter, schedule.
        target (*optional*): where the audited model is now, if it moved.
        store (*optional*): loads the models.
        seed (`int`, *optional*, defaults to 0): of the adapter's initialization and the order of documents.
        resume (`bool`, *optional*, defaults to `True`): go on from a checkpoint of the same audit and settings.

    Raises:
        NothingToUnlearnError: no token is selected, or the selected ones are at the control level already.
        MitigateError: an unknown objective, or the model is not the one audited.
    """
    audit = audit if isinstance(audit, Audit) else Audit.load(audit)
    settings = settings or Unlearn()
    weights = parse_objective(settings.objective)
    store = store or ModelStore()
    out = Path(out)
    check_free(out)
    if not audit.columns["selected"].any():
        raise NothingToUnlearnError(
            "no token is selected: the audit found nothing to unlearn; lower detect.spans.threshold, "
            "or select the known spans with detect.select: known"
        )
    audited = audit.metadata["target"]
    [model] = load_audited([{**audited, "source": str(target or audited["source"])}], store=store)
    if retain is not None and not isinstance(retain, Documents):
        retain = read_documents(retain, tokenizer=model.tokenizer)
    data = UnlearningData(
        audit, model, retain, store=store, with_distribution=bool(NEEDS_OUT_DISTRIBUTION & weights.keys())
    )
    plan = {
        "audit": audit.fingerprint,
        "spans": fingerprint(audit.spans.to_pylist()),
        "settings": settings.model_dump(),
        "retain": retain.fingerprint if retain is not None else None,
        "seed": seed,
    }
    seed_everything(seed)
    add_adapter(model, settings.lora, seed=seed)
    accelerator = Accelerator(cpu=store.device.type == "cpu")
    run = _Run(accelerator, model, settings, weights, data, seed=seed, plan=fingerprint(plan), partial=out)
    base_before = base_checksum(model.base)
    history, stopped = run.train(resume=resume)

    if base_checksum(model.base) != base_before:
        raise RuntimeError("base weights changed during unlearning")
    adapter = adapter_state(model.base, accelerator, run.module)
    if accelerator.is_main_process:
        if not any(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name):
            raise MitigateError("unlearning changed nothing: every lora_B is zero; raise the learning rate")
        summary = {
            "objective": weights,
            "steps": history[-1]["step"],
            "stopped": stopped,
            "history": history,
            "control": data.control,
            "adapter_parameters": sum(tensor.numel() for tensor in adapter.values()),
            "model_parameters": sum(p.numel() for n, p in model.base.model.named_parameters() if "lora_" not in n),
            "processes": accelerator.num_processes,
            **plan,
        }
        with new_directory(out) as directory:
            save_adapter(model, adapter, directory)
            write_json(directory / "unlearn.json", summary)
        run.forget_checkpoint()
    accelerator.wait_for_everyone()
    return Unlearned.load(out)


class _Run:
    """The training loop with its checkpoint."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: Model,
        settings: Unlearn,
        weights: dict[str, float],
        data: UnlearningData,
        *,
        seed: int,
        plan: str,
        partial: Path,
    ) -> None:
        self.accelerator, self.model, self.settings, self.weights, self.data = (
            accelerator,
            model,
            settings,
            weights,
            data,
        )
        self.seed, self.plan = seed, plan
        self.checkpoint = partial.with_name(partial.name + ".partial") / CHECKPOINT
        self.parameters = [p for p in model.base.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
        model.base.model.eval()  # dropout off: every change of a token's probability is ours
        self.module, self.optimizer = accelerator.prepare(model.base.model, optimizer)
        self.batch_tokens = settings.batch_tokens or max(64, (1 << 26) // model.vocabulary_size)

    def train(self, *, resume: bool) -> tuple[list[dict[str, float]], str]:
        """Train to the control level or the step limit; returns the history of the watch and why it stopped."""
        settings = self.settings
        step, history = self._restore() if resume else (0, [])
        if not history:
            history.append(self._watch(step=0))
            if settings.stop_at_control and history[0]["selected_log_ratio"] <= self.data.control:
                raise NothingToUnlearnError(
                    "the selected tokens are already at the control level: their log-ratio to the OUT references is "
                    f"{history[0]['selected_log_ratio']:.2f} nats, that of unseen text {self.data.control:.2f}; "
                    "there is nothing to unlearn; to train nevertheless, set unlearn.stop_at_control: false"
                )
        with progress(settings.max_steps, "Unlearning", unit="step") as bar:
            bar.update(step)
            while step < settings.max_steps:
                if settings.stop_at_control and history[-1]["selected_log_ratio"] <= self.data.control:
                    return history, f"control level reached at step {history[-1]['step']}"
                loss = self._step(step)
                step += 1
                if not math.isfinite(loss):
                    raise MitigateError(
                        f"unlearning: the loss became {loss} at step {step}; lower unlearn.learning_rate"
                    )
                if step % settings.check_every == 0 or step == settings.max_steps:
                    history.append(self._watch(step=step))
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", leak=f"{history[-1]['selected_log_ratio']:.2f}", refresh=False)
                if step % settings.checkpoint_every == 0 and step < settings.max_steps:
                    self._save(step, history)
        if settings.stop_at_control and history[-1]["selected_log_ratio"] <= self.data.control:
            return history, f"control level reached at step {step}"
        return history, "step limit"

    def forget_checkpoint(self) -> None:
        """Remove the checkpoint of a finished run."""
        self.checkpoint.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.checkpoint.parent.rmdir()

    def _step(self, step: int) -> float:
        """One optimizer step. Losses are normalized by the counts of the whole step, over all processes."""
        accelerator, data = self.accelerator, self.data
        forget = _take(data.forget, self.settings.batch_size, step, seed=self.seed)
        hold = _take(data.hold, self.settings.retain_batch_size, step, seed=self.seed + 1)
        labelled = [(piece, True) for piece in forget] + [(piece, False) for piece in hold]
        selected_total = max(1, data.selected_count(forget))
        anchors_total = max(1, sum(len(piece.scored) for piece, _ in labelled) - data.selected_count(forget))
        shares = [labelled[rank :: accelerator.num_processes] for rank in range(accelerator.num_processes)]
        rounds = max(len(self._micro_batches(share)) for share in shares)
        mine = self._micro_batches(shares[accelerator.process_index])
        idle = (*self._micro_batches(labelled[:1])[0], 0.0)  # every process takes part in every collective
        work = [(*item, 1.0) for item in mine] + [idle] * (rounds - len(mine))
        factor = rate_factor(step, self.settings.max_steps, warmup_share=0.05)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        loss_sum = torch.zeros((), device=accelerator.device)
        for number, (batch, is_forget, weight) in enumerate(work):
            last = number == len(work) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module):
                selected_sum, anchor_sum = self._sums(batch, is_forget)
                loss = selected_sum / selected_total + self.settings.anchor_weight * anchor_sum / anchors_total
                accelerator.backward(weight * loss * accelerator.num_processes)  # DDP averages: undo it
                loss_sum += weight * loss.detach()
        accelerator.clip_grad_norm_(self.parameters, self.settings.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(accelerator.reduce(loss_sum, reduction="sum"))

    def _micro_batches(self, labelled: Sequence[tuple[Piece, bool]]) -> list[tuple[Batch, list[bool]]]:
        kinds = {id(piece): is_forget for piece, is_forget in labelled}
        batches = make_batches([piece for piece, _ in labelled], batch_tokens=self.batch_tokens)
        return [(batch.to(self.accelerator.device), [kinds[id(piece)] for piece in batch.pieces]) for batch in batches]

    def _sums(self, batch: Batch, is_forget: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the objective over selected tokens and of the anchor over all others."""
        facts = self.data.facts(batch, is_forget)
        chosen, kept = facts.selected, ~facts.selected
        with as_before(self.model), torch.no_grad():
            anchors = batch.keep.clone()
            anchors[batch.keep] = kept
            before = torch.log_softmax(
                kept_logits(self.module, batch.input_ids, batch.attention_mask, anchors).float(), dim=-1
            )
        logits = kept_logits(self.module, batch.input_ids, batch.attention_mask, batch.keep).float()
        log_probs = torch.log_softmax(logits, dim=-1)
        log_prob = log_probs.gather(1, batch.targets.unsqueeze(1)).squeeze(1)
        selected = Selected(
            log_prob=log_prob[chosen],
            log_prob_before=facts.before[chosen],
            log_prob_out=facts.out[chosen],
            log_probs=log_probs[chosen],
            out_log_probs=self.data.distribution(batch, is_forget),
        )
        margin = self.data.control if self.settings.margin is None else self.settings.margin
        loss = objective_loss(selected, self.weights, beta=self.settings.beta, margin=margin)
        return loss.sum() + 0.0 * log_probs.sum(), anchor(log_probs[kept], before).sum()

    def _watch(self, *, step: int) -> dict[str, float]:
        """Mean of log p_θ − log p̄, clipped to ±3 nats, over all selected tokens now: compare with `control_level`."""
        total = torch.zeros(2, device=self.accelerator.device, dtype=torch.float64)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = make_batches(self.data.forget, batch_tokens=self.batch_tokens)
        for number in range(math.ceil(len(batches) / world)):
            batch = batches[min(number * world + rank, len(batches) - 1)].to(self.accelerator.device)
            weight = float(number * world + rank < len(batches))
            facts = self.data.facts(batch, [True] * len(batch.pieces))
            with torch.no_grad():
                logits = kept_logits(self.module, batch.input_ids, batch.attention_mask, batch.keep).float()
            log_prob = torch.log_softmax(logits, dim=-1).gather(1, batch.targets.unsqueeze(1)).squeeze(1)
            ratio = (log_prob - facts.out)[facts.selected].double().clamp(-3.0, 3.0)
            total += weight * torch.stack([ratio.sum(), torch.tensor(float(len(ratio)), device=total.device).double()])
        total = self.accelerator.reduce(total, reduction="sum")
        return {"step": step, "selected_log_ratio": round(float(total[0] / total[1]), 4)}

    def _save(self, step: int, history: list[dict[str, float]]) -> None:
        if is_sharded(self.model.base.model):
            logger.warning("step %d: no checkpoint, since the weights are sharded (FSDP); a restart begins anew", step)
            return
        state = {
            "plan": self.plan,
            "step": step,
            "history": history,
            "adapter": adapter_state(self.model.base, self.accelerator, self.module),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        if is_main():
            with new_file(self.checkpoint) as temporary:
                torch.save(state, temporary)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> tuple[int, list[dict[str, float]]]:
        if not self.checkpoint.is_file():
            return 0, []
        state = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        if state["plan"] != self.plan:
            raise MitigateError(
                f"{self.checkpoint.parent}: an interrupted run of another audit or other settings; "
                "remove it, or choose another --out"
            )
        assert self.model.base.peft is not None
        set_peft_model_state_dict(self.model.base.peft, state["adapter"], adapter_name=ADAPTER)
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        logger.info("resuming at step %d", state["step"])
        return state["step"], state["history"]


def _take(pieces: Sequence[Piece], count: int, step: int, *, seed: int) -> list[Piece]:
    """The pieces of a step: shuffled passes over all of them, a function of the step alone."""
    if not pieces or not count:
        return []
    count = min(count, len(pieces))
    taken = []
    for number in range(step * count, (step + 1) * count):
        epoch, place = divmod(number, len(pieces))
        taken.append(pieces[_order(len(pieces), seed, epoch)[place]])
    return taken


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` pieces in a pass over them."""
    return np.random.default_rng([seed, epoch]).permutation(count).tolist()
