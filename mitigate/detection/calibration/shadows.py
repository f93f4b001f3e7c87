"""Shadows: each cross-fitted reference stands in for the target, judged by the others.

Which documents trained a reference is known, so its spans are labelled examples. The target itself is never a
reference here, and members and non-members are judged by the same number of OUT references: a document that has fewer
is left out, one that has more uses as many as the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mitigate.detection.references.dealing import draw
from mitigate.detection.signals.pairings import Pairing


@dataclass(frozen=True)
class Shadow:
    """A pairing whose truth is known.

    Attributes:
        pairing: one document, one reference in the target's place, the OUT references that judge it.
        member: whether the document trained that reference.
        spare: a further OUT reference, which does not judge; None if there is none.
    """

    pairing: Pairing
    member: bool
    spare: int | None


@dataclass(frozen=True)
class PairedSignals:
    """Pairings with their signals.

    Attributes:
        pairings: in the order of the rows.
        signals: columns of `compute_signals`.
        words: for each document, the word of each token; see `word_numbers`.
    """

    pairings: Sequence[Pairing]
    signals: Mapping[str, np.ndarray]
    words: Sequence[np.ndarray]

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of each pairing, and one past the last."""
        return np.cumsum([0, *(len(self.words[pairing.document]) for pairing in self.pairings)])

    def take(self, chosen: Sequence[int]) -> PairedSignals:
        """Some of the pairings, in the given order."""
        starts = self.starts
        rows = np.concatenate([np.zeros(0, int), *(np.arange(starts[n], starts[n + 1]) for n in chosen)])
        signals = {name: column[rows] for name, column in self.signals.items()}
        return PairedSignals([self.pairings[n] for n in chosen], signals, self.words)


def out_of(member: np.ndarray, *, available: Sequence[int], count: int, key: str, but: int | None = None) -> list[int]:
    """The OUT references of one document in an order of its own; `count` of them judge it, the next ones are spare.

    Args:
        member: (M,) bool, which models the document trained.
        available: models that may serve.
        count: how many judge; fewer in the result means that the document cannot be judged.
        key: decides the order.
        but (*optional*): the model in the target's place.
    """
    out = [model for model in available if not member[model] and model != but]
    if len(out) <= count:
        return out
    order = draw(range(len(member)), len(member), key=key)
    return sorted(out, key=order.index)


def deal_shadows(
    member: np.ndarray, *, available: Sequence[int], count: int, keys: Sequence[str], always: Sequence[int] = ()
) -> list[Shadow]:
    """Every document judged with every available model as the shadow, where `count` OUT references are left.

    Args:
        member: (D, M) bool, which documents trained which models.
        available: models that serve as shadows and references; not the target.
        count: OUT references that judge.
        keys: (D,) a string for each document, which decides the references that judge it.
        always (*optional*): models that judge every document besides, such as given references.
    """
    shadows = []
    for document, key in enumerate(keys):
        for shadow in available:
            out = out_of(member[document], available=available, count=count, key=key, but=shadow)
            if len(out) >= count:
                judges = tuple(sorted([*out[:count], *always]))
                spare = out[count] if len(out) > count else None
                shadows.append(Shadow(Pairing(document, shadow, judges), bool(member[document, shadow]), spare))
    return shadows
