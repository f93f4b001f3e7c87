"""Figures with intervals: areas and rates over scores, means over tokens. Pure functions of arrays.

Intervals are 95 %. What lies in one cluster (a document, or all documents of one person) is not independent, so the
cluster is what counts: the variance is that between clusters, the quantile is Student's with as many degrees of freedom
as they leave, and rates and areas keep to [0, 1] by Wilson's method at the size that the variance amounts to. A
percentile bootstrap over 10 to 50 clusters covers .85 to .94; `tests/statistics/test_interval_coverage.py` simulates
these.

One cluster has no variance to see: the value is given, the interval is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy.stats import beta, rankdata
from scipy.stats import t as student

FEWEST_CLUSTERS = 20  # of non-members: fewer people say nothing of a rate as small as 1 %
_MOST_GROUPS = 500  # of clusters that a jackknife leaves out in turn
_OF_HITS = 0.25  # weight of a cluster all hits and of one all misses, where the spread of a rate is estimated
_OF_RANKS = 0.05  # the same for an AUC, whose clusters are means over the other side and so less all or nothing


class Figure(NamedTuple):
    """A value with its 95 % interval; no interval where it cannot be told, all None where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None


UNMEASURED = Figure(None, None, None)
Sample = tuple[np.ndarray, Sequence[str]]  # (n,) values and the (n,) clusters that they belong to


