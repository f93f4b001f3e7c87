"""Text as it is compared: without case, kinds of white space, ways of writing one character, invisible characters.

A name in a request and the same name in a document need not be equal character for character. Folded text knows which
characters of the original each of its own stands for, so what is found has exact places.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_ALIKE = str.maketrans({**dict.fromkeys("\u2018\u2019\u02bc\u2032", "'"), **dict.fromkeys("\u2010\u2012\u2013", "-")})
_SPACELESS = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF))  # Thai, Lao; Burmese; Khmer

_ASCII_SPACE = [code for code in range(128) if chr(code).isspace()]


@dataclass(frozen=True)
class Folded:
    """Folded text.

    Attributes:
        text: what to compare.
        starts, ends: for each of its characters, the range [start, end) of the original that it stands for.
    """

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The characters of the original that [start, end) stands for."""
        return self.starts[start], self.ends[end - 1]


def fold(text: str) -> Folded:
    """Fold a text: NFKD and Unicode case folding, each run of white space one space, quotes and dashes plain.

    Characters that nobody sees (category Cf, variation selectors) are left out; accents stay, so "José" is not "Jose".
    """
    if text.isascii():
        return _fold_ascii(text)
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    start = 0
    while start < len(text):
        end = start + 1
        if text[start].isspace():
            while end < len(text) and text[end].isspace():
                end += 1
            part = " "
        else:  # a letter and its accents are folded together, for their order may differ
            while end < len(text) and unicodedata.combining(text[end]):
                end += 1
            part = _folded(text[start:end])
        parts.append(part)
        starts += [start] * len(part)
        ends += [end] * len(part)
        start = end
    return Folded("".join(parts), starts, ends)


def find_words(folded: Folded, wanted: str) -> Iterator[tuple[int, int]]:
    """Where `wanted` (folded, not empty) stands as whole words: character ranges of the original text, in order."""
    at = folded.text.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        if begins_word(folded.text, at) and begins_word(folded.text, end):
            yield folded.original(at, end)
        at = folded.text.find(wanted, at + 1)


def begins_word(text: str, at: int) -> bool:
    """Whether no word runs on from text[at - 1] to text[at]; scripts without spaces may be cut anywhere."""
    if not 0 < at < len(text):
        return True
    return not (in_word(text[at - 1]) and in_word(text[at])) or (_spaceless(text[at - 1]) or _spaceless(text[at]))


@lru_cache(maxsize=1 << 16)
def in_word(character: str) -> bool:
    """Whether a character is a letter, a digit or an accent."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _fold_ascii(text: str) -> Folded:
    """The same, all characters at once."""
    codes = np.frombuffer(text.lower().encode(), dtype=np.uint8)
    space = np.isin(codes, _ASCII_SPACE)
    first = np.flatnonzero(~(space & np.append(False, space[:-1])))
    folded = np.where(space, ord(" "), codes)[first].astype(np.uint8).tobytes().decode()
    return Folded(folded, first.tolist(), np.append(first, len(text))[1:].tolist())


@lru_cache(maxsize=1 << 16)
def _spaceless(character: str) -> bool:
    written_apart = any(first <= ord(character) <= last for first, last in _SPACELESS)
    return written_apart or unicodedata.east_asian_width(character) in ("W", "F")


@lru_cache(maxsize=1 << 16)
def _folded(part: str) -> str:
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", part).casefold()).translate(_ALIKE)
    return "".join(c for c in folded if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
