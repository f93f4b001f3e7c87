"""Copies of a request's secrets as spans of the audit: selected where the request says so, listed everywhere."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import numpy as np

from mitigate.detection.assessment import Assessment
from mitigate.detection.metadata import ErasureFound, LinkedPlace
from mitigate.detection.spans.row import SpanRow
from mitigate.documents import Documents
from mitigate.secrets.copies import Sought, find_linked
from mitigate.tokens.tokenization import span_tokens


def with_linked(assessed: Assessment, documents: Documents) -> tuple[Assessment, ErasureFound]:
    """Add the linked places of the documents' erasure request to an assessment.

    Each becomes a span of the source `linked` with the label of its origin. It is selected, all its tokens whether
    memorized or not, if the request says so and the target was trained on the document (holdout text has nothing to
    forget and must stay what non-members are).

    Returns:
        the assessment with these spans last, and what an audit's metadata say of the request.
    """
    erasure = documents.erasure
    assert erasure is not None
    sought = [
        Sought(row.span_id, row.doc_id, row.char_start, row.char_end, row.label, known=row.source == "known")
        for row in assessed.spans
        if row.selected or row.source == "known"
    ]
    linked = find_linked(documents, erasure.doc_ids, sought)
    numbers = {document.id: number for number, document in enumerate(documents)}
    starts = [0, *accumulate(len(tokens.ids) for tokens in assessed.tokenized)]
    rows: list[SpanRow] = []
    places = []
    for hit in linked.hits:
        number = numbers[hit.doc_id]
        own = assessed.tokenized[number]
        tokens = span_tokens(own.offsets, hit.char_start, hit.char_end)
        tokens = tokens[own.audited[tokens]]
        memorized = int(assessed.memorized[starts[number] + tokens].sum())
        selected = bool(tokens.size) and erasure.linked and documents[number].set != "holdout"
        if tokens.size:
            rows.append(
                SpanRow(
                    span_id=len(assessed.spans) + len(rows),
                    doc_id=hit.doc_id,
                    char_start=hit.char_start,
                    char_end=hit.char_end,
                    token_start=int(tokens[0]),
                    token_end=int(tokens[-1]) + 1,
                    label=hit.label,
                    source="linked",
                    score=float(np.nanmean(assessed.score[starts[number] + tokens])),
                    selected=selected,
                )
            )
        places.append(
            LinkedPlace(
                doc_id=hit.doc_id,
                char_start=hit.char_start,
                char_end=hit.char_end,
                label=hit.label,
                span_id=rows[-1].span_id if tokens.size else None,
                origins=hit.origins,
                set=documents[number].set,
                tokens=len(tokens),
                memorized_tokens=memorized,
                selected=selected,
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
    return replace(assessed, spans=[*assessed.spans, *rows]), found
