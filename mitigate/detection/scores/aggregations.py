"""From token scores to one number for a span or a document. Tokens without a score (NaN) are left out; none: NaN."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def mean(score: Array) -> float:
    """Mean over the tokens that have a score; NaN if none has."""
    known = np.asarray(score)[~np.isnan(score)]
    return float(known.mean()) if known.size else math.nan


def clipped_mean(score: Array, limit: float = 3.0) -> float:
    """Mean of the token scores clipped to ±limit, so that one token cannot carry a whole span.

    Args:
        score: (T,).
        limit (`float`, *optional*, defaults to 3.0): in the score's unit.
    """
    return mean(np.clip(score, -limit, limit))


def min_k(score: Array, *, share: float = 0.2) -> float:
    """Min-K%: mean of the lowest `share` of the token scores (Shi et al., arXiv 2310.16789).

    Args:
        score: (T,).
        share (`float`, *optional*, defaults to 0.2): at least one token is taken.
    """
    known = np.sort(np.asarray(score)[~np.isnan(score)])
    return float(known[: max(1, int(share * known.size))].mean()) if known.size else math.nan


def max_window(score: Array, *, window: int) -> float:
    """Highest mean over `window` neighbouring tokens; the mean of all where there are fewer.

    Args:
        score: (T,).
        window: in tokens that have a score.
    """
    known = np.asarray(score, dtype=np.float64)[~np.isnan(score)]
    if known.size <= window:
        return mean(known)
    total = np.append(0.0, np.cumsum(known))
    return float((total[window:] - total[:-window]).max()) / window
