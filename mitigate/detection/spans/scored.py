"""The documents under audit with their token scores, as rows of the span table are made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mitigate.detection.metadata import Calibration
from mitigate.detection.spans.row import Source, SpanRow
from mitigate.documents import Documents
from mitigate.tokens.tokenization import TokenizedDocument, span_tokens


@dataclass(frozen=True)
class ReferenceMembership:
    """Which references may judge a document, and which were trained on it.

    Attributes:
        out: for each document, the references that judge it.
        trained: for each document, the references that were trained on it.
        crossfitted: the references that were trained on some of the documents.
    """

    out: Sequence[Sequence[int]]
    trained: Sequence[Sequence[int]]
    crossfitted: Sequence[int]

    def first(self, count: int) -> ReferenceMembership:
        """That of the first documents."""
        return replace(self, out=self.out[:count], trained=self.trained[:count])


@dataclass(frozen=True)
class Findings:
    """What a search of the documents gave; see `Assessment`, which adds what is selected."""

    rows: list[SpanRow]
    log_odds: np.ndarray
    memorized: np.ndarray
    calibration: Calibration


@dataclass(frozen=True)
class ScoredDocuments:
    """The documents with their token scores, and which may have spans selected."""

    documents: Documents
    tokenized: Sequence[TokenizedDocument]
    score: np.ndarray
    eligible: set[str | None]

    @cached_property
    def starts(self) -> list[int]:
        """First token row of each document, and the end of the last."""
        return np.cumsum([0, *(len(own.ids) for own in self.tokenized)]).tolist()

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each document id."""
        return {document.id: number for number, document in enumerate(self.documents)}

    def known(self) -> list[list[tuple[int, int]]]:
        """For each document, the token indices [start, end) of its known spans that are audited."""
        found = []
        for document, own in zip(self.documents, self.tokenized, strict=True):
            covered = [span_tokens(own.offsets, span.start, span.end) for span in document.spans]
            audited = [tokens[own.audited[tokens]] for tokens in covered]
            found.append([(int(tokens[0]), int(tokens[-1]) + 1) for tokens in audited if tokens.size])
        return found

    def known_rows(self, *, first: int) -> list[SpanRow]:
        """Rows of the known spans, cut to their audited tokens, numbered from `first`."""
        rows: list[SpanRow] = []
        for number, (document, own) in enumerate(zip(self.documents, self.tokenized, strict=True)):
            for span in document.spans:
                tokens = span_tokens(own.offsets, span.start, span.end)
                tokens = tokens[own.audited[tokens]]
                if tokens.size:
                    limits = (span.start, span.end, int(tokens[0]), int(tokens[-1]) + 1)
                    rows.append(self._row(first + len(rows), number, *limits, label=span.label, source="known"))
        return rows

    def found_rows(self, found: Sequence[Sequence[tuple[int, int]]]) -> list[SpanRow]:
        """Rows of found stretches, cut to their audited tokens, numbered from 0.

        Args:
            found: for each document, token indices [start, end).
        """
        rows: list[SpanRow] = []
        for number, units in enumerate(found):
            offsets, audited = self.tokenized[number].offsets, self.tokenized[number].audited
            for first, last in units:
                scored = np.flatnonzero(audited[first:last]) + first
                if not scored.size:
                    continue
                first, last = int(scored[0]), int(scored[-1]) + 1
                written = offsets[first:last][offsets[first:last, 0] < offsets[first:last, 1]]  # not special tokens
                if written.size:
                    limits = (int(written[:, 0].min()), int(written[:, 1].max()))
                    rows.append(self.found_row(len(rows), number, *limits, first, last))
        return rows

    def found_row(self, span_id: int, number: int, char_start: int, char_end: int, first: int, last: int) -> SpanRow:
        """Row of a found stretch of the document `number`: characters and tokens, each [start, end)."""
        labels = {s.label for s in self.documents[number].spans if s.start < char_end and char_start < s.end}
        label = "+".join(sorted(labels))
        return self._row(span_id, number, char_start, char_end, first, last, label=label, source="found")

    def _row(
        self,
        span_id: int,
        number: int,
        char_start: int,
        char_end: int,
        first: int,
        last: int,
        *,
        label: str,
        source: Source,
    ) -> SpanRow:
        doc_id = self.documents[number].id
        score = self._mean(number, slice(first, last))
        return SpanRow(span_id, doc_id, char_start, char_end, first, last, label, source, score)

    def is_eligible(self, row: SpanRow) -> bool:
        """Whether a span of its document may be selected."""
        return self.set_of(row) in self.eligible

    def set_of(self, row: SpanRow) -> str | None:
        """The set of a span's document."""
        return self.documents[self.numbers[row.doc_id]].set

    def rows_of(self, row: SpanRow) -> slice:
        """The span's token rows among those of all documents."""
        start = self.starts[self.numbers[row.doc_id]]
        return slice(start + row.token_start, start + row.token_end)

    def rescored(self, rows: Sequence[SpanRow]) -> list[SpanRow]:
        """Span rows of an earlier audit with the scores of now."""
        return [
            replace(row, score=self._mean(self.numbers[row.doc_id], row.tokens), probability=None, q=None)
            for row in rows
        ]

    def _mean(self, number: int, tokens: slice) -> float:
        start = self.starts[number]
        return float(np.nanmean(self.score[start + tokens.start : start + tokens.stop]))
