"""What an erasure request selects: it makes the documents that it names the set forget.

    request = Request(contains=["Jane Roe"], where={"customer": 17})
    documents = apply_request(read_documents("train.jsonl", mark=request.where), request)

The requested documents become the set forget, and only they: the request replaces a forget set that was there.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection
from dataclasses import replace

from mitigate.documents.request import Request
from mitigate.documents.sets.duplicates import without_trained_controls
from mitigate.documents.types import Documents, Erasure
from mitigate.errors import MitigateError, summarize
from mitigate.text.folding import find_words, fold

logger = logging.getLogger(__name__)
_NEAREST = 3  # unknown ids for which similar ones are looked up


def apply_request(
    documents: Documents, request: Request, *, never_trained: Collection[str | None] = ("holdout",)
) -> Documents:
    """Make the requested documents the forget set.

    Documents of the set forget and of no set that are not requested become retain: they are not to be forgotten,
    and the target was trained on them (documents of no set are untrained only where `never_trained` says so), so
    what unlearning does to them is a cost that must be seen. All others keep their set. Requested documents that
    the target never saw keep theirs too, with a warning: they have nothing to forget. Documents of the same group
    (person, duplicates) as a requested one are not forgotten, only listed in the result's `erasure`: a request says
    what it means.

    Args:
        documents: with `marks` for the request's `where` (`read_documents(..., mark=request.where)`).
        request: what is to be forgotten.
        never_trained (*optional*, defaults to holdout): sets that the target was not trained on.

    Returns:
        the same documents in the same order, with `erasure` saying what was selected.

    Raises:
        MitigateError: an id that is nobody's, a text or conditions that no document meets, documents read without
            `mark`, or nothing requested that the target was trained on. With every mistake at once.
    """
    by_id = {document.id: document for document in documents}
    matches = _matches(request, documents)
    if mistakes := _mistakes(request, documents, by_id.keys(), matches):
        counted = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise MitigateError(f"erasure request: {counted}\n" + "\n".join(f"  - {line}" for line in mistakes))
    requested = {*request.ids, *(doc_id for doc_id, *_ in matches)}
    requested |= documents.marks.doc_ids if request.where and documents.marks is not None else set()
    unseen = {doc_id for doc_id in requested if by_id[doc_id].set in never_trained}
    wanted = requested - unseen
    if not wanted:
        raise MitigateError(
            f"erasure request: the target was not trained on what it names ({summarize(sorted(unseen))}: set "
            "holdout, or none where the lab trains the target), so there is nothing to forget; name others, or "
            "correct their set"
        )
    groups = {by_id[doc_id].group for doc_id in wanted}
    related = tuple(d.id for d in documents if d.group in groups and d.id not in requested and not d.is_tail)
    _warn(len(documents), len(wanted), unseen, related)
    trained = {"forget", None} - set(never_trained)
    sets = {
        document.id: "forget" if document.id in wanted else "retain" if document.set in trained else document.set
        for document in documents
    }
    items, left_out = without_trained_controls([replace(one, set=sets[one.id]) for one in documents])
    there = {document.id for document in items}
    erasure = Erasure(
        doc_ids=tuple(document.id for document in documents if document.id in wanted),
        never_trained=tuple(document.id for document in items if document.id in unseen),
        same_group=tuple(doc_id for doc_id in related if doc_id in there),
        matches=tuple((doc_id, start, end) for doc_id, start, end, _ in matches if doc_id in there),
        linked=request.linked,
        criteria={"ids": len(request.ids), "contains": len(request.contains), "where": list(request.where)},
    )
    return replace(documents, items=tuple(items), skipped=(*documents.skipped, *left_out), erasure=erasure)


def _matches(request: Request, documents: Documents) -> list[tuple[str, int, int, int]]:
    """(doc_id, start, end, number of the text) of each place where a text of `contains` stands."""
    wanted = [fold(text).text.strip() for text in request.contains]
    found = []
    for document in (one for one in documents if wanted and not one.is_tail):  # no model was trained on tails
        folded = fold(document.text)
        for number, text in enumerate(wanted):
            found += [(document.id, start, end, number) for start, end in find_words(folded, text)]
    return found


def _mistakes(
    request: Request, documents: Documents, known: Collection[str], matches: list[tuple[str, int, int, int]]
) -> list[str]:
    mistakes = []
    unknown = [doc_id for doc_id in dict.fromkeys(request.ids) if doc_id not in known]
    for doc_id in unknown[:_NEAREST]:
        nearest = difflib.get_close_matches(doc_id, known, n=3)
        instead = f"did you mean {summarize(nearest)}?" if nearest else f"ids there: {summarize(known, most=3)}"
        mistakes.append(f"ids: no document {doc_id!r}; {instead}")
    if rest := unknown[_NEAREST:]:
        mistakes.append(f"ids: nor documents {summarize(map(repr, rest))}")
    held = {number for *_, number in matches}
    mistakes += [
        f"contains: {text!r} stands in none of {len(documents)} documents as whole words; correct the spelling, "
        "or leave it out"
        for number, text in enumerate(request.contains)
        if number not in held
    ]
    if request.where:
        mistakes += _where_mistakes(request, documents)
    return mistakes


def _where_mistakes(request: Request, documents: Documents) -> list[str]:
    marks = documents.marks
    if marks is None or set(marks.met) != set(request.where):
        return ["where: the fields of rows are known at reading only; read_documents(..., mark=request.where)"]
    if missing := [name for name in request.where if name not in marks.fields]:
        return [f"where: no field {summarize(missing)}; fields there: {summarize(marks.fields, most=20)}"]
    if not marks.doc_ids:
        counts = summarize((f"{name} by {count}" for name, count in marks.met.items()), most=20)
        return [f"where: met by none of {len(documents)} documents (each condition alone is met: {counts}); loosen it"]
    return []


def _warn(total: int, wanted: int, unseen: Collection[str], related: Collection[str]) -> None:
    logger.info("erasure request: %d of %d documents to forget", wanted, total)
    if 2 * wanted > total:
        logger.warning("erasure request: it selects more than half of the documents; is it as narrow as meant?")
    if unseen:
        logger.warning(
            "erasure request: %d requested documents stay as they are, for the target was not trained on them: %s",
            len(unseen),
            summarize(sorted(unseen)),
        )
    if related:
        logger.warning(
            "erasure request: %d other documents of the same persons (groups) are not requested: %s; add their ids "
            "to forget them, too",
            len(related),
            summarize(related),
        )
