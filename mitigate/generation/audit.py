"""Which tokens of its own output a model memorized: sample it, audit what it wrote, link that to the training text.

    result = audit_generated("my-model", ["references"], prompts="prompts.txt", match="train.jsonl")
    for stretch in memorized_stretches(result): ...     # text, score, and the training document it was copied from

A model prefers what it wrote itself: a token drawn from p_θ has an expected log-ratio of KL(p_θ ‖ p̄) ≥ 0 where nothing
is memorized. A threshold or an error rate that holds for given documents is too low for generated ones; that a stretch
stands in a training document, and scores high under references that never saw that one, is the evidence.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mitigate.detection.audit import audit
from mitigate.detection.metadata import CopiedFrom, Generated
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import References, load_references
from mitigate.detection.settings import Detect
from mitigate.documents import Documents, read_documents
from mitigate.generation.overlaps import link, with_groups
from mitigate.generation.prompts import read_prompts
from mitigate.generation.sampling import sample
from mitigate.generation.settings import Sampling
from mitigate.models.model import Model
from mitigate.models.store import ModelStore

logger = logging.getLogger(__name__)


def audit_generated(
    target: str | Path | Model,
    references: References | Sequence[str | Path],
    *,
    prompts: str | Path | Sequence[str] | None = None,
    match: str | Path | Documents | None = None,
    sampling: Sampling | None = None,
    detect: Detect | None = None,
    store: ModelStore | None = None,
    seed: int = 0,
) -> Audit:
    """Sample text from the target and audit it: the continuations are scored, the prompts are only read.

    With training documents, what was copied from one is judged by the references that never saw that one. Without, a
    cross-fitted reference may know the copied text and so hide that the target does.

    Args:
        target: the model under audit: hub id, directory, adapter directory, or a loaded model.
        references: as in `audit`.
        prompts (*optional*): a file of them or a list; default: sample from the start token.
        match (*optional*): training documents to link the output to; for cross-fitted references, the documents that
            they were cross-fitted on.
        sampling, detect (*optional*): settings of sampling and of the detector.
        store (*optional*): loads the models.
        seed (`int`, *optional*, defaults to 0): of the samples.

    Returns:
        The audit of the generated documents. Its metadata say how they were drawn (`generated`).

    Raises:
        MitigateError: as in `read_prompts`, `sample` and `audit`; no sample has a text.
    """
    sampling, store = sampling or Sampling(), store or ModelStore()
    references = references if isinstance(references, References) else load_references(references)
    prompts = read_prompts(prompts) if isinstance(prompts, str | Path) else prompts
    model = target if isinstance(target, Model) else store.load(target)
    if match is not None and not isinstance(match, Documents):
        match = read_documents(match, tokenizer=model.tokenizer)
    _warn_of_unknown_training(references, match)
    generated = sample(model, prompts, sampling=sampling, seed=seed)
    links = link(generated, match) if match is not None else {}
    if match is not None:
        generated = with_groups(generated, links, match)
    result = audit(model, references, documents=generated, detect=detect, store=store, seed=seed)
    drawn = Generated(
        sampling=sampling.model_dump(),
        prompts=len(prompts or ()),
        links=tuple(
            CopiedFrom(
                doc_id=doc_id,
                char_start=found.char_start,
                char_end=found.char_end,
                training_id=found.doc_id,
                training_start=found.doc_start,
            )
            for doc_id, of_document in links.items()
            for found in of_document
        ),
        without_text=len(generated.skipped),
    )
    return replace(result, metadata=result.metadata.model_copy(update={"generated": drawn}))


def memorized_stretches(audit: Audit) -> list[dict[str, Any]]:
    """The spans that an audit found, highest score first, each with the training document it was copied from.

    Returns:
        dicts of `doc_id, char_start, char_end, text, score`, `probability` and `q` (None where the audit has none), and
        `training_id`: that of the link which shares the most characters with the span, None where there is none.
    """
    links = audit.metadata.generated.links if audit.metadata.generated is not None else ()
    stretches = []
    for span in audit.span_rows:
        if span.source != "found":
            continue
        shared = {
            number: min(found.char_end, span.char_end) - max(found.char_start, span.char_start)
            for number, found in enumerate(links)
            if found.doc_id == span.doc_id
        }
        best = max(shared, key=shared.__getitem__, default=None)
        stretches.append(
            {
                "doc_id": span.doc_id,
                "char_start": span.char_start,
                "char_end": span.char_end,
                "score": span.score,
                "probability": span.probability,
                "q": span.q,
                "text": span.text(audit.texts[span.doc_id]),
                "training_id": links[best].training_id if best is not None and shared[best] > 0 else None,
            }
        )
    return sorted(stretches, key=lambda stretch: -stretch["score"])


def _warn_of_unknown_training(references: References, match: Documents | None) -> None:
    seen = frozenset().union(*(groups for groups in references.trained_on if groups is not None))
    if seen and not any(document.group in seen for document in match or ()):
        given = "no training documents are given" if match is None else "none of the training documents is among those"
        logger.warning(
            "the references were cross-fitted on documents, but %s: a reference that saw what the target copied hides "
            "that it was memorized; give as match the documents that the references were made from",
            given,
        )
