"""Documents: text, which characters of it are audited, and what is known about it.

    documents = read_documents("train.jsonl")
    documents = read_documents(DocumentSource(path="lume.jsonl", text="{input} {output}", where={"task": "Task2"}))

A document's text is secret and hostile: it is never logged, and no message repeats any of it.
"""

from __future__ import annotations

from mitigate.documents.erasure import Request
from mitigate.documents.reading import read_documents
from mitigate.documents.sources import DocumentSource
from mitigate.documents.types import SETS, Document, Documents, Span

__all__ = ["SETS", "Document", "DocumentSource", "Documents", "Request", "Span", "read_documents"]
