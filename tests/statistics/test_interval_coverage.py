"""Intervals hold the truth about as often as they say: simulated people whose events go together, known truth.

People have one to nine events each; a person's rate is beta-distributed, so that the correlation of two events of one
person is what the setting says. Each setting is simulated afresh from a seed of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.stats import binom, norm

from mitigate.statistics.intervals import (
    Figure,
    clustered_excess,
    clustered_mean,
    clustered_share,
    paired_excess,
    share,
)
from mitigate.statistics.separation import auc_of_many, clustered_auc, clustered_tpr

TRIALS = 300
BAR = (0.93, 0.97)
CONSERVATIVE = 0.995  # near 0 and 1, where no interval of a discrete rate keeps to the bar: at least .93, never all


def within(covered: int, *, low: float = BAR[0], high: float = BAR[1]) -> bool:
    """Whether a true coverage within [low, high] can have given `covered` of the trials (two-sided, 0.1 % each)."""
    return binom.ppf(0.001, TRIALS, low) <= covered <= binom.ppf(0.999, TRIALS, high)


def people(draw: np.random.Generator, count: int) -> tuple[np.ndarray, list[str]]:
    """Events of each person, and the name that each event has."""
    sizes = draw.integers(1, 10, size=count)
    return sizes, np.repeat([f"p{number}" for number in range(count)], sizes).tolist()


def hits(draw: np.random.Generator, count: int, *, rate: float, correlation: float) -> tuple[np.ndarray, list[str]]:
    """Beta-binomial events."""
    sizes, names = people(draw, count)
    own = np.full(count, rate)
    if correlation:
        own = draw.beta(rate * (1 / correlation - 1), (1 - rate) * (1 / correlation - 1), size=count)
    return draw.random(len(names)) < np.repeat(own, sizes), names


def scores(
    draw: np.random.Generator, count: int, *, correlation: float, shift: float = 0.0
) -> tuple[np.ndarray, list[str]]:
    """Normal scores of variance 1; `shift` is their mean."""
    sizes, names = people(draw, count)
    own = np.repeat(draw.normal(size=count), sizes)
    return shift + np.sqrt(correlation) * own + np.sqrt(1 - correlation) * draw.normal(size=len(names)), names


def covered(figures: Sequence[Figure], truth: float) -> int:
    assert all(figure.low is not None and figure.high is not None for figure in figures)
    return sum(figure.low <= truth <= figure.high for figure in figures)  # type: ignore[operator]


def simulated(one: Callable[[np.random.Generator], Figure], *setting: float) -> list[Figure]:
    draw = np.random.default_rng([round(1000 * value) for value in setting])
    return [one(draw) for _ in range(TRIALS)]


settings = pytest.mark.parametrize("correlation", [0.0, 0.2, 0.5])
sizes = pytest.mark.parametrize("count", [20, 50])


@settings
@sizes
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_a_clustered_share_covers_as_it_says(rate: float, count: int, correlation: float) -> None:
    figures = simulated(
        lambda draw: clustered_share(*hits(draw, count, rate=rate, correlation=correlation)), rate, count, correlation
    )
    assert within(covered(figures, rate), high=BAR[1] if rate > 0.2 else CONSERVATIVE)


@settings
@sizes
def test_a_clustered_mean_covers_as_it_says(count: int, correlation: float) -> None:
    figures = simulated(
        lambda draw: clustered_mean(*hits(draw, count, rate=0.4, correlation=correlation)), 1, count, correlation
    )
    assert within(covered(figures, 0.4))


@settings
@sizes
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_clustered_auc_covers_as_it_says(shift: float, count: int, correlation: float) -> None:
    figures = simulated(
        lambda draw: clustered_auc(
            scores(draw, count, correlation=correlation, shift=shift), scores(draw, count, correlation=correlation)
        ),
        2 + shift,
        count,
        correlation,
    )
    assert within(covered(figures, float(norm.cdf(shift / np.sqrt(2)))))


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_a_clustered_tpr_covers_at_least_as_it_says_though_its_threshold_is_estimated(correlation: float) -> None:
    figures = simulated(
        lambda draw: clustered_tpr(
            scores(draw, 50, correlation=correlation, shift=1.5), scores(draw, 50, correlation=correlation), fpr=0.01
        ),
        9,
        correlation,
    )
    assert within(covered(figures, float(norm.sf(norm.ppf(0.99) - 1.5))), high=1.0)


@settings
@sizes
@pytest.mark.parametrize(("common", "more"), [(0.1, 0.05), (0.1, 0.2), (0.3, 0.1), (0.0, 0.05)])
def test_the_excess_over_a_control_on_the_same_texts_covers(
    common: float, more: float, count: int, correlation: float
) -> None:
    """Values that both models complete, and values that only the first does."""

    def one(draw: np.random.Generator) -> Figure:
        both, names = hits(draw, count, rate=common, correlation=correlation if common else 0.0)
        alone = np.full(count, more)
        if correlation:
            alone = draw.beta(more * (1 / correlation - 1), (1 - more) * (1 / correlation - 1), size=count)
        _, person = np.unique(names, return_inverse=True)
        return paired_excess(both | (draw.random(len(names)) < alone[person]), both, names)

    figures = simulated(one, common, more, count, correlation)
    rare = more < 0.2 and count < 50
    assert within(covered(figures, more * (1 - common)), high=1.0 if rare else CONSERVATIVE)


def test_chances_that_are_all_small_leave_open_what_so_few_leave_open() -> None:
    """One value of fifty is sure to be drawn, the others never: often none of those is among the texts."""

    def one(draw: np.random.Generator) -> Figure:
        found, names = hits(draw, 20, rate=0.02, correlation=0.2)
        return paired_excess(np.where(found, 0.99, 1e-9), np.full(len(found), 1e-9), names)

    figures = simulated(one, 20)
    assert within(covered(figures, 0.02 * 0.99), high=1.0)
    naive = simulated(lambda draw: clustered_mean(*hits(draw, 20, rate=0.02, correlation=0.2)), 20)
    assert covered(naive, 0.02) < 0.9 * TRIALS, "the test can fail"


@settings
@pytest.mark.parametrize(("own", "other"), [(0.02, 0.02), (0.1, 0.02), (0.3, 0.1), (0.4, 0.4)])
@pytest.mark.parametrize(("count", "others"), [(20, 20), (40, 60)])
def test_the_excess_over_other_people_covers_at_least_as_it_says(
    count: int, others: int, own: float, other: float, correlation: float
) -> None:
    figures = simulated(
        lambda draw: clustered_excess(
            hits(draw, count, rate=own, correlation=correlation),
            hits(draw, others, rate=other, correlation=correlation),
        ),
        *(own, other, count, correlation),
    )
    assert within(covered(figures, own - other), high=1.0)


@settings
@sizes
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_gap_between_two_models_on_the_same_people_covers(shift: float, count: int, correlation: float) -> None:
    """What makes a person's text easy is easy for both models; the first knows the people to forget better."""

    def one(draw: np.random.Generator) -> Figure:
        own, control = [], []
        for more in (shift, 0.0):  # people to forget, never-seen ones
            easy, names = scores(draw, count, correlation=correlation)
            own.append((np.sqrt(0.5) * (easy + draw.normal(size=len(names))) + more, names))
            control.append((np.sqrt(0.5) * (easy + draw.normal(size=len(names))), names))
        return auc_of_many([(own[0], own[1]), (control[0], control[1])], [1.0, -1.0])

    figures = simulated(one, 11, shift, count, correlation)
    assert within(covered(figures, float(norm.cdf(shift / np.sqrt(2))) - 0.5), high=CONSERVATIVE)


