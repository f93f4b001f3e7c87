"""Evidence made again, with the models at hand: what the attacks read now beside what they are said to have read."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa

from mitigate.detection.audit import check_audited
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import References
from mitigate.errors import MitigateError
from mitigate.models.store import ModelStore
from mitigate.proof.battery import READING, read
from mitigate.proof.case import make_case
from mitigate.proof.evidence import Evidence, check_evidence
from mitigate.proof.settings import Proof
from mitigate.proof.subject import NotPossibleError

logger = logging.getLogger(__name__)
NEAR = 1e-3  # of scores, which another machine rounds otherwise
_MOST_APART = 0.02  # share of scores that may differ by more: a value that comes back or not at a hair's breadth


def check_again(
    directory: str | Path,
    before: Audit | str | Path,
    mitigated: str | Path,
    *,
    oracle: str | Path | None = None,
    judges: References | str | Path | None = None,
    store: ModelStore | None = None,
) -> list[str]:
    """What of evidence is not so when the attacks are made again, a line each; empty if all is.

    First it is checked as `check_evidence` does. Readings are equal if texts and people are the same, and scores within
    0.001 nats, or all but 2 % of them: what comes back word for word may hang on the last bit.

    Args:
        directory: of the evidence.
        before, mitigated, oracle, judges, store: as for `prove`.

    Raises:
        MitigateError: no evidence there, or models that cannot be verified.
    """
    wrong = check_evidence(directory)
    evidence = Evidence.load(directory)
    record, store = evidence.record, store or ModelStore()
    audit = before if isinstance(before, Audit) else Audit.load(before)
    check_audited(audit.metadata.references, store=store)
    case = make_case(audit, mitigated, oracle=oracle, judges=judges, store=store)
    now = {
        "before": audit.metadata.target.fingerprint,
        "mitigated": case.mitigated.fingerprint,
        "control": case.control.fingerprint if case.control is not None else None,
        "judges": list(case.judges),
    }
    if others := [name for name, fingerprint in now.items() if record["models"][name] != fingerprint]:
        raise MitigateError(f"{directory}: is evidence of other models ({', '.join(others)}) than those given here")
    settings = Proof.model_validate(record["settings"])
    for number, (name, table) in enumerate(evidence.readings.items()):
        logger.info("attack %d of %d: %s", number + 1, len(evidence.readings), name.replace("_", " "))
        try:
            again = read(case, name, settings=settings, seed=record["seed"])
        except NotPossibleError as reason:
            wrong.append(f"{name}: cannot be made here: {reason}")
            continue
        if difference := _difference(table, again):
            wrong.append(f"{name}: {difference}")
    return wrong


def _difference(written: pa.Table, again: pa.Table) -> str:
    """In words; empty if there is none."""
    texts = [name for name in READING.names if name != "score"]
    if not written.select(texts).equals(again.select(texts)):
        return "other texts or people are compared"
    own, other = (table["score"].to_numpy() for table in (written, again))
    same = np.isclose(own, other, rtol=0, atol=NEAR) | (own == other)
    if same.mean() >= 1 - _MOST_APART:
        return ""
    return f"{int((~same).sum()):,} of {len(same):,} scores are others"
