"""Levels of text that the target never saw: where unlearning is to end, and what it must not fall below."""

from __future__ import annotations

import numpy as np

from mitigate.detection.audit import Audit
from mitigate.detection.scores import clipped


def control_level(audit: Audit, chosen: np.ndarray | None = None) -> float:
    """The level at which a token's log p_θ − log p̄ is that of text the target never saw, in nats.

    The mean log-ratio, clipped to ±3 nats, of the holdout documents' tokens that are as hard to predict as the chosen
    ones: holdout tokens are weighted so that their distribution over deciles of log p̄ is that of the chosen tokens.
    0 (the references' own level) where the audit has no holdout documents.

    Args:
        audit: with or without holdout documents.
        chosen (*optional*, defaults to the selected tokens): (N,) bool.
    """
    columns = audit.columns
    ratio = clipped(columns["log_prob"] - columns["log_prob_out"])
    holdout = _holdout(audit) & ~np.isnan(ratio)
    selected = columns["selected"].astype(bool) if chosen is None else chosen
    if not holdout.any() or not selected.any():
        return 0.0
    edges = np.quantile(columns["log_prob_out"][selected], np.linspace(0, 1, 11)[1:-1])
    stratum = np.digitize(columns["log_prob_out"], edges)
    levels = [
        (int((selected & (stratum == number)).sum()), float(ratio[holdout & (stratum == number)].mean()))
        for number in range(10)
        if (holdout & (stratum == number)).sum() >= 10
    ]
    weight = sum(count for count, _ in levels)
    return sum(count * level for count, level in levels) / weight if weight else 0.0


def span_floor(audit: Audit) -> float | None:
    """The 1 % quantile of the holdout documents' spans, by mean log-ratio clipped to ±3 nats; None under 100 spans.

    A span to forget that ends below it stands out by how unlikely it is. Known spans count where there are any.
    """
    sets = audit.sets()
    spans = [row for row in audit.spans.to_pylist() if sets[row["doc_id"]] == "holdout"]
    spans = [row for row in spans if row["source"] == "known"] or spans
    if len(spans) < 100:
        return None
    ratio = clipped(audit.columns["log_prob"] - audit.columns["log_prob_out"])
    means = [np.nanmean(ratio[audit.rows[row["doc_id"]]][row["token_start"] : row["token_end"]]) for row in spans]
    return float(np.quantile(means, 0.01))


def _holdout(audit: Audit) -> np.ndarray:
    holdout, sets = np.zeros(len(audit.tokens), dtype=bool), audit.sets()
    for doc_id, rows in audit.rows.items():
        holdout[rows] = sets[doc_id] == "holdout"
    return holdout
