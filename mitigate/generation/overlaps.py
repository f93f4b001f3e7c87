"""Where generated text stands verbatim in training documents, and which references never saw these."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mitigate.documents import Documents
from mitigate.errors import MitigateError

_Overlaps = dict[tuple[int, int], dict[int, int]]  # [start, end) of a continuation -> training number -> start there


@dataclass(frozen=True)
class Link:
    """Characters [char_start, char_end) of a generated document that stand in a training document from `doc_start`."""

    char_start: int
    char_end: int
    doc_id: str
    doc_start: int


def link(generated: Documents, training: Documents, *, min_characters: int = 20) -> dict[str, list[Link]]:
    """Verbatim overlaps of continuations with training documents, the longest first and none over another.

    The longest overlap within an audited range is a link, then the longest within what lies to its left and to its
    right: there, less than `min_characters` may be left of an overlap that was long enough, and is linked as well (a
    secret beside a phrase of all documents). Of equal overlaps the first in the range is taken, and of documents that
    hold it the one that shares the most characters with the range, then the first. Characters are compared exactly.

    Args:
        generated: documents whose audited ranges are looked up.
        training: where to look.
        min_characters (`int`, *optional*, defaults to 20): shorter overlaps count as chance.

    Returns:
        links of every generated document that has any, in the order of its characters.

    Raises:
        MitigateError: `min_characters` is not positive.
    """
    if min_characters < 1:
        raise MitigateError(f"min_characters: {min_characters} is not a number of characters from 1; the default is 20")
    index = _TrainingIndex(generated, training, min_characters)
    links: dict[str, list[Link]] = {}
    for document in generated:
        chosen: list[Link] = []
        for limits in document.audited:
            overlaps = index.overlaps(document.text, limits)
            chosen += [Link(first, last, training[n].id, at) for first, last, n, at in _longest_first(overlaps, limits)]
        if chosen:
            links[document.id] = sorted(chosen, key=lambda found: found.char_start)
    return links


def with_groups(generated: Documents, links: Mapping[str, Sequence[Link]], training: Documents) -> Documents:
    """Put each generated document in the group of the training document of its longest link.

    `References.out_for` then has it judged by references that never saw that document. A document that copies from
    several is in the group of one of them; a document without links is a group of its own.
    """
    groups = {document.id: document.group for document in training}
    longest = {
        doc_id: max(found, key=lambda one: one.char_end - one.char_start).doc_id
        for doc_id, found in links.items()
        if found
    }
    items = tuple(
        replace(document, group=groups[longest[document.id]] if document.id in longest else document.id)
        for document in generated
    )
    return Documents(items, generated.skipped)


class _TrainingIndex:
    """Where the training documents hold character n-grams of the continuations, by the character before the n-gram.

    Where that is the same in both texts, their overlap began further left and was found there. So a phrase that all
    documents share costs one comparison a document, not one a character.
    """

    def __init__(self, generated: Documents, training: Documents, length: int) -> None:
        self.length = length
        self.texts = [document.text for document in training]
        self.firsts = np.cumsum([0, *map(len, self.texts)]).tolist()  # places count characters over all documents
        self.places: dict[str, dict[str, array[int]]] = {
            document.text[place : place + length]: {}
            for document in generated
            for start, end in document.audited
            for place in range(start, end - length + 1)
        }
        for text, first in zip(self.texts, self.firsts[:-1], strict=True):
            for at in range(len(text) - length + 1):
                if (by_left := self.places.get(text[at : at + length])) is not None:
                    by_left.setdefault(text[at - 1] if at else "", array("q")).append(first + at)

    def overlaps(self, text: str, limits: tuple[int, int]) -> _Overlaps:
        """The overlaps of text[start:end] that cannot be extended to either side."""
        start, end = limits
        found: _Overlaps = defaultdict(dict)
        for begin in range(start, end - self.length + 1):
            left = text[begin - 1] if begin > start else ""
            for other_left, places in self.places[text[begin : begin + self.length]].items():
                if left and left == other_left:
                    continue
                for place in places:
                    number = bisect_right(self.firsts, place) - 1
                    at = place - self.firsts[number]
                    shared = _shared_start(text[begin:end], self.texts[number][at : at + end - begin])
                    where = found[begin, begin + shared]
                    where[number] = min(at, where.get(number, at))
        return found


def _shared_start(first: str, second: str) -> int:
    """How many characters two texts share from their start, by bisection."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low


def _longest_first(overlaps: _Overlaps, limits: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """The longest overlap within the limits, then within what lies to its left and to its right.

    Yields:
        start and end in the generated text, number of the training document, start in it.
    """
    shared = _shared_characters(overlaps)
    best = {
        extent: min((-shared[number], number, at) for number, at in where.items()) for extent, where in overlaps.items()
    }
    open_ranges = [limits]
    while open_ranges:
        start, end = open_ranges.pop()
        inside = [
            (max(first, start), min(last, end), rank, number, at + max(first, start) - first)
            for (first, last), (rank, number, at) in best.items()
            if first < end and last > start
        ]
        if inside:
            first, last, _, number, at = min(inside, key=lambda found: (found[0] - found[1], *found))
            yield first, last, number, at
            open_ranges += [(left, right) for left, right in ((start, first), (last, end)) if left < right]


def _shared_characters(overlaps: _Overlaps) -> dict[int, int]:
    """How many of the generated characters lie in an overlap with each training document."""
    shared: dict[int, int] = defaultdict(int)
    reached: dict[int, int] = defaultdict(int)
    for (start, end), where in sorted(overlaps.items()):
        for number in where:
            shared[number] += max(0, end - max(start, reached[number]))
            reached[number] = max(end, reached[number])
    return shared
