"""How much of the text was judged: what an all-clear is silent about.

Nothing is known of text that no token score covers: turns outside the audited ones, the first token of a document that
has nothing before it. Known sensitive spans there are counted and listed, for a secret that was not looked at is not a
secret that is safe.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mitigate.detection.metadata import Coverage, Reason, Unjudged
from mitigate.documents import Document, Documents
from mitigate.recognisers.values import sensitive_values
from mitigate.tokens.tokenization import TokenizedDocument, span_tokens

logger = logging.getLogger(__name__)
USUAL_CUT = 1024  # tokens at which TRL cuts a text, unless it is told otherwise
_REMEDIES = {
    "not audited": "outside the audited text: set audit to all, or to their roles",
    "cut": "beyond what the trainer kept: raise max_tokens if the target was trained on them",
    "first token": "at a first token, which nothing precedes: begin the text with the start token, as in "
    "text: '<s>{text}'",
}


def coverage(documents: Documents, tokenized: Sequence[TokenizedDocument]) -> Coverage:
    """What was judged and what was not.

    Args:
        documents: what an audit was given.
        tokenized: their tokens.
    """
    counts: Counter[str] = Counter()
    outside = []
    for document, own in zip(documents, tokenized, strict=True):
        solid = np.fromiter((not character.isspace() for character in document.text), bool, len(document.text))
        solid[: _begin(document)] = False
        solid[_end(document) :] = False
        judged = np.zeros(len(document.text), dtype=bool)
        for start, end in own.offsets[own.audited]:
            judged[start:end] = True
        counts["characters"] += int(solid.sum())
        counts["audited"] += int((solid & judged).sum())
        counts["known_spans"] += len(document.spans)
        for span in document.spans:
            if reason := _reason(document, own, span.start, span.end):
                outside.append(
                    Unjudged(
                        doc_id=document.id,
                        char_start=span.start,
                        char_end=span.end,
                        label=span.label,
                        reason=reason,
                    )
                )
        if (solid & ~judged).any():
            counts["values_outside"] += _values_outside(document, solid & ~judged)
    return Coverage(
        characters=counts["characters"],
        audited=counts["audited"],
        known_spans=counts["known_spans"],
        known_spans_outside=len(outside),
        outside=tuple(outside),
        values_outside=counts["values_outside"],
    )


def warn_of_gaps(covered: Coverage, documents: Documents, tokenized: Sequence[TokenizedDocument]) -> None:
    """Say what was not judged, and what to do about it."""
    reasons = Counter(span.reason for span in covered.outside)
    if reasons:
        parts = [f"{count} {_REMEDIES[reason]}" for reason, count in reasons.items()]
        logger.warning(
            "%d of %d known spans are not, or not wholly, judged, and the audit says nothing of them: %s",
            covered.known_spans_outside,
            covered.known_spans,
            "; ".join(parts),
        )
    if covered.values_outside:
        logger.warning(
            "%d sensitive values stand in text that is not judged: set audit to all, or to their roles",
            covered.values_outside,
        )
    if longer := sum(
        len(own.ids) > USUAL_CUT and one.cut is None for one, own in zip(documents, tokenized, strict=True)
    ):
        logger.warning(
            "%d documents are longer than %d tokens, where TRL cuts unless told otherwise; say with max_tokens where "
            "the target's trainer cut them, or text that it was never trained on counts as trained on",
            longer,
            USUAL_CUT,
        )


def _values_outside(document: Document, silent: np.ndarray) -> int:
    """How many recognised values, known spans aside, have one of the characters that are not judged."""
    known = [(span.start, span.end) for span in document.spans]
    return sum(
        bool(silent[value.start : value.end].any())
        for value in sensitive_values(document.text)
        if not any(start < value.end and value.start < end for start, end in known)
    )


def _begin(document: Document) -> int:
    """The first character that this document, of two with one text, answers for."""
    return document.cut or 0 if document.is_tail else 0


def _end(document: Document) -> int:
    return len(document.text) if document.is_tail or document.cut is None else document.cut


def _reason(document: Document, own: TokenizedDocument, start: int, end: int) -> Reason | None:
    """Why some of the characters [start, end) are not judged; None where all are."""
    tokens = span_tokens(own.offsets, start, end)
    silent = tokens[~own.audited[tokens]]
    if tokens.size and not silent.size:
        return None
    if silent.size and (silent == 0).all():
        return "first token"
    return "cut" if end > _end(document) else "not audited"
