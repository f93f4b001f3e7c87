"""Pairings: which model stands in the target's place for a document, and which references it is compared with.

An audit pairs the target with every document's OUT references; calibration and benchmarks put each reference in its
place as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mitigate.tokens.tokenization import TokenizedDocument

TARGET_SIGNALS = ("log_prob", "rank", "top_log_prob", "entropy", "log_prob_std")
REFERENCE_SIGNALS = ("log_prob_out", "entropy_out", "log_ratio", "kl", "log_ratio_variance")


@dataclass(frozen=True)
class Pairing:
    """Document number `document`: `models[target]`, in the target's place, compared with `models[k]` for k in `out`."""

    document: int
    target: int
    out: tuple[int, ...] = ()


def empty_columns(
    pairings: Sequence[Pairing], documents: Sequence[TokenizedDocument]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns over the tokens of the pairings' documents, all NaN, and the first row of each pairing and the end."""
    starts = np.cumsum([0, *(len(documents[pairing.document].ids) for pairing in pairings)])
    widest = max((len(pairing.out) for pairing in pairings), default=0)
    names = TARGET_SIGNALS + (REFERENCE_SIGNALS if widest else ())
    signals = {name: np.full(int(starts[-1]), np.nan, dtype=np.float32) for name in names}
    if widest:
        signals["log_prob_references"] = np.full((int(starts[-1]), widest), np.nan, dtype=np.float32)
    return signals, starts


def by_model(
    log_probs: np.ndarray, pairings: Sequence[Pairing], *, documents: Sequence[TokenizedDocument], models: int
) -> np.ndarray:
    """(N, models) from the (N, K) `log_prob_references` of pairings: column k is model k, NaN where not used."""
    spread = np.full((len(log_probs), models), np.nan, dtype=log_probs.dtype)
    end = 0
    for pairing in pairings:
        start, end = end, end + len(documents[pairing.document].ids)
        spread[start:end, list(pairing.out)] = log_probs[start:end, : len(pairing.out)]
    return spread


def sliced(columns: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    """Some rows of each column."""
    return {name: column[rows] for name, column in columns.items()}
