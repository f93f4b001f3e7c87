"""Signals of rows of logits: what needs the whole vocabulary, in chunks of rows and a few passes over each.

No table of log-probabilities is made. Of a chunk, every model's logits are centred on their largest and exponentiated
once, whatever it is needed for; all else are sums over these. On a CPU a chunk stays in its caches, in tables that are
used again for the next one. Notation as in `mitigate.detection.signals.compute`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

_CPU_CHUNK = 1 << 19  # bytes of one float32 table of a chunk: several of them fit in a core's cache
_GPU_CHUNK = 1 << 26
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
    whole: bool = False,
) -> list[Columns]:
    """Signals of n rows, for each model in the target's place with the references that it is compared with.

    Args:
        logits: model -> (n, V), in any number format.
        targets: (n,) x_t.
        compared: (target, references), models of `logits`.
        temperature, offline_a: as for `compute_signals`.
        whole (`bool`, *optional*, defaults to `False`): all rows are one chunk, as a compiler wants it.

    Returns:
        for each of `compared`, the columns of `TARGET_SIGNALS` and, where it has references, `REFERENCE_SIGNALS` (n,)
        and `log_prob_references` (n, K). Rows of a model with NaN logits are NaN.
    """
    count, size = next(iter(logits.values())).shape
    chunks = [slice(0, count)] if whole else chunks_of(count, size, targets.device)
    tables = _Tables(chunks[0].stop, size, targets.device)
    plain = {number: _Softmax(f"plain {number}", targets) for number in logits}
    tempered = plain
    if temperature != 1.0:
        tempered = {number: _Softmax(f"tempered {number}", targets, temperature) for number in logits}
    judged = {target for target, _ in compared}
    means = {out: _Mean(out, count, offline_a, targets.device) for _, out in compared if out}
    joint = {(target, out): torch.empty(2, count, device=targets.device) for target, out in compared if out}
    for rows in chunks:
        for number, table in logits.items():
            for one in {id(one): one for one in (plain[number], tempered[number])}.values():
                one.read(table[rows], rows, tables)
        for target in judged:
            plain[target].add_moments(rows, tables)
        for out, mean in means.items():
            mean.read([tempered[number] for number in out], rows, tables)
            for target in judged:
                if (target, out) in joint:
                    mean.compare(tempered[target], joint[target, out], rows, tables)
    own = {target: plain[target].signals() for target in judged}
    alone = {out: means[out].signals(plain, tempered) for out in means}
    found = []
    for target, out in compared:
        columns = dict(own[target])
        if out:
            expected, square = joint[target, out]
            columns |= alone[out]
            columns["log_ratio"] = tempered[target].log_prob - columns.pop("log_mean")
            columns |= {"kl": -expected, "log_ratio_variance": (square - expected.square()).clamp_min(0)}
        found.append(columns)
    return found


def row_log_probs(
    logits: Mapping[int, torch.Tensor],
    targets: torch.Tensor,
    compared: Sequence[tuple[int, tuple[int, ...]]],
    *,
    whole: bool = False,
) -> list[Columns]:
    """What of `row_signals` follows from the tokens' log-probabilities, at temperature 1: a third of the work or less.

    Args:
        logits, targets, compared, whole: as for `row_signals`.

    Returns:
        for each of `compared` `log_prob` and, where it has references, `log_prob_out`, `log_ratio` (n,) and
        `log_prob_references` (n, K).
    """
    count, size = next(iter(logits.values())).shape
    chunks = [slice(0, count)] if whole else chunks_of(count, size, targets.device)
    said = {number: torch.empty(count, device=targets.device) for number in logits}
    for number, table in logits.items():
        for rows in chunks:
            token = table[rows].gather(1, targets[rows].unsqueeze(1)).squeeze(1).float()
            torch.sub(token, torch.logsumexp(table[rows].float(), 1), out=said[number][rows])
    found = []
    for target, out in compared:
        columns = {"log_prob": said[target]}
        if out:
            mean = log_mean([said[number] for number in out])
            columns |= {"log_prob_out": mean, "log_ratio": said[target] - mean}
            columns["log_prob_references"] = torch.stack([said[number] for number in out], dim=1)
        found.append(columns)
    return found


def chunks_of(count: int, size: int, device: torch.device) -> list[slice]:
    """The chunks of `count` rows of `size` logits, one at least."""
    most = _CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK
    step = max(1, most // (4 * size))
    return [slice(start, min(count, start + step)) for start in range(0, max(count, 1), step)]


class _Tables:
    """Tables (n, V) of a chunk, each made when it is first asked for: fresh memory costs more than what is done in it.

    Args:
        rows: of the largest chunk.
        size: V.
        device: of the logits.
    """

    def __init__(self, rows: int, size: int, device: torch.device) -> None:
        self.rows, self.size, self.device = rows, size, device
        self._made: dict[str, torch.Tensor] = {}

    def of(self, rows: slice, name: str) -> torch.Tensor:
        """As many rows of a table as a chunk has, whatever is in it."""
        if name not in self._made:
            self._made[name] = torch.empty(self.rows, self.size, device=self.device)
        return self._made[name][: rows.stop - rows.start]


class _Softmax:
    """What a model says at n rows: p = e^z / total, z = logits less their largest, divided by a temperature.

    Tables of the chunk: `centred`, z, at least `_FAR`; `weights`, e^z. Of all rows (n,): `token`, z of x_t, `total`,
    and, where they are asked for, `first` and `second`, Σ e^z z and Σ e^z z², and how many entries are `above` x_t.
    """

    def __init__(self, name: str, targets: torch.Tensor, temperature: float = 1.0) -> None:
        self.name, self.targets, self.temperature = name, targets, temperature
        self.token, self.total, self.first, self.second, self.above = torch.empty(
            5, len(targets), device=targets.device
        )

    def read(self, logits: torch.Tensor, rows: slice, tables: _Tables) -> None:
        """Take in a chunk."""
        largest = logits.amax(1, keepdim=True).float()
        self.token[rows] = (logits.gather(1, self.targets[rows].unsqueeze(1)).float() - largest).squeeze(1)
        centred = torch.sub(logits, largest, out=self.centred(rows, tables)).clamp_min_(_FAR)
        if self.temperature != 1.0:
            self.token[rows] /= self.temperature
            centred /= self.temperature
        torch.exp(centred, out=self.weights(rows, tables))
        torch.sum(self.weights(rows, tables), 1, out=self.total[rows])

    def centred(self, rows: slice, tables: _Tables) -> torch.Tensor:
        return tables.of(rows, f"centred {self.name}")

    def weights(self, rows: slice, tables: _Tables) -> torch.Tensor:
        return tables.of(rows, f"weights {self.name}")

    def add_moments(self, rows: slice, tables: _Tables) -> None:
        """What `signals` needs of the chunk that was read last."""
        centred = self.centred(rows, tables)
        work = torch.mul(self.weights(rows, tables), centred, out=tables.of(rows, "work"))
        torch.sum(work, 1, out=self.first[rows])
        torch.sum(work.mul_(centred), 1, out=self.second[rows])
        token = self.token[rows].clamp_min(_FAR).unsqueeze(1)
        torch.gt(centred, token, out=work)  # as numbers: sums of truth values are slow on a CPU
        torch.sum(work, 1, out=self.above[rows])

    @property
    def log_prob(self) -> torch.Tensor:
        """(n,) log p(x_t), once all chunks were read."""
        return self.token - self.total.log()

    def signals(self) -> Columns:
        """Signals of p_θ alone."""
        mean, log_total = self.first / self.total, self.total.log()
        return {
            "log_prob": self.log_prob,
            "rank": self.above + 1,
            "top_log_prob": -log_total,
            "entropy": log_total - mean,
            "log_prob_std": (self.second / self.total - mean.square()).clamp_min(0).sqrt(),
        }


class _Mean:
    """p̄ of some references at n rows, with the offline correction: tables of the chunk, and its entropy (n,).

    Args:
        out: the references.
        count: n.
        a: of the correction.
        device: of the logits.
    """

    def __init__(self, out: Sequence[int], count: int, a: float, device: torch.device) -> None:
        self.out, self.a = tuple(out), a
        self.entropy = torch.empty(count, device=device)
        self.size = 0

    def read(self, references: Sequence[_Softmax], rows: slice, tables: _Tables) -> None:
        """Take in a chunk that the references have read."""
        probs, log_probs = (tables.of(rows, what) for what in ("mean", "log mean"))
        work, self.size = tables.of(rows, "work"), tables.size
        share = (1 + self.a) / 2 / len(references)
        for place, one in enumerate(references):
            weights, scale = one.weights(rows, tables), (share / one.total[rows]).unsqueeze(1)
            if place:
                probs += torch.mul(weights, scale, out=work)
            else:
                torch.mul(weights, scale, out=probs)
        if self.a != 1.0:
            probs += (1 - self.a) / 2 / self.size
        if len(references) == 1 and self.a == 1.0:
            [one] = references
            torch.sub(one.centred(rows, tables), one.total[rows].log().unsqueeze(1), out=log_probs)
        else:
            torch.log(probs.clamp_min_(_TINY), out=log_probs)
        torch.sum(torch.mul(probs, log_probs, out=work), 1, out=self.entropy[rows])

    def compare(self, target: _Softmax, sums: torch.Tensor, rows: slice, tables: _Tables) -> None:
        """Put Σ p̄ L and Σ p̄ L² of the chunk that was read last into (2, n) sums."""
        probs, log_probs, work, ratio = (tables.of(rows, what) for what in ("mean", "log mean", "work", "ratio"))
        torch.sub(target.centred(rows, tables), target.total[rows].log().unsqueeze(1), out=ratio).sub_(log_probs)
        torch.sum(torch.mul(probs, ratio, out=work), 1, out=sums[0, rows])
        torch.sum(work.mul_(ratio), 1, out=sums[1, rows])

    def signals(self, plain: Mapping[int, _Softmax], tempered: Mapping[int, _Softmax]) -> Columns:
        """What needs no target; `log_mean` is log p̄(x_t) at the temperature and corrected."""
        alone = torch.stack([plain[number].log_prob for number in self.out], dim=1)
        mean = log_mean([tempered[number].log_prob for number in self.out])
        return {
            "entropy_out": -self.entropy,
            "log_prob_out": log_mean(alone.unbind(1)),
            "log_prob_references": alone,
            "log_mean": offline_mixture(mean, self.a, size=self.size),
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


def log_mean(log_probs: Sequence[torch.Tensor]) -> torch.Tensor:
    """log of the mean probability: logsumexp − log K."""
    return torch.logsumexp(torch.stack(list(log_probs)), dim=0) - math.log(len(log_probs))
