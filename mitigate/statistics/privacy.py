"""A lower bound on the ε of differential privacy, from an attack's scores."""

from __future__ import annotations

import numpy as np
from scipy.stats import beta

_CONFIDENCE = 0.95


def epsilon_lower_bound(members: np.ndarray, others: np.ndarray, *, delta: float = 1e-5) -> float | None:
    """What ε must be at least, with 95 % confidence, given how well scores tell members from others.

    A test of an (ε, δ)-private mechanism has TPR <= e^ε FPR + δ, and so has the opposite test (Kairouz et al., arXiv
    1311.0776). On every other score of each side the threshold and the direction are chosen, on the rest Clopper-
    Pearson limits of both rates are taken, each at 97.5 % (as Nasr et al., arXiv 2101.04535, audit training).

    Args:
        members: (m,) scores, independent of each other, such as one of each person.
        others: (n,) scores of those who took no part.
        delta (`float`, *optional*, defaults to 1e-5): δ.

    Returns:
        at least 0; None with fewer than 4 scores on a side.
    """
    if min(len(members), len(others)) < 4:
        return None
    (choose, judge), (choose_other, judge_other) = ((own[::2], own[1::2]) for own in (members, others))
    best, found = -np.inf, 0.0
    for sign in (1, -1):
        thresholds = np.unique(sign * np.concatenate([choose, choose_other]))
        bounds = _bounds(thresholds, sign * choose, sign * choose_other, delta)
        place = int(bounds.argmax())
        if bounds[place] > best:
            best = float(bounds[place])
            found = float(_bounds(thresholds[[place]], sign * judge, sign * judge_other, delta)[0])
    return max(0.0, found)


def _bounds(thresholds: np.ndarray, members: np.ndarray, others: np.ndarray, delta: float) -> np.ndarray:
    """log((TPR − δ) / FPR) of each threshold, at the limits of both rates; −∞ where TPR may be δ."""
    level = (1 - _CONFIDENCE) / 2
    true, false = (len(own) - np.searchsorted(np.sort(own), thresholds) for own in (members, others))
    with np.errstate(invalid="ignore"):
        lowest = np.where(true > 0, beta.ppf(level, true, len(members) - true + 1), 0.0)
        highest = np.where(false < len(others), beta.ppf(1 - level, false + 1, len(others) - false), 1.0)
    return np.where(lowest > delta, np.log(np.maximum(lowest - delta, 1e-300) / highest), -np.inf)
