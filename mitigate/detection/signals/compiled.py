"""Signals of rows of logits by compiled kernels, on a GPU and where there is so much to read that it pays.

Computed one operation after another, a chunk's logits and tables go through a GPU's memory a dozen times; compiled, the
same functions read them a few times and make no table. Compiling takes tens of seconds for each kind of row (so many
models compared with so many references), so it waits until as much of a kind was read as would have saved these. What
is compiled is compared with what is not on the rows that it is first used for: if it says anything else, or cannot be
compiled here, all goes on without it, and a line says so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mitigate.detection.signals.vocabulary import Columns, chunks_of, row_log_probs, row_signals
from mitigate.errors import first_line

logger = logging.getLogger(__name__)
PAYS = 1 << 39  # logits read: on an H200 about half a minute of tables, which is what compiling takes
EQUAL = 1e-4  # of 1 + the value
_FEWEST = 2  # rows; a single one would be a kernel of its own
_KINDS = 6  # that are compiled; torch gives up at eight


class CompiledRows:
    """`row_signals` or `row_log_probs`, compiled once it pays.

    Args:
        rows_of: the function.
        after (*optional*, defaults to `PAYS`): logits of a kind that are read before it is compiled.
        devices (*optional*, defaults to `cuda`): kinds of device on which it is compiled at all; on a CPU a chunk stays
            in its caches, and there is little to save.
    """

    def __init__(
        self, rows_of: Callable[..., list[Columns]], *, after: int = PAYS, devices: Sequence[str] = ("cuda",)
    ) -> None:
        self.rows_of, self.after, self.devices = rows_of, after, devices
        self.read: Counter[Any] = Counter()
        self.failed = False
        self._compiled: Callable[..., list[Columns]] | None = None
        self._compared: dict[Any, bool] = {}  # kind -> whether it was compared yet

    def __call__(
        self,
        logits: Mapping[int, torch.Tensor],
        targets: torch.Tensor,
        compared: Sequence[tuple[int, tuple[int, ...]]],
        **settings: float,
    ) -> list[Columns]:
        """As `rows_of`."""
        if targets.device.type not in self.devices or self.failed:
            return self.rows_of(logits, targets, compared, **settings)
        logits, compared = _renumbered(logits, compared)
        kind = (tuple(compared), logits[0].shape[1], logits[0].dtype, tuple(sorted(settings.items())))
        self.read[kind] += sum(table.numel() for table in logits.values())
        if self.read[kind] <= self.after or (kind not in self._compared and len(self._compared) == _KINDS):
            return self.rows_of(logits, targets, compared, **settings)
        self._compared.setdefault(kind, False)
        chunks = chunks_of(len(targets), next(iter(logits.values())).shape[1], targets.device)
        parts = [
            self._chunk(kind, {n: table[rows] for n, table in logits.items()}, targets[rows], compared, settings)
            for rows in chunks
        ]
        return [
            {name: torch.cat([part[place][name] for part in parts]) for name in columns}
            for place, columns in enumerate(parts[0])
        ]

    def _chunk(
        self,
        kind: Any,
        logits: Mapping[int, torch.Tensor],
        targets: torch.Tensor,
        compared: Sequence[tuple[int, tuple[int, ...]]],
        settings: Mapping[str, float],
    ) -> list[Columns]:
        def plain() -> list[Columns]:
            return self.rows_of(logits, targets, compared, **settings)

        if len(targets) < _FEWEST or self.failed:
            return plain()
        try:
            if self._compiled is None:
                self._compiled = torch.compile(self.rows_of, dynamic=True, fullgraph=True)
            found = self._compiled(logits, targets, compared, **settings, whole=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a compiler, a driver, a library that is missing: of any kind
            self._give_up(first_line(error))
            return plain()
        if self._compared[kind]:
            return found
        expected = plain()
        if all(_equal(a[name], b[name]) for a, b in zip(found, expected, strict=True) for name in b):
            self._compared[kind] = True
        else:
            self._give_up("it says something else")
        return expected

    def _give_up(self, why: str) -> None:
        logger.warning("compiled signals are not used here: %s; the audit goes on without them, slower", why)
        self.failed = True


def _renumbered(
    logits: Mapping[int, torch.Tensor], compared: Sequence[tuple[int, tuple[int, ...]]]
) -> tuple[dict[int, torch.Tensor], list[tuple[int, tuple[int, ...]]]]:
    """Models by the order in which they are compared, so that all choices of as many references share a kernel."""
    order = dict.fromkeys(number for target, out in compared for number in (target, *out))
    new = {number: place for place, number in enumerate(order)}
    return (
        {new[number]: logits[number] for number in order},
        [(new[target], tuple(new[number] for number in out)) for target, out in compared],
    )


def _equal(found: torch.Tensor, plain: torch.Tensor) -> bool:
    return torch.allclose(found, plain, rtol=EQUAL, atol=EQUAL, equal_nan=True)


signals_of_rows = CompiledRows(row_signals)
log_probs_of_rows = CompiledRows(row_log_probs)
