"""A document: text, which characters of it are audited, and what is known about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, get_args, overload

from mitigate.artifacts.files import fingerprint
from mitigate.documents.sources import SetName
from mitigate.errors import MitigateError, summarize

SETS: tuple[str, ...] = get_args(SetName)


@dataclass(frozen=True, order=True)
class Span:
    """Characters [start, end) of a document's text, such as a phone number."""

    start: int
    end: int
    label: str = ""


@dataclass(frozen=True)
class Document:
    """One text and what is known about it.

    Attributes:
        id: unique among the documents of a run.
        text: as the model saw it.
        audited: half-open character ranges whose tokens are scored; left empty, the whole text.
        spans: known sensitive spans.
        set: `forget`, `retain`, `holdout` or None.
        group: documents of one group (same person, duplicates) go to the same side of every split; left empty, the id.
        special_tokens: False where the text has them already (rendered chat).
        cut: character from which on the target was not trained on the text, because its trainer cut it there. Two
            documents have such a text: one is audited before the cut, the other (`is_tail`) from there on.

    Raises:
        MitigateError: no text, a range outside the text, or an unknown set.
    """

    id: str
    text: str
    audited: tuple[tuple[int, int], ...] = ()
    spans: tuple[Span, ...] = ()
    set: str | None = None
    group: str = ""
    special_tokens: bool = True
    cut: int | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise MitigateError(f"document {self.id!r}: the text is empty")
        object.__setattr__(self, "audited", self.audited or ((0, len(self.text)),))
        object.__setattr__(self, "group", self.group or self.id)
        ranges = [("audited range", *limits) for limits in self.audited]
        ranges += [(f"span {span.label}".rstrip(), span.start, span.end) for span in self.spans]
        for what, start, end in ranges:
            if not 0 <= start < end <= len(self.text):
                raise MitigateError(
                    f"document {self.id!r}: {what} [{start}, {end}) is not within the text of {len(self.text)} "
                    "characters; offsets count characters from 0, the end is exclusive"
                )
        if self.cut is not None and not 0 <= self.cut <= len(self.text):
            raise MitigateError(f"document {self.id!r}: cut {self.cut} is not within the text")
        if self.set is not None and self.set not in SETS:
            raise MitigateError(f"document {self.id!r}: unknown set; the sets are {', '.join(SETS)}")

    @property
    def is_tail(self) -> bool:
        """Whether what is audited lies beyond the trainer's cut: no model was trained on it, no reference may be."""
        return self.cut is not None and self.audited[0][0] >= self.cut


@dataclass(frozen=True)
class Marks:
    """Which documents come from rows that meet the conditions of a `where`.

    Attributes:
        doc_ids: of the documents that meet all of them.
        met: condition's field -> documents that meet this one.
        fields: the fields that rows have.
    """

    doc_ids: frozenset[str]
    met: Mapping[str, int]
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Erasure:
    """What an erasure request selected; the documents of the set forget are its documents.

    Attributes:
        doc_ids: documents to forget.
        never_trained: requested too, but of a set that the target was not trained on; they stay in it.
        same_group: not requested, but of the same group (person, duplicates) as a requested document.
        matches: (doc_id, start, end) of each place where a text of the request's `contains` stands.
        linked: select the same secrets in other documents, too.
        criteria: how many ids and texts, and which fields, the request named; nothing of what they hold.
    """

    doc_ids: tuple[str, ...]
    never_trained: tuple[str, ...]
    same_group: tuple[str, ...]
    matches: tuple[tuple[str, int, int], ...]
    linked: bool
    criteria: Mapping[str, Any]


@dataclass(frozen=True)
class Documents(Sequence[Document]):
    """Documents in order, their ids unique.

    Attributes:
        items: the documents.
        skipped: `file:line: reason` of each row that was left out.
        marks: which of them `read_documents` was asked to mark.
        erasure: the erasure request that made the forget set, if one did.

    Raises:
        MitigateError: two documents have one id.
    """

    items: tuple[Document, ...]
    skipped: tuple[str, ...] = ()
    marks: Marks | None = None
    erasure: Erasure | None = None

    def __post_init__(self) -> None:
        counts = Counter(document.id for document in self.items)
        if twice := [f"{id!r} ({count} times)" for id, count in counts.items() if count > 1]:
            raise MitigateError(f"ids that are not unique: {summarize(twice)}; give each document an id of its own")

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> Documents: ...
    def __getitem__(self, index: int | slice) -> Document | Documents:
        return Documents(self.items[index]) if isinstance(index, slice) else self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Document]:
        return iter(self.items)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything in the documents and of their order."""
        return fingerprint([asdict(document) for document in self.items])

    @property
    def sets(self) -> set[str | None]:
        """The sets that any of the documents belongs to; None for those without one."""
        return {document.set for document in self.items}

    def subset(self, sets: str | Collection[str]) -> Documents:
        """The documents of one set, or of several, in order; none is not an error.

        Raises:
            MitigateError: an unknown set.
        """
        names = [sets] if isinstance(sets, str) else list(sets)
        if unknown := [name for name in names if name not in SETS]:
            raise MitigateError(f"unknown set {summarize(map(repr, unknown))}; the sets are {', '.join(SETS)}")
        return Documents(tuple(document for document in self.items if document.set in names))
