"""Figures equal their definitions, and intervals count people, not their secrets (their coverage: test_coverage.py)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as student

from mitigate.statistics.intervals import UNMEASURED, Figure, clustered, clustered_mean, clustered_share, share
from mitigate.statistics.separation import auc, clustered_auc, clustered_tpr, tpr_at_fpr


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
    assert clustered_tpr(*samples, fpr=fpr) == UNMEASURED


def test_few_people_resolve_no_small_rate_however_many_secrets_each_has() -> None:
    members = np.ones(40), [str(n) for n in range(40)]
    others = np.random.default_rng(0).normal(size=190)
    assert clustered_tpr(members, (others, [str(n % 19) for n in range(190)]), fpr=0.01) == UNMEASURED
    assert clustered_tpr(members, (others, [str(n % 20) for n in range(190)]), fpr=0.01).value is not None


def width(figure: Figure) -> float:
    assert figure.high is not None
    assert figure.low is not None
    return figure.high - figure.low


def figures_of(values: np.ndarray, clusters: list[str]) -> list[Figure]:
    """Every clustered figure of the same values in the same clusters."""
    others = np.linspace(-2, 2, 40), [str(n) for n in range(40)]
    return [
        clustered(np.mean, (values, clusters)),
        clustered_mean(values, clusters),
        clustered_share(values > 0.5, clusters),
        clustered_auc((values, clusters), others),
    ]


def test_values_of_one_cluster_count_as_one() -> None:
    values, names = np.random.default_rng(0).normal(size=20), [str(n) for n in range(20)]
    alone = figures_of(values, names)
    copied = figures_of(np.repeat(values, 50), np.repeat(names, 50).tolist())
    independent = figures_of(np.repeat(values, 50), [str(n) for n in range(1000)])
    for one, many, naive in zip(alone[:3], copied[:3], independent[:3], strict=True):
        assert width(many) == pytest.approx(width(one), rel=1e-6)
        assert width(naive) < width(one) / 4
    assert width(copied[3]) == pytest.approx(width(alone[3]), rel=1e-6)


def test_figures_are_the_same_in_any_order_and_under_any_names() -> None:
    draw = np.random.default_rng(2)
    values, clusters = draw.normal(size=60), [f"p{n % 13}" for n in range(60)]
    order = draw.permutation(60)
    for one, other in zip(
        figures_of(values, clusters), figures_of(values[order], [f"q{clusters[n]}" for n in order]), strict=True
    ):
        assert other == pytest.approx(one, abs=1e-9)


def test_one_cluster_has_a_value_and_no_interval() -> None:
    for figure in figures_of(np.array([0.2, 1.0, 1.1]), ["ann"] * 3):
        assert figure.value is not None
        assert (figure.low, figure.high) == (None, None)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_at_none_and_at_all_only_the_number_of_people_counts(rate: float) -> None:
    hits = np.full(60, bool(rate))
    figures = [clustered_share(hits, [str(n % people) for n in range(60)]) for people in (5, 20, 60)]
    widths = [width(figure) for figure in figures]
    assert widths == sorted(widths, reverse=True)
    quantile = student.ppf(0.975, 19)
    assert widths[1] == pytest.approx(quantile**2 / (20 + quantile**2))


def test_the_jackknife_of_a_mean_is_the_clusters_spread() -> None:
    draw = np.random.default_rng(3)
    means = draw.normal(size=12)
    figure = clustered(np.mean, (np.repeat(means, 5), [str(n // 5) for n in range(60)]))
    reach = student.ppf(0.975, 11) * means.std(ddof=1) / np.sqrt(12)
    assert figure == pytest.approx((means.mean(), means.mean() - reach, means.mean() + reach))


def test_limits_lie_on_the_longer_tail_of_skewed_values() -> None:
    values = np.exp(np.random.default_rng(4).normal(size=30))
    figure = clustered_mean(values, [str(n) for n in range(30)])
    assert figure.value is not None
    assert figure.high is not None
    assert figure.low is not None
    assert figure.high - figure.value > 1.1 * (figure.value - figure.low)


def test_an_aucs_interval_stays_within_bounds_and_is_not_of_width_zero_at_perfect_separation() -> None:
    names = [str(n) for n in range(20)]
    figure = clustered_auc((np.arange(20.0) + 100, names), (np.arange(20.0), names))
    assert figure.value == figure.high == 1.0
    assert figure.low is not None
    assert 0.75 < figure.low < 0.9


def test_no_values_give_no_figure() -> None:
    assert clustered(np.mean, (np.array([]), [])) == clustered_mean(np.array([]), []) == UNMEASURED
    assert clustered_share(np.array([], dtype=bool), []) == UNMEASURED
    assert clustered_auc((np.ones(3), ["a", "b", "c"]), (np.array([]), [])) == UNMEASURED
    assert share(0, 0) == UNMEASURED


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 17), (1, 1), (250, 1000)])
def test_a_shares_interval_is_clopper_pearson(successes: int, trials: int) -> None:
    exact = binomtest(successes, trials).proportion_ci(method="exact")
    figure = share(successes, trials)
    assert figure == pytest.approx((successes / trials, exact.low, exact.high), abs=1e-9)


def test_a_share_of_none_in_sixty_reaches_up_to_six_percent() -> None:
    assert share(0, 60) == pytest.approx((0.0, 0.0, 1 - 0.025 ** (1 / 60)))
