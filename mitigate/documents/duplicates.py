"""Equal texts in different sets: a control that was trained on, or a text to forget and to hold still at once."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

from mitigate.documents.types import Document
from mitigate.errors import MitigateError, summarize

logger = logging.getLogger(__name__)


def key_of(text: str) -> bytes:
    """What texts have in common that differ in white space alone."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


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
    sets: dict[bytes, set[str | None]] = defaultdict(set)
    keys = [key_of(document.text) for document in documents]
    for key, document in zip(keys, documents, strict=True):
        if not document.is_tail:
            sets[key].add(document.set)
    is_seen = [
        document.set == "holdout" and not document.is_tail and bool(sets[key] & {"forget", "retain"})
        for key, document in zip(keys, documents, strict=True)
    ]
    seen = [document.id for document, out in zip(documents, is_seen, strict=True) if out]
    kept = [document for document, out in zip(documents, is_seen, strict=True) if not out]
    if seen and not any(document.set == "holdout" for document in kept):
        raise MitigateError(
            f"every document of the set holdout ({summarize(map(repr, seen))}) has the text of one in forget or "
            "retain: they were trained on and are no never-seen control; give others"
        )
    if seen:
        logger.warning(
            "%d documents of the set holdout are left out, for their text is in forget or retain, too, and a control "
            "must be text that was never trained on: %s",
            len(seen),
            summarize(map(repr, seen)),
        )
    _warn(
        (document.id for key, document in zip(keys, documents, strict=True) if {"forget", "retain"} <= sets[key]),
        "documents stand in forget and in retain with one text: unlearning would push and hold them; give them one set",
    )
    _warn(
        (
            document.id
            for key, document in zip(keys, documents, strict=True)
            if document.set == "holdout" and None in sets[key] and not document.is_tail
        ),
        "documents of the set holdout have the text of documents without a set; if those were trained on, these are no "
        "never-seen control and hide leaks: take them out",
    )
    return kept, [f"{id}: its text is in forget or retain, too: no never-seen control" for id in seen]


def _warn(doc_ids: Iterable[str], reason: str) -> None:
    if found := list(doc_ids):
        logger.warning("%d %s: %s", len(found), reason, summarize(map(repr, found)))
