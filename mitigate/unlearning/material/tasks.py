"""Tasks: windows of documents with the fixed facts about their tokens, and batches of them.

A `Task` is a window of a document: of one with tokens to forget, of one to hold still, or of one in which substitutes
stand in the secrets' place. Its tokens are to be forgotten (`selected`), to be learned (a substitute's), or anchors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch

from mitigate.tokens.batches import Batch, Piece, collate
from mitigate.unlearning.material.forgetting import FACTS


@dataclass(frozen=True, eq=False)
class Task(Piece):
    """A piece with facts about its n scored tokens.

    Attributes:
        key: number among all tasks.
        doc_id: of the document.
        selected: (n,) bool, to be forgotten.
        weight: (n,) float32, of a token among those to forget, or among the anchors.
        before: (n,) ℓ⁰ of the tokens to forget, NaN elsewhere.
        out: (n,) ℓ̄ of these and of all tokens of known spans, NaN elsewhere.
        typical: (n,) ℓ̃ of the tokens to forget: the mean of the OUT references' log-probabilities, and the control
            level above it.
        margin: (n,) the control level above ℓ̄ likewise.
        known: (n,) number of the known span that a token is in; -1 outside of them.
        span: (n,) number of the span that a token to forget is in, or that a substitute's token stands for; else -1.
        substitute: its scored tokens are a substitute's.
        partners: the substitutes of its spans.
    """

    key: int
    doc_id: str
    selected: np.ndarray
    weight: np.ndarray
    before: np.ndarray
    out: np.ndarray
    typical: np.ndarray
    margin: np.ndarray
    known: np.ndarray
    span: np.ndarray
    substitute: bool = False
    partners: tuple[Task, ...] = field(default=(), repr=False)

    def alone(self) -> Task:
        """Without its partners."""
        return replace(self, partners=())

    def only(self, rows: np.ndarray) -> Task:
        """With these scored tokens alone (a mask), cut after the last of them."""
        scored = self.scored[rows]
        facts = {name: getattr(self, name)[rows] for name in (*FACTS, "span")}
        return replace(self, ids=self.ids[: scored[-1] + 1], scored=scored, **facts)


@dataclass(frozen=True)
class Facts:
    """The facts about a batch's N kept tokens, in the batch's row order, on its device."""

    selected: torch.Tensor  # (N,) bool
    substitute: torch.Tensor  # (N,) bool
    weight: torch.Tensor  # (N,)
    before: torch.Tensor  # (N,) ℓ⁰
    out: torch.Tensor  # (N,) ℓ̄
    typical: torch.Tensor  # (N,) ℓ̃ and the control level above it
    margin: torch.Tensor  # (N,) the control level above ℓ̄
    span: torch.Tensor  # (N,) numbers from 0 in the batch; -1 for anchors
    span_count: int


def facts(batch: Batch) -> Facts:
    """The facts about a batch of tasks."""
    tasks = tasks_in(batch)
    device = batch.targets.device

    def joined(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(task, name) for task in tasks])).to(device)

    numbers, span = np.unique(np.concatenate([task.span for task in tasks]), return_inverse=True)
    span = span - (numbers[0] == -1)  # the anchors' -1 comes first
    substitute = np.concatenate([np.full(len(task.scored), task.substitute) for task in tasks])
    return Facts(
        selected=joined("selected"),
        substitute=torch.from_numpy(substitute).to(device),
        weight=joined("weight"),
        before=joined("before"),
        out=joined("out"),
        typical=joined("typical"),
        margin=joined("margin"),
        span=torch.from_numpy(span).to(device),
        span_count=int((numbers >= 0).sum()),
    )


def units(tasks: Iterable[Task]) -> list[list[Task]]:
    """Tasks with their partners, each once; those of a document share partners and spans, and so come together."""
    found: dict[str | int, dict[int, Task]] = {}
    for task in tasks:
        unit = found.setdefault(task.doc_id if task.partners else task.key, {})
        unit |= {one.key: one for one in (task, *task.partners)}
    return [list(unit.values()) for unit in found.values()]


def dealt(tasks: Sequence[Task], processes: int) -> list[list[Task]]:
    """Each process's share of the tasks; those of a unit go to one."""
    together = [[task for task in unit if not task.substitute] for unit in units(tasks)]
    return [[task for unit in together[rank::processes] for task in unit] for rank in range(processes)]


def tasks_of_step(tasks: Sequence[Task], count: int, step: int, *, seed: int) -> list[Task]:
    """The tasks of a step: shuffled passes over all of them, a function of the step alone.

    Args:
        tasks: all of them.
        count: how many a step takes; at most all.
        step: from 0.
        seed: of the shuffling.
    """
    if not tasks or not count:
        return []
    count = min(count, len(tasks))
    taken = []
    for number in range(step * count, (step + 1) * count):
        epoch, place = divmod(number, len(tasks))
        taken.append(tasks[_order(len(tasks), seed, epoch)[place]])
    return taken


def micro_batches(tasks: Iterable[Task], *, batch_tokens: int, device: torch.device) -> list[Batch]:
    """Batches of units of like length, within so many padded tokens if possible."""
    groups: list[list[Task]] = []
    for unit in sorted(units(tasks), key=lambda unit: -max(len(task.ids) for task in unit)):
        longest = max(len(task.ids) for task in (groups[-1] if groups else []) + unit)
        if not groups or longest * (len(groups[-1]) + len(unit)) > batch_tokens:
            groups.append([])
        groups[-1] += unit
    return [collate(group).to(device) for group in groups]


def tasks_in(batch: Batch) -> list[Task]:
    """The tasks that a batch is made of, in the order of its rows."""
    assert all(isinstance(piece, Task) for piece in batch.pieces)
    return list(batch.pieces)  # type: ignore[arg-type]


def units_in(batch: Batch) -> int:
    """How many units a batch is made of: a single one cannot be taken in smaller parts."""
    return len(units(task for task in tasks_in(batch) if not task.substitute))


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` tasks in a pass over them."""
    return np.random.default_rng([seed, epoch]).permutation(count).tolist()
