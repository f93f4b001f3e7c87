"""Train a model to forget the selected tokens and keep everything else where it was.

    result = unlearn(audit, retain=documents, settings=Unlearn(objective="hinge"), out="adapter")

Each step sees some documents with tokens to forget and some retain documents. The loss is the objective's mean over
what is to be forgotten plus a weight × the mean of the anchors over all other tokens, by default KL(p_0 ‖ p_θ), p_0
being the model before: with the new adapter off and, if the leaky target is itself an adapter, that one on. The weight
is fixed, or a dual variable that keeps the anchors' mean within a budget. A token that has come down to the level of
text the target never saw gets no more gradient, and training stops when the selected tokens are there. Then the whole
text is looked at again: what is left is unlearned in a further round, see `mitigate.unlearning.training.rounds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import check_free
from mitigate.artifacts.locks import sole_worker
from mitigate.artifacts.provenance import UNLEARN_RECORD, read_made
from mitigate.artifacts.temporaries import partial_of
from mitigate.detection.record import Audit
from mitigate.documents import Documents
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state, together
from mitigate.unlearning.preparation import prepare, train_rounds
from mitigate.unlearning.result import write_result
from mitigate.unlearning.settings import Unlearn


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
        prepared = prepare(audit, settings=settings, partial=out, retain=retain, target=target, store=store, seed=seed)
        trainable, accelerator = prepared.trainable, prepared.accelerator
        frozen = trainable.frozen_checksum()
        loop, rounds = train_rounds(prepared, resume=resume)
        if trainable.frozen_checksum() != frozen:
            raise RuntimeError("frozen weights changed during unlearning")
        state = trainable.state()
        trainable.gather()
        with together(process_state(store.device.type)):
            if accelerator.is_main_process:
                write_result(loop, state, rounds, out=out, store=store)
    return Unlearned.load(out)
