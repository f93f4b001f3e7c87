"""Figures with intervals: areas and rates over scores, means over tokens. Pure functions of arrays.

Intervals are 95 %. Figures over tokens or spans are bootstrapped by cluster (a document, or all documents of one
person), since what lies in one cluster is not independent; rates of single events use the exact binomial interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import beta, rankdata

RESAMPLES = 1000


class Figure(NamedTuple):
    """A value with its 95 % interval; all None where it cannot be measured."""

    value: float | None
    low: float | None
    high: float | None


UNMEASURED = Figure(None, None, None)


def auc(members: np.ndarray, non_members: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a member scores above a non-member, ties counted half.

    Args:
        members: (M,) scores.
        non_members: (N,) scores.
    """
    ranks = rankdata(np.concatenate([members, non_members]))  # Mann-Whitney: cheap enough to bootstrap
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


def clustered(
    statistic: Callable[..., float | None],
    *samples: tuple[np.ndarray, Sequence[str]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Figure:
    """A statistic with its cluster-bootstrap percentile interval.

    Args:
        statistic: takes one array for each sample.
        samples: pairs of (n,) values and the (n,) clusters they belong to; each sample is resampled on its own.
        seed (`int`, *optional*, defaults to 0): of the resampling.
        resamples (`int`, *optional*, defaults to 1000): number of bootstrap samples.
    """
    if any(len(values) == 0 for values, _ in samples):
        return UNMEASURED
    value = statistic(*(values for values, _ in samples))
    if value is None:
        return UNMEASURED
    rng = np.random.default_rng(seed)
    grouped = [_by_cluster(values, clusters) for values, clusters in samples]
    drawn = []
    for _ in range(resamples):
        resampled = [
            np.concatenate([groups[i] for i in rng.integers(0, len(groups), size=len(groups))]) for groups in grouped
        ]
        result = statistic(*resampled)
        if result is not None:
            drawn.append(result)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(float(value), float(low), float(high))


def share(successes: int, trials: int) -> Figure:
    """A rate with its exact (Clopper-Pearson) interval."""
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


def _by_cluster(values: np.ndarray, clusters: Sequence[str]) -> list[np.ndarray]:
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    order = np.argsort(index, kind="stable")
    bounds = np.flatnonzero(np.diff(index[order])) + 1
    return np.split(np.asarray(values)[order], bounds)
