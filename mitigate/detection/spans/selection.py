"""Which spans are to be unlearned: what the detector finds, and the known ones that are exposed.

Two questions. *Was this text trained on?* needs an error rate against text that was not: the false discovery rate. *It
was (an erasure request, a forget set, the owner's own file): what does the model know of it that models without it do
not?* needs no such rate: there a known span is exposed as soon as the target knows it better than a typical model that
never saw it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mitigate.detection.scores.token import clipped, typical
from mitigate.detection.settings import Detect
from mitigate.detection.spans.by_score import LEAST_NON_MEMBERS
from mitigate.detection.spans.row import SpanRow
from mitigate.detection.spans.scored import ScoredDocuments
from mitigate.errors import MitigateError

NO_NULL = (
    f"detect.fdr: fewer than {LEAST_NON_MEMBERS} known spans in holdout documents; the false discovery rate of known "
    "spans needs them: set detect.select: found, or remove detect.fdr"
)


def select(
    scored: ScoredDocuments,
    rows: Sequence[SpanRow],
    signals: Mapping[str, np.ndarray],
    detect: Detect,
    *,
    trained: bool,
) -> list[SpanRow]:
    """The spans, those of them marked that are to be unlearned.

    Args:
        scored: the documents.
        rows: their spans.
        signals: of the tokens: `log_prob`, `log_prob_references`.
        detect: settings.
        trained: the documents whose spans may be selected are said to have been trained on: they are a forget set, or
            references were cross-fitted on them as on the target's own text.

    Raises:
        MitigateError: known spans at a false discovery rate that nothing tells.
    """
    eligible = [row for row in rows if scored.is_eligible(row)]
    found = [row for row in eligible if row.source == "found"] if detect.select != "known" else []
    if detect.fdr is not None:
        found = [row for row in found if row.q is not None and row.q <= detect.fdr]
    known = [row for row in eligible if row.source == "known"]
    if detect.select == "known":
        known = _at_rate(known, detect) if detect.fdr is not None else known
    elif detect.select == "exposed":
        known = _exposed(scored, rows, known, signals) if trained else _evident(known, detect)
    else:
        known = []
    candidates = [*found, *known]
    if detect.min_score is not None:
        candidates = [row for row in candidates if row.score >= detect.min_score]
    if detect.share is not None:
        candidates.sort(key=lambda row: -(row.score if row.probability is None else row.probability))
        candidates = candidates[: round(detect.share * len(candidates))]
    chosen = {row.span_id for row in candidates}
    return [replace(row, selected=row.span_id in chosen) for row in rows]


def span_excess(
    scored: ScoredDocuments, rows: Sequence[SpanRow], log_prob: np.ndarray, references: np.ndarray
) -> np.ndarray:
    """What the target knows of each span more than a typical model that never saw it.

    Args:
        scored: the documents.
        rows: n spans.
        log_prob: (N,) of the tokens under the target.
        references: (N, K) likewise under the OUT references, NaN where one was not used.

    Returns:
        (n,) mean over the span's tokens of ℓ less the mean of the references' ℓ, clipped to ±3 nats.
    """
    excess = clipped(log_prob - typical(references))
    return np.array([np.nanmean(excess[scored.rows_of(row)]) for row in rows])


def typical_excess(never_seen: Sequence[float] | np.ndarray) -> float:
    """The median excess of never-seen known spans, nats; 0 where there are fewer than 20."""
    return float(np.median(never_seen)) if len(never_seen) >= LEAST_NON_MEMBERS else 0.0


def _exposed(
    scored: ScoredDocuments, rows: Sequence[SpanRow], known: Sequence[SpanRow], signals: Mapping[str, np.ndarray]
) -> list[SpanRow]:
    """Known spans that the target knows better, by more than the median never-seen one, than models without them."""
    never_seen = [row for row in rows if row.source == "known" and scored.set_of(row) == "holdout"]
    columns = signals["log_prob"], signals["log_prob_references"]
    level = typical_excess(span_excess(scored, never_seen, *columns))
    excess = span_excess(scored, known, *columns)
    return [row for row, own in zip(known, excess, strict=True) if own > level]


def _evident(known: Sequence[SpanRow], detect: Detect) -> list[SpanRow]:
    """Known spans with the evidence that a found one needs: nobody says that their text was trained on."""
    rate, least = detect.fdr, detect.spans.threshold
    return [row for row in known if (row.score >= least if rate is None or row.q is None else row.q <= rate)]


def _at_rate(known: Sequence[SpanRow], detect: Detect) -> list[SpanRow]:
    assert detect.fdr is not None
    if known and all(row.q is None for row in known):
        raise MitigateError(NO_NULL)
    return [row for row in known if row.q is not None and row.q <= detect.fdr]
