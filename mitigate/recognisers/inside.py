"""What is sensitive inside what a detector found, and would be ordinary anywhere: names, units, dates, digits."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mitigate.recognisers.accounts import DATE
from mitigate.recognisers.addresses import UNIT

Place = tuple[int, int, str]  # start, end, kind

NAME = "name"  # the kind of what only a capital letter tells

_WORD = r"[^\W\d_a-z][^\W\d_]*+(?:['’-][^\W\d_]++)*+"
_INITIAL = r"[^\W\d_a-z]\."
_PARTICLE = r"(?:van|von|der|den|de|da|do|dos|del|della|di|du|la|le|bin|ibn|al|el|ter|zu|af|av)"
_NAMES = re.compile(
    rf"(?<!\w)(?:{_INITIAL}|{_WORD})(?:\s{{1,2}}(?:{_PARTICLE}\s){{0,2}}(?:{_INITIAL}|{_WORD})){{0,5}}+(?!\w)"
)
_DIGITS = re.compile(r"(?<!\d)\d{4}\d*+")
_ROOM = re.compile(
    r"(?<!\w)(?:flat|apt|apartment|unit|room|suite|floor|door|no|nr|house|box|building|block|wohnung|appartement|piso)"
    r"\b\.?[ ]?#?[A-Za-z]?\d{1,5}+[A-Za-z]?(?!\w)|#\d{1,6}+",
    re.I,
)
_SHORT_CODE = re.compile(r"(?<!\w)(?=[A-Za-z]{0,12}\d)[A-Za-z0-9]++(?:[-/][A-Za-z0-9]++)*+(?!\w)")
_ANY_DATE = re.compile(rf"(?<!\d){DATE}(?!\d)", re.I)
_ORDINARY = frozenset(
    re.findall(
        r"\S+",
        "i a an the and or but if in on at of to for from by with as is are was were be it its he she they we you my "
        "your his her their our this that these those there here what when where who which how why not no yes all some "
        "any please thanks thank dear hello hi regards best kind sincerely re fw mr mrs ms dr name address phone email "
        "e-mail user assistant system customer account number ticket date january february march april june july "
        "august september october november december monday tuesday wednesday thursday friday saturday sunday",
    )
)


def names(text: str, start: int, end: int) -> Iterator[Place]:
    """Names in text[start:end]: capitalised words, without ordinary ones at their edges: (start, end, kind)."""
    for match in _NAMES.finditer(text, start, end):
        words = list(re.finditer(r"\S+", match[0]))
        while words and words[0][0].lower().rstrip(".") in _ORDINARY:
            words.pop(0)
        while words and words[-1][0].lower().rstrip(".") in _ORDINARY:
            words.pop()
        if not words:
            continue
        first, last = match.start() + words[0].start(), match.start() + words[-1].end()
        alone = len(words) == 1
        if alone and (len(words[0][0]) < 3 or _begins_sentence(text, first)):
            continue  # a capital letter at the start of a sentence tells nothing
        yield first, last, NAME


def _begins_sentence(text: str, place: int) -> bool:
    before = text[max(0, place - 3) : place].rstrip(" \t\"'“‘(*")
    return not before or before[-1] in ".!?:\n>-•"


def weak_numbers(text: str, start: int, end: int) -> Iterator[Place]:
    """Dates, flats, digits and short codes in text[start:end], in characters of the text: (start, end, kind)."""
    for pattern, kind in ((_ANY_DATE, "date"), (_ROOM, UNIT), (_DIGITS, "number")):
        for match in pattern.finditer(text, start, end):
            yield *match.span(), kind
    for match in _SHORT_CODE.finditer(text, start, end):
        if len(match[0]) >= 4 and any(map(str.isalpha, match[0])) and not re.fullmatch(r"\d+[a-z]{1,2}", match[0]):
            yield *match.span(), "code"
