"""Figures with intervals: rates of events, means over tokens. Pure functions of arrays; areas are in `separation`.

Intervals are 95 %. What lies in one cluster (a document, or all documents of one person) is not independent, so the
cluster is what counts: the variance is that between clusters, the quantile is Student's with as many degrees of freedom
as they leave, and rates and areas keep to [0, 1] by Wilson's method at the size that the variance amounts to. A
percentile bootstrap over 10 to 50 clusters covers .85 to .94; `tests/statistics/test_interval_coverage.py` simulates
these.

One cluster has no variance to see: the value is given, the interval is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import beta, norm
from scipy.stats import t as student

from mitigate.statistics.clusters import indexed, student_quantile, totals, variance_between, wilson

_MOST_GROUPS = 500  # of clusters that a jackknife leaves out in turn
OF_HITS = 0.25  # weight of a cluster all hits and of one all misses, where the spread of a rate is estimated


class Figure(NamedTuple):
    """A value with its 95 % interval; no interval where it cannot be told, all None where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None


UNMEASURED = Figure(None, None, None)
Sample = tuple[np.ndarray, Sequence[str]]  # (n,) values and the (n,) clusters that they belong to


def clustered(statistic: Callable[..., float | None], *samples: Sample) -> Figure:
    """A statistic with its interval from leaving out one cluster after the other (jackknife, Student's t).

    The variance is the sum over the samples of (G − 1)/G Σ (θ₋ᵢ − θ̄)² (Arvesen 1969), its degrees of freedom are
    Satterthwaite's. For smooth statistics without bounds; see `clustered_share` and `separation` for the others.

    Args:
        statistic: takes one array for each sample.
        samples: each with clusters of its own. Beyond 500 clusters, groups of them are left out in turn.
    """
    if any(len(values) == 0 for values, _ in samples):
        return UNMEASURED
    values = [np.asarray(own) for own, _ in samples]
    value = statistic(*values)
    if value is None:
        return UNMEASURED
    variances, freedoms = [], []
    for number, (_, clusters) in enumerate(samples):
        index, count = indexed(clusters)
        if count < 2:
            return Figure(float(value), None, None)
        groups = min(count, _MOST_GROUPS)
        left_out = [
            statistic(*values[:number], values[number][index % groups != group], *values[number + 1 :])
            for group in range(groups)
        ]
        if any(one is None for one in left_out):
            return Figure(float(value), None, None)
        each = np.array(left_out, dtype=float)
        variances.append((groups - 1) / groups * float(((each - each.mean()) ** 2).sum()))
        freedoms.append(groups - 1)
    reach = student_quantile(variances, freedoms) * float(np.sqrt(sum(variances)))
    return Figure(float(value), float(value) - reach, float(value) + reach)


def clustered_mean(values: np.ndarray, clusters: Sequence[str]) -> Figure:
    """The mean with its interval over clusters: Student's t, corrected for skewness by Hall's transformation.

    With u the clusters' deviations (Σ values − mean · size) / mean size, s² their variance, γ their skewness and
    a = γ/√G, the limits are mean − s/√G · g⁻¹(±t), where g⁻¹(x) = (3/a) [(1 + a (x − a/6))^⅓ − 1] (Hall 1992, On the
    removal of skewness by transformation). Distances and losses are skewed; without the correction the interval of ten
    lognormal clusters covers .87.

    Args:
        values: (n,).
        clusters: (n,) names.
    """
    if not len(values):
        return UNMEASURED
    value = float(np.mean(values, dtype=np.float64))
    sums, sizes = totals(values, clusters)
    count = len(sizes)
    if count < 2:
        return Figure(value, None, None)
    deviations = (sums - value * sizes) / sizes.mean()
    variance = float((deviations**2).mean())
    if variance == 0:
        return Figure(value, value, value)
    step = float(np.sqrt(variance / (count - 1)))
    quantile = float(student.ppf(0.975, count - 1))
    skew = float((deviations**3).mean()) / variance**1.5 / float(np.sqrt(count))
    if abs(skew) > 1e-6:
        upper, lower = (3 / skew * (float(np.cbrt(1 + skew * (x - skew / 6))) - 1) for x in (quantile, -quantile))
    else:
        upper, lower = quantile, -quantile
    return Figure(value, value - step * upper, value - step * lower)


