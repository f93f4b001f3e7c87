"""Which documents come from rows that meet the conditions of a `where`, over all sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mitigate.documents.sources import Where, conditions_met
from mitigate.documents.types import Marks


class MarkedRows:
    """Which documents of one source meet each of some conditions, and the fields of its rows.

    Args:
        where: the conditions.
    """

    def __init__(self, where: Where) -> None:
        self.where = where
        self.fields: dict[str, None] = {}
        self.met: dict[str, set[str]] = {name: set() for name in where}

    def note(self, values: Mapping[str, Any], doc_ids: Sequence[str]) -> None:
        """Remember a row and the documents that were made of it."""
        if self.where:
            self.fields |= dict.fromkeys(values)
        for name, holds in conditions_met(values, self.where).items():
            if holds:
                self.met[name].update(doc_ids)


def joined_marks(markers: Sequence[MarkedRows], where: Where, there: set[str]) -> Marks:
    """The marks of all sources; a field that a source does not have is no condition met, not even `{not: ...}`."""
    met: dict[str, set[str]] = {name: set() for name in where}
    fields: dict[str, None] = {}
    for marker in markers:
        fields |= marker.fields
        for name, doc_ids in marker.met.items():
            met[name] |= (doc_ids & there) if name in marker.fields else set()
    return Marks(
        doc_ids=frozenset(set.intersection(*met.values())),
        met={name: len(doc_ids) for name, doc_ids in met.items()},
        fields=tuple(fields),
    )
