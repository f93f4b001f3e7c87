"""What unlearning needs before its first step, and the rounds that are made of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from mitigate.artifacts.checkpoints import open_checkpoints
from mitigate.artifacts.files import fingerprint
from mitigate.artifacts.temporaries import partial_of
from mitigate.detection.audit import load_audited
from mitigate.detection.doubts import doubts_of
from mitigate.detection.panel import by_teachers, taught_by
from mitigate.detection.record import Audit
from mitigate.detection.spans.row import SpanRow
from mitigate.documents import Documents, read_documents
from mitigate.errors import MitigateError, NothingToUnlearnError
from mitigate.generation.sampling import sample
from mitigate.generation.settings import Sampling
from mitigate.models.directory import check_layering
from mitigate.models.mixture import FOR_INFERENCE, Mixture
from mitigate.models.model import Model
from mitigate.models.store import ModelStore
from mitigate.runtime import make_accelerator, seed_everything
from mitigate.unlearning.material.control import control_level
from mitigate.unlearning.material.data import unlearning_data
from mitigate.unlearning.material.forgetting import scope_tokens
from mitigate.unlearning.material.teachers import OutTerms
from mitigate.unlearning.objectives.catalogue import needs_of, retain_of
from mitigate.unlearning.objectives.names import SUBSTITUTES, parse_objective
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainable import Trainable, checkpoint_activations, keep_recomputing, make_trainable
from mitigate.unlearning.training.loop import STEP_LIMIT, Loop
from mitigate.unlearning.training.losses import Losses
from mitigate.unlearning.training.rounds import Left, as_json, what_is_left, with_spans
from mitigate.unlearning.training.watch import LEAST_AUC, token_log_probs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A model with what is trained on it, and all that its loops are made of.

    Attributes:
        audit: as it was made, with all references.
        settings: of unlearning, with what the user left open.
        weights: objective -> weight.
        model, trainable, accelerator: what is trained, and by which processes.
        retain: documents to hold still besides the audit's own.
        references: a store for the audit's references.
        plan: all that decides the result.
        partial: the result's directory; checkpoints lie beside it.
        seed: of the order of documents.
    """

    audit: Audit
    settings: Unlearn
    weights: Mapping[str, float]
    model: Model
    trainable: Trainable
    accelerator: Accelerator
    retain: Documents | None
    references: ModelStore
    plan: Mapping[str, Any]
    partial: Path
    seed: int

    def loop(
        self,
        rounds: Sequence[Mapping[str, Any]] = (),
        added: Sequence[SpanRow] = (),
        *,
        after: Loop | None = None,
    ) -> Loop:
        """A round up to its first step: tasks, terms, levels.

        Args:
            rounds (*optional*): records of those before it.
            added (*optional*): spans to forget besides the audit's selected ones.
            after (*optional*): the round before, whose optimizer goes on.
        """
        settings, whole = self.settings, with_spans(self.audit, added) if added else self.audit
        held = settings.retain.anchor != "none"
        audit = by_teachers(whole) if settings.keep_judges else whole
        texts = {SUBSTITUTES[name] for name in self.weights if name in SUBSTITUTES}
        data = unlearning_data(
            audit,
            self.model,
            retain=self.retain,
            scope=settings.scope,
            weighting=settings.weighting,
            anchors=held,
            focus=settings.retain.focus or 1.0,
            substitute=texts.pop() if texts else None,
            key=f"{audit.fingerprint}/{self.seed}",
            margin=settings.margin,
        )
        if held and not (data.hold or data.extra):
            logger.warning(
                "no retain documents: only the other tokens of the documents to forget are held still, and all else "
                "that the model does may drift; give --retain FILE, or set retain.generated to hold its own samples"
            )
        out_terms = None
        if kinds := needs_of(self.weights) & {"out", "typical", "lens"}:
            with self.trainable.before():  # references are switched to where they share the model's base
                out_terms = OutTerms(
                    audit, data.forget, kinds=kinds, store=self.references, entries=settings.kept_entries
                )
        if settings.gradient_checkpointing:
            keep_recomputing(self.trainable)
        control = control_level(audit, scope_tokens(audit, settings.scope))
        losses = Losses(
            self.trainable,
            settings,
            self.weights,
            out_terms=out_terms,
            device=self.accelerator.device,
            seed=self.seed,
        )
        return Loop(
            self.accelerator,
            self.trainable,
            losses,
            settings,
            data,
            control=control,
            seed=self.seed,
            plan=self.plan,
            partial=self.partial,
            rounds=rounds,
            added=as_json(added),
            after=after,
        )

    def look_again(self, loop: Loop, added: Sequence[SpanRow]) -> Left:
        """What the model says now of the documents to forget and of those it never saw, and what of it is left."""
        audit = with_spans(self.audit, added) if added else self.audit
        documents = [own for own in audit.tokenized() if audit.sets[own.id] != "retain"]
        log_prob = np.full(len(audit.tokens), np.nan)
        said = token_log_probs(
            documents,
            forward=loop.losses.forward,
            context=min(audit.metadata.context, self.model.context),
            stride=audit.metadata.detect.stride,
            batch_tokens=loop.losses.batch_tokens,
            accelerator=self.accelerator,
        )
        for own, values in zip(documents, said, strict=True):
            log_prob[audit.rows[own.id]] = values
        return what_is_left(audit, log_prob, keep_judges=self.settings.keep_judges)


