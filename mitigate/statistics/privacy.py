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
    best: tuple[float, float, int] = (-np.inf, 0.0, 1)
    for sign in (1, -1):
        for threshold in np.unique(np.concatenate([choose, choose_other])) * sign:
            bound = _bound(sign * choose >= threshold, sign * choose_other >= threshold, delta)
            best = max(best, (bound, float(threshold), sign))
    _, threshold, sign = best
    return max(0.0, _bound(sign * judge >= threshold, sign * judge_other >= threshold, delta))


def _bound(hits: np.ndarray, false_hits: np.ndarray, delta: float) -> float:
    """log((TPR − δ) / FPR) at the limits of both rates."""
    level = (1 - _CONFIDENCE) / 2
    true, count = int(hits.sum()), len(hits)
    false, others = int(false_hits.sum()), len(false_hits)
    lowest = float(beta.ppf(level, true, count - true + 1)) if true else 0.0
    highest = float(beta.ppf(1 - level, false + 1, others - false)) if false < others else 1.0
    return float(np.log((lowest - delta) / highest)) if lowest > delta else -np.inf
