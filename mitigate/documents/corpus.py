"""Documents that are too many to hold: read once to know them, and then again part by part.

    corpus = survey("train.jsonl", tokenizer=tokenizer)
    for part in corpus.parts(10): ...

What is held of each is its id, its place and digests of its text, about half a kilobyte.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mitigate.artifacts.files import fingerprint
from mitigate.documents.erasure import Requested, select_requested
from mitigate.documents.marks import MarkedRows, joined_marks
from mitigate.documents.reading import stream_documents
from mitigate.documents.request import Request
from mitigate.documents.sets.duplicates import (
    TextsInSets,
    exact_key,
    key_of,
    tell_doubtful_controls,
    tell_trained_controls,
    tell_two_sets,
    trained_control,
)
from mitigate.documents.sources import DocumentSource
from mitigate.documents.types import Document, Documents, Erasure, Marks
from mitigate.errors import MitigateError
from mitigate.runtime import progress
from mitigate.text.encoding import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_CONTROLS = 500  # documents of holdout, and of retain, that stand for all
_SAMPLE = 200  # documents whose tokens are counted
_AT_ONCE = {  # keys of a source that need all of its documents at once
    "shuffle": "shuffle the file before",
    "sets": "give each row its set (the field set, or assign), or each set a file of its own (set)",
    "max_tokens": "cut the text before",
}


@dataclass(frozen=True)
class Corpus:
    """Documents of files or hub data sets, known but not held.

    Attributes:
        sources, root, tokenizer: what they are read with.
        count: how many there are, without those left out.
        characters: of all of them; `tokens`: about how many that are.
        sets: those that any document has; None for documents without one.
        fingerprint: hash of everything in the documents and of their order.
        skipped: `file:line: reason` of each row, and `id: reason` of each document, that is left out.
        controls: documents of the set holdout, some drawn at random where there are many.
        retained: ids of documents of the set retain, likewise.
        left_out: ids of holdout documents that were trained on.
        selection: what an erasure request selects, if there is one; the sets are those after it.
    """

    sources: tuple[DocumentSource, ...]
    root: Path | None
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    count: int
    characters: int
    tokens: int
    sets: frozenset[str | None]
    fingerprint: str
    skipped: tuple[str, ...]
    controls: Documents
    retained: frozenset[str]
    left_out: frozenset[str]
    selection: Requested | None = None

    @property
    def erasure(self) -> Erasure | None:
        """What is told of the request."""
        return None if self.selection is None else self.selection.erasure(self.left_out)

    def parts(self, number: int) -> Iterator[Documents]:
        """The documents in `number` parts or fewer of about equally many characters, in order, read again.

        Raises:
            MitigateError: they are others than they were.
        """
        share = self.characters / number
        read = 0
        part: list[Document] = []
        mark = hashlib.sha256()
        documents = stream_documents(self.sources, root=self.root, tokenizer=self.tokenizer, skipped=[], again=True)
        for document in _dealt(documents, self.selection):
            mark.update(_mark(document))
            if document.id in self.left_out:
                continue
            part.append(document)
            before, read = read, read + len(document.text)
            if int(before / share) < int(read / share) and read < self.characters:
                yield Documents(tuple(part))
                part = []
        if part:
            yield Documents(tuple(part))
        if mark.hexdigest()[:16] != self.fingerprint:
            raise MitigateError("the documents changed while they were audited; audit them again")


def survey(
    source: str | Path | DocumentSource | Sequence[str | Path | DocumentSource],
    *,
    tokenizer: PreTrainedTokenizerBase,
    root: Path | None = None,
    request: Request | None = None,
) -> Corpus:
    """Read documents once, refuse what `read_documents` refuses, and keep only what tells them apart.

    Args:
        source: a path, a hub id, a `DocumentSource` or several of these.
        tokenizer: the target's.
        root (*optional*): folder that relative paths start from; default: the current one.
        request (*optional*): an erasure request, which makes the forget set; for it they are read once more.

    Raises:
        MitigateError: as `read_documents` and `apply_request`; or a source has a key that needs all documents at once.
    """
    given = [source] if isinstance(source, str | Path | DocumentSource) else source
    sources = tuple(one if isinstance(one, DocumentSource) else DocumentSource(path=str(one)) for one in given)
    for one in sources:
        for key, remedy in _AT_ONCE.items():
            if getattr(one, key) is not None:
                raise MitigateError(f"{key}: needs all documents at once, and they are audited by parts; {remedy}")
    selection = _selected(sources, request, tokenizer=tokenizer, root=root) if request is not None else None
    skipped: list[str] = []
    again = selection is not None
    stream = stream_documents(sources, root=root, tokenizer=tokenizer, skipped=skipped, again=again)
    texts, mark = TextsInSets(), hashlib.sha256()
    controls, retained, sample = _Drawn(_MOST_CONTROLS), _Drawn(_MOST_CONTROLS), _Drawn(_SAMPLE)
    count = characters = holdouts = 0
    sets: set[str | None] = set()
    untrained: list[tuple[str, bytes, int]] = []  # id, key and length
    with progress(None, "Reading", unit="document") as bar:
        for number, document in enumerate(_dealt(stream, selection)):
            texts.add(document)
            mark.update(_mark(document))
            sample.offer(number, document)
            sets.add(document.set)
            count, characters = count + 1, characters + len(document.text)
            if document.set == "holdout":
                holdouts += 1
                controls.offer(number, document)
                if not document.is_tail:  # what lies beyond a trainer's cut was not trained on
                    untrained.append((document.id, key_of(document.text), len(document.text)))
            if document.set == "retain":
                retained.offer(number, document)
            bar.update()
    trained = [one for one in untrained if not {"forget", "retain"}.isdisjoint(texts.of(one[1]))]
    left_out = frozenset(doc_id for doc_id, _, _ in trained)
    if trained:
        tell_trained_controls([doc_id for doc_id, _, _ in trained], left=len(trained) < holdouts)
    tell_two_sets(texts.in_both("forget", "retain"))
    tell_doubtful_controls([doc_id for doc_id, key, _ in untrained if None in texts.of(key)])
    drawn = sample.documents()
    counted = sum(len(own.ids) for own in encode([one.text for one in drawn], tokenizer, special_tokens=True))
    own = sum(len(one.text) for one in drawn)
    return Corpus(
        sources=sources,
        root=root,
        tokenizer=tokenizer,
        count=count - len(trained),
        characters=characters - sum(length for _, _, length in trained),
        tokens=round(characters * counted / own),
        sets=frozenset(sets),
        fingerprint=mark.hexdigest()[:16],
        skipped=(*skipped, *map(trained_control, sorted(left_out))),
        controls=Documents(tuple(one for one in controls.documents() if one.id not in left_out)),
        retained=frozenset(one.id for one in retained.documents()),
        left_out=left_out,
        selection=selection,
    )


def _selected(
    sources: Sequence[DocumentSource], request: Request, *, tokenizer: PreTrainedTokenizerBase, root: Path | None
) -> Requested:
    """What a request selects, from a reading of its own."""
    marked: list[MarkedRows] = []
    there: set[str] = set()

    def documents() -> Iterator[Document]:
        stream = stream_documents(
            sources, root=root, tokenizer=tokenizer, skipped=[], mark=request.where, marked=marked
        )
        with progress(None, "Looking for what is to be erased", unit="document") as bar:
            for document in stream:
                there.add(document.id)
                yield document
                bar.update()

    def marks() -> Marks:
        return joined_marks(marked, request.where, there)

    return select_requested(documents(), request, marks=marks if request.where else None)


def _dealt(documents: Iterable[Document], selection: Requested | None) -> Iterable[Document]:
    return documents if selection is None else map(selection.dealt, documents)


class _Drawn:
    """Some of many documents, drawn by a hash of the id, so that they are the same in every run; in their order."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._heap: list[tuple[int, int, Document]] = []  # the largest hash first, so that it can go

    def offer(self, number: int, document: Document) -> None:
        key = int.from_bytes(exact_key(document.id))
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, (-key, number, document))
        elif -key > self._heap[0][0]:
            heapq.heapreplace(self._heap, (-key, number, document))

    def documents(self) -> list[Document]:
        return [document for _, _, document in sorted(self._heap, key=lambda one: one[1])]


def _mark(document: Document) -> bytes:
    return fingerprint(asdict(document)).encode()
