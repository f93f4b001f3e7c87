"""Turn the rows of files and data sets into documents, by the keys of a `DocumentSource`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mitigate.documents.marks import MarkedRows, joined_marks
from mitigate.documents.sets.duplicates import without_trained_controls
from mitigate.documents.source_reader import SourceReader
from mitigate.documents.sources import DocumentSource, Where
from mitigate.documents.types import Document, Documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_documents(
    source: str | Path | DocumentSource | Sequence[str | Path | DocumentSource],
    *,
    root: Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    mark: Where | None = None,
    load_tokenizer: Callable[[], PreTrainedTokenizerBase] | None = None,
) -> Documents:
    """Read files or hub data sets as documents.

    Documents with equal text and no group of their own share a group, the id of the first of them.

    Args:
        source: a path, a hub id, a `DocumentSource` or several of these.
        root (*optional*): folder that relative paths start from; default: the current one.
        tokenizer (*optional*): renders chat messages and counts `max_tokens`; needed for these only.
        mark (*optional*): conditions on the fields of rows, as in a source's `where`. `Documents.marks` says which
            documents meet them all; those of a source without the fields do not.
        load_tokenizer (*optional*): instead of `tokenizer`; called when one is needed.

    Raises:
        MitigateError: a missing or empty file, bad rows (all in one message) where `on_error` is `raise`, equal ids, a
            filter that keeps nothing, a split larger than there are documents, a pattern that takes too long, a holdout
            set that was trained on.
    """
    sources = [source] if isinstance(source, str | Path | DocumentSource) else source
    items: list[Document] = []
    skipped: list[str] = []
    ids: dict[str, str] = {}
    groups: dict[bytes, str] = {}
    marked: list[MarkedRows] = []
    for one in sources:
        settings = one if isinstance(one, DocumentSource) else DocumentSource(path=str(one))
        marked.append(MarkedRows(mark or {}))
        reader = SourceReader(settings, tokenizer, marked[-1], ids=ids, groups=groups, load_tokenizer=load_tokenizer)
        items += reader.read(root)
        skipped += [f"{where}: {reason}" for where, reason in reader.problems]
    items, left_out = without_trained_controls(items)
    skipped += left_out
    there = {document.id for document in items}
    return Documents(tuple(items), tuple(skipped), joined_marks(marked, mark, there) if mark else None)


def stream_documents(
    sources: Sequence[DocumentSource],
    *,
    root: Path | None,
    tokenizer: PreTrainedTokenizerBase | None,
    skipped: list[str],
    again: bool = False,
    mark: Where | None = None,
    marked: list[MarkedRows] | None = None,
) -> Iterator[Document]:
    """The documents of files or hub data sets, one after the other; none is held.

    Args:
        sources: without what needs all documents at once: `shuffle`, `sets`, `max_tokens`.
        root, tokenizer: as for `read_documents`.
        skipped: gets `file:line: reason` of each row that is left out.
        again (`bool`, *optional*, defaults to `False`): they were read before, and what was left out was told.
        mark, marked (*optional*): conditions as of `read_documents`; `marked` gets which rows of each source meet them.

    Raises:
        MitigateError: as `read_documents` says; bad rows at the end of their source.
    """
    ids: dict[str, str] = {}
    groups: dict[bytes, str] = {}
    for source in sources:
        rows = MarkedRows(mark or {})
        if marked is not None:
            marked.append(rows)
        reader = SourceReader(source, tokenizer, rows, ids=ids, groups=groups, load_tokenizer=None)
        yield from reader.stream(root, tell=not again)
        skipped += [f"{where}: {reason}" for where, reason in reader.problems]