def auc(members: np.ndarray, non_members: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a member scores above a non-member, ties counted half.

    Args:
        members: (M,) scores.
        non_members: (N,) scores.
    """
    ranks = rankdata(np.concatenate([members, non_members]))  # Mann-Whitney: cheap
    above = ranks[: len(members)].sum() - len(members) * (len(members) + 1) / 2
    return float(above / (len(members) * len(non_members)))


def tpr_at_fpr(members: np.ndarray, non_members: np.ndarray, *, fpr: float) -> float | None:
    """Share of members above the score that at most `fpr` of the non-members exceed; None with too few non-members.

    At least 1 / fpr non-members are needed to resolve the rate.

    Args:
        members: (M,) scores.
        non_members: (N,) scores.
        fpr: false positive rate, for instance 0.01.
    """
    if len(non_members) < 1 / fpr - 1e-9 or not len(members):
        return None
    allowed = int(np.floor(fpr * len(non_members) + 1e-9))
    threshold = np.sort(non_members)[::-1][allowed]
    return float((members > threshold).mean())


def clustered(statistic: Callable[..., float | None], *samples: Sample) -> Figure:
    """A statistic with its interval from leaving out one cluster after the other (jackknife, Student's t).

    The variance is the sum over the samples of (G − 1)/G Σ (θ₋ᵢ − θ̄)² (Arvesen 1969), its degrees of freedom are
    Satterthwaite's. For smooth statistics without bounds; see `clustered_auc`, `clustered_share` and `clustered_tpr`
    for the others.

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
        index, count = _indexed(clusters)
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
    reach = _quantile(variances, freedoms) * float(np.sqrt(sum(variances)))
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
    sums, sizes = _totals(values, clusters)
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
        hits: (n,) bool.
        clusters: (n,) names, such as the persons that the secrets belong to.

    Returns:
        the rate; without an interval if there is one cluster only.
    """
    if not len(hits):
        return UNMEASURED
    sums, sizes = _totals(hits, clusters)
    total, count = sizes.sum(), len(sizes)
    value = float(sums.sum() / total)
    if count < 2:
        return Figure(value, None, None)
    largest = float((sizes**2).sum() / total)
    effect = largest
    if 0 < value < 1:
        variance, rate, weight = _between(sums, sizes, pseudo=_OF_HITS)
        effect = float(np.clip(variance / (rate * (1 - rate) / weight), 1.0, largest))
    return Figure(value, *_wilson(value, total / effect, float(student.ppf(0.975, count - 1))))


def clustered_auc(members: Sample, non_members: Sample) -> Figure:
    """The AUC with its interval, where the scores of one cluster go together.

    The variance is DeLong's for clusters (Obuchowski 1997): a member's share of non-members below it, a non-member's
    share of members above it, each summed by cluster. Wilson's method with Student's t keeps it within [0, 1]; at 0 and
    at 1 the clusters of the smaller side count.

    Args:
        members, non_members: (n,) scores and their clusters. A cluster that stands on both sides is taken as two, which
            makes the interval wider where a person's scores go together.
    """
    (above, own), (below, other) = members, non_members
    if not len(above) or not len(below):
        return UNMEASURED
    value = auc(above, below)
    sides = [_totals(_placements(above, below), own), _totals(1 - _placements(below, above), other)]
    counts = [len(sizes) for _, sizes in sides]
    if min(counts) < 2:
        return Figure(value, None, None)
    size = min(float(sizes.sum() ** 2 / (sizes**2).sum()) for _, sizes in sides)
    variances = [_between(sums, sizes, pseudo=_OF_RANKS)[0] for sums, sizes in sides]
    if 0 < value < 1:
        size = max(size, value * (1 - value) / sum(variances))
    return Figure(value, *_wilson(value, size, _quantile(variances, [count - 1 for count in counts])))


def auc_of_many(comparisons: Sequence[tuple[Sample, Sample]], weights: Sequence[float]) -> Figure:
    """A weighted sum of AUCs that the same people gave, with its interval; not kept to any bounds.

    Each cluster's share in each AUC (its placements less their mean, as in `clustered_auc`) is weighted and summed by
    the cluster's name, so what moves the AUCs together cancels in their difference; Student's t. A share is held
    against its own AUC's mean, so it is corrected for that AUC's number of clusters, which may be few where there are
    many of all; no interval where one of the AUCs has a side of one cluster.

    Args:
        comparisons: members and non-members of each AUC; none of them empty.
        weights: of each AUC, such as 1 and −1 for a difference.
    """
    value, moved, fewest = 0.0, [dict[str, float](), dict[str, float]()], 2
    for ((above, own), (below, other)), weight in zip(comparisons, weights, strict=True):
        area = auc(above, below)
        value += weight * area
        for side, placements, clusters in (
            (moved[0], _placements(above, below), own),
            (moved[1], 1 - _placements(below, above), other),
        ):
            count = len(set(clusters))
            fewest = min(fewest, count)
            part = weight * (placements - area) / len(placements) * sqrt(count / max(1, count - 1))
            for name, amount in zip(clusters, part.tolist(), strict=True):
                side[name] = side.get(name, 0.0) + amount
    if fewest < 2:
        return Figure(value, None, None)
    counts = [len(side) for side in moved]
    variances = [sum(amount**2 for amount in side.values()) for side in moved]
    reach = _quantile(variances, [count - 1 for count in counts]) * float(np.sqrt(sum(variances)))
    return Figure(value, value - reach, value + reach)


def rank_among(score: float, others: np.ndarray) -> tuple[Figure, float | None]:
    """The share of others that score at least as high, exact interval, and the p-value of being one of them.

    The p-value is (1 + how many) / (1 + all), that of a permutation test.

    Args:
        score: of the one.
        others: (n,) of the others, each independent.
    """
    if not len(others):
        return UNMEASURED, None
    reached = int((others >= score).sum())
    return share(reached, len(others)), (1 + reached) / (1 + len(others))


def clustered_tpr(members: Sample, non_members: Sample, *, fpr: float) -> Figure:
    """`tpr_at_fpr` with its interval, where the scores of one cluster go together, on both sides.

    The threshold is uncertain as the share of non-members above it is: its limits are the scores whose share's
    interval still holds `fpr`. Both uncertainties are added by MOVER (Zou & Donner 2008): the distances from the value
    to the limits, as the root of the sum of their squares.

    Returns:
        all None with fewer than 1 / fpr non-members, or fewer than 20 clusters of them.
    """
    (own, clusters), (other, others) = members, non_members
    value = tpr_at_fpr(own, other, fpr=fpr)
    if value is None or len(set(others)) < FEWEST_CLUSTERS:
        return UNMEASURED
    allowed = int(np.floor(fpr * len(other) + 1e-9))
    ranked = np.sort(other)[::-1]
    figure = clustered_share(own > ranked[allowed], clusters)
    if figure.low is None or figure.high is None:
        return figure
    lowest, highest = _threshold_limits(other, others, fpr=fpr)
    below, above = float((own > highest).mean()), float((own > lowest).mean())
    low = value - float(np.hypot(value - figure.low, value - below))
    high = value + float(np.hypot(figure.high - value, above - value))
    return Figure(value, max(0.0, low), min(1.0, high))


def share(successes: int, trials: int) -> Figure:
    """A rate of independent events with its exact (Clopper-Pearson) interval; `clustered_share` where they are not."""
    if not trials:
        return UNMEASURED
    low = float(beta.ppf(0.025, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(0.975, successes + 1, trials - successes)) if successes < trials else 1.0
    return Figure(successes / trials, low, high)


def mean(values: np.ndarray) -> float:
    """The plain mean, as a statistic for `clustered`."""
    return float(np.mean(values))


def flat(figures: Mapping[str, Figure]) -> dict[str, float | list[float] | None]:
    """`{key: value, key_interval: [low, high]}`: plain numbers under the keys, intervals beside them."""
    result: dict[str, float | list[float] | None] = {}
    for key, figure in figures.items():
        result[key] = figure.value
        result[f"{key}_interval"] = None if figure.low is None or figure.high is None else [figure.low, figure.high]
    return result


def _indexed(clusters: Sequence[str]) -> tuple[np.ndarray, int]:
    """(n,) the number of each one's cluster, and how many there are."""
    names, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return index, len(names)


def _totals(values: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(G,) sums and sizes of the clusters."""
    index, count = _indexed(clusters)
    sums = np.bincount(index, weights=np.asarray(values, dtype=float), minlength=count)
    return sums, np.bincount(index, minlength=count).astype(float)


def _between(sums: np.ndarray, sizes: np.ndarray, *, pseudo: float) -> tuple[float, float, float]:
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


def _wilson(value: float, size: float, quantile: float) -> tuple[float, float]:
    """Wilson's limits of a rate that `size` independent events gave."""
    spread = quantile**2 / size
    centre = (value + spread / 2) / (1 + spread)
    reach = sqrt(spread * (value * (1 - value) + spread / 4)) / (1 + spread)
    low, high = max(0.0, centre - reach), min(1.0, centre + reach)
    return float(low if value > 0 else 0.0), float(high if value < 1 else 1.0)


def _quantile(variances: Sequence[float], freedoms: Sequence[int]) -> float:
    """Student's 97.5 % quantile for a sum of variances: Satterthwaite's degrees of freedom.

    With fewer than ten clusters on a side, that side's own: so few can agree by chance and would count for nothing.
    """
    parts = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
    freedom = sum(variances) ** 2 / parts if parts and min(freedoms) >= 9 else min(freedoms)
    return float(student.ppf(0.975, freedom))


def _placements(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) for each score the share of the others below it, ties counted half."""
    ranked = np.sort(others)
    below, up_to = np.searchsorted(ranked, scores, "left"), np.searchsorted(ranked, scores, "right")
    return (below + up_to) / (2 * len(others))


def _threshold_limits(scores: np.ndarray, clusters: Sequence[str], *, fpr: float) -> tuple[float, float]:
    """The lowest and the highest score whose share of non-members above may be `fpr`."""
    ranked = np.sort(scores)[::-1]
    allowed = int(np.floor(fpr * len(scores) + 1e-9))

    def above(place: int) -> Figure:
        return clustered_share(scores > (ranked[place] if place >= 0 else np.inf), clusters)

    lowest, highest = allowed, allowed  # ever more above the threshold, and ever fewer
    while lowest + 1 < len(ranked) and (above(lowest + 1).low or 0.0) <= fpr:
        lowest += 1
    while highest >= 0 and (above(highest - 1).high or 0.0) >= fpr:
        highest -= 1
    return float(ranked[lowest]), float(ranked[highest]) if highest >= 0 else float(np.inf)
