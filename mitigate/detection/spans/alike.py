"""Never-seen text that is like the spans to forget, to compare these with where no known span of it is at hand.

Spans that a detector finds in never-seen text are no such comparison: they were found since they stand out, and lie far
above what else was never seen. These stretches are drawn without a look at what the target says of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mitigate.detection.record import Audit
from mitigate.detection.spans.row import SpanRow

ENOUGH = 200  # stretches; what resolves one in a hundred twice
_MOST_ROUNDS = 5  # ... of one for each span
_DRAWN = 32  # places, of which the most alike is taken


def never_seen_stretches(audit: Audit, spans: Sequence[SpanRow]) -> list[tuple[str, slice]]:
    """Stretches of the holdout documents, each as long as one of the spans and about as likely to the references.

    No two overlap. The same audit gives the same ones.

    Args:
        audit: with or without holdout documents.
        spans: of its documents.

    Returns:
        document, rows of its tokens; `ENOUGH` of them, or as many as there is room for.
    """
    out = audit.columns["log_prob_out"].astype(np.float64)
    free = np.zeros(len(out), dtype=bool)
    ends, names = np.zeros(len(out), dtype=int), {}
    for doc_id, own in audit.rows.items():
        if audit.sets[doc_id] == "holdout":
            free[own] = ~np.isnan(audit.columns["log_prob"][own]) & ~np.isnan(out[own])
            ends[own], names[own.stop] = own.stop, doc_id
    starts = np.flatnonzero(free)
    wanted = [(row.token_end - row.token_start, float(np.nanmean(out[audit.rows_of(row)]))) for row in spans]
    wanted.sort(key=lambda one: -one[0])  # while there is room for the long ones
    rng = np.random.default_rng(0)
    found: list[tuple[str, slice]] = []
    for _ in range(_MOST_ROUNDS if len(starts) else 0):
        for length, likely in wanted:
            drawn = rng.choice(starts, size=_DRAWN)
            places = [at for at in drawn.tolist() if at + length <= ends[at] and free[at : at + length].all()]
            if places:
                best = min(places, key=lambda at: abs(out[at : at + length].mean() - likely))
                free[best : best + length] = False
                found.append((names[ends[best]], slice(best, best + length)))
        if len(found) >= ENOUGH:
            break
    return found
