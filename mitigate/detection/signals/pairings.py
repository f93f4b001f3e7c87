"""Pairings: which model stands in the target's place for a document, and which references it is compared with.

An audit pairs the target with every document's OUT references; calibration and benchmarks put each reference in its
place as well.
"""

from __future__ import annotations

from collections.abc import Sequence
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
