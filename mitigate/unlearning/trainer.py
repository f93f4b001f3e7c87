"""Train a model to forget the selected tokens and keep everything else where it was.

    result = unlearn(audit, retain=documents, settings=Unlearn(objective="hinge"), out="adapter")

Each step sees some documents with tokens to forget and some retain documents. The loss is the objective's mean over
what is to be forgotten plus a weight × the mean of the anchors over all other tokens, by default KL(p_0 ‖ p_θ), p_0
being the model before: with the new adapter off and, if the leaky target is itself an adapter, that one on. The weight
is fixed, or a dual variable that keeps the anchors' mean within a budget. A token that has come down to the level of
text the target never saw gets no more gradient, and training stops when the selected tokens are there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mitigate.artifacts.files import check_free, fingerprint
from mitigate.artifacts.locks import sole_worker
from mitigate.artifacts.provenance import UNLEARN_RECORD, read_made
from mitigate.artifacts.temporaries import partial_of
from mitigate.detection.audit import load_audited
from mitigate.detection.doubts import doubts_of
from mitigate.detection.panel import by_teachers, taught_by
from mitigate.detection.record import Audit
from mitigate.documents import Documents, read_documents
from mitigate.errors import MitigateError, NothingToUnlearnError
from mitigate.generation.sampling import sample
from mitigate.generation.settings import Sampling
from mitigate.models.directory import check_layering
from mitigate.models.mixture import FOR_INFERENCE, Mixture
from mitigate.models.model import Model
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state, seed_everything, together
from mitigate.unlearning.material.data import unlearning_data
from mitigate.unlearning.material.forgetting import scope_tokens
from mitigate.unlearning.material.teachers import OutTerms
from mitigate.unlearning.objectives.catalogue import anchor_of, needs_of
from mitigate.unlearning.objectives.names import SUBSTITUTES, parse_objective
from mitigate.unlearning.result import write_result
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainable import checkpoint_activations, make_trainable
from mitigate.unlearning.training.control import control_level, span_limits
from mitigate.unlearning.training.loop import Loop
from mitigate.unlearning.training.losses import Losses

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unlearned:
    """What unlearning made, and how it went.

    Attributes:
        directory: PEFT adapter directory (safetensors), or a plain model's with the methods full and last_layers; give
            its path wherever `mitigate` takes a model.
        summary: objective, steps, why it stopped, history of the watch, parameter counts, fingerprints.
    """

    directory: Path
    summary: dict[str, Any]

    @classmethod
    def load(cls, directory: str | Path) -> Unlearned:
        """Read a finished directory.

        Raises:
            MitigateError: unlearning did not finish there, or of another version did.
        """
        return cls(Path(directory), read_made(Path(directory) / UNLEARN_RECORD))


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
    """Train what removes an audit's selected tokens.

    Runs in one process or in several (torchrun, `accelerate launch`), with the same result.

    Args:
        audit: the audit, or its directory.
        out: where the adapter goes. Checkpoints live in `out + ".partial"` until it is done.
        retain (*optional*): documents to hold still, besides the audit's own retain documents and the other tokens of
            the documents with selected spans.
        settings (*optional*): objective, what is trained, schedule.
        target (*optional*): where the audited model is now, if it moved.
        store (*optional*): loads the models.
        seed (`int`, *optional*, defaults to 0): of the adapter's initialization and the order of documents.
        resume (`bool`, *optional*, defaults to `True`): go on from a checkpoint of the same audit and settings.

    Raises:
        NothingToUnlearnError: no token is selected, or the selected ones are at the control level already.
        MitigateError: settings that cannot be used, or the model is not the one audited.
    """
    audit = audit if isinstance(audit, Audit) else Audit.load(audit)
    settings, store, out = settings or Unlearn(), store or ModelStore(), Path(out)
    check_free(out)
    with sole_worker(partial_of(out), process_state(store.device.type)):
        loop = prepare(audit, settings=settings, partial=out, retain=retain, target=target, store=store, seed=seed)
        trainable, accelerator = loop.trainable, loop.accelerator
        frozen = trainable.frozen_checksum()
        history, stopped = loop.train(resume=resume)

        if trainable.frozen_checksum() != frozen:
            raise RuntimeError("frozen weights changed during unlearning")
        state = trainable.state(accelerator, loop.module)
        with together(process_state(store.device.type)):
            if accelerator.is_main_process:
                write_result(loop, state, history, stopped, out=out, store=store)
    return Unlearned.load(out)


def prepare(
    audit: Audit,
    *,
    settings: Unlearn,
    partial: Path,
    retain: Documents | str | Path | None = None,
    target: str | Path | None = None,
    store: ModelStore,
    seed: int = 0,
) -> Loop:
    """Everything up to the first step: the model with what is trained on it, tasks, terms, levels.

    Args:
        partial: the result's directory, which is not written; checkpoints lie beside it.
        audit, settings, retain, target, store, seed: as for `unlearn`.

    Raises:
        NothingToUnlearnError: no token is selected.
        MitigateError: settings that cannot be used, or the model is not the one audited.
    """
    weights = parse_objective(settings.objective)
    anchor = settings.retain.anchor if settings.retain.anchor != "auto" else anchor_of(weights)
    if settings.retain.budget is not None and anchor == "none":
        raise MitigateError("unlearn.retain.budget: there are no anchors; set unlearn.retain.anchor: kl, nll or hidden")
    if not audit.columns["selected"].any():
        raise NothingToUnlearnError(
            "no token is selected: the audit found nothing to unlearn; lower detect.spans.threshold, "
            "or give patterns of what is sensitive (spans.patterns)"
        )
    taught = taught_by(audit, keep_judges=settings.keep_judges)
    for doubt in doubts_of(audit):  # the command line asks before; who calls this is told
        logger.warning("doubtful: %s", doubt)
    audit = by_teachers(audit) if settings.keep_judges else audit
    audited, references = audit.metadata.target, store
    if settings.method in ("full", "last_layers"):
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
        "taught": taught,
        "spans": fingerprint(audit.spans.to_pylist()),
        "settings": settings.model_dump(),
        "retain": retain.fingerprint if retain is not None else None,
        "seed": seed,
    }
    if settings.retain.generated:
        retain = _with_generated(retain, model, count=settings.retain.generated, seed=seed)
    texts = {SUBSTITUTES[name] for name in weights if name in SUBSTITUTES}
    data = unlearning_data(
        audit,
        model,
        retain=retain,
        scope=settings.scope,
        weighting=settings.weighting,
        anchors=anchor != "none",
        focus=settings.retain.focus,
        substitute=texts.pop() if texts else None,
        key=f"{audit.fingerprint}/{seed}",
    )
    if anchor != "none" and not (data.hold or data.extra):
        logger.warning(
            "no retain documents: only the other tokens of the documents to forget are held still, and all else that "
            "the model does may drift; give --retain FILE, or set retain.generated to hold its own samples"
        )
    out_terms = None
    if kinds := needs_of(weights) & {"out", "typical"}:
        out_terms = OutTerms(audit, data.forget, kinds=kinds, store=references, entries=settings.kept_entries)
    seed_everything(seed)
    trainable = make_trainable(model, settings, seed=seed)
    trainable.module.eval()  # dropout off: every change of a token's probability is ours
    if settings.gradient_checkpointing:
        checkpoint_activations(trainable)
    accelerator = Accelerator(cpu=store.device.type == "cpu")
    control = control_level(audit, scope_tokens(audit, settings.scope))
    losses = Losses(
        trainable,
        settings,
        weights,
        anchor=anchor,
        margin=control.log_ratio if settings.margin is None else settings.margin,
        out_terms=out_terms,
        device=accelerator.device,
        seed=seed,
    )
    return Loop(
        accelerator,
        trainable,
        losses,
        settings,
        data,
        control=control,
        limits=span_limits(audit),
        seed=seed,
        plan=plan,
        partial=partial,
    )


def _with_generated(retain: Documents | None, model: Model, *, count: int, seed: int) -> Documents:
    """The retain documents and samples of the model itself."""
    sampling = Sampling(count=count, max_tokens=min(128, model.context // 2), top_k=None)
    drawn = sample(model, None, sampling=sampling, seed=seed)
    return Documents((*(retain or ()), *drawn))
