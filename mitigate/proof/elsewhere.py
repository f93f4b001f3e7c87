"""Secrets to forget that stand in other documents as well, from which the model knows them still."""

from __future__ import annotations

from mitigate.proof.case import Case
from mitigate.secrets.copies import Sought, find_linked
from mitigate.tokens.tokenization import span_tokens


def left_elsewhere(case: Case) -> dict[str, int]:
    """Where the secrets of the documents to forget stand in documents that the model was trained on and keeps.

    However they are written there (see `secrets.same`). Places that were selected to be unlearned, too, and never-seen
    documents do not count.

    Returns:
        `places`, and the number of `documents` that hold them.
    """
    documents, columns = case.before.document_list(), case.before.columns
    forget = {documents[number].id for number in case.documents("forget")}
    sought = [
        Sought(row.span_id, row.doc_id, row.char_start, row.char_end, row.label, known=row.source == "known")
        for row in case.view.spans
        if row.doc_id in forget and (row.selected or row.source == "known")
    ]
    never_seen = {documents[number].id for number in case.documents("holdout")}
    hits = [hit for hit in find_linked(documents, forget, sought).hits if hit.doc_id not in never_seen]
    tokenized = {one.id: one for one in case.tokenized}
    left = []
    for hit in hits:
        own, rows = tokenized[hit.doc_id], case.before.rows[hit.doc_id]
        tokens = span_tokens(own.offsets, hit.char_start, hit.char_end)
        if not columns["selected"][rows][tokens[own.audited[tokens]]].all() or not own.audited[tokens].any():
            left.append(hit.doc_id)
    return {"places": len(left), "documents": len(set(left))}
