"""Ask a model questions, and score each answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from mitigate.documents import Document, Documents, read_documents
from mitigate.documents.sources import without_spans
from mitigate.errors import MitigateError
from mitigate.models.model import Model
from mitigate.tokens.tokenization import tokenize_documents
from mitigate.verification.questions.answers import greedy_answers, prompt_of, scorer
from mitigate.verification.questions.settings import QuestionSet

SETS = ("forget", "retain", "holdout")


@dataclass(frozen=True)
class Asked:
    """The rows of one part that are asked.

    Attributes:
        name: of the part.
        documents: prompt and completion each, of which the completion is audited; each has a set.
        left_out: rows that no set is known of, or that come after `limit`.
    """

    name: str
    documents: tuple[Document, ...]
    left_out: int


def read_asked(parts: Mapping[str, QuestionSet], audited: Documents, *, root: Path | None = None) -> tuple[Asked, ...]:
    """All parts' rows, each with the set that it is of.

    Args:
        parts: name -> settings.
        audited: the documents that rows ask about, where `document` says which.
        root (*optional*): folder that relative paths start from.

    Raises:
        MitigateError: a file is missing or has bad rows; a part of which no row has a set.
    """
    return tuple(_read(name, settings, audited, root) for name, settings in parts.items())


def _read(name: str, settings: QuestionSet, audited: Documents, root: Path | None) -> Asked:
    rows = read_documents(without_spans([settings.rows]), root=root)
    sets = {row.id: row.set for row in rows}
    if settings.document is not None:
        stems = {stem: one.set or "forget" for one in audited if (stem := _stem(settings.document, one.id)) is not None}
        sets = {row.id: stems.get(stem) if (stem := _stem(settings.document, row.id)) else None for row in rows}
    counts = dict.fromkeys(SETS, 0)
    kept = []
    for row in rows:
        own = sets[row.id]
        if own in counts and (settings.limit is None or counts[own] < settings.limit):
            counts[own] += 1
            stem = _stem(settings.document, row.id) if settings.document is not None else None
            kept.append(replace(row, set=own, group=stem or row.group))
    if not kept:
        raise MitigateError(
            f"report.questions.{name}: of none of {len(rows)} rows it is known whether it is of the set forget, retain "
            "or holdout; give rows.assign, a field with the set, or document: a regular expression on ids"
        )
    return Asked(name, tuple(kept), len(rows) - len(kept))


def _stem(pattern: str, name: str) -> str | None:
    found = re.match(pattern, name)
    return found[1] if found else None


def ask(model: Model, asked: Sequence[Asked], parts: Mapping[str, QuestionSet], *, description: str) -> pa.Table:
    """One row for each question, part by part, in order.

    Returns:
        columns `part`, `id`, `set`, `group`, `answer`: what the model says; `score`, 0 to 1.
    """
    tables = []
    for part in asked:
        settings = parts[part.name]
        tokenized = tokenize_documents(part.documents, model.tokenizer)
        room = [min(settings.new_tokens, model.context - 1) for _ in tokenized]
        prompts = [prompt_of(one)[-(model.context - most) :] for one, most in zip(tokenized, room, strict=True)]
        given = greedy_answers(model, prompts, most=room, end=settings.end, description=f"{description}, {part.name}")
        score = scorer(settings.score)
        true = [_completion(document) for document in part.documents]
        tables.append(
            pa.table(
                {
                    "part": [part.name] * len(given),
                    "id": [document.id for document in part.documents],
                    "set": [document.set for document in part.documents],
                    "group": [document.group for document in part.documents],
                    "answer": given,
                    "score": [score(right, own) for right, own in zip(true, given, strict=True)],
                }
            )
        )
    return pa.concat_tables(tables)


def _completion(document: Document) -> str:
    [(start, end)] = document.audited or ((0, len(document.text)),)
    return document.text[start:end].strip()
