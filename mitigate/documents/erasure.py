"""What an erasure request selects: it makes the documents that it names the set forget.

    request = Request(contains=["Jane Roe"], where={"customer": 17})
    documents = apply_request(read_documents("train.jsonl", mark=request.where), request)

The requested documents become the set forget, and only they: the request replaces a forget set that was there.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from mitigate.documents.request import Request
from mitigate.documents.sets.duplicates import without_trained_controls
from mitigate.documents.types import Document, Documents, Erasure, Marks
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
    selection = select_requested(documents, request, marks=documents.marks, never_trained=never_trained)
    items, left_out = without_trained_controls([selection.dealt(document) for document in documents])
    erasure = selection.erasure({document.id for document in documents} - {document.id for document in items})
    return replace(documents, items=tuple(items), skipped=(*documents.skipped, *left_out), erasure=erasure)


@dataclass(frozen=True)
class Requested:
    """What a request selects of documents that need not be held.

    Attributes:
        request: what it asks for.
        wanted: ids to forget, in the documents' order; `unseen`, requested but not trained on; `related`, of their
            groups and not requested.
        matches: (doc_id, start, end) of each place where a text of `contains` stands.
        trained: sets besides that the target was trained on, which become retain.
    """

    request: Request
    wanted: tuple[str, ...]
    unseen: tuple[str, ...]
    related: tuple[str, ...]
    matches: tuple[tuple[str, int, int], ...]
    trained: frozenset[str | None]

    @cached_property
    def _wanted(self) -> frozenset[str]:
        return frozenset(self.wanted)

    def dealt(self, document: Document) -> Document:
        """The document in the set that it has after the request."""
        if document.id in self._wanted:
            return replace(document, set="forget")
        return replace(document, set="retain") if document.set in self.trained else document

    def erasure(self, left_out: Collection[str]) -> Erasure:
        """What is told of it.

        Args:
            left_out: ids of documents that were, since they are no controls.
        """
        request = self.request
        return Erasure(
            doc_ids=self.wanted,
            never_trained=tuple(doc_id for doc_id in self.unseen if doc_id not in left_out),
            same_group=tuple(doc_id for doc_id in self.related if doc_id not in left_out),
            matches=tuple(one for one in self.matches if one[0] not in left_out),
            linked=request.linked,
            criteria={"ids": len(request.ids), "contains": len(request.contains), "where": list(request.where)},
        )


@dataclass(frozen=True)
class _Known:
    """What is held of a document."""

    set: str | None
    group: str
    is_tail: bool


def select_requested(
    documents: Iterable[Document],
    request: Request,
    *,
    marks: Marks | Callable[[], Marks] | None,
    never_trained: Collection[str | None] = ("holdout",),
) -> Requested:
    """What a request selects of documents that are read once; see `apply_request`.

    Args:
        documents: one after the other.
        request: what is to be forgotten.
        marks: which of them meet `where`; called after the last of them, where that is known only then.
        never_trained (*optional*, defaults to holdout): sets that the target was not trained on.

    Raises:
        MitigateError: as `apply_request`.
    """
    texts = [fold(text).text.strip() for text in request.contains]
    known: dict[str, _Known] = {}
    matches: list[tuple[str, int, int]] = []
    held: set[int] = set()
    for document in documents:
        known[document.id] = _Known(document.set, document.group, document.is_tail)
        if texts and not document.is_tail:  # no model was trained on tails
            folded = fold(document.text)
            for number, text in enumerate(texts):
                places = [(document.id, start, end) for start, end in find_words(folded, text)]
                held |= {number} if places else set()
                matches += places
    marks = marks() if callable(marks) else marks
    if mistakes := _mistakes(request, known, held, marks):
        counted = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise MitigateError(f"erasure request: {counted}\n" + "\n".join(f"  - {line}" for line in mistakes))
    requested = {*request.ids, *(doc_id for doc_id, *_ in matches)}
    requested |= marks.doc_ids if request.where and marks is not None else set()
    unseen = {doc_id for doc_id in requested if known[doc_id].set in never_trained}
    wanted = requested - unseen
    if not wanted:
        raise MitigateError(
            f"erasure request: the target was not trained on what it names ({summarize(sorted(unseen))}: set "
            "holdout, or none where the lab trains the target), so there is nothing to forget; name others, or "
            "correct their set"
        )
    groups = {known[doc_id].group for doc_id in wanted}
    related = [id for id, one in known.items() if one.group in groups and id not in requested and not one.is_tail]
    _warn(len(known), len(wanted), unseen, related)
    return Requested(
        request=request,
        wanted=tuple(doc_id for doc_id in known if doc_id in wanted),
        unseen=tuple(doc_id for doc_id in known if doc_id in unseen),
        related=tuple(related),
        matches=tuple(matches),
        trained=frozenset({"forget", None} - set(never_trained)),
    )


def _mistakes(request: Request, known: Collection[str], held: Collection[int], marks: Marks | None) -> list[str]:
    """What is wrong with a request; `held` are the numbers of its texts that stand somewhere."""
    mistakes = []
    unknown = [doc_id for doc_id in dict.fromkeys(request.ids) if doc_id not in known]
    for doc_id in unknown[:_NEAREST]:
        nearest = difflib.get_close_matches(doc_id, known, n=3)
        instead = f"did you mean {summarize(nearest)}?" if nearest else f"ids there: {summarize(known, most=3)}"
        mistakes.append(f"ids: no document {doc_id!r}; {instead}")
    if rest := unknown[_NEAREST:]:
        mistakes.append(f"ids: nor documents {summarize(map(repr, rest))}")
    mistakes += [
        f"contains: {text!r} stands in none of {len(known)} documents as whole words; correct the spelling, "
        "or leave it out"
        for number, text in enumerate(request.contains)
        if number not in held
    ]
    if request.where:
        mistakes += _where_mistakes(request, marks, len(known))
    return mistakes


def _where_mistakes(request: Request, marks: Marks | None, total: int) -> list[str]:
    if marks is None or set(marks.met) != set(request.where):
        return ["where: the fields of rows are known at reading only; read_documents(..., mark=request.where)"]
    if missing := [name for name in request.where if name not in marks.fields]:
        return [f"where: no field {summarize(missing)}; fields there: {summarize(marks.fields, most=20)}"]
    if not marks.doc_ids:
        counts = summarize((f"{name} by {count}" for name, count in marks.met.items()), most=20)
        return [f"where: met by none of {total} documents (each condition alone is met: {counts}); loosen it"]
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
