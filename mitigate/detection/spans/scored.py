"""The documents under audit with their token scores, as rows of the span table are made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mitigate.detection.metadata import Calibration
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


@dataclass(frozen=True)
class Findings:
    """What a search of the documents gave; see `Assessment`, which adds what is selected."""

    rows: list[dict[str, Any]]
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

    def known_rows(self) -> list[dict[str, Any]]:
        rows = []
        for number, (document, own) in enumerate(zip(self.documents, self.tokenized, strict=True)):
            for span in document.spans:
                tokens = span_tokens(own.offsets, span.start, span.end)
                tokens = tokens[own.audited[tokens]]
                if tokens.size:
                    limits = (span.start, span.end, int(tokens[0]), int(tokens[-1]) + 1)
                    rows.append(self.row(number, *limits, label=span.label, source="known"))
        return rows

    def found_rows(self, found: Sequence[Sequence[tuple[int, int]]]) -> list[dict[str, Any]]:
        """Rows of found stretches, cut to their audited tokens.

        Args:
            found: for each document, token indices [start, end).
        """
        rows = []
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
                    rows.append(self.found_row(number, *limits, first, last))
        return rows

    def found_row(self, number: int, char_start: int, char_end: int, first: int, last: int) -> dict[str, Any]:
        labels = {s.label for s in self.documents[number].spans if s.start < char_end and char_start < s.end}
        return self.row(number, char_start, char_end, first, last, label="+".join(sorted(labels)), source="found")

    def row(
        self, number: int, char_start: int, char_end: int, first: int, last: int, *, label: str, source: str
    ) -> dict[str, Any]:
        start = self.starts[number]
        return {
            "doc_id": self.documents[number].id,
            "char_start": char_start,
            "char_end": char_end,
            "token_start": first,
            "token_end": last,
            "label": label,
            "source": source,
            "score": float(np.nanmean(self.score[start + first : start + last])),
            "probability": None,
            "q": None,
            "selected": False,
        }

    def is_eligible(self, row: Mapping[str, Any]) -> bool:
        return self.documents[self.numbers[row["doc_id"]]].set in self.eligible

    def rescored(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Span rows of an earlier audit with the scores of now."""
        again = []
        for row in rows:
            start = self.starts[self.numbers[row["doc_id"]]]
            now = float(np.nanmean(self.score[start + row["token_start"] : start + row["token_end"]]))
            again.append({**row, "score": now, "probability": None, "q": None})
        return again
