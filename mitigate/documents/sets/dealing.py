"""Documents dealt at random to the sets forget, retain and holdout."""

from __future__ import annotations

import random
from dataclasses import replace

from mitigate.documents.sets.duplicates import key_of
from mitigate.documents.sources import DocumentSource
from mitigate.documents.types import Document
from mitigate.errors import MitigateError, summarize


def deal(documents: list[Document], source: DocumentSource) -> list[Document]:
    """Deal whole groups at random to the sets, by the counts and shares of `source.sets`."""
    joined = _joined_groups(documents)
    groups = list(dict.fromkeys(joined[document.group] for document in documents))
    random.Random(source.seed).shuffle(groups)
    wanted = source.sets or {}
    sizes = {
        name: size if isinstance(size, int) else round(size * len(groups))
        for name, size in wanted.items()
        if not isinstance(size, str)
    }
    if rest := [name for name in wanted if name not in sizes]:
        sizes[rest[0]] = len(groups) - sum(sizes.values())
    if min(sizes.values()) < 1 or sum(sizes.values()) > len(groups):
        asked = ", ".join(f"{name} {size}" for name, size in wanted.items())
        raise MitigateError(
            f"{summarize(source.paths)}: sets: cannot deal {len(groups)} groups (of {len(documents)} documents) as "
            f"{asked}: every set needs one at least; lower the numbers"
        )
    dealt = iter(groups)
    set_of = {group: name for name, size in sizes.items() for group in [next(dealt) for _ in range(size)]}
    return [replace(document, set=set_of.get(joined[document.group])) for document in documents]


def _joined_groups(documents: list[Document]) -> dict[str, str]:
    """group -> the first of the groups that it must go with, for they have equal texts.

    Dealt apart, a text would be trained on in one set and count as never seen in another.
    """
    first: dict[str, str] = {}

    def root(group: str) -> str:
        while first.setdefault(group, group) != group:
            group = first[group]
        return group

    holders: dict[bytes, str] = {}
    for document in documents:
        one, other = root(holders.setdefault(key_of(document.text), document.group)), root(document.group)
        first[other] = one
    return {document.group: root(document.group) for document in documents}
