"""From calibrated token log-odds to stretches: the most likely sequence of memorized and other tokens.

A two-state Viterbi decoding: a sequence's score is the sum of the log-odds of its memorized tokens, less a price for
every change of state. The price keeps single tokens from splitting a secret or from being one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_BIASES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0)
_SWITCHES = (0.0, 0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Segmentation:
    """How token log-odds become stretches.

    Attributes:
        bias: added to every token's log-odds.
        switch: price of a change of state, nats.
    """

    bias: float
    switch: float

    def cut(self, log_odds: np.ndarray, starts: np.ndarray) -> list[list[tuple[int, int]]]:
        """Memorized stretches of each document: token indices [start, end) within it.

        Args:
            log_odds: (N,) NaN where a token has none; it goes with its neighbours, but no stretch begins or ends there.
            starts: (D + 1,) first row of each document, and the end of the last.
        """
        memorized = decode(log_odds + self.bias, starts, switch=self.switch)
        return [_runs(memorized[start:end]) for start, end in pairwise(starts)]


def decode(log_odds: np.ndarray, starts: np.ndarray, *, switch: float) -> np.ndarray:
    """(N,) bool: the most likely states, each document on its own (Viterbi, 1967).

    Args:
        log_odds: (N,) evidence for the memorized state; NaN is none.
        starts: (D + 1,) first row of each document, and the end of the last.
        switch: price of a change of state; each document begins in either state for nothing.
    """
    lengths = np.diff(starts)
    longest = int(lengths.max(initial=0))
    if not longest:
        return np.zeros(0, dtype=bool)
    table = np.zeros((len(lengths), longest))
    inside = np.arange(longest) < lengths[:, None]
    table[inside] = np.nan_to_num(log_odds)
    came = np.zeros((len(lengths), longest, 2), dtype=bool)  # whether the best path to a state changed state
    best = np.stack([np.zeros(len(lengths)), table[:, 0]], axis=1)
    ends = np.empty((len(lengths), 2))
    for step in range(longest):
        if step:
            changed = best[:, ::-1] - switch
            came[:, step] = changed > best
            best = np.maximum(best, changed)
            best[:, 1] += table[:, step]
        last = lengths == step + 1
        ends[last] = best[last]
    state = (ends[:, 1] > ends[:, 0]).astype(int)
    states = np.zeros((len(lengths), longest), dtype=bool)
    rows = np.arange(len(lengths))
    for step in range(longest - 1, -1, -1):
        active = step < lengths
        states[active, step] = state[active] == 1
        state = np.where(active & came[rows, step, state], 1 - state, state)
    decoded = states[inside]
    return _without_unscored_edges(decoded, np.isnan(log_odds), starts)


def fit_segmentation(log_odds: np.ndarray, labels: np.ndarray, starts: np.ndarray) -> Segmentation:
    """The bias and price with the best token F1 on labelled documents.

    Args:
        log_odds: (N,) of tokens by a model that did not see them.
        labels: (N,) 1 for a memorized token, 0 for another, NaN where it is not known.
        starts: (D + 1,) first row of each document, and the end of the last.
    """
    known = ~np.isnan(labels) & ~np.isnan(log_odds)
    truth = labels[known] > 0

    def f1(candidate: tuple[float, float]) -> float:
        said = decode(log_odds + candidate[0], starts, switch=candidate[1])[known]
        return 2 * float((said & truth).sum()) / max(1, int(said.sum()) + int(truth.sum()))

    candidates = [(bias, switch) for bias in _BIASES for switch in _SWITCHES]
    return Segmentation(*max(candidates, key=f1))


def _without_unscored_edges(states: np.ndarray, unscored: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Trim stretches to their first and last token that has a score."""
    if not (states & unscored).any():
        return states
    result = states.copy()
    for start, end in pairwise(starts):
        for first, last in _runs(states[start:end]):
            scored = np.flatnonzero(~unscored[start + first : start + last])
            begin, stop = (scored[0], scored[-1] + 1) if scored.size else (last - first, last - first)
            result[start + first : start + first + begin] = False
            result[start + first + stop : start + last] = False
    return result


def _runs(mask: Sequence[bool] | np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
