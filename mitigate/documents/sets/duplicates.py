"""Equal texts in different sets: a control that was trained on, or a text to forget and to hold still at once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Sequence

from mitigate.documents.types import Document
from mitigate.errors import MitigateError, summarize

logger = logging.getLogger(__name__)
_BITS: dict[str | None, int] = {None: 1, "forget": 2, "retain": 4, "holdout": 8}


def exact_key(text: str) -> bytes:
    """What equal texts have in common."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def key_of(text: str) -> bytes:
    """What texts have in common that differ in white space alone."""
    return exact_key(" ".join(text.split()))


class TextsInSets:
    """In which sets each text stands, filled document by document; texts are kept as digests."""

    def __init__(self) -> None:
        self._sets: dict[bytes, int] = {}

    def add(self, document: Document) -> None:
        """Count a document in. What lies beyond a trainer's cut (`Document.is_tail`) was not trained on."""
        if not document.is_tail:
            key = key_of(document.text)
            self._sets[key] = self._sets.get(key, 0) | _BITS[document.set]

    def of(self, key: bytes) -> frozenset[str | None]:
        """The sets in which a text stands; `key` is its `key_of`."""
        found = self._sets.get(key, 0)
        return frozenset(name for name, bit in _BITS.items() if found & bit)

    def in_both(self, one: str, other: str) -> int:
        """How many texts stand in two sets."""
        both = _BITS[one] | _BITS[other]
        return sum(found & both == both for found in self._sets.values())


def is_trained_control(document: Document, sets: Collection[str | None]) -> bool:
    """Whether a document is of the set holdout, and its text, which stands in `sets`, was trained on."""
    return document.set == "holdout" and not document.is_tail and not {"forget", "retain"}.isdisjoint(sets)


def without_trained_controls(documents: Sequence[Document]) -> tuple[list[Document], list[str]]:
    """The documents without those of the set holdout whose text the sets forget or retain have as well.

    Such a text was trained on: as a never-seen control it would hide a leak. Texts in forget and in retain, and texts
    in holdout that documents without a set have, stay and are warned about. What lies beyond a trainer's cut
    (`Document.is_tail`) was not trained on, though the text before it was.

    Returns:
        the documents, and `id: reason` of each that was left out.

    Raises:
        MitigateError: no holdout document is left.
    """
    texts = TextsInSets()
    for document in documents:
        texts.add(document)
    stands = [(document, texts.of(key_of(document.text))) for document in documents]
    seen = [document.id for document, sets in stands if is_trained_control(document, sets)]
    kept = [document for document, sets in stands if not is_trained_control(document, sets)]
    if seen:
        tell_trained_controls(seen, left=any(document.set == "holdout" for document in kept))
    both = [document.id for document, sets in stands if {"forget", "retain"} <= sets]
    tell_two_sets(len(both), both)
    tell_doubtful_controls(
        [
            document.id
            for document, sets in stands
            if document.set == "holdout" and not document.is_tail and None in sets
        ]
    )
    return kept, [trained_control(doc_id) for doc_id in seen]


def trained_control(doc_id: str) -> str:
    """Why a document is left out."""
    return f"{doc_id}: its text is in forget or retain, too: no never-seen control"


def tell_trained_controls(doc_ids: Sequence[str], *, left: bool) -> None:
    """Say which holdout documents are left out for their text was trained on.

    Raises:
        MitigateError: none other is left.
    """
    if not left:
        raise MitigateError(
            f"every document of the set holdout ({summarize(map(repr, doc_ids))}) has the text of one in forget or "
            "retain: they were trained on and are no never-seen control; give others"
        )
    logger.warning(
        "%d documents of the set holdout are left out, for their text is in forget or retain, too, and a control "
        "must be text that was never trained on: %s",
        len(doc_ids),
        summarize(map(repr, doc_ids)),
    )


def tell_two_sets(count: int, doc_ids: Sequence[str] = ()) -> None:
    """Warn of documents whose text is to be forgotten and to be held."""
    _warn(
        count,
        "documents stand in forget and in retain with one text: unlearning would push and hold them; give them one set",
        doc_ids,
    )


def tell_doubtful_controls(doc_ids: Sequence[str]) -> None:
    """Warn of holdout documents whose text documents without a set have."""
    _warn(
        len(doc_ids),
        "documents of the set holdout have the text of documents without a set; if those were trained on, these are no "
        "never-seen control and hide leaks: take them out",
        doc_ids,
    )


def _warn(count: int, reason: str, doc_ids: Sequence[str]) -> None:
    if count:
        logger.warning("%d %s%s", count, reason, f": {summarize(map(repr, doc_ids))}" if doc_ids else "")
