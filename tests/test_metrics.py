"""Figures equal their definitions, and an interval holds the truth about as often as it says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from mitigate.verification.metrics import UNMEASURED, Figure, auc, clustered, mean, share, tpr_at_fpr


def test_auc_is_the_chance_that_a_member_scores_higher_with_ties_counted_half() -> None:
    members, non_members = np.array([3.0, 2.0, 0.0, 2.0]), np.array([1.0, 2.0, -1.0])
    wins = [(m > n) + 0.5 * (m == n) for m, n in itertools.product(members, non_members)]
    assert auc(members, non_members) == pytest.approx(np.mean(wins))


def test_auc_of_equal_and_of_separated_scores() -> None:
    same = np.ones(5)
    assert auc(same, same) == 0.5
    assert auc(same + 1, same) == 1.0
    assert auc(same, same + 1) == 0.0, "low scores of members are not flipped"


def test_tpr_counts_members_above_what_the_allowed_non_members_reach() -> None:
    non_members = np.arange(100.0)
    members = np.array([98.0, 98.5, 99.5, 0.0])
    assert tpr_at_fpr(members, non_members, fpr=0.01) == 0.5, "one non-member, 99, may exceed the threshold 98"
    assert tpr_at_fpr(members, non_members, fpr=0.02) == 0.75
    assert tpr_at_fpr(non_members, non_members, fpr=0.1) == pytest.approx(0.1)


def test_the_false_positive_rate_is_never_above_what_was_asked() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        non_members = rng.integers(0, 8, size=int(rng.integers(20, 200))).astype(float)  # many ties
        members = rng.integers(0, 10, size=30).astype(float)
        for fpr in (0.05, 0.1, 0.3):
            rate = tpr_at_fpr(members, non_members, fpr=fpr)
            best = max(
                (members > cut).mean() for cut in np.unique(non_members) if (non_members > cut).mean() <= fpr + 1e-12
            )
            assert rate == pytest.approx(best)


@pytest.mark.parametrize(("fpr", "needed"), [(0.01, 100), (0.001, 1000), (0.1, 10)])
def test_a_rate_that_the_non_members_cannot_resolve_is_not_given(fpr: float, needed: int) -> None:
    members = np.ones(5)
    assert tpr_at_fpr(members, np.zeros(needed - 1), fpr=fpr) is None
    assert tpr_at_fpr(members, np.zeros(needed), fpr=fpr) == 1.0
    assert tpr_at_fpr(members[:0], np.zeros(needed), fpr=fpr) is None
    samples = (members, list("abcde")), (np.zeros(needed - 1), [str(n) for n in range(needed - 1)])
    assert clustered(lambda m, n: tpr_at_fpr(m, n, fpr=fpr), *samples, resamples=10) == UNMEASURED


def test_the_bootstrap_interval_of_a_mean_covers_the_truth_about_95_times_of_100() -> None:
    rng = np.random.default_rng(0)
    clusters = [str(n // 5) for n in range(150)]
    covered = 0
    for trial in range(200):
        values = np.repeat(rng.normal(size=30), 5) + 0.3 * rng.normal(size=150)  # 30 clusters of 5 alike
        figure = clustered(mean, (values, clusters), seed=trial, resamples=200)
        assert figure.low is not None
        assert figure.high is not None
        covered += figure.low <= 0 <= figure.high
    assert 0.88 <= covered / 200 <= 0.99


def test_values_of_one_cluster_count_as_one() -> None:
    values = np.random.default_rng(0).normal(size=20)

    def width(figure: Figure) -> float:
        assert figure.high is not None
        assert figure.low is not None
        return figure.high - figure.low

    names = [str(n) for n in range(20)]
    alone = width(clustered(mean, (values, names), resamples=2000))
    copied = width(clustered(mean, (np.repeat(values, 50), np.repeat(names, 50).tolist()), resamples=2000))
    as_if_independent = width(clustered(mean, (np.repeat(values, 50), [str(n) for n in range(1000)]), resamples=200))
    assert copied == pytest.approx(alone, rel=0.1)
    assert as_if_independent < alone / 5


def test_an_interval_is_a_function_of_the_seed_and_holds_the_value() -> None:
    rng = np.random.default_rng(1)
    samples = (
        (rng.normal(1, 1, 40), [str(n // 2) for n in range(40)]),
        (rng.normal(0, 1, 30), [str(n) for n in range(30)]),
    )
    first, again, other = (clustered(auc, *samples, seed=seed, resamples=200) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first.value == auc(samples[0][0], samples[1][0])
    assert first.value is not None
    assert first.low is not None
    assert first.high is not None
    assert first.low < first.value < first.high


def test_no_values_give_no_figure() -> None:
    assert clustered(mean, (np.array([]), [])) == UNMEASURED
    assert clustered(auc, (np.ones(3), ["a", "b", "c"]), (np.array([]), [])) == UNMEASURED
    assert share(0, 0) == UNMEASURED


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 17), (1, 1), (250, 1000)])
def test_a_shares_interval_is_clopper_pearson(successes: int, trials: int) -> None:
    exact = binomtest(successes, trials).proportion_ci(method="exact")
    figure = share(successes, trials)
    assert figure == pytest.approx((successes / trials, exact.low, exact.high), abs=1e-9)


def test_a_share_of_none_in_sixty_reaches_up_to_six_percent() -> None:
    assert share(0, 60) == pytest.approx((0.0, 0.0, 1 - 0.025 ** (1 / 60)))
