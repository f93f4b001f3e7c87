"""A row of the span table: a stretch of a document with what an audit says of it. Rows are replaced, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa

Source = Literal["found", "known", "linked"]


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One span.

    Attributes:
        span_id: its number in the audit.
        doc_id: the document that it is in.
        char_start, char_end: characters [char_start, char_end) of the document's text.
        token_start, token_end: tokens [token_start, token_end) of the document.
        label: what it is; of a found span, the labels of the known spans that it overlaps. Empty if nobody said.
        source: `found` by the detector, `known`, or `linked`: a secret of an erasure request's documents elsewhere.
        score: the mean score of its tokens, nats.
        probability: that the target was trained on it, as if half of all spans were; None without shadows.
        q: the false discovery rate at which it is the last one selected; None if not calibrated.
        selected: to be unlearned.
    """

    span_id: int
    doc_id: str
    char_start: int
    char_end: int
    token_start: int
    token_end: int
    label: str
    source: Source
    score: float
    probability: float | None = None
    q: float | None = None
    selected: bool = False

    @property
    def tokens(self) -> slice:
        """Its tokens among those of its document."""
        return slice(self.token_start, self.token_end)

    def text(self, of_document: str) -> str:
        """Its text, of that of its document."""
        return of_document[self.char_start : self.char_end]


def span_table(rows: Sequence[SpanRow]) -> pa.Table:
    """The span table; see `SpanRow`."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=_SCHEMA)


def span_rows(table: pa.Table) -> list[SpanRow]:
    """The rows of a span table."""
    return [SpanRow(**row) for row in table.select(_SCHEMA.names).to_pylist()]


_SCHEMA = pa.schema(
    [
        ("span_id", pa.int32()),
        ("doc_id", pa.string()),
        ("char_start", pa.int32()),
        ("char_end", pa.int32()),
        ("token_start", pa.int32()),
        ("token_end", pa.int32()),
        ("label", pa.string()),
        ("source", pa.string()),
        ("score", pa.float32()),
        ("probability", pa.float32()),
        ("q", pa.float32()),
        ("selected", pa.bool_()),
    ]
)
