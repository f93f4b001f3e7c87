"""The excess is the formula that it names, is nearer to the truth than the bare difference, and knows its error."""

from __future__ import annotations

import numpy as np
import pytest

from mitigate.detection.scores.excess import excess

NAN = float("nan")


def simulated(tokens: int = 8000, references: int = 4, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(target's log-probabilities, references', true excess): the harder a token, the more models differ in it."""
    rng = np.random.default_rng(seed)
    level = -rng.gamma(1.0, 2.0, tokens)
    noise = 0.05 - 0.25 * level * rng.gamma(2.0, 0.5, tokens)
    truth = np.where(rng.random(tokens) < 0.3, rng.gamma(2.0, 0.5, tokens), 0.0)
    own = level + truth + noise * rng.normal(size=tokens)
    return own, level[:, None] + noise[:, None] * rng.normal(size=(tokens, references)), truth


def naive(log_prob: list[float], references: list[list[float]]) -> list[tuple[float, float]]:
    """The docstring's formula for tokens of one stratum, one by one."""
    usable = [[value for value in own if value == value] for own in references]
    middles = [sum(own) / len(own) for own in usable]
    variances = [sum((v - m) ** 2 for v in own) / (len(own) - 1) for own, m in zip(usable, middles, strict=True)]
    x = [value - middle for value, middle in zip(log_prob, middles, strict=True)]
    freedom = [len(own) - 1 for own in usable]
    typical = sum(v * d for v, d in zip(variances, freedom, strict=True)) / sum(freedom)
    noise = [(4 * typical + d * v) / (4 + d) * (1 + 1 / (d + 1)) for v, d in zip(variances, freedom, strict=True)]
    mean = sum(x) / len(x)
    true = max(sum((value - mean) ** 2 for value in x) / len(x) - sum(noise) / len(noise), 1e-6)
    return [
        (mean + (value - mean) * true / (true + n), (true * n / (true + n)) ** 0.5)
        for value, n in zip(x, noise, strict=True)
    ]


def test_the_excess_is_its_formula_and_unused_references_count_nothing() -> None:
    rng = np.random.default_rng(1)
    pairs = np.array([[-2.5, -1.5], [-3.0, -1.0], [-2.25, -1.75]])  # of one middle: all tokens are in one stratum
    references = np.concatenate([pairs[rng.integers(3, size=12)], pairs[rng.integers(3, size=12)]], axis=1)
    references[::3, 2:] = NAN
    own = -2.0 + 2 * rng.normal(size=12)
    assert np.allclose(np.transpose(excess(own, references)), naive(own.tolist(), references.tolist()))


def test_the_estimate_is_nearer_to_the_truth_than_the_difference_and_knows_its_error() -> None:
    own, references, truth = simulated()
    estimate, spread = excess(own, references)
    bare = own - references.mean(axis=1)
    error = estimate - truth
    assert np.mean(error**2) < 0.7 * np.mean((bare - truth) ** 2)
    assert np.corrcoef(estimate, truth)[0, 1] > np.corrcoef(bare, truth)[0, 1]
    assert 0.6 < np.mean(np.abs(error) < spread) < 0.9, "about two of three lie within one deviation"
    assert (spread > 0).all()


def test_neither_the_order_of_tokens_nor_of_references_matters() -> None:
    own, references, _ = simulated(500)
    order, other = np.random.default_rng(2).permutation(500), [2, 0, 3, 1]
    once = excess(own, references)
    again = excess(own[order], references[order][:, other])
    for first, second in zip(once, again, strict=True):
        assert first[order] == pytest.approx(second)


def test_a_token_without_two_references_has_none() -> None:
    own, references, _ = simulated(50)
    own[0] = NAN
    references[1, 1:] = NAN
    estimate, spread = excess(own, references)
    assert np.flatnonzero(np.isnan(estimate)).tolist() == [0, 1] == np.flatnonzero(np.isnan(spread)).tolist()
    assert np.isnan(excess(own, references[:, :1])).all()
