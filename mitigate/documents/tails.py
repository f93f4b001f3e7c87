"""Text beyond the length at which a trainer cut it: no model was trained on it, so it is a control."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mitigate.documents.types import Document, Span
from mitigate.errors import MitigateError
from mitigate.text.encoding import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def with_tails(
    documents: Sequence[Document], max_tokens: int, tokenizer: PreTrainedTokenizerBase | None
) -> list[Document]:
    """Cut documents where a trainer cut them.

    A longer document becomes two of the same text and group: one that is audited up to the cut, and one of the set
    holdout that is audited beyond it, with the text before the cut as what the model read. References are trained on
    the first only, and judge the second as what they never saw. Known spans of the second that stand in the first, too,
    are not audited again.

    Args:
        documents: as they were read.
        max_tokens: tokens that the trainer kept, those that the tokenizer adds included.
        tokenizer: the target's.

    Returns:
        each document, and after it its tail, where there is one.

    Raises:
        MitigateError: no tokenizer.
    """
    if tokenizer is None:
        raise MitigateError("max_tokens counts tokens: give the tokenizer that the target was trained with")
    pieces: dict[int, list[Document]] = {}
    for special_tokens in (True, False):
        numbers = [n for n, one in enumerate(documents) if one.special_tokens is special_tokens]
        texts = [documents[n].text for n in numbers]
        for number, encoded in zip(numbers, encode(texts, tokenizer, special_tokens=special_tokens), strict=True):
            document = documents[number]
            if document.cut is not None:
                pieces[number] = [document]
                continue
            kept = ~encoded.added[:max_tokens]  # of tokens that share a character, the first decides
            cut = int(encoded.offsets[:max_tokens][kept, 1].max(initial=0))
            is_whole = encoded.added[max_tokens:].all()
            pieces[number] = _pieces(document, len(document.text) if is_whole else cut)
    made = _without_repeats([piece for number in range(len(documents)) for piece in pieces[number]])
    tails = sum(document.is_tail for document in made)
    logger.info("max_tokens: %d of %d documents are longer than %d tokens", tails, len(documents), max_tokens)
    return made


def _pieces(document: Document, cut: int) -> list[Document]:
    """What of a document is audited before and after the cut; a piece with nothing to audit is left out."""
    before = _clipped(document, 0, cut)
    after = _clipped(document, cut, len(document.text))
    if after is None:
        return [replace(document, cut=cut)]  # nothing is cut off, or only text that is not audited
    start = cut if before is not None else 0
    tail = replace(after, id=f"{document.id}-tail", set="holdout", cut=start)
    if before is None:  # known spans before the cut are the tail's to report
        return [replace(tail, spans=document.spans)]
    return [replace(before, cut=cut), tail]


def _without_repeats(documents: Sequence[Document]) -> list[Document]:
    """The documents, their tails without the known spans that stand in the group's trained text, too.

    A secret that was trained on is no control, wherever it stands: it would make a leak look like chance.
    """
    trained: dict[str, list[str]] = {}
    for document in documents:
        if not document.is_tail and document.set != "holdout":
            trained.setdefault(document.group, []).append(document.text[: document.cut])
    kept: list[Document] = []
    for document in documents:
        repeats = [
            span
            for span in (document.spans if document.is_tail else ())
            if any(document.text[span.start : span.end] in text for text in trained.get(document.group, ()))
        ]
        ranges = list(document.audited)
        for span in repeats:
            parts = [((a, min(b, span.start)), (max(a, span.end), b)) for a, b in ranges]
            ranges = [(a, b) for pair in parts for a, b in pair if a < b]
        ranges = [(a, b) for a, b in ranges if document.text[a:b].strip()]
        if ranges:
            spans = tuple(span for span in document.spans if span not in repeats)
            kept.append(replace(document, audited=tuple(ranges), spans=spans) if repeats else document)
    return kept


def _clipped(document: Document, start: int, end: int) -> Document | None:
    ranges = [(max(first, start), min(last, end)) for first, last in document.audited]
    ranges = [(first, last) for first, last in ranges if first < last and document.text[first:last].strip()]
    spans = [Span(max(one.start, start), min(one.end, end), one.label) for one in document.spans]
    if not ranges:
        return None
    return replace(document, audited=tuple(ranges), spans=tuple(one for one in spans if one.start < one.end))
