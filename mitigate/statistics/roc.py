"""ROC figures averaged over targets, with intervals from resampled clusters. Pure functions of arrays.

A benchmark judges the same documents with several targets, so what must be resampled is people (or documents), the same
ones for all targets at once. A resample is a weight for each cluster; every figure here takes weights, so that 300
resamples cost one sort.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mitigate.statistics.intervals import Figure
from mitigate.statistics.runs import over_runs

RESAMPLES = 300


@dataclass(frozen=True)
class Scored:
    """Scores of one target's units (spans, tokens or documents).

    Attributes:
        scores: (N,) higher = more memorized; without NaN.
        labels: (N,) bool, the positives.
        clusters: (N,) index of the cluster that each unit belongs to.
    """

    scores: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray

    @cached_property
    def order(self) -> np.ndarray:
        """Units from the highest score down."""
        return np.argsort(-self.scores, kind="stable")

    @cached_property
    def ties(self) -> np.ndarray:
        """(G,) the last place of each run of equal scores in `order`."""
        ranked = self.scores[self.order]
        return np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R, G) true and false positives at each distinct score, from (R, clusters) weights."""
        of_unit = weights[:, self.clusters[self.order]]
        positive = self.labels[self.order]
        true = np.cumsum(of_unit * positive, axis=1)[:, self.ties]
        false = np.cumsum(of_unit * ~positive, axis=1)[:, self.ties]
        return true, false


def weighted_auc(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """(R,) areas under the ROC curves through (R, G) cumulated counts, ties counted half; NaN without both classes."""
    before = np.concatenate([np.zeros((len(true), 1)), true[:, :-1]], axis=1)
    step = np.diff(false, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (step * (true + before) / 2).sum(1) / (true[:, -1] * false[:, -1])


def weighted_tpr(true: np.ndarray, false: np.ndarray, *, fpr: float) -> np.ndarray:
    """(R,) shares of positives at the loosest score whose false positive rate is at most `fpr`."""
    allowed = false <= fpr * false[:, -1:] + 1e-9
    reached = np.where(allowed, true, 0.0).max(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return reached / true[:, -1]


def average_precision(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """(R,) precision averaged over the positives, from (R, G) cumulated counts."""
    gained = np.diff(true, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(true + false > 0, true / (true + false), 0.0)
        return (gained * precision).sum(1) / true[:, -1]


def over_targets(
    targets: Sequence[Sequence[Scored]], statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Figure:
    """The mean of a statistic over all targets of all seeds, with its 95 % interval within [0, 1].

    Clusters are resampled within each seed, the same for all its targets; how far seeds differ beyond that counts, too
    (`over_runs`).

    Args:
        targets: for each seed, the scored units of each target.
        statistic: (R, G) true and false positives -> (R,), such as `weighted_auc`.
    """
    rng = np.random.default_rng(0)
    found, counts = [], []
    for of_seed in targets:
        clusters = 1 + max((int(target.clusters.max()) for target in of_seed if len(target.clusters)), default=-1)
        if not clusters:
            continue
        weights = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES).astype(np.float32)
        weights = np.concatenate([np.ones((1, clusters), dtype=np.float32), weights])
        results = np.array([statistic(*target.counts(weights)) for target in of_seed if len(target.scores)])
        found.append(results.mean(0))
        counts.append(len(results))
    return over_runs(np.array(found), np.array(counts), bounds=(0.0, 1.0))
