"""Means over runs (seeds: people, halves and models of their own), with how far one run lies from another."""

from __future__ import annotations

import numpy as np
from scipy.stats import t as student

from mitigate.statistics.intervals import UNMEASURED, Figure


def over_runs(
    resamples: np.ndarray, weights: np.ndarray | None = None, *, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Figure:
    """The mean over runs and its 95 % interval: from clusters resampled within runs, and from how runs differ.

    What runs differ by beyond what resampling explains is a variance of its own, max(0, s² − w): s² that of the runs'
    values, w the mean of their resamples' variances (the method of moments for a random effect). Its half-width, by
    Student's t with one degree of freedom less than there are runs, is added in squares to each side of the
    bootstrap's percentile interval. One run has no such part: its interval is of its own models.

    Args:
        resamples: (S, 1 + R) of each run its value and R resamples of it; NaN where a resample has none.
        weights (*optional*, default to equal ones): (S,) of the runs.
        bounds (*optional*): least and greatest value that there can be.
    """
    if not len(resamples) or np.isnan(resamples[:, 0]).any():
        return UNMEASURED
    count = len(resamples)
    share = np.full(count, 1 / count) if weights is None else np.asarray(weights) / np.sum(weights)
    values = resamples[:, 0]
    mean = float(share @ values)
    low, high = np.nanquantile(share @ resamples[:, 1:], [0.025, 0.975])
    beyond = 0.0
    if count > 1:
        spread = float(share @ (values - mean) ** 2) * count / (count - 1)
        extra = max(0.0, spread - float(np.nanvar(resamples[:, 1:], axis=1).mean()))
        beyond = float(student.ppf(0.975, count - 1)) * np.sqrt(extra * (share**2).sum())
    below, above = float(np.hypot(mean - low, beyond)), float(np.hypot(high - mean, beyond))
    return Figure(mean, max(bounds[0], mean - below), min(bounds[1], mean + above))
