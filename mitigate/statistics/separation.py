"""How well scores tell members from others: areas under ROC curves, rates, and a rank among others, with intervals.

Clusters are those of `intervals`. Pure functions of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from scipy.stats import rankdata

from mitigate.statistics.clusters import student_quantile, totals, variance_between, wilson
from mitigate.statistics.intervals import UNMEASURED, Figure, Sample, clustered_share, share

FEWEST_CLUSTERS = 20  # of non-members: fewer people say nothing of a rate as small as 1 %
_OF_RANKS = 0.05  # the same for an AUC, whose clusters are means over the other side and so less all or nothing


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
    sides = [totals(_placements(above, below), own), totals(1 - _placements(below, above), other)]
    counts = [len(sizes) for _, sizes in sides]
    if min(counts) < 2:
        return Figure(value, None, None)
    size = min(float(sizes.sum() ** 2 / (sizes**2).sum()) for _, sizes in sides)
    variances = [variance_between(sums, sizes, pseudo=_OF_RANKS)[0] for sums, sizes in sides]
    if 0 < value < 1:
        size = max(size, value * (1 - value) / sum(variances))
    return Figure(value, *wilson(value, size, student_quantile(variances, [count - 1 for count in counts])))


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
    reach = student_quantile(variances, [count - 1 for count in counts]) * float(np.sqrt(sum(variances)))
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
