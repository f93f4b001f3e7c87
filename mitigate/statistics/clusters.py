"""Clusters of values that go together: their sums and sizes, the variance between them, and limits from that."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from scipy.stats import t as student


def indexed(clusters: Sequence[str]) -> tuple[np.ndarray, int]:
    """(n,) the number of each one's cluster, and how many there are."""
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return index, len(names)


def totals(values: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(G,) sums and sizes of the clusters."""
    index, count = indexed(clusters)
    sums = np.bincount(index, weights=np.asarray(values, dtype=float), minlength=count)
    return sums, np.bincount(index, minlength=count).astype(float)


def variance_between(sums: np.ndarray, sizes: np.ndarray, *, pseudo: float) -> tuple[float, float, float]:
    """Variance between clusters of a mean of values in [0, 1] with the pseudo-clusters added, that mean, and its size.

    Args:
        sums, sizes: (G,) of the clusters.
        pseudo: weight of one more cluster of ones and of one more of zeros, of mean size.
    """
    typical = sizes.mean()
    size = sizes.sum() + 2 * pseudo * typical
    rate = (sums.sum() + pseudo * typical) / size
    squares = ((sums - rate * sizes) ** 2).sum() + pseudo * typical**2 * (rate**2 + (1 - rate) ** 2)
    count = len(sizes) + 2 * pseudo
    return float(count / (count - 1) * squares / size**2), float(rate), float(size)


def wilson(value: float, size: float, quantile: float) -> tuple[float, float]:
    """Wilson's limits of a rate that `size` independent events gave."""
    spread = quantile**2 / size
    centre = (value + spread / 2) / (1 + spread)
    reach = sqrt(spread * (value * (1 - value) + spread / 4)) / (1 + spread)
    low, high = max(0.0, centre - reach), min(1.0, centre + reach)
    return float(low if value > 0 else 0.0), float(high if value < 1 else 1.0)


def student_quantile(variances: Sequence[float], freedoms: Sequence[int]) -> float:
    """Student's 97.5 % quantile for a sum of variances: Satterthwaite's degrees of freedom.

    With fewer than ten clusters on a side, that side's own: so few can agree by chance and would count for nothing.
    """
    parts = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
    freedom = sum(variances) ** 2 / parts if parts and min(freedoms) >= 9 else min(freedoms)
    return float(student.ppf(0.975, freedom))