def prepare(
    audit: Audit,
    *,
    settings: Unlearn,
    partial: Path,
    retain: Documents | str | Path | None = None,
    target: str | Path | None = None,
    store: ModelStore,
    seed: int = 0,
) -> Prepared:
    """The model, with what is trained on it.

    Args:
        partial: the result's directory, which is not written; checkpoints lie beside it.
        audit, settings, retain, target, store, seed: as for `unlearn`.

    Raises:
        NothingToUnlearnError: no token is selected.
        MitigateError: settings that cannot be used, or the model is not the one audited.
    """
    weights = parse_objective(settings.objective)
    settings = settings.model_copy(update={"retain": retain_of(settings.retain, weights)})
    if settings.retain.budget is not None and settings.retain.anchor == "none":
        raise MitigateError("unlearn.retain.budget: there are no anchors; set unlearn.retain.anchor: kl, nll or hidden")
    if not audit.columns["selected"].any():
        raise NothingToUnlearnError(
            "no token is selected: the audit found nothing to unlearn; lower detect.spans.threshold, "
            "or give patterns of what is sensitive (spans.patterns)"
        )
    for doubt in doubts_of(audit):  # the command line asks before; who calls this is told
        logger.warning("doubtful: %s", doubt)
    audited, references = audit.metadata.target, store
    if settings.method in ("full", "last_layers"):
        store.check_whole(f"unlearn.method: {settings.method}")
        store = store.fresh()  # its weights are changed in place, and the caller's and the references' must not be
    if settings.method in ("lora", "dora"):
        check_layering(str(target or audited.source), base=store.base)
    [model] = load_audited([audited.model_copy(update={"source": str(target or audited.source)})], store=store)
    audit.check_tokenizer(model.tokenizer, name=model.name, store=references)
    if isinstance(model.base.model, Mixture):
        raise MitigateError(FOR_INFERENCE)
    if retain is not None and not isinstance(retain, Documents):
        retain = read_documents(retain, tokenizer=model.tokenizer)
    plan = {
        "target": {"source": audited.source, "fingerprint": audited.fingerprint},
        "made_from": audit.metadata.made_from,
        "audit": audit.fingerprint,
        "taught": taught_by(audit, keep_judges=settings.keep_judges),
        "spans": fingerprint(audit.spans.to_pylist()),
        "settings": settings.model_dump(),
        "retain": retain.fingerprint if retain is not None else None,
        "seed": seed,
    }
    if settings.retain.generated:
        retain = _with_generated(retain, model, count=settings.retain.generated, seed=seed)
    seed_everything(seed)
    trainable = make_trainable(model, settings, seed=seed)
    trainable.module.eval()  # dropout off: every change of a token's probability is ours
    if settings.gradient_checkpointing:
        checkpoint_activations(trainable)
    return Prepared(
        audit=audit,
        settings=settings,
        weights=weights,
        model=model,
        trainable=trainable,
        accelerator=make_accelerator(store.device),
        retain=retain,
        references=references,
        plan=plan,
        partial=partial,
        seed=seed,
    )


