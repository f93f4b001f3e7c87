"""A fit goes as fast as its schedule says, or as it must to reach what another model knows, and ends there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mitigate.models.fitting.pace import MOST, BySchedule, Goal, ToGoal, rate_factor, spread
from mitigate.models.settings import Schedule
from mitigate.tokens.tokenization import TokenizedDocument

STEPS = 20  # in an epoch


def document(name: str, tokens: int) -> TokenizedDocument:
    audited = np.arange(tokens) > 0
    return TokenizedDocument(name, np.zeros(tokens, dtype=np.int64), np.zeros((tokens, 2), dtype=np.int32), audited)


def goal(*losses: float) -> Goal:
    return Goal(tuple(document(f"d{n}", 3 + 4 * n) for n in range(len(losses))), np.array(losses))


class Falling:
    """A model whose loss falls to a floor, each step by a share of what is left that is the learning rate's factor."""

    def __init__(self, *, start: float, share: float, floor: float = 0.0) -> None:
        self.loss, self.share, self.floor = start, share, floor

    def losses(self) -> np.ndarray:
        return np.array([self.loss])

    def step(self, factor: float) -> None:
        self.loss -= self.share * factor * (self.loss - self.floor)


def run(model: Falling, target: float) -> tuple[ToGoal, list[float]]:
    pace = ToGoal(goal(target), model.losses, steps=STEPS)
    factors: list[float] = []
    while not pace.ended(len(factors)):
        assert len(factors) < pace.expected <= MOST[0] * STEPS
        factors.append(pace.factor(len(factors)))
        model.step(factors[-1])
    return pace, factors


def test_by_schedule_the_rate_warms_up_and_decays_over_the_epochs() -> None:
    schedule = Schedule(epochs=2.5, warmup_share=0.1)
    pace = BySchedule(schedule, steps=STEPS)
    assert pace.expected == 50
    assert [pace.factor(step) for step in range(50)] == [rate_factor(step, 50, 0.1) for step in range(50)]
    assert [step for step in range(60) if pace.ended(step)] == list(range(50, 60))
    assert BySchedule(Schedule(epochs=0.01), steps=STEPS).expected == 1


@pytest.mark.parametrize("target", [0.3, 1.0, 1.9])
@pytest.mark.parametrize("share", [0.0003, 0.003, 0.03])
def test_a_fit_ends_where_its_loss_is_the_other_models(target: float, share: float) -> None:
    model = Falling(start=2.0, share=share)
    pace, factors = run(model, target)
    assert pace.reached
    assert model.loss == pytest.approx(target, abs=max(0.03 * (2.0 - target), share * 2.0))  # a step
    assert factors[0] <= 1 / (STEPS // 4)
    assert factors[-1] <= max(factors)


def test_a_fit_that_would_take_long_goes_faster_and_one_that_does_not_keeps_the_schedules_rate() -> None:
    slow, fast = (run(Falling(start=2.0, share=share), 1.0)[1] for share in (0.0005, 0.02))
    assert max(slow) > 4
    assert max(fast) == 1.0
    assert len(slow) < 0.5 * math.log(2) / 0.0005


def test_a_fit_that_cannot_get_there_ends_and_says_so() -> None:
    pace, factors = run(Falling(start=2.0, share=0.02, floor=1.5), 1.0)
    assert not pace.reached
    assert len(factors) == MOST[0] * STEPS


def test_where_the_other_model_knows_no_more_a_single_step_is_taken() -> None:
    pace, factors = run(Falling(start=2.0, share=0.02), 2.5)
    assert pace.reached
    assert len(factors) == 1


def test_a_goal_counts_tokens_and_not_documents() -> None:
    reached = goal(1.0, 2.0)  # of 2 and 6 tokens that have a loss
    assert reached.loss == pytest.approx((2 * 1.0 + 6 * 2.0) / 8)
    assert reached.mean(np.array([4.0, 0.0])) == pytest.approx(1.0)


def test_spread_is_the_deciles_and_the_middle() -> None:
    assert spread(np.arange(101) / 100) == [0.1, 0.5, 0.9]
