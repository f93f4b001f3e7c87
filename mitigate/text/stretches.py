"""Stretches: ranges [start, end) of characters or tokens, and what is done to several of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def runs(mask: Sequence[bool] | np.ndarray) -> list[tuple[int, int]]:
    """The stretches in which a (N,) mask is true, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def joined(stretches: Iterable[tuple[int, int]], *, gap: int = 0) -> list[tuple[int, int]]:
    """Stretches in order, those that overlap or lie at most `gap` apart as one."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if result and start - result[-1][1] <= gap:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((start, end))
    return result


def widened(stretches: Iterable[tuple[int, int]], margin: int, *, length: int) -> list[tuple[int, int]]:
    """Stretches of [0, length) with a margin on each side, joined where they meet."""
    return joined((max(0, start - margin), min(length, end + margin)) for start, end in stretches)
