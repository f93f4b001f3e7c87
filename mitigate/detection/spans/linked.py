"""Copies of a request's secrets as spans of an audit: selected where the request says so, listed everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from mitigate.detection.metadata import ErasureFound, LinkedPlace
from mitigate.detection.panel import with_column
from mitigate.detection.record import Audit
from mitigate.detection.spans.row import SpanRow, span_table
from mitigate.documents.types import Erasure
from mitigate.secrets.copies import Linked, Sought
from mitigate.tokens.tokenization import span_tokens


def sought_in(rows: Sequence[SpanRow]) -> list[Sought]:
    """What is looked for elsewhere: the spans that are selected, and those that are known."""
    return [
        Sought(row.span_id, row.doc_id, row.char_start, row.char_end, row.label, known=row.source == "known")
        for row in rows
        if row.selected or row.source == "known"
    ]


def with_linked(audit: Audit, erasure: Erasure, linked: Linked) -> Audit:
    """Add the places that an erasure request's secrets have in other documents to an audit.

    Each becomes a span of the source `linked` with the label of its origin. It is selected, all its tokens whether
    memorized or not, if the request says so and the target was trained on the document (holdout text has nothing to
    forget and must stay what non-members are).

    Args:
        audit: of all documents that hold one.
        erasure: the request.
        linked: places, with the numbers of the audit's spans.

    Returns:
        the audit with these spans last, and with what its metadata say of the request.
    """
    tokenized = {own.id: own for own in audit.tokenized()}
    columns, sets = audit.columns, audit.sets
    selected = columns["selected"].astype(bool)
    rows: list[SpanRow] = []
    places = []
    for hit in linked.hits:
        own, first = tokenized[hit.doc_id], audit.rows[hit.doc_id].start
        tokens = span_tokens(own.offsets, hit.char_start, hit.char_end)
        tokens = tokens[own.audited[tokens]]
        chosen = bool(tokens.size) and erasure.linked and sets[hit.doc_id] != "holdout"
        if tokens.size:
            row = SpanRow(
                span_id=len(audit.spans) + len(rows),
                doc_id=hit.doc_id,
                char_start=hit.char_start,
                char_end=hit.char_end,
                token_start=int(tokens[0]),
                token_end=int(tokens[-1]) + 1,
                label=hit.label,
                source="linked",
                score=float(np.nanmean(columns["score"][first + tokens])),
                selected=chosen,
            )
            rows.append(row)
            if chosen:
                within = audit.rows_of(row)
                selected[within] |= columns["audited"][within].astype(bool)
        places.append(
            LinkedPlace(
                doc_id=hit.doc_id,
                char_start=hit.char_start,
                char_end=hit.char_end,
                label=hit.label,
                span_id=rows[-1].span_id if tokens.size else None,
                origins=hit.origins,
                set=sets[hit.doc_id],
                tokens=len(tokens),
                memorized_tokens=int(columns["memorized"][first + tokens].sum()),
                selected=chosen,
            )
        )
    found = ErasureFound(
        criteria=dict(erasure.criteria),
        documents=erasure.doc_ids,
        never_trained=erasure.never_trained,
        same_group=erasure.same_group,
        matches=erasure.matches,
        select_linked=erasure.linked,
        secrets=linked.secrets,
        too_short=linked.too_short,
        too_common=linked.too_common,
        linked=tuple(places),
    )
    return replace(
        audit,
        tokens=with_column(audit.tokens, "selected", pa.array(selected)),
        spans=span_table([*audit.span_rows, *rows]),
        metadata=audit.metadata.model_copy(update={"erasure": found}),
    )
