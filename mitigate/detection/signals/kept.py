"""What OUT references say together, kept so that a later model is compared with them without running them again.

Kept of p̄ at each token are its likeliest entries, the token's own among them, and the rest as one event. What that
loses of KL(p̄ ‖ p_θ) and of Var_{p̄}[L] depends on p_θ only through how it deals its mass out within the rest. A model
that was made from the audited one deals it out nearly alike, so what is lost under the audited one is kept too, and
added: for the same model the signals are the same.

Notation as in `mitigate.detection.signals.compute`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from mitigate.detection.signals.pairings import Pairing
from mitigate.detection.signals.vocabulary import Columns, chunks_of, log_mean, offline_mixture
from mitigate.errors import MitigateError

KEPT_COLUMNS = ("kept_ids", "kept_log_probs", "kept_rest", "kept_missed", "kept_missed_square")
_WIDE = KEPT_COLUMNS[:2]  # of which each token has a row of entries
COMPARED = ("log_ratio", "kl", "log_ratio_variance")
_ENOUGH = 1e-6  # of p̄'s mass; where no more is left, no further entry is kept
_LEAST_REST = 1e-7  # a float32 sum of probabilities does not come closer to 1
_FAR = -1e4  # nats; as log p of what is ruled out


class LogitRows(NamedTuple):
    """Rows of logits that are compared alike.

    Attributes:
        logits: model -> (n, V).
        targets: (n,) x_t.
        target, out: the model in the target's place, and the references that it is compared with.
        places: whose they are, one after the other: number of a pairing, positions in its document.
    """

    logits: Mapping[int, torch.Tensor]
    targets: torch.Tensor
    target: int
    out: tuple[int, ...]
    places: Sequence[tuple[int, np.ndarray]]


class Beside(Protocol):
    """More columns of tokens than `compute_signals` has by itself."""

    def empty(self, pairings: Sequence[Pairing], starts: np.ndarray) -> dict[str, np.ndarray]:
        """The columns, all NaN, over the rows of the first of the pairings or of all; `starts` are their first rows."""
        ...

    def columns(self, rows: LogitRows) -> Columns:
        """Of rows of logits; nothing for those that have no more."""
        ...


@dataclass(frozen=True)
class KeepMean:
    """Keeps p̄ of the pairings of the model 0, which come first.

    Attributes:
        entries: likeliest entries that are kept at most.
        temperature, offline_a: as for `compute_signals`.
    """

    entries: int
    temperature: float = 1.0
    offline_a: float = 1.0

    def empty(self, pairings: Sequence[Pairing], starts: np.ndarray) -> dict[str, np.ndarray]:
        own = sum(pairing.target == 0 for pairing in pairings)
        assert all(pairing.target == 0 for pairing in pairings[:own])
        shapes = {name: (int(starts[own]), *([self.entries] if name in _WIDE else [])) for name in KEPT_COLUMNS}
        return {name: np.full(shape, np.nan, dtype=np.float32) for name, shape in shapes.items()}

    def columns(self, rows: LogitRows) -> Columns:
        logits, targets, target, out, _ = rows
        if target != 0 or not out:
            return {}
        parts = []
        for some in chunks_of(len(targets), logits[target].shape[1], targets.device):
            mean = log_mean([self._log_probs(logits[number][some]) for number in out])
            mean = offline_mixture(mean, self.offline_a, size=mean.shape[1])
            parts.append(self._kept(mean, self._log_probs(logits[target][some]), targets[some]))
        return {name: torch.cat([part[name] for part in parts]) for name in KEPT_COLUMNS}

    def _log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits.float() / self.temperature).log_softmax(1)

    def _kept(self, mean: torch.Tensor, said: torch.Tensor, targets: torch.Tensor) -> Columns:
        tokens = targets.unsqueeze(1)
        values, ids = mean.scatter(1, tokens, -math.inf).topk(min(self.entries, mean.shape[1]) - 1, dim=1)
        values, ids = torch.cat([mean.gather(1, tokens), values], dim=1), torch.cat([tokens, ids], dim=1)
        before = values.exp().cumsum(1) - values.exp()
        needed = before < 1 - _ENOUGH
        needed[:, 0] = True
        values = torch.where(needed, values, -math.inf)
        rest = (1 - values.exp().sum(1)).clamp_min(_LEAST_REST).log()
        first, second = _moments(mean, said)
        merged = _Merged.of(ids, values, rest, said)
        missed = first - merged.first
        filled = self.entries - ids.shape[1]
        return {
            "kept_ids": torch.nn.functional.pad(ids.float(), (0, filled)),
            "kept_log_probs": torch.nn.functional.pad(values, (0, filled), value=-math.inf),
            "kept_rest": rest,
            "kept_missed": missed,
            "kept_missed_square": second - merged.second - 2 * merged.ratio * missed,
        }


@dataclass(frozen=True)
class KeptMean:
    """Compares the model 0 with what was kept.

    Attributes:
        kept: for each pairing, `KEPT_COLUMNS` over its document's tokens.
        temperature: as they were kept at.
        vocabulary, name: of the model.

    Raises:
        MitigateError: entries were kept that the model does not have.
    """

    kept: Sequence[Mapping[str, np.ndarray]]
    temperature: float = 1.0
    _: KW_ONLY
    vocabulary: int
    name: str = "the model"

    def __post_init__(self) -> None:
        largest = max((float(np.nanmax(one["kept_ids"], initial=0)) for one in self.kept), default=0.0)
        if largest >= self.vocabulary:
            raise MitigateError(
                f"{self.name} predicts {self.vocabulary} tokens, fewer than the references did that the audit kept; a "
                "reference needs the target's vocabulary"
            )

    def empty(self, pairings: Sequence[Pairing], starts: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.full(int(starts[-1]), np.nan, dtype=np.float32) for name in COMPARED}

    def columns(self, rows: LogitRows) -> Columns:
        table, targets = rows.logits[rows.target], rows.targets
        kept = {}
        for name in KEPT_COLUMNS:
            own = np.concatenate([self.kept[number][name][places] for number, places in rows.places])
            kept[name] = torch.from_numpy(own).to(targets.device)
        parts = []
        for some in chunks_of(len(targets), table.shape[1], targets.device):
            said = (table[some].float() / self.temperature).log_softmax(1)
            parts.append(_compared({name: column[some] for name, column in kept.items()}, said, targets[some]))
        return {name: torch.cat([part[name] for part in parts]) for name in COMPARED}


def _compared(kept: Columns, said: torch.Tensor, targets: torch.Tensor) -> Columns:
    merged = _Merged.of(kept["kept_ids"].long(), kept["kept_log_probs"], kept["kept_rest"], said)
    first = merged.first + kept["kept_missed"]
    second = merged.second + 2 * merged.ratio * kept["kept_missed"] + kept["kept_missed_square"]
    return {
        "log_ratio": said.gather(1, targets.unsqueeze(1)).squeeze(1) - kept["kept_log_probs"][:, 0],
        "kl": -first,
        "log_ratio_variance": (second - first.square()).clamp_min(0),
    }


@dataclass(frozen=True)
class _Merged:
    """Σ p̄ L and Σ p̄ L² over the kept entries and the rest as one event, and that event's L: (n,) each."""

    first: torch.Tensor
    second: torch.Tensor
    ratio: torch.Tensor

    @classmethod
    def of(cls, ids: torch.Tensor, values: torch.Tensor, rest: torch.Tensor, said: torch.Tensor) -> _Merged:
        other = said.gather(1, ids)
        held = torch.where(values.isneginf(), 0.0, other.exp()).sum(1)
        ratio = (1 - held).clamp_min(_LEAST_REST).log() - rest
        first, second = _moments(values, other)
        return cls(first + rest.exp() * ratio, second + rest.exp() * ratio.square(), ratio)


def _moments(mean: torch.Tensor, said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ p̄ L and Σ p̄ L² over entries, those without mass aside."""
    weight = mean.exp()
    ratio = torch.where(weight > 0, said.clamp_min(_FAR) - mean, 0.0)
    return (weight * ratio).sum(1), (weight * ratio.square()).sum(1)
