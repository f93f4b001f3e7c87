"""Intervals over runs hold what resampling within runs does not see: that runs differ."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from mitigate.statistics.intervals import UNMEASURED, clustered_share
from mitigate.statistics.runs import over_runs, share_over_runs


def runs(rng: np.random.Generator, count: int, *, between: float, within: float) -> np.ndarray:
    """(S, 301) values about 0, each with resamples that differ from it as it differs from its run's truth."""
    values = rng.normal(0, between, count) + rng.normal(0, within, count)
    return np.column_stack([values, values[:, None] + rng.normal(0, within, (count, 300))])


def test_runs_that_differ_as_resamples_do_have_the_bootstraps_interval() -> None:
    drawn = np.random.default_rng(0).normal(0, 1, (3, 300))
    figure = over_runs(np.column_stack([[0.1, 0.0, -0.1], drawn]))
    low, high = np.quantile(drawn.mean(0), [0.025, 0.975])
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.0, low, high))


def test_what_runs_differ_by_beyond_that_is_added_in_squares() -> None:
    values = np.array([1.0, 2.0, 6.0])
    drawn = values[:, None] + np.random.default_rng(0).normal(0, 0.1, (3, 300))
    figure = over_runs(np.column_stack([values, drawn]))
    spread = ((values - 3) ** 2).sum() / 2
    extra = spread - drawn.var(axis=1).mean()
    beyond = student.ppf(0.975, 2) * np.sqrt(extra / 3)
    low, high = np.quantile(drawn.mean(0), [0.025, 0.975])
    assert figure.low == pytest.approx(3 - np.hypot(3 - low, beyond))
    assert figure.high == pytest.approx(3 + np.hypot(high - 3, beyond))


def test_weights_count_runs_as_often() -> None:
    values = np.array([[1.0, 0.9, 1.1], [3.0, 2.9, 3.1]])
    assert over_runs(values, np.array([3, 1])).value == pytest.approx(1.5)
    assert over_runs(values, np.array([3, 1])) == over_runs(values, np.array([30, 10]))


def test_one_run_has_the_interval_of_its_own_resamples_and_none_has_no_figure() -> None:
    one = np.concatenate([[2.0], np.linspace(1, 3, 300)])[None]
    assert over_runs(one) == pytest.approx((2.0, 1.05, 2.95))
    assert over_runs(np.zeros((0, 0))) == UNMEASURED
    assert over_runs(np.array([[1.0, 1.0], [np.nan, 1.0]])) == UNMEASURED


def test_bounds_hold() -> None:
    values = np.array([[0.99, 0.98, 1.0], [0.5, 0.49, 0.51]])
    figure = over_runs(values, bounds=(0.0, 1.0))
    assert (figure.low, figure.high) == (0.0, 1.0)


@pytest.mark.parametrize(("count", "between"), [(3, 1.0), (3, 0.0), (5, 0.3)])
def test_the_interval_covers_the_truth_of_all_runs(count: int, between: float) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        figure = over_runs(runs(rng, count, between=between, within=0.3))
        assert figure.low is not None
        assert figure.high is not None
        covered += figure.low <= 0 <= figure.high
    assert covered >= 0.9 * 300, "95 of 100, less what so few runs allow"


def people_of(hits: np.ndarray) -> list[str]:
    """Two events a person."""
    return [f"p{number // 2}" for number in range(len(hits))]


def test_a_share_of_runs_that_agree_is_that_of_all_their_events() -> None:
    hits = [np.tile([True, False, False, False], 10) for _ in range(3)]
    names = [f"{number}.{name}" for number, one in enumerate(hits) for name in people_of(one)]
    pooled = clustered_share(np.concatenate(hits), names)
    assert share_over_runs(hits, [people_of(one) for one in hits]) == pytest.approx(pooled)
    alone = hits[:1]
    assert share_over_runs(alone, [people_of(alone[0])]) == pytest.approx(
        clustered_share(alone[0], people_of(alone[0]))
    )
    assert share_over_runs([], []) == UNMEASURED


def test_a_share_of_runs_that_differ_is_less_sure() -> None:
    hits = [np.arange(40) < count for count in (2, 10, 30)]
    names = [f"{number}.{name}" for number, one in enumerate(hits) for name in people_of(one)]
    pooled = clustered_share(np.concatenate(hits), names)
    figure = share_over_runs(hits, [people_of(one) for one in hits])
    assert figure.value == pytest.approx(42 / 120)
    assert figure.low is not None
    assert figure.high is not None
    assert pooled.low is not None
    assert pooled.high is not None
    spread = np.var([2 / 40, 10 / 40, 30 / 40], ddof=1)
    most = student.ppf(0.975, 2) * np.sqrt(spread / 3)
    assert pooled.high + 0.2 < figure.high <= figure.value + np.hypot(most, pooled.high - figure.value)
    assert figure.low == 0.0, "no share is below nothing"


@pytest.mark.parametrize(("spread", "least"), [(0.0, 0.93), (0.15, 0.88)])
def test_the_interval_of_a_share_covers_the_rate_of_all_runs(spread: float, least: float) -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        rates = np.clip(rng.normal(0.3, spread, 3), 0, 1) if spread else np.full(3, 0.3)
        hits = [np.repeat(rng.random(30) < rate, 2) for rate in rates]
        figure = share_over_runs(hits, [people_of(one) for one in hits])
        assert figure.low is not None
        assert figure.high is not None
        covered += figure.low <= 0.3 <= figure.high
    assert covered >= least * 400
