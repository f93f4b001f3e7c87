"""The audit: every token's signals and scores, the spans found, and what they were made from.

    result = audit("my-model", ["references"], documents="train.jsonl")
    result.save("audit"); Audit.load("audit").show()

One table row per token, documents in order. Row t is about token x_t given x_<t; the first token of a document has no
score (null, never 0). Higher = more memorized, always.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mitigate import __version__
from mitigate.artifacts.files import (
    check_digests,
    fingerprint,
    new_directory,
    read_json,
    read_table,
    write_json,
    write_table,
)
from mitigate.detection.assessment import Verdict, judge_documents
from mitigate.detection.coverage import coverage, warn_of_gaps
from mitigate.detection.linked import with_linked
from mitigate.detection.references.checks import check_references
from mitigate.detection.references.crossfit import References, load_references
from mitigate.detection.references.fit import fit_warning, reference_fit
from mitigate.detection.settings import Detect
from mitigate.detection.spans.scored import Seen
from mitigate.detection.tables import document_table, span_table, token_table
from mitigate.documents import Document, Documents, Request, Span, read_documents
from mitigate.errors import MitigateError
from mitigate.models.compatible import check_audited_tokenizer, check_tokenizers
from mitigate.models.model import Model, check_same_tokenizer
from mitigate.models.provenance import origin_of
from mitigate.models.store import ModelStore
from mitigate.runtime import library_versions
from mitigate.tokens.rules import tokenizer_fingerprint
from mitigate.tokens.tokenization import TokenizedDocument

logger = logging.getLogger(__name__)
SCHEMA = 3  # of audit.json and the tables; one of another number is refused


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
        spans: `span_id, doc_id, char_start, char_end, token_start, token_end, label, source` (`found`, `known`, or
            `linked`: a secret of an erasure request's documents in another document), `score` (nats, mean over its
            tokens), `probability` that the target was trained on it (as if half of all spans were; null without
            shadows), `q` (the false discovery rate at which it is the last one selected; null if not calibrated),
            `selected`.
        metadata: fingerprints of target, references, tokenizer and documents; settings; versions; `context`: tokens in
            a window, at most what every model takes; `calibration`: what the certainty rests on (`kind`: `shadows`,
            `non_members` or `none`); `coverage`: how much of the text and of the known spans was judged (see
            `mitigate.detection.coverage`); `warnings` about references; `fit`: how closely these were fitted beside the
            target, see `reference_fit`; `erasure`: what an erasure request selected and where its secrets stand besides
            (null without a request); `origin`: how `unlearn` or `retrain` made the target, as they recorded it (null
            for other models); `again`: of a re-audit, the fingerprint of the audit that it repeats.
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
        check_digests(directory)
        metadata = read_json(directory / "audit.json")
        version = metadata.get("schema") if isinstance(metadata, dict) else None
        if version != SCHEMA:
            raise MitigateError(
                f"{directory}: an audit of version {version!r}, and this code reads version {SCHEMA}; audit again"
            )
        tokens, documents, spans = (
            read_table(directory / f"{name}.parquet") for name in ("tokens", "documents", "spans")
        )
        return cls(tokens.replace_schema_metadata(None), documents, spans, metadata)

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
                    cut=row.get("cut"),  # older audits do not say
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
    references: References | str | Path | Sequence[str | Path],
    *,
    documents: str | Path | Documents,
    detect: Detect | None = None,
    store: ModelStore | None = None,
    forget: Request | None = None,
    seed: int = 0,
) -> Audit:
    """Score every token of the documents and find the memorized spans.

    Args:
        target: the model under audit: hub id, directory, adapter directory, or a loaded model.
        references: models that never saw the documents, or directories made by `mitigate references`: one or several.
        documents: what to judge: a file, a hub data set, or documents read before.
        detect (*optional*): score, temperature and span rule.
        store (*optional*): loads the models; settles device and number format.
        forget (*optional*): an erasure request, which makes the forget set; the secrets of its documents are looked for
            in all others. Its `where` needs documents that are read here, or were read with `mark`. Spans are selected
            in the forget set, or everywhere outside retain and holdout if no document belongs to a forget set.
        seed (`int`, *optional*, defaults to 0): recorded with the audit.

    Raises:
        MitigateError: no reference, a reference with another tokenizer, no OUT reference for a document, NaN logits, an
            erasure request that selects nothing.
    """
    detect = detect or Detect()
    store = store or ModelStore()
    references = references if isinstance(references, References) else load_references(references)
    given = {f"reference {number}": path for number, path in enumerate(references.paths)}
    check_tokenizers(target.source if isinstance(target, Model) else target, given, store=store)
    model = target if isinstance(target, Model) else store.load(target)
    if not isinstance(documents, Documents):
        documents = read_documents(documents, tokenizer=model.tokenizer, mark=forget.where if forget else None)
    documents = forget.apply(documents) if forget is not None else documents
    reference_models = [store.load(path) for path in references.paths]
    seen = Seen(
        out=references.out_for(documents),
        trained=references.trained_for(documents),
        crossfitted=references.crossfitted,
    )
    eligible = _eligible_sets(documents)
    for reference in reference_models:
        check_same_tokenizer(model, reference)
    verdict = judge_documents(model, reference_models, documents, seen, detect=detect, eligible=eligible)
    names = [reference.name for reference in reference_models]
    warnings = check_references(
        verdict.signals,
        documents,
        verdict.tokenized,
        names=names,
        crossfitted=seen.crossfitted,
        vocabulary=model.vocabulary_size,
    )
    windows = {name: getattr(detect, name) for name in ("context", "stride", "batch_tokens")}
    fit = reference_fit(model, reference_models, documents, verdict.tokenized, seen, verdict.signals, settings=windows)
    warnings += [warning] if (warning := fit_warning(fit)) else []
    for warning in warnings:
        logger.warning("%s", warning)
    erasure = None
    if documents.erasure is not None:
        verdict, erasure = with_linked(verdict, documents)
    settings = {"kind": references.kind, "detect": detect.model_dump(), "seed": seed, "warnings": warnings}
    settings |= {"erasure": erasure, "fit": fit}
    result = _assemble(model, reference_models, documents, seen, verdict, settings)
    warn_of_gaps(result.metadata["coverage"], documents, verdict.tokenized)
    return result


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
    check_audited_tokenizer(model.tokenizer, before.metadata, name=model.name, store=store)
    reference_models = load_audited(before.metadata["references"], store=store)
    documents, table = before.document_list(), before.documents
    for reference in reference_models:
        check_same_tokenizer(model, reference)
    seen = Seen(
        out=table["out_references"].to_pylist(),
        trained=table["in_references"].to_pylist(),
        crossfitted=before.metadata["crossfitted"],
    )
    verdict = judge_documents(
        model,
        reference_models,
        documents,
        seen,
        detect=Detect(**before.metadata["detect"]),
        eligible=_eligible_sets(documents),
        given=[{name: value for name, value in row.items() if name != "span_id"} for row in before.spans.to_pylist()],
    )
    settings = {name: before.metadata[name] for name in ("kind", "detect", "seed", "warnings")}
    settings |= {name: before.metadata.get(name) for name in ("erasure", "fit")}
    settings["again"] = before.fingerprint
    again = _assemble(model, reference_models, documents, seen, verdict, settings)
    marks = {name: again.tokens.column_names.index(name) for name in ("memorized", "selected")}
    tokens = again.tokens  # which tokens were memorized, and which were chosen, is the earlier audit's finding
    for name, place in marks.items():
        tokens = tokens.set_column(place, name, before.tokens[name])
    return replace(again, tokens=tokens)


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


def _assemble(
    model: Model,
    references: Sequence[Model],
    documents: Documents,
    seen: Seen,
    verdict: Verdict,
    settings: Mapping[str, Any],
) -> Audit:
    spans = span_table(verdict.spans)
    return Audit(
        tokens=token_table(
            verdict.tokenized,
            verdict.signals,
            spans,
            score=verdict.score,
            log_odds=verdict.log_odds,
            memorized=verdict.memorized,
        ),
        documents=document_table(documents, out_references=seen.out, in_references=seen.trained),
        spans=spans,
        metadata={
            "schema": SCHEMA,
            "target": _identity(model),
            "origin": origin_of(model.source, fingerprint=model.fingerprint),
            "references": [_identity(reference) for reference in references],
            "crossfitted": list(seen.crossfitted),
            "tokenizer": tokenizer_fingerprint(model.tokenizer),
            "documents": documents.fingerprint,
            "skipped": list(documents.skipped),
            "coverage": coverage(documents, verdict.tokenized),
            "context": min(settings["detect"]["context"] or model.context, *(m.context for m in (model, *references))),
            "calibration": verdict.calibration,
            "code": __version__,
            "versions": library_versions(),
            **settings,
        },
    )


def _identity(model: Model) -> dict[str, str]:
    return {"name": model.name, "source": model.source, "fingerprint": model.fingerprint}


def _eligible_sets(documents: Documents) -> set[str | None]:
    """The sets whose memorized spans are selected for unlearning."""
    return {"forget"} if any(document.set == "forget" for document in documents) else {None}
