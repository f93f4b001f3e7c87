"""Who is trained on what: halves of the documents, random choices that are the same everywhere, what the target saw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError


def draw(items: Sequence[int], count: int, *, key: str) -> list[int]:
    """`count` of the items in random order, drawn by a hash of `key`: the same in every process and run."""
    digest = hashlib.sha256(key.encode()).digest()
    return [items[index] for index in np.random.default_rng(list(digest)).permutation(len(items))[:count]]


def deal_halves(documents: Documents, count: int, *, seed: int) -> list[frozenset[str]]:
    """The groups that each of `count` references trains on: about half, each group in exactly half of the references.

    Groups are dealt within each set (forget, retain, holdout), so that the halves are alike. Which half of the
    references a group goes to is drawn for every other group; the next group goes to the others. Any two references are
    related alike: with complementary pairs of references, a reference's partner would judge its members only, and
    whatever is peculiar to partners would tell members from non-members.

    Raises:
        MitigateError: an odd or too small count, or fewer than two groups.
    """
    if count < 2 or count % 2:
        raise MitigateError(f"references.count: {count} is not an even number from 2; half of them see a document")
    strata: dict[str | None, list[str]] = {}
    for group, set_name in {document.group: document.set for document in reversed(documents)}.items():
        strata.setdefault(set_name, []).append(group)
    if sum(map(len, strata.values())) < 2:
        raise MitigateError("references: cross-fitting needs at least two documents of different groups")
    rng = np.random.default_rng(seed)
    halves: list[set[str]] = [set() for _ in range(count)]
    chosen: set[int] = set()  # goes on over the sets, so that an odd set does not unbalance the sizes
    drawn = False
    for groups in strata.values():
        for index in rng.permutation(len(groups)):
            drawn = not drawn
            chosen = set(rng.permutation(count)[: count // 2]) if drawn else set(range(count)) - chosen
            for number in chosen:
                halves[number].add(sorted(groups)[index])
    return list(map(frozenset, halves))


def trained_documents(documents: Documents) -> list[Document]:
    """Those that the target was trained on: of the sets forget and retain where there are any, else all but holdout."""
    known = [one for one in documents if one.set in ("forget", "retain")]
    return known or [one for one in documents if one.set != "holdout"]