def clustered_share(hits: np.ndarray, clusters: Sequence[str]) -> Figure:
    """A rate with its interval, where the events of one cluster go together.

    Wilson's interval with Student's t at the effective number of events, n / design effect (Korn & Graubard 1998; Dean
    & Pagano 2015 compare such intervals). The design effect is the variance between clusters over that of independent
    events, at least 1. It is estimated with a quarter of a cluster of hits and a quarter of one of misses added, since
    few hits tend to look more independent than they are; at none and at all hits it is the largest possible, so that
    only the number of clusters counts.

    Args:
        hits: (n,) bool; or parts of a hit, 0 to 1, which vary less: then the interval is too wide rather than too
            narrow.
        clusters: (n,) names, such as the persons that the secrets belong to.

    Returns:
        the rate; without an interval if there is one cluster only.
    """
    if not len(hits):
        return UNMEASURED
    sums, sizes = totals(hits, clusters)
    total, count = sizes.sum(), len(sizes)
    value = float(sums.sum() / total)
    if count < 2:
        return Figure(value, None, None)
    largest = float((sizes**2).sum() / total)
    effect = largest
    if 0 < value < 1:
        variance, rate, weight = variance_between(sums, sizes, pseudo=OF_HITS)
        effect = float(np.clip(variance / (rate * (1 - rate) / weight), 1.0, largest))
    return Figure(value, *wilson(value, total / effect, float(student.ppf(0.975, count - 1))))


def clustered_excess(own: Sample, other: Sample) -> Figure:
    """A rate less another one of other clusters, with its interval from those of both.

    Newcombe's hybrid score interval (1998, Interval estimation for the difference between independent proportions), in
    general MOVER (Zou & Donner 2008): each side of the difference is as far away as the limits that make it up, in
    squares. So none of a few events is no proof that there is no difference.

    Args:
        own, other: (n,) values in [0, 1], and the clusters that they belong to.
    """
    one, two = clustered_share(*own), clustered_share(*other)
    if one.value is None or two.value is None:
        return UNMEASURED
    value = one.value - two.value
    if one.low is None or one.high is None or two.low is None or two.high is None:
        return Figure(value, None, None)
    down = np.hypot(one.value - one.low, two.high - two.value)
    up = np.hypot(one.high - one.value, two.value - two.low)
    return Figure(value, float(value - down), float(value + up))


def paired_excess(own: np.ndarray, other: np.ndarray, clusters: Sequence[str]) -> Figure:
    """A rate less another one of the same texts, with its interval: `clustered_mean` of the differences.

    Where no difference is a half or more, nothing was seen of how often there are such: then the interval is no
    narrower than what none of so many events leaves open (`clustered_share`).

    Args:
        own, other: (n,) values in [0, 1] of the same texts.
        clusters: (n,) names.
    """
    differences = np.asarray(own, dtype=float) - np.asarray(other, dtype=float)
    figure = clustered_mean(differences, clusters)
    if figure.value is None or figure.low is None or figure.high is None or (np.abs(differences) >= 0.5).any():
        return figure
    unseen = clustered_share(np.zeros(len(differences)), clusters).high or 0.0
    return Figure(figure.value, min(figure.low, figure.value - unseen), max(figure.high, figure.value + unseen))


def share(successes: int, trials: int) -> Figure:
    """A rate of independent events with its exact (Clopper-Pearson) interval; `clustered_share` where they are not."""
    if not trials:
        return UNMEASURED
    low = float(beta.ppf(0.025, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(0.975, successes + 1, trials - successes)) if successes < trials else 1.0
    return Figure(successes / trials, low, high)


def of_family(figure: Figure, tests: int) -> Figure:
    """A figure with the interval that so many tests as one family ask for: Bonferroni's, 1 − 0.05 / tests."""
    if figure.value is None or figure.low is None or figure.high is None:
        return figure
    wider = float(norm.ppf(1 - 0.025 / max(1, tests)) / norm.ppf(0.975))
    below, above = (wider * (limit - figure.value) for limit in (figure.low, figure.high))
    return Figure(figure.value, figure.value + below, figure.value + above)


def flat(figures: Mapping[str, Figure]) -> dict[str, float | list[float] | None]:
    """`{key: value, key_interval: [low, high]}`: plain numbers under the keys, intervals beside them."""
    result: dict[str, float | list[float] | None] = {}
    for key, figure in figures.items():
        result[key] = figure.value
        result[f"{key}_interval"] = None if figure.low is None or figure.high is None else [figure.low, figure.high]
    return result
