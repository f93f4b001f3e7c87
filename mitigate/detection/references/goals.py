"""What references are to reach: what the target knows of the documents that both were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mitigate.detection.references.dealing import draw, trained_documents
from mitigate.detection.signals.compute import token_log_probs
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.models.fitting.pace import Goal
from mitigate.models.store import ModelStore
from mitigate.tokens.tokenization import tokenize_documents

_MOST_DOCUMENTS = 64  # of its half, on which a reference is held against the target


class Goals:
    """What the target knows of the documents that it was trained on: the goals of references.

    Args:
        target: path.
        documents: those of the set holdout were not trained on.
        store: loads the target.
    """

    def __init__(self, target: str | Path, documents: Documents, *, store: ModelStore) -> None:
        trained = [one for one in trained_documents(documents) if not one.is_tail]
        model = store.load(target)
        self._groups = [one.group for one in trained]
        tokenized = tokenize_documents(trained, model.tokenizer)
        scored = [number for number, own in enumerate(tokenized) if own.audited.any()]
        self._groups = [self._groups[number] for number in scored]
        self._tokenized = [tokenized[number] for number in scored]
        ends = np.cumsum([len(own.ids) for own in self._tokenized])
        parts = np.split(token_log_probs(model, self._tokenized), ends[:-1])
        self._losses = np.array([-np.nanmean(part) for part in parts])

    def of(self, half: frozenset[str], *, key: str) -> Goal:
        """At most 64 of a half's documents."""
        own = [number for number, group in enumerate(self._groups) if group in half]
        chosen = sorted(draw(own, _MOST_DOCUMENTS, key=key))
        return Goal(tuple(self._tokenized[number] for number in chosen), self._losses[chosen])


def check_goals(documents: Documents, halves: Sequence[frozenset[str]], target: str | Path | None) -> None:
    """Refuse `schedule: auto` where a reference has nothing to be held against, before anything is written."""
    schedule = "references.schedule: auto trains each reference until it knows documents of its half as the target does"
    if target is None:
        raise MitigateError(f"{schedule}; give the target, or the schedule that it was trained with")
    groups = {one.group for one in trained_documents(documents)}
    if not all(groups & half for half in halves):
        raise MitigateError(
            f"{schedule}, and one half has no document that the target was trained on (all are of the set holdout); "
            "give more documents, or the schedule that it was trained with"
        )
