"""What was not taken out: secrets that stand in other documents as well, and values that nobody selected."""

from __future__ import annotations

from collections import Counter

from mitigate.proof.case import Case
from mitigate.secrets.copies import Sought, find_linked
from mitigate.tokens.tokenization import span_tokens
from mitigate.verification.extraction_values import secrets_of


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


def left_unselected(case: Case) -> dict[str, int]:
    """Values that stand in the documents to forget and of which less than half was selected to be unlearned.

    Names are left out, which only a capital letter tells.

    Returns:
        kind -> how many.
    """
    selected, rows = case.before.columns["selected"].astype(bool), case.before.rows
    sets: tuple[str | None, ...] = ("forget",) if "forget" in case.before.sets.values() else (None,)
    tokenized = {one.id: one for one in case.tokenized}
    left: Counter[str] = Counter()
    for secret in secrets_of(case.before, sets=sets, context=case.before.metadata.context):
        place = secret.place
        own = selected[rows[place.doc_id]][span_tokens(tokenized[place.doc_id].offsets, place.start, place.end)]
        if not place.is_name and own.mean() < 0.5:
            left[place.kind] += 1
    return dict(sorted(left.items()))
