"""Documents cut into their lines or paragraphs."""

from __future__ import annotations

import re
from dataclasses import replace

from mitigate.documents.types import Document, Span

_PIECES = {"line": re.compile(r"\S.*"), "paragraph": re.compile(r"\S(?:.|\n(?!\s*\n))*")}


def cut(document: Document, per: str) -> list[Document]:
    """The document's lines or paragraphs that have something audited, with their share of ranges and spans."""
    if per == "file":
        return [document]
    pieces = []
    for number, match in enumerate(_PIECES[per].finditer(document.text), start=1):
        start, end = match.start(), match.start() + len(match.group().rstrip())
        audited = [(max(first, start) - start, min(last, end) - start) for first, last in document.audited]
        spans = [
            Span(max(span.start, start) - start, min(span.end, end) - start, span.label) for span in document.spans
        ]
        audited = [limits for limits in audited if limits[0] < limits[1]]
        if audited:
            pieces.append(
                replace(
                    document,
                    id=f"{document.id}-{number}",
                    text=document.text[start:end],
                    audited=tuple(audited),
                    spans=tuple(span for span in spans if span.start < span.end),
                )
            )
    return pieces
