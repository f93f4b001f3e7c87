"""What the tests of unlearning share: quick settings, loops that have not begun, documents of several windows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from made_up import with_metadata
from world import LORA, planted_documents

from mitigate.detection.record import Audit
from mitigate.detection.spans.row import span_table
from mitigate.documents import Document, Documents, Span
from mitigate.models.settings import Lora, Schedule
from mitigate.models.store import ModelStore
from mitigate.unlearning.preparation import prepare
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.training.loop import Loop

QUICK = Unlearn(
    objective="hinge=1,distill=0.5",
    max_steps=6,
    check_every=3,
    checkpoint_every=2,
    batch_size=3,
    retain_batch_size=3,
    learning_rate=2e-3,
    lora=LORA,
    stop_at_control=False,
)

SHORT = Schedule(epochs=2, learning_rate=1e-2, batch_size=5)
SMALL = Lora(rank=4, alpha=8)


def changed(settings: Unlearn, **values: Any) -> Unlearn:
    """The settings with some of them changed, and checked."""
    return Unlearn(**{**settings.model_dump(), **values})


THOROUGH = changed(QUICK, max_steps=30, check_every=10, learning_rate=1e-2, batch_size=5, retain_batch_size=5)


def log_ratio(audited: Audit) -> np.ndarray:
    """(N,) log p_θ − log p̄, clipped to 3 nats."""
    return np.clip(audited.columns["log_prob"] - audited.columns["log_prob_out"], -3, 3)


def selected_of(audited: Audit) -> np.ndarray:
    return audited.columns["selected"].astype(bool)


def cpu() -> ModelStore:
    return ModelStore(device="cpu")


@cache
def shared(purpose: str) -> ModelStore:
    """A store that tests share, for loading takes longest: for loops, of which only the newest is alive; to read."""
    return cpu()


def loop_of(audit: Audit, settings: Unlearn, out: Path, **options: Any) -> Loop:
    """The loop that `unlearn` trains, before its first step."""
    return prepare(audit, settings=settings, partial=out, **{"store": shared("loops"), **options}).loop()


def long_documents() -> Documents:
    """Two documents a set, of three door codes each, that take several windows of the tiny models' context."""
    short = planted_documents(each=6).items
    documents = []
    for number in range(0, len(short), 3):
        text, spans = "", []
        for part in short[number : number + 3]:
            text += " " if text else ""
            spans += [Span(span.start + len(text), span.end + len(text), span.label) for span in part.spans]
            text += part.text
        first = short[number]
        documents.append(Document(first.id, text, spans=tuple(spans), set=first.set))
    return Documents(tuple(documents))


def selecting(audit: Audit, *ids: str) -> Audit:
    """The audit with only some documents to forget, and only their known spans selected."""
    rows = [replace(row, selected=row.doc_id in ids and row.source == "known") for row in audit.span_rows]
    chosen = np.zeros(len(audit.tokens), dtype=bool)
    for row in rows:
        if row.selected:
            chosen[audit.rows_of(row)] = True
    tokens = audit.tokens.set_column(audit.tokens.column_names.index("selected"), "selected", [chosen])
    documents = audit.documents.to_pylist()
    for row in documents:
        row["set"] = "holdout" if row["set"] == "holdout" else "forget" if row["doc_id"] in ids else "retain"
    chosen_audit = replace(
        audit,
        spans=span_table(rows),
        documents=type(audit.documents).from_pylist(documents, schema=audit.documents.schema),
        tokens=tokens,
    )
    return with_metadata(chosen_audit, documents=chosen_audit.document_list().fingerprint)


def secret_of(document: Document) -> str:
    return document.text[document.spans[0].start : document.spans[0].end]
