"""Kept distributions give the divergences of the whole ones, or of these with their rest merged."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch

from mitigate.unlearning.objectives.distributions import (
    Kept,
    divergence,
    keep_likeliest,
    placed,
    tilted,
    tilted_log_prob,
)

VOCABULARY = 12
TOKENS = torch.tensor([3, 0, 11, 7, 2, 2])


def distributions(seed: int, *, scale: float = 2.0) -> torch.Tensor:
    """(N, V) log-probabilities."""
    draw = torch.Generator().manual_seed(seed)
    return torch.log_softmax(scale * torch.randn(len(TOKENS), VOCABULARY, generator=draw, dtype=torch.float64), -1)


def merged(log_probs: torch.Tensor, ids: torch.Tensor) -> list[list[float]]:
    """Probabilities of the given entries and of all others together, row by row."""
    rows = []
    for row, kept in zip(log_probs.exp().tolist(), ids.tolist(), strict=True):
        rows.append([*(row[v] for v in kept), sum(p for v, p in enumerate(row) if v not in kept)])
    return rows


def kl(p: Iterable[float], q: Iterable[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_with_all_entries_the_divergence_is_the_whole_one_with_its_gradient() -> None:
    p, q = distributions(0), distributions(1).requires_grad_()
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(1)
    got = divergence(keep_likeliest(p, TOKENS, entries=99), q)
    torch.testing.assert_close(got, expected)
    for ours, theirs in zip(*(torch.autograd.grad(value.sum(), q) for value in (got, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("entries", [1, 3, 8])
def test_with_fewer_entries_it_is_that_of_the_merged_distributions_and_never_larger(entries: int) -> None:
    p, q = distributions(0), distributions(1)
    kept = keep_likeliest(p, TOKENS, entries=entries)
    got = divergence(kept, q)
    pairs = zip(merged(p, kept.ids), merged(q, kept.ids), strict=True)
    assert got.tolist() == pytest.approx([kl(one, other) for one, other in pairs], rel=1e-9)
    assert (got <= torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(1) + 1e-12).all()
    assert divergence(kept, p).abs().max() < 1e-12


def test_the_token_is_always_kept_and_beside_it_the_likeliest() -> None:
    p = distributions(0)
    for entries in (1, 4):
        kept = keep_likeliest(p, TOKENS, entries=entries)
        for row, token in enumerate(TOKENS.tolist()):
            likeliest = sorted(range(VOCABULARY), key=lambda v: -p[row, v].item())[:entries]
            expected = likeliest if token in likeliest else [*likeliest[:-1], token]
            assert kept.ids[row].tolist() == expected
            assert kept.log_probs[row].tolist() == [p[row, v].item() for v in expected]
    unlikely = p.gather(1, TOKENS.unsqueeze(1)).squeeze(1) < p.topk(4, dim=1).values[:, -1]
    assert unlikely.any(), "one of the tokens is not among the likeliest"


@pytest.mark.parametrize("entries", [4, VOCABULARY])
@pytest.mark.parametrize("strength", [0.5, 10.0, 50.0])
@pytest.mark.parametrize("scale", [2.0, 20.0])
def test_taking_strength_off_a_tokens_logit_equals_doing_so_in_the_whole_softmax(
    entries: int, strength: float, scale: float
) -> None:
    p = distributions(2, scale=scale)
    certain = torch.where(torch.arange(VOCABULARY) == TOKENS.unsqueeze(1), p.max() + 25.0, p)  # as memorized ones are
    for log_probs in (p, torch.log_softmax(certain, -1)):
        got = tilted(keep_likeliest(log_probs.float(), TOKENS, entries=entries), TOKENS, by=-strength)
        lowered = log_probs.clone()
        for row, token in enumerate(TOKENS.tolist()):
            lowered[row, token] -= strength
        for row, (*kept, rest) in enumerate(merged(torch.log_softmax(lowered, -1), got.ids)):
            assert got.log_probs[row].exp().tolist() == pytest.approx(kept, rel=1e-3, abs=1e-6)
            assert got.rest[row].exp().item() == pytest.approx(rest, rel=1e-3, abs=1e-6)
        alone = tilted_log_prob(log_probs.gather(1, TOKENS.unsqueeze(1)).squeeze(1), by=-strength)
        whole = torch.log_softmax(lowered, -1).gather(1, TOKENS.unsqueeze(1)).squeeze(1)
        assert alone.tolist() == pytest.approx(whole.tolist(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("entries", [4, VOCABULARY])
def test_a_token_is_placed_and_all_else_keeps_its_proportions(entries: int) -> None:
    log_probs = distributions(2, scale=3.0)
    wanted = torch.tensor([-0.01, -3.0, -12.0, 0.2, -0.5, -1.0], dtype=torch.float64)  # one beyond certainty
    got = placed(keep_likeliest(log_probs.float(), TOKENS, entries=entries), TOKENS, wanted.float())
    for row, token in enumerate(TOKENS.tolist()):
        p = log_probs[row].exp()
        share = math.exp(min(float(wanted[row]), -1e-3))
        expected = p * (1 - share) / (1 - p[token])
        expected[token] = share
        ids = got.ids[row].long()
        assert got.log_probs[row].exp().tolist() == pytest.approx(expected[ids].tolist(), rel=1e-3, abs=1e-6)
        rest = float(expected.sum() - expected[ids].sum())
        assert got.rest[row].exp().item() == pytest.approx(rest, rel=1e-3, abs=1e-5)


def test_kept_distributions_are_the_same_after_a_round_trip_to_the_cpu_and_in_parts() -> None:
    kept = keep_likeliest(distributions(0), TOKENS, entries=3)
    again = Kept.joined([kept.cpu().rows(torch.tensor([0, 1])), kept.cpu().rows(torch.arange(6) > 1)])
    again = again.to(torch.device("cpu"))
    assert (len(again), again.ids.dtype, kept.cpu().ids.dtype) == (6, torch.int64, torch.int32)
    for name in ("ids", "log_probs", "rest"):
        assert torch.equal(getattr(again, name), getattr(kept, name))