def test_events_of_one_person_taken_as_independent_do_not_cover_the_test_can_fail() -> None:
    def naive(draw: np.random.Generator) -> Figure:
        found, _ = hits(draw, 20, rate=0.4, correlation=0.5)
        return share(int(found.sum()), len(found))

    assert covered(simulated(naive, 0), 0.4) < 0.85 * TRIALS


@pytest.mark.parametrize("count", [8, 20])
def test_the_mean_auc_of_stand_ins_covers_though_each_judges_few_people(count: int) -> None:
    """Four stand-ins, each with scores of its own for half of the people of each side; the truth is 0.5."""

    def one(draw: np.random.Generator) -> Figure:
        effects = draw.normal(size=(2, count))  # what is the same to all stand-ins
        comparisons = []
        for _ in range(4):
            sides = []
            for side in effects:
                chosen = draw.permutation(count)[: count // 2]
                names = [f"p{number}" for number in chosen]
                sides.append((0.7 * side[chosen] + 0.7 * draw.normal(size=count // 2), names))
            comparisons.append((sides[0], sides[1]))
        return auc_of_many(comparisons, [0.25] * 4)

    figures = simulated(one, count)
    assert within(covered(figures, 0.5), high=CONSERVATIVE)


def test_an_auc_of_one_person_among_many_gives_no_interval() -> None:
    pair = (np.array([0.1, 0.4, 0.9]), ["a", "b", "c"]), (np.array([0.2, 0.5]), ["x", "y"])
    alone = (np.array([0.4]), ["b"]), pair[1]
    assert auc_of_many([pair, alone], [0.5, 0.5])[1:] == (None, None)
    assert None not in auc_of_many([pair, pair], [0.5, 0.5])
