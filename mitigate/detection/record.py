"""The record of an audit: its tables and what they were made from, as they are saved, loaded and read.

One table row per token, documents in order. Row t is about token x_t given x_<t; the first token of a document has no
score (null, never 0). Higher = more memorized, always.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mitigate.artifacts.files import (
    check_digests,
    fingerprint,
    new_directory,
    read_table,
    write_json,
    write_table,
)
from mitigate.detection.kept import KeptReferences
from mitigate.detection.metadata import AuditMetadata
from mitigate.detection.spans.row import SpanRow, span_rows
from mitigate.detection.spans.scored import ReferenceMembership
from mitigate.documents import Document, Documents, Span
from mitigate.errors import MitigateError
from mitigate.models.compatible import check_audited_tokenizer
from mitigate.tokens.tokenization import TokenizedDocument

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mitigate.models.store import ModelStore


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        tokens: one row per token: `doc_id, position, token_id, char_start, char_end, audited`, the signals (nats),
            `log_prob_references` (one per reference, null where it was not used), the scores `informia`, `min_k_pp`
            and `score` (the one that the user chose), `log_odds` (calibrated; null without shadows), `memorized`,
            `span_id` (null outside found spans), `selected`: to be unlearned.
        documents: `doc_id, text, set, group, known_spans`, `out_references` that judge it, `in_references` that were
            trained on it.
        spans: one row per span, with the columns of `SpanRow`; `span_rows` reads them.
        metadata: fingerprints, settings, calibration, coverage, erasure: everything else.
        kept: with `detect.kept_entries`, what a re-audit needs of the references; None where nothing was kept.
    """

    tokens: pa.Table
    documents: pa.Table
    spans: pa.Table
    metadata: AuditMetadata
    kept: KeptReferences | None = field(default=None, compare=False, repr=False)

    def save(self, directory: str | Path, *, replace: bool = False) -> None:
        """Write Parquet and JSON files, readable by their owner only; equal audits give equal bytes.

        Raises:
            MitigateError: the directory holds something already (and `replace` is off) or cannot be written.
        """
        with new_directory(Path(directory), replace=replace) as temporary:
            metadata = {b"mitigate": json.dumps(self.metadata.written(), sort_keys=True).encode()}
            write_table(temporary / "tokens.parquet", self.tokens.replace_schema_metadata(metadata))
            write_table(temporary / "documents.parquet", self.documents)
            write_table(temporary / "spans.parquet", self.spans)
            write_json(temporary / "audit.json", self.metadata.written())
            if self.kept is not None:
                self.kept.save(temporary)

    @classmethod
    def load(cls, directory: str | Path) -> Audit:
        """Read what `save` wrote.

        Raises:
            MitigateError: no audit there, a damaged one, or one of another version.
        """
        directory = Path(directory)
        if not (directory / "audit.json").is_file():
            raise MitigateError(f"{directory}: holds no audit (no audit.json); make one with `mitigate audit`")
        check_digests(directory)
        metadata = AuditMetadata.read(directory / "audit.json")
        tokens, documents, spans = (
            read_table(directory / f"{name}.parquet") for name in ("tokens", "documents", "spans")
        )
        kept = KeptReferences.at(directory)
        return cls(tokens.replace_schema_metadata(None), documents, spans, metadata, kept)

    def show(self, *, text: str = "masked", most_documents: int = 10) -> Any:
        """A heat map of the tokens, for a notebook's output.

        Args:
            text (`str`, *optional*, defaults to `masked`): `masked`: with memorized and sensitive text masked; `all`.
            most_documents (`int`, *optional*, defaults to 10): documents with the highest-scoring spans come first.
        """
        from IPython.display import HTML

        from mitigate.reporting.page import heat_map

        return HTML(heat_map(self, text=text, most_documents=most_documents))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that the audit was made from."""
        return fingerprint(self.metadata.written())

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The numeric token columns as arrays; null is NaN."""
        names = [name for name in self.tokens.column_names if name not in ("doc_id", "span_id", "log_prob_references")]
        return {name: self.tokens[name].to_numpy(zero_copy_only=False) for name in names}

    @cached_property
    def rows(self) -> dict[str, slice]:
        """The token rows of each document."""
        lengths = self.tokens["doc_id"].combine_chunks().value_counts().to_pylist()
        ends = np.cumsum([entry["counts"] for entry in lengths])
        return {
            entry["values"]: slice(int(end) - entry["counts"], int(end))
            for entry, end in zip(lengths, ends, strict=True)
        }

    @cached_property
    def span_rows(self) -> list[SpanRow]:
        """The rows of the span table."""
        return span_rows(self.spans)

    @cached_property
    def texts(self) -> dict[str, str]:
        """The text of each document."""
        return self._by_document("text")

    @cached_property
    def groups(self) -> dict[str, str]:
        """The group of each document, such as a person."""
        return self._by_document("group")

    @cached_property
    def sets(self) -> dict[str, str | None]:
        """The set (`forget`, `retain`, `holdout` or None) of each document."""
        return self._by_document("set")

    def _by_document(self, column: str) -> dict[str, Any]:
        return dict(zip(self.documents["doc_id"].to_pylist(), self.documents[column].to_pylist(), strict=True))

    def rows_of(self, span: SpanRow) -> slice:
        """The token rows of a span."""
        first = self.rows[span.doc_id].start
        return slice(first + span.token_start, first + span.token_end)

    @cached_property
    def reference_log_probs(self) -> np.ndarray:
        """(N, K) log-probability of each token under each reference, NaN where a reference was not used."""
        column = self.tokens["log_prob_references"].combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return flat.reshape(len(column), -1)

    @cached_property
    def membership(self) -> ReferenceMembership:
        """Which references may judge a document, and which were trained on it."""
        return ReferenceMembership(
            out=self.documents["out_references"].to_pylist(),
            trained=self.documents["in_references"].to_pylist(),
            crossfitted=self.metadata.crossfitted,
        )

    def document_list(self) -> Documents:
        """The audited documents."""
        return Documents(
            tuple(
                Document(
                    id=row["doc_id"],
                    text=row["text"],
                    audited=tuple((start, end) for start, end in row["audited_ranges"]),
                    spans=tuple(Span(**span) for span in row["known_spans"]),
                    set=row["set"],
                    group=row["group"],
                    special_tokens=row["special_tokens"],
                    cut=row["cut"],
                )
                for row in self.documents.to_pylist()
            )
        )

    def tokenized(self) -> list[TokenizedDocument]:
        """The documents as token ids, offsets and audited mask."""
        columns = self.columns
        offsets = np.stack([columns["char_start"], columns["char_end"]], axis=1).astype(np.int32)
        return [
            TokenizedDocument(
                doc_id, columns["token_id"][rows].astype(np.int64), offsets[rows], columns["audited"][rows].astype(bool)
            )
            for doc_id, rows in self.rows.items()
        ]

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, *, name: str, store: ModelStore) -> None:
        """Refuse a model to which the audit's token ids mean something else; see `check_audited_tokenizer`."""
        audited, source = self.metadata.tokenizer, self.metadata.target.source
        check_audited_tokenizer(tokenizer, audited, source=source, name=name, store=store)
