"""What speaks against unlearning what an audit selected: it is said, with its numbers, before anything is changed."""

from __future__ import annotations

import numpy as np

from mitigate.detection.assessment import RATE_REMEDY
from mitigate.detection.record import Audit
from mitigate.detection.references.fit import fit_warning, rate_warning
from mitigate.detection.spans.by_score import LEAST_NON_MEMBERS

MOST_SELECTED = 0.5  # share of the tokens that can be selected: what is memorized is rarely most of a text


def doubts_of(audit: Audit) -> list[str]:
    """Sentences about an audit whose selection is likely not what its user wants, each with numbers and a remedy.

    Its references may not fit as the target does, so that what the target learned better looks memorized and their
    error rates are not its own; or the detector selected most of the text. Known spans are selected as they stand,
    whatever their share.
    """
    found = [warning] if (warning := fit_warning(audit.metadata.fit)) else []
    columns, sets = audit.columns, audit.sets
    by_detector = columns["selected"].astype(bool)
    for span in audit.span_rows:
        if span.selected and span.source == "known":
            by_detector[audit.rows_of(span)] = False
    by_references = audit.metadata.detect.fdr is not None and audit.metadata.calibration.kind == "shadows"
    few = list(sets.values()).count("holdout") < LEAST_NON_MEMBERS
    if by_references and few and (warning := rate_warning(audit.metadata.fit)):
        found.append(f"{warning}; {RATE_REMEDY}")
    wanted = "forget" if "forget" in sets.values() else None
    scored = ~np.isnan(columns["log_prob"])
    among = np.zeros(len(scored), dtype=bool)
    for doc_id, rows in audit.rows.items():
        among[rows] = scored[rows] & (sets[doc_id] == wanted)
    share = float(by_detector[among].mean()) if among.any() else 0.0
    if share > MOST_SELECTED:
        where = "the documents to forget" if wanted else "the documents"
        found.append(
            f"{share:.0%} of the {int(among.sum()):,} tokens of {where} were selected; to unlearn most of a text harms "
            "what the model says elsewhere: set detect.fdr: 0.05 (needs 4 references or more), raise "
            "detect.spans.threshold, give patterns of what is sensitive and set detect.select: known"
        )
    return found
