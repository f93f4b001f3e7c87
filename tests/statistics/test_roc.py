"""Weighted ROC figures equal the plain ones, a weight is a number of repetitions, intervals hold the value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from mitigate.statistics.intervals import UNMEASURED
from mitigate.statistics.roc import Scored, average_precision, over_targets, weighted_auc, weighted_tpr
from mitigate.statistics.separation import auc, tpr_at_fpr

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
FPR = 0.1


def tpr(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    return weighted_tpr(true, false, fpr=FPR)


STATISTICS: dict[str, Statistic] = {"auc": weighted_auc, "tpr": tpr, "ap": average_precision}


def drawn(seed: int, *, units: int = 80, clusters: int = 12, ties: bool = False, shift: float = 0.7) -> Scored:
    rng = np.random.default_rng(seed)
    labels = rng.random(units) < 0.4
    scores = rng.normal(size=units) + shift * labels
    return Scored(np.round(scores) if ties else scores, labels, rng.integers(clusters, size=units))


def plain(statistic: Statistic, scored: Scored) -> float:
    """The statistic where every cluster counts once."""
    ones = np.ones((1, scored.clusters.max() + 1))
    return float(statistic(*scored.counts(ones))[0])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_with_equal_weights_the_area_is_the_plain_one(seed: int, ties: bool) -> None:
    scored = drawn(seed, ties=ties)
    got = plain(weighted_auc, scored)
    assert got == pytest.approx(auc(scored.scores[scored.labels], scored.scores[~scored.labels]))
    assert got == pytest.approx(roc_auc_score(scored.labels, scored.scores))


@pytest.mark.parametrize("fpr", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_with_equal_weights_the_rate_is_the_plain_one(seed: int, fpr: float) -> None:
    scored = drawn(seed, units=150)
    members, others = scored.scores[scored.labels], scored.scores[~scored.labels]
    true, false = scored.counts(np.ones((1, 12)))
    assert weighted_tpr(true, false, fpr=fpr)[0] == pytest.approx(tpr_at_fpr(members, others, fpr=fpr))


def test_the_rate_of_tied_scores_is_the_best_of_the_thresholds_that_keep_to_the_false_positives() -> None:
    for seed in range(20):
        scored = drawn(seed, ties=True)
        members, others = scored.scores[scored.labels], scored.scores[~scored.labels]
        cuts = [np.inf, *np.unique(scored.scores)]
        best = max((members >= cut).mean() for cut in cuts if (others >= cut).mean() <= FPR)
        assert plain(tpr, scored) == pytest.approx(best)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_scikit_learn(seed: int, ties: bool) -> None:
    scored = drawn(seed, ties=ties)
    assert plain(average_precision, scored) == pytest.approx(average_precision_score(scored.labels, scored.scores))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", STATISTICS)
def test_a_cluster_with_a_weight_is_as_good_as_that_many_copies_of_its_units(name: str, ties: bool) -> None:
    rng, statistic = np.random.default_rng(9), STATISTICS[name]
    scored = drawn(5, ties=ties)
    weights = rng.integers(0, 4, size=(6, 12))
    got = statistic(*scored.counts(weights.astype(float)))
    for row, value in zip(weights, got, strict=True):
        times = row[scored.clusters]
        repeated = Scored(*(np.repeat(column, times) for column in (scored.scores, scored.labels, scored.clusters)))
        assert value == pytest.approx(plain(statistic, repeated))


@pytest.mark.parametrize("name", STATISTICS)
def test_figures_do_not_depend_on_the_order_of_the_units(name: str) -> None:
    scored, statistic = drawn(2, ties=True), STATISTICS[name]
    order = np.random.default_rng(0).permutation(len(scored.scores))
    shuffled = Scored(scored.scores[order], scored.labels[order], scored.clusters[order])
    assert plain(statistic, shuffled) == pytest.approx(plain(statistic, scored))


def test_separated_and_equal_scores_have_the_figures_that_they_must() -> None:
    labels, clusters = np.arange(40) < 10, np.arange(40)
    perfect = Scored(labels.astype(float), labels, clusters)
    assert [plain(statistic, perfect) for statistic in STATISTICS.values()] == [1.0, 1.0, 1.0]
    equal = Scored(np.zeros(40), labels, clusters)
    assert [plain(statistic, equal) for statistic in STATISTICS.values()] == [0.5, 0.0, 0.25]
    reversed_ = Scored(-labels.astype(float), labels, clusters)
    assert plain(weighted_auc, reversed_) == plain(tpr, reversed_) == 0.0


@pytest.mark.parametrize("name", STATISTICS)
def test_the_interval_holds_the_mean_over_targets(name: str) -> None:
    statistic = STATISTICS[name]
    targets = [[drawn(seed, units=200, clusters=40) for seed in seeds] for seeds in ((0, 1), (2, 3, 4))]
    figure = over_targets(targets, statistic)
    values = [plain(statistic, target) for of_seed in targets for target in of_seed]
    assert figure.value == pytest.approx(np.mean(values))
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < figure.value < figure.high
    assert over_targets(targets, statistic) == figure, "the same resamples in every run"


def test_every_target_counts_once_whatever_the_targets_of_its_seed() -> None:
    good, bad = drawn(0, shift=3.0), drawn(1, shift=0.0)
    figure = over_targets([[good], [bad, bad, bad]], weighted_auc)
    assert figure.value == pytest.approx((plain(weighted_auc, good) + 3 * plain(weighted_auc, bad)) / 4)
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < figure.value < figure.high


def test_clusters_that_stay_together_make_the_interval_wider() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2 == 0
    of_person = np.arange(400) // 20 * 2 + labels  # 40 people: 10 units of one class each
    scores = rng.normal(size=40)[of_person] + 0.1 * rng.normal(size=400)
    apart = over_targets([[Scored(scores, labels, np.arange(400))]], weighted_auc)
    together = over_targets([[Scored(scores, labels, of_person)]], weighted_auc)
    assert together.value == apart.value
    assert together.high - together.low > 2 * (apart.high - apart.low)  # type: ignore[operator]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = 0.7602  # Phi(1 / sqrt(2)): the chance that N(1, 1) is above N(0, 1)
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.arange(160) % 2 == 0
        scored = Scored(rng.normal(size=160) + labels, labels, np.arange(160) // 2)
        figure = over_targets([[scored]], weighted_auc)
        covered += figure.low <= truth <= figure.high  # type: ignore[operator]
    assert covered >= 51, "95 of 100, less what chance allows"


@pytest.mark.parametrize("name", ["auc", "tpr"])
def test_what_cannot_be_measured_has_no_figure(name: str) -> None:
    statistic = STATISTICS[name]
    scores, clusters = np.arange(5.0), np.arange(5)
    assert over_targets([], statistic) == UNMEASURED
    nothing = Scored(np.zeros(0), np.zeros(0, bool), np.zeros(0, int))
    assert over_targets([[nothing]], statistic) == UNMEASURED
    no_members = Scored(scores, np.zeros(5, bool), clusters)
    assert over_targets([[no_members]], statistic) == UNMEASURED


def test_without_non_members_there_is_no_area() -> None:
    assert over_targets([[Scored(np.arange(5.0), np.ones(5, bool), np.arange(5))]], weighted_auc) == UNMEASURED
