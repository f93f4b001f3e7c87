"""Signals of rows of logits: what needs the whole vocabulary, in chunks of rows and a few passes over each.

No table of log-probabilities is made. Of a chunk, every model's logits are centred on their largest and exponentiated
once, whatever it is needed for; all else are sums over these. On a CPU a chunk stays in its caches. Notation as in
`mitigate.detection.signals`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

_CPU_CHUNK = 1 << 18  # bytes of one float32 table of a chunk: several of them fit in a core's cache
_GPU_CHUNK = 1 << 28
_FAR = -1e4  # nats under the largest logit; what is farther has no part in any sum, and -inf times 0 is none
_TINY = torch.finfo(torch.float32).tiny
Columns = dict[str, torch.Tensor]


def row_signals(
    logits: Mapping[int, torch.Tensor],
    targets: torch.Tensor,
    compared: Sequence[tuple[int, tuple[int, ...]]],
    *,
    temperature: float = 1.0,
    offline_a: float = 1.0,
) -> list[Columns]:
    """Signals of n rows, for each model in the target's place with the references that it is compared with.

    Args:
        logits: model -> (n, V), in any number format.
        targets: (n,) x_t.
        compared: (target, references), models of `logits`.
        temperature, offline_a: as for `compute_signals`.

    Returns:
        for each of `compared`, the columns of `TARGET_SIGNALS` and, where it has references, `REFERENCE_SIGNALS` (n,)
        and `log_prob_references` (n, K). Rows of a model with NaN logits are NaN.
    """
    size = next(iter(logits.values())).shape[1]
    most = _CPU_CHUNK if targets.device.type == "cpu" else _GPU_CHUNK
    step = max(1, most // (4 * size))
    parts: list[list[Columns]] = [[] for _ in compared]
    for start in range(0, len(targets), step):
        chunk = slice(start, start + step)
        said = {number: _Said(table[chunk].float(), targets[chunk], temperature) for number, table in logits.items()}
        own = {number: said[number].signals() for number in {target for target, _ in compared}}
        means: dict[tuple[int, ...], _Mean] = {}
        for part, (target, out) in zip(parts, compared, strict=True):
            columns = dict(own[target])
            if out:
                if out not in means:
                    means[out] = _Mean([said[number] for number in out], offline_a)
                columns |= means[out].signals(said[target])
            part.append(columns)
    return [{name: torch.cat([columns[name] for columns in part]) for name in part[0]} for part in parts]


@dataclass(frozen=True)
class _Softmax:
    """A distribution p at n rows: p = e^z / total, z = logits less their largest (at a temperature).

    Attributes:
        centred: (n, V) z, at least `_FAR`.
        weights: (n, V) e^z.
        total: (n,).
        token: (n,) z of x_t.
    """

    centred: torch.Tensor
    weights: torch.Tensor
    total: torch.Tensor
    token: torch.Tensor

    @classmethod
    def of(cls, centred: torch.Tensor, token: torch.Tensor) -> _Softmax:
        weights = centred.exp()
        return cls(centred, weights, weights.sum(1), token)

    @cached_property
    def log_total(self) -> torch.Tensor:
        return self.total.log()

    @cached_property
    def log_prob(self) -> torch.Tensor:
        """(n,) log p(x_t)."""
        return self.token - self.log_total


class _Said:
    """What a model says at n rows: its distribution, and the same at a temperature."""

    def __init__(self, logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> None:
        largest = logits.amax(1, keepdim=True)
        token = (logits.gather(1, targets.unsqueeze(1)) - largest).squeeze(1)
        centred = (logits - largest).clamp_min_(_FAR)
        self.plain = self.tempered = _Softmax.of(centred, token)
        if temperature != 1.0:
            self.tempered = _Softmax.of(centred / temperature, token / temperature)

    def signals(self) -> Columns:
        """Signals of p_θ alone."""
        own = self.plain
        table = own.weights * own.centred
        mean = table.sum(1) / own.total
        square = table.mul_(own.centred).sum(1) / own.total
        token = own.token.clamp_min(_FAR).unsqueeze(1)
        torch.gt(own.centred, token, out=table)  # as numbers: sums of truth values are slow on a CPU
        return {
            "log_prob": own.log_prob,
            "rank": table.sum(1) + 1,
            "top_log_prob": -own.log_total,
            "entropy": own.log_total - mean,
            "log_prob_std": (square - mean.square()).clamp_min(0).sqrt(),
        }


class _Mean:
    """p̄ of some references at n rows, with the offline correction."""

    def __init__(self, references: Sequence[_Said], a: float) -> None:
        size = references[0].plain.centred.shape[1]
        tempered = [one.tempered for one in references]
        share = (1 + a) / 2 / len(references)
        self.probs = tempered[0].weights * (share / tempered[0].total).unsqueeze(1)
        for one in tempered[1:]:
            self.probs += one.weights * (share / one.total).unsqueeze(1)
        if a != 1.0:
            self.probs += (1 - a) / 2 / size
        if len(references) == 1 and a == 1.0:
            self.log_probs = tempered[0].centred - tempered[0].log_total.unsqueeze(1)
        else:
            self.log_probs = self.probs.clamp_min_(_TINY).log()
        self.log_prob = offline_mixture(_log_mean([one.log_prob for one in tempered]), a, size=size)
        self.alone = torch.stack([one.plain.log_prob for one in references], dim=1)
        self.log_prob_plain = _log_mean(self.alone.unbind(1))

    @cached_property
    def entropy(self) -> torch.Tensor:
        return -(self.probs * self.log_probs).sum(1)

    def signals(self, target: _Said) -> Columns:
        """Signals of p_θ against p̄."""
        own = target.tempered
        ratio = (own.centred - own.log_total.unsqueeze(1)).sub_(self.log_probs)
        table = self.probs * ratio
        expected = table.sum(1)
        square = table.mul_(ratio).sum(1)
        return {
            "entropy_out": self.entropy,
            "log_ratio": own.log_prob - self.log_prob,
            "kl": -expected,
            "log_ratio_variance": (square - expected.square()).clamp_min(0),
            "log_prob_out": self.log_prob_plain,
            "log_prob_references": self.alone,
        }


def offline_mixture(log_mean: torch.Tensor, a: float, *, size: int) -> torch.Tensor:
    """Offline correction of p̄ over the vocabulary: ½ (1 + a) p̄(v) + ½ (1 − a) / V.

    RMIA (Zarifzadeh et al., arXiv 2312.03262) estimates the mean of IN and OUT models from OUT models alone as
    ½ [(1 + a) p_out + (1 − a)]. Over a vocabulary its 1 is shared out evenly, so that the result is a distribution.

    Args:
        log_mean: log p̄ of any entries.
        a: from 0 (IN models are as good as certain of everything) to 1 (no correction).
        size: V.
    """
    if a == 1.0:
        return log_mean
    floor = math.log((1 - a) / 2 / size)
    return torch.logaddexp(log_mean + math.log((1 + a) / 2), torch.full_like(log_mean, floor))


def _log_mean(log_probs: Sequence[torch.Tensor]) -> torch.Tensor:
    """log of the mean probability: logsumexp − log K."""
    return torch.logsumexp(torch.stack(list(log_probs)), dim=0) - math.log(len(log_probs))
