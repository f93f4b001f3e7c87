"""From calibrated token log-odds to memorized tokens, and from these to the stretches of text that they belong to.

Tokens: a two-state Viterbi decoding. A sequence's score is the sum of the log-odds of its memorized tokens, less a
price for every change of state, which keeps single tokens from splitting a secret or from being one.

Stretches: memorized tokens with no more than a word between them are of one stretch, and a stretch does not end
inside a word. Of a memorized secret only some tokens are memorized: a dash, or a digit that any model guesses, is not.
What must be shown, judged and hidden is the whole of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mitigate.text.stretches import runs

GAP = 1  # whole words between memorized tokens of one stretch
_BIASES = (-1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
_SWITCHES = (0.0, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Segmentation:
    """How token log-odds become memorized tokens and stretches.

    Attributes:
        bias: added to every token's log-odds.
        switch: price of a change of state, nats.
    """

    bias: float
    switch: float

    def memorized(self, log_odds: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """(N,) bool, the memorized tokens.

        Args:
            log_odds: (N,) NaN where a token has none; such a token is not memorized.
            starts: (D + 1,) first row of each document, and the end of the last.
        """
        return decode(log_odds + self.bias, starts, switch=self.switch) & ~np.isnan(log_odds)


def stretches(memorized: np.ndarray, words: np.ndarray, *, gap: int = GAP) -> list[tuple[int, int]]:
    """The stretches of one document around its memorized tokens: token indices [start, end).

    Args:
        memorized: (T,) bool.
        words: (T,) the number of the word that each token is part of, −1 for special tokens; see `word_numbers`.
        gap (`int`, *optional*, defaults to 1): whole words between two memorized tokens of one stretch.
    """
    found: list[tuple[int, int]] = []
    for start, end in runs(memorized):
        while start > 0 and words[start - 1] == words[start] >= 0:
            start -= 1
        while end < len(words) and words[end] == words[end - 1] >= 0:
            end += 1
        if found and words[start] - words[found[-1][1] - 1] <= gap + 1:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


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
    return states[inside]


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
