"""Text without its secrets: spans replaced by placeholders or by fakes.

Text is redacted by spans, that is by characters: of a memorized secret only some tokens are memorized, but what must
not be learned again is the whole of it. Where spans overlap, labelled ones (known secrets) are replaced first and each
for itself, and what a found span holds besides them after that; so a phone number gets the same fake wherever it
stands, and alone or inside a longer found span alike.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from random import Random

from mitigate.documents import Document, Span
from mitigate.errors import MitigateError
from mitigate.secrets.copies import identifiers
from mitigate.secrets.same import comparable, dialled_length
from mitigate.text.stretches import joined


def redact_document(document: Document, spans: Sequence[Span], *, redact: str, key: str = "") -> Document:
    """`replaced`, the document alone."""
    return replaced(document, spans, redact=redact, key=key)[0]


def replaced(
    document: Document, spans: Sequence[Span], *, redact: str, key: str = ""
) -> tuple[Document, list[tuple[Span, Span]]]:
    """Replace the characters of spans, and move the document's other spans and its audited ranges along.

    A known span that lies wholly in replaced characters is gone; of one that reaches into them, the edge inside moves
    to the edge of the replacement. Audited ranges are never lost.

    Args:
        document: the text.
        spans: what to replace; they may overlap.
        redact: `placeholder` writes `[PHONE]` for the label phone and `[REDACTED]` without a label; `fake` writes what
            `fake` makes.
        key (`str`, *optional*): of the fakes.

    Returns:
        the new document, and what was replaced: characters of the old text, and those of the new that stand for them.

    Raises:
        MitigateError: another `redact`, or a span outside the text.
    """
    if redact not in ("placeholder", "fake"):
        raise MitigateError(f"redact: {redact!r} does not change text; placeholder and fake do")
    if outside := [span for span in spans if not 0 <= span.start < span.end <= len(document.text)]:
        raise MitigateError(
            f"document {document.id!r}: span [{outside[0].start}, {outside[0].end}) is not within its text of "
            f"{len(document.text)} characters; the spans belong to another version of it"
        )
    edits = []
    for span in _disjoint(document.text, spans):
        secret = document.text[span.start : span.end]
        if redact == "placeholder":
            new = placeholder(span.label)
        elif span.label or not comparable(secret):
            new = fake(secret, key)
        else:  # piece by piece, for a copy of what was found may be a part of it
            new = "".join(fake(unit, key) if comparable(unit) else unit for unit in _units(secret))
        edits.append((span.start, span.end, new))
    gone = joined((start, end) for start, end, _ in edits)
    kept = [span for span in document.spans if not any(start <= span.start and span.end <= end for start, end in gone)]

    def moved(position: int, edge: int) -> int:
        return _moved(position, edits, edge, aligned=redact == "fake")

    parts, at, length = [], 0, 0
    pairs = []
    for start, end, new in edits:
        length += start - at
        pairs.append((Span(start, end), Span(length, length + len(new))))
        parts += [document.text[at:start], new]
        length += len(new)
        at = end
    changed = replace(
        document,
        text="".join([*parts, document.text[at:]]),
        audited=tuple((moved(start, 0), moved(end, 1)) for start, end in document.audited),
        spans=tuple(replace(span, start=moved(span.start, 0), end=moved(span.end, 1)) for span in kept),
    )
    return changed, pairs


def placeholder(label: str) -> str:
    """`[PHONE]` for the label phone; `[REDACTED]` for none."""
    name = re.sub(r"\W+", "_", label.strip()).strip("_").upper()
    return f"[{name or 'REDACTED'}]"


def fake(secret: str, key: str) -> str:
    """A string of the secret's format that is not the secret: a digit for a digit, a letter of its case for a letter.

    All other characters stay, and what is dialled before a number (+1, 0). Letters and digits are drawn by
    HMAC-SHA256(key, secret's letters and digits), so that a secret has one fake in all its spellings (555-0101,
    555 0101; see `secrets.same`; but for a country code without + or 00), in every document and run of that key.
    Whoever has the key can try all secrets and see which one gives a fake: the key must be as private as the secrets.

    A string with nothing to replace (no letter or digit, or only characters without others of their kind) becomes
    `[REDACTED]`.
    """
    dialled = dialled_length(secret)
    ends = list(accumulate(len(comparable(character)) for character in secret))
    drawn = [start < end > dialled for start, end in pairwise([0, *ends])]
    bare = comparable(secret)[dialled:]
    draw = Random(hmac.new(key.encode(), bare.encode(), hashlib.sha256).digest())
    for _ in range(100):
        made = "".join(_alike(own, draw) if new else own for own, new in zip(secret, drawn, strict=True))
        if comparable(made) != comparable(secret):
            return made
    return placeholder("")


def _units(text: str) -> Iterator[str]:
    """A found span cut where it may be cut elsewhere: into numbers and addresses, other words, and white space."""
    at = 0
    for start, end in [*identifiers(text), (len(text), len(text))]:
        yield from re.findall(r"\s+|\S+", text[at:start])
        yield text[start:end]
        at = end


def _disjoint(text: str, spans: Sequence[Span]) -> list[Span]:
    """Spans that replace the given ones and do not overlap; see the top of this file."""
    labelled = _merged([span for span in spans if span.label])
    rest = []
    for span in _merged([span for span in spans if not span.label]):
        inside = [one for one in labelled if one.start < span.end and one.end > span.start]
        edges = [span.start, *(edge for one in inside for edge in (one.start, one.end)), span.end]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if start < end and (not inside or comparable(text[start:end])):
                piece = text[start:end]
                rest.append(Span(end - len(piece.lstrip()), start + len(piece.rstrip())) if inside else span)
    return sorted([*labelled, *rest])


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Overlapping spans as one with the longest one's label; touching ones only if they have the same label."""
    result: list[Span] = []
    longest = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        last = result[-1] if result else None
        if last and (span.start < last.end or (span.start == last.end and span.label == last.label)):
            label = span.label if span.end - span.start > longest else last.label
            result[-1] = Span(last.start, max(last.end, span.end), label)
            longest = max(longest, span.end - span.start)
        else:
            result.append(span)
            longest = span.end - span.start
    return result


def _moved(position: int, edits: Sequence[tuple[int, int, str]], edge: int, *, aligned: bool) -> int:
    """Where a position of the old text is in the new.

    One inside a replacement goes to its start (edge 0) or end (edge 1), or stays where it is if `aligned`: where each
    character was replaced by one.
    """
    shift = 0
    for start, end, new in edits:
        if position <= start:
            break
        if position < end and not (aligned and len(new) == end - start):
            return start + shift + edge * len(new)
        if position >= end:
            shift += len(new) - (end - start)
    return position + shift


def _alike(character: str, draw: Random) -> str:
    """Another character of the same kind; always one draw, so that spellings of a secret draw alike."""
    if character.isascii():
        kind = "0123456789" if character.isdigit() else "abcdefghijklmnopqrstuvwxyz"
    else:
        category, block = unicodedata.category(character), ord(character) & ~63
        kind = "".join(c for c in map(chr, range(block, block + 64)) if unicodedata.category(c) == category)
    made = kind[int(draw.random() * len(kind))]
    return made.upper() if character.isascii() and character.isupper() else made
