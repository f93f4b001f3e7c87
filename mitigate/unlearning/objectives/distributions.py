"""Distributions over the vocabulary that are computed once and kept: their likeliest entries, and the rest as one.

128,000 entries in float32 take half a megabyte for each token, 256 entries take 3 KB. A divergence over
entries and rest is that of the two distributions with the rest merged into one event, so it is never above the whole
one (data-processing inequality), and equal to it where all entries are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_LEAST_REST = 1e-7  # a float32 sum of probabilities does not come closer to 1
_NEARLY_CERTAIN = -1e-3  # nats


@dataclass(frozen=True)
class Kept:
    """Distributions at N positions.

    Attributes:
        ids: (N, k) entries.
        log_probs: (N, k) their log-probabilities.
        rest: (N,) log-probability of all others together; -inf where k is the whole vocabulary.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    rest: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, chosen: torch.Tensor) -> Kept:
        """The rows of a mask or of indices."""
        return Kept(self.ids[chosen], self.log_probs[chosen], self.rest[chosen])

    def to(self, device: torch.device) -> Kept:
        """On another device, ids as indices."""
        return Kept(self.ids.to(device).long(), self.log_probs.to(device), self.rest.to(device))

    def cpu(self) -> Kept:
        """For keeping: on the CPU, ids in 32 bits."""
        return Kept(self.ids.int().cpu(), self.log_probs.cpu(), self.rest.cpu())

    @staticmethod
    def joined(parts: Sequence[Kept]) -> Kept:
        """One after the other."""
        return Kept(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "log_probs", "rest")))


def keep_likeliest(log_probs: torch.Tensor, tokens: torch.Tensor, *, entries: int) -> Kept:
    """The likeliest entries of each distribution, the token itself always among them.

    Args:
        log_probs: (N, V).
        tokens: (N,) ids.
        entries: k; the whole vocabulary if it is no larger.
    """
    entries = min(entries, log_probs.shape[1])
    values, ids = log_probs.topk(entries, dim=1)
    if entries == log_probs.shape[1]:
        return Kept(ids, values, torch.full_like(values[:, 0], -math.inf))
    missing = (ids != tokens.unsqueeze(1)).all(1)
    ids[missing, -1] = tokens[missing]
    return Kept(ids, log_probs.gather(1, ids), log_probs.scatter(1, ids, -math.inf).logsumexp(1))


def divergence(kept: Kept, log_probs: torch.Tensor) -> torch.Tensor:
    """KL(kept ‖ p) over the kept entries and the rest as one: (N,) nats.

    Args:
        kept: N distributions.
        log_probs: (N, V) log p, with gradient.
    """
    whole = kept.ids.shape[1] == log_probs.shape[1]
    own, other = kept.log_probs, log_probs.gather(1, kept.ids)
    if not whole:
        own = torch.cat([own, kept.rest.unsqueeze(1)], dim=1)
        other = torch.cat([other, _rest(other).unsqueeze(1)], dim=1)
    weight = own.exp()
    return (weight * torch.where(weight > 0, own - other, torch.zeros_like(own))).sum(1)


def tilted(kept: Kept, tokens: torch.Tensor, *, by: float) -> Kept:
    """softmax(z + by · onehot(token)) of each distribution softmax(z).

    Args:
        kept: N distributions that hold their token.
        tokens: (N,) ids.
        by: what is added to the token's logit.
    """
    shifted = torch.where(kept.ids == tokens.unsqueeze(1), kept.log_probs + by, kept.log_probs)
    log_norm = torch.cat([shifted, kept.rest.unsqueeze(1)], dim=1).logsumexp(1)
    return Kept(kept.ids, shifted - log_norm.unsqueeze(1), kept.rest - log_norm)


def placed(kept: Kept, tokens: torch.Tensor, log_prob: torch.Tensor) -> Kept:
    """Each distribution with its token's log-probability as given, and all else in its own proportions.

    Args:
        kept: N distributions that hold their token.
        tokens: (N,) ids.
        log_prob: (N,) nats; what is nearly certain is taken to be so.
    """
    given = log_prob.clamp(max=_NEARLY_CERTAIN).unsqueeze(1)
    at = kept.ids == tokens.unsqueeze(1)
    others = kept.log_probs.masked_fill(at, -torch.inf)
    shift = torch.log1p(-given.exp()) - torch.cat([others, kept.rest.unsqueeze(1)], dim=1).logsumexp(1, keepdim=True)
    return Kept(kept.ids, torch.where(at, given, others + shift), kept.rest + shift.squeeze(1))


def tilted_log_prob(log_prob: torch.Tensor, *, by: float) -> torch.Tensor:
    """(N,) what a token's log-probability becomes when `by` is added to its logit: ℓ + by − log(1 + e^ℓ (e^by − 1))."""
    return log_prob + by - torch.log1p(log_prob.clamp(max=0.0).exp() * math.expm1(by))


def _rest(log_probs: torch.Tensor) -> torch.Tensor:
    return (1 - log_probs.exp().sum(1)).clamp_min(_LEAST_REST).log()
