"""Means over runs (seeds: people, halves and models of their own), with how far one run lies from another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from mitigate.statistics.clusters import totals, variance_between
from mitigate.statistics.intervals import OF_HITS, UNMEASURED, Figure, clustered_share


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
    beyond = _beyond(values, share, np.nanvar(resamples[:, 1:], axis=1)) if count > 1 else 0.0
    return _widened(Figure(mean, float(low), float(high)), beyond, bounds)


def share_over_runs(hits: Sequence[np.ndarray], clusters: Sequence[Sequence[str]]) -> Figure:
    """A rate of events over runs: `clustered_share` of all, widened by what runs differ by beyond that.

    As `over_runs`, each run weighing as many events as it has; w is the mean of the variances that the runs' own
    clusters give.

    Args:
        hits: of each run, (n,) bool.
        clusters: of each run, (n,) names, such as the persons that the secrets belong to.
    """
    if not hits:
        return UNMEASURED
    names = [f"{number}.{name}" for number, of_run in enumerate(clusters) for name in of_run]
    pooled = clustered_share(np.concatenate(hits), names)
    if len(hits) < 2 or pooled.low is None or not all(len(one) for one in hits):
        return pooled
    parts = [totals(one, of_run) for one, of_run in zip(hits, clusters, strict=True)]
    within = [variance_between(*part, pseudo=OF_HITS)[0] for part in parts]
    values, sizes = (np.array([measure(one) for one in hits]) for measure in (np.mean, len))
    return _widened(pooled, _beyond(values, sizes / sizes.sum(), np.array(within)), (0.0, 1.0))


def _beyond(values: np.ndarray, share: np.ndarray, within: np.ndarray) -> float:
    """Half-width of what runs differ by beyond their own variances.

    Args:
        values: (S,) of the runs.
        share: (S,) of each in the mean.
        within: (S,) variances.
    """
    count = len(values)
    spread = float(share @ (values - share @ values) ** 2) * count / (count - 1)
    extra = max(0.0, spread - float(within.mean()))
    return float(student.ppf(0.975, count - 1) * np.sqrt(extra * (share**2).sum()))


def _widened(figure: Figure, beyond: float, bounds: tuple[float, float]) -> Figure:
    value, low, high = figure
    assert value is not None
    assert low is not None
    assert high is not None
    below, above = float(np.hypot(value - low, beyond)), float(np.hypot(high - value, beyond))
    return Figure(value, max(bounds[0], value - below), min(bounds[1], value + above))