def train_rounds(prepared: Prepared, *, resume: bool) -> tuple[Loop, list[dict[str, Any]]]:
    """Train round after round, until nothing is left that another one could take away.

    Finished rounds are kept beside the checkpoints, so that an interrupted run does not begin with the first again.

    Args:
        prepared: what is trained.
        resume: go on from checkpoints.

    Returns:
        the last round, and of each one `steps`, why it `stopped`, `history`, the `kept_step` whose weights it ends
        with, what `Left.figures` says, whether the spans are `exposed`, how many were `added` for the next, and whether
        it was `undone` since it went too far.
    """
    rounds, added = _finished(prepared, resume=resume)
    loop = prepared.loop(rounds, added)
    while True:
        history, stopped, kept_step = loop.train(resume=resume or bool(rounds))
        left = prepared.look_again(loop, added)
        steps = history[-1]["step"]
        back = f"; back to step {kept_step}, which was nearer" if kept_step < steps else ""
        record = {"steps": steps, "stopped": stopped + back, "history": history, "kept_step": kept_step}
        rounds.append({**record, **left.figures, "exposed": left.exposed, "added": len(left.added), "undone": False})
        if loop.kept and _fell_too_low(rounds):
            logger.info("round %d: what was to be forgotten fell below text never seen; it is undone", len(rounds))
            prepared.trainable.restore(loop.kept)
            rounds[-1]["undone"] = True
            return loop, rounds
        more = bool(left.added) or (left.exposed and stopped == STEP_LIMIT)
        if len(rounds) >= _most_rounds(prepared) or not more:
            return loop, rounds
        logger.info("round %d: %s; %d more spans for the next", len(rounds), stopped, len(left.added))
        added = [*added, *left.added]
        kept = prepared.trainable.state()
        loop = prepared.loop(rounds, added, after=loop)
        loop.kept = kept
        loop.keep()


def _fell_too_low(rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the known spans now lie below never-seen ones, and were nearer to them a round before."""
    before, now = (one.get("span_auc") for one in rounds[-2:])
    return before is not None and now is not None and now < LEAST_AUC and abs(now - 0.5) > abs(before - 0.5)


def _most_rounds(prepared: Prepared) -> int:
    """One where there is no level to stop at, where whole documents go, and where p_0 cannot be asked any more."""
    settings, trainable = prepared.settings, prepared.trainable
    several = settings.stop_at_control and settings.scope == "token" and trainable.can_step_back
    return settings.rounds if several else 1


def _finished(prepared: Prepared, *, resume: bool) -> tuple[list[dict[str, Any]], list[SpanRow]]:
    """The rounds that an interrupted run had finished, and the spans that they added."""
    newest = open_checkpoints(partial_of(prepared.partial), prepared.accelerator, resume=resume)
    state: Mapping[str, Any] = newest[0] if newest is not None else {}
    return list(state.get("rounds", [])), [SpanRow(**row) for row in state.get("added", [])]


def _with_generated(retain: Documents | None, model: Model, *, count: int, seed: int) -> Documents:
    """The retain documents and samples of the model itself."""
    sampling = Sampling(count=count, max_tokens=min(128, model.context // 2), top_k=None)
    drawn = sample(model, None, sampling=sampling, seed=seed)
    return Documents((*(retain or ()), *drawn))
