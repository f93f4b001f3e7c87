"""The bound on ε holds for mechanisms whose ε is known, and comes near it where there is much to see."""

from __future__ import annotations

import numpy as np

from mitigate.statistics.privacy import epsilon_lower_bound


def answers(rng: np.random.Generator, epsilon: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Randomized response: says the truth with e^ε / (1 + e^ε), which is ε-private and no less."""
    truth = np.exp(epsilon) / (1 + np.exp(epsilon))
    return (rng.random(count) < truth).astype(float), (rng.random(count) < 1 - truth).astype(float)


def test_the_bound_lies_below_the_true_epsilon_nineteen_times_of_twenty() -> None:
    for epsilon in (0.0, 0.5, 2.0):
        above = 0
        for seed in range(400):
            bound = epsilon_lower_bound(*answers(np.random.default_rng([seed, int(10 * epsilon)]), epsilon, 60))
            assert bound is not None
            above += bound > epsilon
        assert above <= 400 * 0.05 + 12, epsilon


def test_it_comes_near_with_many_scores() -> None:
    bound = epsilon_lower_bound(*answers(np.random.default_rng(1), 2.0, 40_000), delta=0.0)
    assert bound is not None
    assert 1.8 < bound <= 2.0


def test_either_direction_tells() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.normal(2, 1, 400), rng.normal(0, 1, 400)
    up, down = epsilon_lower_bound(members, others), epsilon_lower_bound(-members, -others)
    assert up is not None
    assert down is not None
    assert up > 1
    assert down > 1


def test_few_scores_tell_nothing() -> None:
    assert epsilon_lower_bound(np.ones(3), np.zeros(50)) is None
    assert epsilon_lower_bound(np.ones(8), np.zeros(8)) == 0.0 or epsilon_lower_bound(np.ones(8), np.zeros(8)) < 1
    assert epsilon_lower_bound(np.ones(50), np.ones(50)) == 0.0
