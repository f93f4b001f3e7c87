"""Documents as JSON lines that are read back equal, rendered chats and documents audited in part among them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import new_file
from mitigate.documents.sources import DocumentSource
from mitigate.documents.types import Document
from mitigate.errors import MitigateError

FIELD = "mitigate"  # of a row: what no other field of it says


def write_jsonl(documents: Iterable[Document], path: Path) -> None:
    """Write documents as JSON lines that `read_documents` reads back equal.

    Fields are id, text, spans, set and group; and, of documents that are rendered chat, cut, or audited in part,
    `mitigate` with their `audited` ranges, `special_tokens` and `cut`.

    Raises:
        MitigateError: the file cannot be written.
    """
    with new_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        for document in documents:
            row: dict[str, object] = {"id": document.id, "text": document.text}
            row["spans"] = [{"start": span.start, "end": span.end, "label": span.label} for span in document.spans]
            row |= {} if document.set is None else {"set": document.set}
            row["group"] = document.group
            whole = document.audited == ((0, len(document.text)),)
            if not (whole and document.special_tokens and document.cut is None):
                ranges = [list(limits) for limits in document.audited]
                row[FIELD] = {"audited": ranges, "special_tokens": document.special_tokens, "cut": document.cut}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def as_written(document: Document, values: Mapping[str, Any], source: DocumentSource) -> Document:
    """The document with what `write_jsonl` wrote of it in the row's field `mitigate`, where there is one.

    Raises:
        MitigateError: the field is not what was written, or the source rewrites the text or the choice.
    """
    written = values.get(FIELD)
    if not isinstance(written, dict) or source.text is not None or "text" not in values:
        return document
    if source.replace or source.audit is not None:
        raise MitigateError(f"{FIELD}: what is audited was written with the text; leave out replace and audit")
    try:
        ranges = tuple((int(start), int(end)) for start, end in written["audited"])
        special_tokens, cut = written["special_tokens"], written["cut"]
    except (KeyError, TypeError, ValueError):
        ranges, special_tokens, cut = (), None, None
    if not ranges or not isinstance(special_tokens, bool) or not isinstance(cut, int | None):
        raise MitigateError(f"{FIELD}: not as `mitigate documents` writes it (audited, special_tokens, cut)")
    return replace(document, audited=ranges, special_tokens=special_tokens, cut=cut)
