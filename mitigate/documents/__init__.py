"""Documents: text, which characters of it are audited, and what is known about it.

    documents = read_documents("train.jsonl")
    documents = read_documents(DocumentSource(path="lume.jsonl", text="{input} {output}", where={"task": "Task2"}))

A document's text is secret and hostile: it is never logged, and no message repeats any of it.

The names below load their modules when first used: a recipe names sources and requests, and reads no file for that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mitigate.documents.reading import read_documents
    from mitigate.documents.request import Request
    from mitigate.documents.sources import DocumentSource
    from mitigate.documents.types import SETS, Document, Documents, Span

__all__ = ["SETS", "Document", "DocumentSource", "Documents", "Request", "Span", "read_documents"]
_HOMES = {"read_documents": "reading", "Request": "request", "DocumentSource": "sources"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'types')}"), name)
