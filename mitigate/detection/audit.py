"""The audit: every token's signals and scores, the spans found, and what they were made from.

    result = audit("my-model", ["references"], documents="train.jsonl")
    result.save("audit"); Audit.load("audit").show()

One table row per token, documents in order. Row t is about token x_t given x_<t; the first token of a document has no
score (null, never 0). Higher = more memorized, always.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mitigate import __version__
from mitigate.artifacts import fingerprint, new_directory, read_json, read_table, write_json, write_table
from mitigate.detection.references import References, load_references
from mitigate.detection.scores import TOKEN_SCORES, token_scores
from mitigate.detection.signals import REFERENCE_SIGNALS, TARGET_SIGNALS, token_signals
from mitigate.detection.spans import SpanRule, find_spans
from mitigate.documents import Document, Documents, Span, read_documents
from mitigate.errors import MitigateError
from mitigate.models import Model, ModelStore, check_same_tokenizer, tokenizer_fingerprint
from mitigate.runtime import library_versions
from mitigate.tokenization import TokenizedDocument, span_tokens, tokenize_documents


class Detect(BaseModel):
    """Settings of the detector."""

    model_config = ConfigDict(extra="forbid")

    score: str = Field("log_ratio_clipped", description="token score that decides; see mitigate.detection.scores")
    temperature: float = Field(1.0, gt=0, description="divides the logits of target and references in InfoRMIA")
    select: str = Field(
        "found",
        pattern="^(found|known)$",
        description="which spans are memorized: `found` by the detector, or the `known` sensitive ones as they stand",
    )
    spans: SpanRule = Field(default_factory=lambda: SpanRule(), description="how token scores become spans")
    context: int | None = Field(None, ge=2, description="window length in tokens; default: the model's")
    stride: int | None = Field(None, ge=1, description="tokens a next window adds; default: half the context")
    batch_tokens: int | None = Field(None, ge=1, description="padded tokens in a batch; default: logits fit in 256 MiB")

    @field_validator("score")
    @classmethod
    def _known_score(cls, score: str) -> str:
        if score not in TOKEN_SCORES:
            raise ValueError(f"{score!r} is not one of {', '.join(TOKEN_SCORES)}")
        return score


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        tokens: one row per token: `doc_id, position, token_id, char_start, char_end, audited`, the signals (nats),
            `log_prob_references` (one per reference, null where it was not used), the scores `informia`, `min_k_pp`
            and `score` (the one that decided), `span_id` (null outside found spans), `selected`.
        documents: `doc_id, text, set, group, known_spans, out_references`.
        spans: `span_id, doc_id, char_start, char_end, token_start, token_end, label, source` (`found` or `known`),
            `score` (nats, mean over its tokens), `selected`.
        metadata: fingerprints of target, references, tokenizer and documents; settings; versions.
    """

    tokens: pa.Table
    documents: pa.Table
    spans: pa.Table
    metadata: dict[str, Any]

    def save(self, directory: str | Path, *, replace: bool = False) -> None:
        """Write Parquet and JSON files, readable by their owner only; equal audits give equal bytes.

        Raises:
            MitigateError: the directory holds something already (and `replace` is off) or cannot be written.
        """
        with new_directory(Path(directory), replace=replace) as temporary:
            metadata = {b"mitigate": json.dumps(self.metadata, sort_keys=True).encode()}
            write_table(temporary / "tokens.parquet", self.tokens.replace_schema_metadata(metadata))
            write_table(temporary / "documents.parquet", self.documents)
            write_table(temporary / "spans.parquet", self.spans)
            write_json(temporary / "audit.json", self.metadata)

    @classmethod
    def load(cls, directory: str | Path) -> Audit:
        """Read what `save` wrote.

        Raises:
            MitigateError: no audit there, or a damaged one.
        """
        directory = Path(directory)
        if not (directory / "audit.json").is_file():
            raise MitigateError(f"{directory}: holds no audit (no audit.json); make one with `mitigate audit`")
        tables = (read_table(directory / f"{name}.parquet") for name in ("tokens", "documents", "spans"))
        tokens, documents, spans = tables
        return cls(tokens.replace_schema_metadata(None), documents, spans, read_json(directory / "audit.json"))

    def show(self, *, show_text: bool = False, most_documents: int = 10) -> Any:
        """A heat map of the tokens, for a notebook's output.

        Args:
            show_text (`bool`, *optional*, defaults to `False`): show the text of memorized and sensitive spans.
            most_documents (`int`, *optional*, defaults to 10): documents with the highest-scoring spans come first.
        """
        from IPython.display import HTML

        from mitigate.reporting.html import heat_map

        return HTML(heat_map(self, show_text=show_text, most_documents=most_documents))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that the audit was made from."""
        return fingerprint(self.metadata)

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
    def reference_log_probs(self) -> np.ndarray:
        """(N, K) log-probability of each token under each reference, NaN where a reference was not used."""
        column = self.tokens["log_prob_references"].combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return flat.reshape(len(column), -1)

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

    def sets(self) -> dict[str, str | None]:
        """The set (`forget`, `retain`, `holdout` or None) of each document id."""
        return dict(zip(self.documents["doc_id"].to_pylist(), self.documents["set"].to_pylist(), strict=True))


def audit(
    target: str | Path | Model,
    references: References | Sequence[str | Path],
    *,
    documents: str | Path | Documents,
    detect: Detect | None = None,
    store: ModelStore | None = None,
    forget_all: bool = False,
    seed: int = 0,
) -> Audit:
    """Score every token of the documents and find the memorized spans.

    Args:
        target: the model under audit: hub id, directory, adapter directory, or a loaded model.
        references: models that never saw the documents, or directories made by `mitigate references`.
        documents: what to judge: a file, a hub data set, or documents read before.
        detect (*optional*): score, temperature and span rule.
        store (*optional*): loads the models; settles device and number format.
        forget_all (`bool`, *optional*, defaults to `False`): select memorized spans in every document, also those of
            the sets retain and holdout. By default: in the forget set, or everywhere outside retain and holdout if
            no document belongs to a forget set.
        seed (`int`, *optional*, defaults to 0): recorded with the audit.

    Raises:
        MitigateError: no reference, a reference with another tokenizer, no OUT reference for a document, NaN logits.
    """
    detect = detect or Detect()
    store = store or ModelStore()
    references = references if isinstance(references, References) else load_references(references)
    model = target if isinstance(target, Model) else store.load(target)
    documents = documents if isinstance(documents, Documents) else read_documents(documents, tokenizer=model.tokenizer)
    out_references = references.out_for(documents)
    reference_models = [store.load(path) for path in references.paths]
    tokenized, signals = _measure(model, reference_models, documents, out_references, detect)
    score = token_scores(signals, detect.score)
    return _assemble(
        model,
        reference_models,
        documents,
        (tokenized, signals, score),
        out_references=out_references,
        spans=_judge_spans(documents, tokenized, score, detect, forget_all=forget_all),
        settings={"kind": references.kind, "detect": detect.model_dump(), "seed": seed},
    )


def reaudit(before: Audit, target: str | Path | Model, *, store: ModelStore | None = None) -> Audit:
    """Audit a mitigated model as `before` audited the leaky one: same documents, references, settings and spans.

    Args:
        before: the earlier audit; its spans are scored again, not found anew.
        target: the mitigated model, for instance the adapter directory that `unlearn` made.
        store (*optional*): loads the models.

    Raises:
        MitigateError: a reference is no longer what it was, or the model has another tokenizer.
    """
    store = store or ModelStore()
    model = target if isinstance(target, Model) else store.load(target)
    reference_models = load_audited(before.metadata["references"], store=store)
    if tokenizer_fingerprint(model.tokenizer) != before.metadata["tokenizer"]:
        raise MitigateError(
            f"{model.name}: its tokenizer differs from that of the earlier audit; give the same model family"
        )
    documents, out_references = before.document_list(), before.documents["out_references"].to_pylist()
    detect = Detect(**before.metadata["detect"])
    tokenized, signals = _measure(model, reference_models, documents, out_references, detect)
    score = token_scores(signals, detect.score)
    return _assemble(
        model,
        reference_models,
        documents,
        (tokenized, signals, score),
        out_references=out_references,
        spans=_rescore_spans(before, score),
        settings={name: before.metadata[name] for name in ("kind", "detect", "seed")},
    )


def load_audited(entries: Sequence[Mapping[str, str]], *, store: ModelStore) -> list[Model]:
    """Load models that an audit names, and make sure that they are still what was audited.

    Raises:
        MitigateError: a model changed since.
    """
    models = [store.load(entry["source"], name=entry["name"]) for entry in entries]
    for entry, model in zip(entries, models, strict=True):
        if model.fingerprint != entry["fingerprint"]:
            raise MitigateError(f"{model.source}: not the model that the audit used (it changed since); audit again")
    return models


def _measure(
    model: Model,
    references: Sequence[Model],
    documents: Documents,
    out_references: Sequence[Sequence[int]],
    detect: Detect,
) -> tuple[list[TokenizedDocument], dict[str, np.ndarray]]:
    for reference in references:
        check_same_tokenizer(model, reference)
    tokenized = tokenize_documents(documents, model.tokenizer)
    signals = token_signals(
        model,
        references,
        documents=tokenized,
        out_references=out_references,
        temperature=detect.temperature,
        context=detect.context,
        stride=detect.stride,
        batch_tokens=detect.batch_tokens,
        description=f"Auditing {len(documents)} documents",
    )
    return tokenized, signals


def _assemble(
    model: Model,
    references: Sequence[Model],
    documents: Documents,
    measured: tuple[list[TokenizedDocument], dict[str, np.ndarray], np.ndarray],
    *,
    out_references: Sequence[Sequence[int]],
    spans: pa.Table,
    settings: Mapping[str, Any],
) -> Audit:
    tokenized, signals, score = measured
    return Audit(
        tokens=_token_table(tokenized, signals, score, spans),
        documents=_document_table(documents, out_references),
        spans=spans,
        metadata={
            "schema": 1,
            "target": _identity(model),
            "references": [_identity(reference) for reference in references],
            "tokenizer": tokenizer_fingerprint(model.tokenizer),
            "documents": documents.fingerprint,
            "skipped": list(documents.skipped),
            "code": __version__,
            "versions": library_versions(),
            **settings,
        },
    )


def _identity(model: Model) -> dict[str, str]:
    return {"name": model.name, "source": model.source, "fingerprint": model.fingerprint}


def _judge_spans(
    documents: Documents, tokenized: Sequence[TokenizedDocument], score: np.ndarray, detect: Detect, *, forget_all: bool
) -> pa.Table:
    """Spans found by the rule and known spans as they stand, each with its mean score."""
    eligible = _eligible_sets(documents) if not forget_all else {"forget", "retain", "holdout", None}
    rows: list[dict[str, Any]] = []
    for document, tokens, own in _per_document(documents, tokenized, score):
        for found in find_spans(own, offsets=tokens.offsets, text=document.text, rule=detect.spans):
            labels = {
                span.label for span in document.spans if span.start < found.char_end and found.char_start < span.end
            }
            rows.append(
                {
                    "doc_id": document.id,
                    "char_start": found.char_start,
                    "char_end": found.char_end,
                    "token_start": found.token_start,
                    "token_end": found.token_end,
                    "label": "+".join(sorted(labels)),
                    "source": "found",
                    "score": found.score,
                    "selected": detect.select == "found" and document.set in eligible,
                }
            )
        for span in document.spans:
            covered = span_tokens(tokens.offsets, span.start, span.end)
            covered = covered[tokens.audited[covered]]
            if covered.size:
                rows.append(
                    {
                        "doc_id": document.id,
                        "char_start": span.start,
                        "char_end": span.end,
                        "token_start": int(covered[0]),
                        "token_end": int(covered[-1]) + 1,
                        "label": span.label,
                        "source": "known",
                        "score": float(np.nanmean(own[covered])),
                        "selected": detect.select == "known" and document.set in eligible,
                    }
                )
    for number, row in enumerate(rows):
        row["span_id"] = number
    return pa.Table.from_pylist(rows, schema=_SPANS)


def _rescore_spans(before: Audit, score: np.ndarray) -> pa.Table:
    """The earlier audit's spans with the scores of now."""
    rows = before.spans.to_pylist()
    for row in rows:
        first = before.rows[row["doc_id"]].start
        row["score"] = float(np.nanmean(score[first + row["token_start"] : first + row["token_end"]]))
    return pa.Table.from_pylist(rows, schema=_SPANS)


