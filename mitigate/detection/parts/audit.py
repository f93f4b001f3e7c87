"""Audit more documents than memory holds: part by part, each an audit of its own, and what stands out as one audit.

    audit_parts("my-model", ["reference"], documents="large.jsonl", part_tokens=1_000_000, out="large")

    out/parts/00000 ...     audits of the parts, in the order of the documents
    out/exposed             one audit of all documents with a span that was found or is selected, and of controls; with
                            an erasure request also of its documents, and of all that hold their secrets
    out/plan.json           what they were made from

The documents are read twice. First to count and check them; then part by part, each audited beside up to 500 documents
of the set holdout, so that each is calibrated on its own: a rate of false discoveries that holds in every part holds in
all. A part that is there is kept, so an audit that was cut short goes on where it stopped. For an erasure request they
are read once more, before all else: what it selects must be known. Where its secrets stand besides is looked for in the
parts when all are there, and marked in `exposed` alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitigate import __version__
from mitigate.artifacts.files import damage, fingerprint
from mitigate.artifacts.plans import planned
from mitigate.artifacts.temporaries import discard
from mitigate.detection.audit import Auditor
from mitigate.detection.metadata import Extract
from mitigate.detection.parts.exposed import expose
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import References
from mitigate.detection.settings import Detect
from mitigate.documents import DocumentSource
from mitigate.documents.corpus import Corpus, survey
from mitigate.documents.request import Request
from mitigate.errors import MitigateError
from mitigate.models.directory import model_fingerprint
from mitigate.models.model import Model
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartedAudit:
    """An audit that was made part by part.

    Attributes:
        directory: where it is.
        total: how much was audited, and what of it stands out.
        skipped: a line for each row and document that was left out.
        exposed: the documents that stand out, and controls, as an audit; None where none does.
    """

    directory: Path
    total: Extract
    skipped: tuple[str, ...]
    exposed: Audit | None


def audit_parts(
    target: str | Path | Model,
    references: References | str | Path | Sequence[str | Path],
    *,
    documents: str | Path | DocumentSource | Sequence[str | Path | DocumentSource],
    out: str | Path,
    part_tokens: int,
    detect: Detect | None = None,
    store: ModelStore | None = None,
    forget: Request | None = None,
    seed: int = 0,
) -> PartedAudit:
    """Audit documents part by part, in memory that does not grow with their number but for what stands out.

    Args:
        target, references, detect, store, seed: as for `audit`.
        forget (*optional*): an erasure request; its documents and all that hold their secrets are in what stands out.
        documents: files, hub data sets or sources, without the keys that need all documents at once.
        out: directory of the parts; finished ones in it are kept.
        part_tokens: about so many tokens are audited at once, controls aside; each takes about 300 bytes, and shadows
            calibrate a part on its own documents.

    Raises:
        MitigateError: as `audit` and `read_documents`; `out` holds something else.
    """
    out = Path(out)
    if part_tokens < 1:
        raise MitigateError(f"part_tokens: {part_tokens}; give 1 or more, for instance 1000000")
    if detect is not None and detect.kept_entries:
        raise MitigateError("detect.kept_entries: an audit by parts keeps none; leave it out")
    auditor = Auditor.of(target, references, detect=detect, store=store, seed=seed)
    corpus = survey(documents, tokenizer=auditor.target.tokenizer, request=forget)
    number = math.ceil(corpus.tokens / part_tokens)
    state = process_state()
    plan = _plan(auditor, corpus, number, forget)
    with planned(out, plan, state, others="an audit of other documents, models or settings"):
        parts = []
        for count, part in enumerate(corpus.parts(number)):
            directory = out / "parts" / f"{count:05d}"
            logger.info("part %d of about %d: %d documents", count + 1, number, len(part))
            there = _is_kept(directory)
            state.wait_for_everyone()  # all have looked before one writes
            if not there:
                own = {document.id for document in part}
                controls = [one for one in corpus.controls if one.id not in own]
                found = auditor.audit(part, controls=controls, sets=corpus.sets)
                if state.is_main_process:
                    found.save(directory)
            state.wait_for_everyone()
            parts.append(directory)
        total, result = expose(corpus, parts)
        if state.is_main_process and result is not None:
            result.save(out / "exposed", replace=True)
        state.wait_for_everyone()
        return PartedAudit(out, total, corpus.skipped, result)


def _plan(auditor: Auditor, corpus: Corpus, number: int, request: Request | None) -> dict[str, Any]:
    return {
        "target": auditor.target.fingerprint,
        "references": [model_fingerprint(path, base=auditor.store.base) for path in auditor.references.paths],
        "trained_on": fingerprint([groups and sorted(groups) for groups in auditor.references.trained_on]),
        "documents": corpus.fingerprint,
        "detect": auditor.detect.model_dump(mode="json"),
        "seed": auditor.seed,
        "parts": number,
        "request": fingerprint(None if request is None else request.model_dump(mode="json")),
        "code": __version__,
    }


def _is_kept(directory: Path) -> bool:
    """Whether the audit of a part is there already; a damaged one goes."""
    if not directory.is_dir():
        return False
    if wrong := damage(directory):
        logger.warning("%s: %s; audited again", directory, wrong[0])
        discard(directory)
        return False
    return True