def _eligible_sets(documents: Documents) -> set[str | None]:
    """The sets whose memorized spans are selected for unlearning."""
    return {"forget"} if any(document.set == "forget" for document in documents) else {None}


def _per_document(
    documents: Documents, tokenized: Sequence[TokenizedDocument], values: np.ndarray
) -> list[tuple[Document, TokenizedDocument, np.ndarray]]:
    bounds = np.cumsum([0, *(len(tokens.ids) for tokens in tokenized)])
    return [
        (document, tokens, values[bounds[number] : bounds[number + 1]])
        for number, (document, tokens) in enumerate(zip(documents, tokenized, strict=True))
    ]


def _token_table(
    tokenized: Sequence[TokenizedDocument], signals: dict[str, np.ndarray], score: np.ndarray, spans: pa.Table
) -> pa.Table:
    lengths = [len(tokens.ids) for tokens in tokenized]
    first = dict(zip([tokens.id for tokens in tokenized], np.cumsum([0, *lengths[:-1]]).tolist(), strict=True))
    span_id = np.full(sum(lengths), -1, dtype=np.int32)
    selected = np.zeros(sum(lengths), dtype=bool)
    audited = np.concatenate([tokens.audited for tokens in tokenized])
    for span in spans.to_pylist():
        rows = slice(first[span["doc_id"]] + span["token_start"], first[span["doc_id"]] + span["token_end"])
        if span["source"] == "found":
            span_id[rows] = span["span_id"]
        if span["selected"]:
            selected[rows] |= audited[rows]
    columns: dict[str, Any] = {
        "doc_id": np.repeat([tokens.id for tokens in tokenized], lengths),
        "position": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        "token_id": np.concatenate([tokens.ids for tokens in tokenized]).astype(np.int32),
        "char_start": np.concatenate([tokens.offsets[:, 0] for tokens in tokenized]).astype(np.int32),
        "char_end": np.concatenate([tokens.offsets[:, 1] for tokens in tokenized]).astype(np.int32),
        "audited": audited,
    }
    scores = {
        "informia": token_scores(signals, "informia"),
        "min_k_pp": token_scores(signals, "min_k_pp"),
        "score": score,
    }
    for name, values in {**{n: signals[n] for n in TARGET_SIGNALS + REFERENCE_SIGNALS}, **scores}.items():
        column = pa.array(values.astype(np.float32), from_pandas=True)
        columns[name] = column.cast(pa.int32()) if name == "rank" else column
    per_reference = signals["log_prob_references"]
    columns["log_prob_references"] = pa.FixedSizeListArray.from_arrays(
        pa.array(per_reference.ravel(), from_pandas=True), per_reference.shape[1]
    ).cast(_list(pa.float32()))
    columns["span_id"] = pa.array(span_id, mask=span_id < 0)
    columns["selected"] = selected
    return pa.table(columns)


def _document_table(documents: Documents, out_references: Sequence[Sequence[int]]) -> pa.Table:
    rows = [
        {
            "doc_id": document.id,
            "text": document.text,
            "set": document.set,
            "group": document.group,
            "special_tokens": document.special_tokens,
            "audited_ranges": [list(limits) for limits in document.audited],
            "known_spans": [{"start": s.start, "end": s.end, "label": s.label} for s in document.spans],
            "out_references": list(out),
        }
        for document, out in zip(documents, out_references, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=_DOCUMENTS)


def _list(of: pa.DataType) -> pa.DataType:
    """A list type named as Parquet names it, so that a table read and written again has equal bytes."""
    return pa.list_(pa.field("element", of))


_SPANS = pa.schema(
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
        ("selected", pa.bool_()),
    ]
)
_DOCUMENTS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("text", pa.string()),
        ("set", pa.string()),
        ("group", pa.string()),
        ("special_tokens", pa.bool_()),
        ("audited_ranges", _list(_list(pa.int32()))),
        ("known_spans", _list(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())]))),
        ("out_references", _list(pa.int32())),
    ]
)
