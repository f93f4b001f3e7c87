"""When two strings are the same secret: the one definition, which masking, guard, redaction and linked copies share.

    same("(555) 123-4567", "+1 555.123 4567")                                        # True
    for start, end, secret in Finder(["555-123-4567"]).places("ring 5551234567"): ...

Compared are letters and digits alone: case, accents, strokes (ø), width and compatibility forms (５, ﬁ), kinds of
digits, white space, line breaks, separators and characters that nobody sees make no difference. Vowel signs of scripts
that write them as marks (Devanagari, Thai) are letters.

Numbers of 7 to 15 digits are also compared without what dialling puts before them: zeros, a country code behind + or
00, the 1 of North America. With its country code a number has 10 to 15 digits. So +1 555 123 4567, 1-555-123-4567,
0555 1234567 and 5551234567 are one number; 15551234 and 5551234 are two. This cannot be exact: a zero that belongs to
an account number is taken for one that was dialled, and a longer number that begins as a country's do may be another.
Whoever hides or guards errs on the safe side with it.

Not the same: a secret spelled out, in another alphabet (look-alike letters included) or encoding, or with a mistake.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from mitigate.text.folding import begins_word

LEAST_CHARACTERS = 6  # letters and digits of a string that does not turn up by chance, and
LEAST_BITS = 8.0  # characters × entropy of their distribution: 000000 has none
GAP = 3  # other characters between two letters or digits of a secret, as in "(555) 1234"; a run of white space is one

_FEWEST_DIGITS, _MOST_DIGITS = 7, 15  # of a number that may be dialled; E.164 has at most 15
_WITH_COUNTRY = 10  # digits of a number that begins with a country code, at least
_COUNTRY = (  # E.164 country codes: the rest of the two-digit ones' first digits begin codes of three
    r"(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|(?:2[1-689]|3[578]|42|5[09]|6[7-9]|8[0578]|9[679])\d)"
)
_DIALLED = re.compile(rf"0{{0,3}}({_COUNTRY})?0?")
_INTERNATIONAL = re.compile(rf"(?:0{{2,3}})?({_COUNTRY})0?")
_PLUS = "+\uff0b"
_KEY = 6  # characters by which forms are indexed
_SPELLED = {"ı": "i", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th"}  # as they are written where keyboards lack them
_WITH = re.compile(r"LATIN SMALL LETTER ([A-Z]) WITH .*")  # the name of ø, which is no o with an accent to Unicode
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0") | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)  # letters and marks that nobody sees; others are of the category Cf
_ASCII_LETTER = np.array([chr(code).isalnum() for code in range(128)])
_ASCII_SPACE = np.array([chr(code).isspace() for code in range(128)])


class Comparable:
    """A text's letters and digits as they are compared, with their places in it.

    Attributes:
        characters: what is compared; of two texts written one after the other it is that of the one and of the other.
        words: where in `characters` a word begins, in order.
        gaps: how many other characters stand before each one, a run of white space counted once and what nobody sees
            not at all.
    """

    def __init__(self, text: str) -> None:
        self.characters, self._starts, self._ends, self.gaps = _read_ascii(text) if text.isascii() else _read(text)
        characters = self.characters
        ascii_only = characters.isascii()
        self.words = [
            number
            for number, gap in enumerate(self.gaps)
            if gap or not number or (not ascii_only and begins_word(characters, number))
        ]
        self._is_word = frozenset(self.words)

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The characters of the text that characters[start:end] stand for."""
        return self._starts[start], self._ends[end - 1]

    def is_edge(self, place: int) -> bool:
        """Whether a word begins, or the text ends, at a place of `characters`."""
        return place in self._is_word or place == len(self.characters)

    def widest_gap(self, start: int, end: int) -> int:
        """The most other characters between two neighbours of characters[start:end]."""
        return max(self.gaps[start + 1 : end], default=0)


def comparable(text: str) -> str:
    """What is compared of a text: `Comparable(text).characters`.

    Each character is treated by itself, so comparable(a + b) = comparable(a) + comparable(b).
    """
    if text.isascii():
        return re.sub(r"[\W_]+", "", text).lower()
    return "".join(map(_plain, text))


def same(first: str, second: str) -> bool:
    """Whether two strings are the same secret; texts without a letter or digit are none."""
    one, other = comparable(first), comparable(second)
    if one == other:
        return bool(one)
    cores = core(first), core(second)
    return bool(cores[0]) and (cores[0] == cores[1] or _is_dialled(one, cores[1]) or _is_dialled(other, cores[0]))


def core(text: str) -> str:
    """The digits of a number without what dialling puts before them; empty for what is no number of 7 to 15 digits."""
    digits = comparable(text)
    return digits[dialled_length(text) :] if _may_be_dialled(digits) else ""


def dialled_length(text: str) -> int:
    """How many of `comparable(text)` are put before a number by dialling: the 1 of +1 555 123 4567."""
    digits = comparable(text)
    if not _may_be_dialled(digits):
        return 0
    if _has_plus(text) or digits.startswith("00"):
        found = _INTERNATIONAL.match(digits)
        if found and len(digits) - found.end() >= _FEWEST_DIGITS and _fits_country(len(digits) - found.start(1)):
            return found.end()
    if len(digits) == 11 and digits[0] == "1" and digits[1] > "1":
        return 1
    zeros = len(digits) - len(digits.lstrip("0"))
    return zeros if len(digits) - zeros >= _FEWEST_DIGITS else 0


def is_telling(characters: str) -> bool:
    """Whether a string is too long and varied to turn up by chance; of characters as they are compared."""
    counts = Counter(characters).values()
    bits = sum(count * math.log2(len(characters) / count) for count in counts)
    return len(characters) >= LEAST_CHARACTERS and bits >= LEAST_BITS


class Finder:
    """Finds secrets in texts, however they are written there.

    A secret stands as whole words, so that 5551234 is not in 95551234, with at most 3 other characters between two of
    its own (or as many as it is written with itself).

    Args:
        secrets: strings; those without a letter or digit are never found.
        loose (`bool`, *optional*, defaults to `False`): telling ones (`is_telling`) also within longer words and with
            whatever other characters between: for what is to be hidden, where one place too many does no harm.
    """

    def __init__(self, secrets: Iterable[str], *, loose: bool = False) -> None:
        self._loose = loose
        self._index: dict[str, dict[int, dict[str, list[tuple[str, int]]]]] = defaultdict(lambda: defaultdict(dict))
        for secret in dict.fromkeys(secrets):
            whole = Comparable(secret)
            for form in dict.fromkeys((whole.characters, core(secret))):
                if form:
                    forms = self._index[form[:_KEY]][len(form)]
                    forms.setdefault(form, []).append((secret, max(GAP, whole.widest_gap(0, len(whole.characters)))))
        self._short = sorted({len(key) for key in self._index if len(key) < _KEY})

    def places(self, text: str) -> Iterator[tuple[int, int, str]]:
        """(start, end, secret) of every place of a secret, in characters of the text and in their order.

        One place may be several secrets', and places may overlap. Digits of dialling that are written in one with a
        number belong to its place, as does a plus sign before it.
        """
        if not self._index or not text:
            return
        read = Comparable(text)
        for start in range(len(read.characters)) if self._loose else read.words:
            for begin, end, secret in sorted({*self._from(read, start), *self._after_dialling(read, start)}):
                first, last = read.original(begin, end)
                plus = first > 0 and text[first - 1] in _PLUS and read.characters[begin].isdigit()
                yield first - plus, last, secret

    def _from(self, read: Comparable, start: int) -> Iterator[tuple[int, int, str]]:
        """The secrets whose characters begin at a place."""
        for end, form, given in self._forms(read.characters, start):
            if self._loose and is_telling(form):
                yield from ((start, end, secret) for secret, _ in given)
            elif read.is_edge(start) and read.is_edge(end):
                widest = read.widest_gap(start, end)
                yield from ((start, end, secret) for secret, gap in given if widest <= gap)

    def _after_dialling(self, read: Comparable, start: int) -> Iterator[tuple[int, int, str]]:
        """The numbers that begin after digits of dialling, which begin at a place: 5551234567 in 15551234567."""
        characters = read.characters
        if not ("0" <= characters[start] <= "9" and read.is_edge(start)):
            return
        for length in range(1, 8):
            begin = start + length
            if begin >= len(characters) or read.gaps[begin] or not _DIALLED.fullmatch(characters[start:begin]):
                continue
            for end, form, given in self._forms(characters, begin):
                if read.is_edge(end) and _is_dialled(characters[start:end], form):
                    widest = read.widest_gap(start, end)
                    yield from ((start, end, secret) for secret, gap in given if widest <= gap)

    def _forms(self, characters: str, start: int) -> Iterator[tuple[int, str, Sequence[tuple[str, int]]]]:
        """(end, form, secrets written so) of what the characters hold from a place on."""
        for key in (characters[start : start + length] for length in (*self._short, _KEY)):
            for length, forms in self._index.get(key, {}).items():
                form = characters[start : start + length]
                if (given := forms.get(form)) is not None:
                    yield start + length, form, given


def _may_be_dialled(digits: str) -> bool:
    return _FEWEST_DIGITS <= len(digits) <= _MOST_DIGITS + 3 and digits.isascii() and digits.isdecimal()


def _is_dialled(digits: str, number: str) -> bool:
    """Whether digits are a number with nothing but dialling before it."""
    if not (_may_be_dialled(digits) and _FEWEST_DIGITS <= len(number) <= _MOST_DIGITS and digits.endswith(number)):
        return False
    found = _DIALLED.fullmatch(digits[: len(digits) - len(number)])
    return found is not None and (not found[1] or _fits_country(len(found[1]) + len(number)))


def _fits_country(digits: int) -> bool:
    """Whether a country code and a number have so many digits."""
    return _WITH_COUNTRY <= digits <= _MOST_DIGITS


def _has_plus(text: str) -> bool:
    """Whether a plus sign stands before the first letter or digit."""
    for character in text:
        if _plain(character):
            return False
        if character in _PLUS:
            return True
    return False


def _read_ascii(text: str) -> tuple[str, list[int], list[int], list[int]]:
    codes = np.frombuffer(text.lower().encode(), dtype=np.uint8)
    letter, space = _ASCII_LETTER[codes], _ASCII_SPACE[codes]
    counted = ~letter & ~(space & np.append(False, space[:-1]))
    at = np.flatnonzero(letter)
    gaps = np.diff(np.cumsum(counted)[at], prepend=0)
    return codes[at].tobytes().decode(), at.tolist(), (at + 1).tolist(), gaps.tolist()


def _read(text: str) -> tuple[str, list[int], list[int], list[int]]:
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    gaps: list[int] = []
    gap, spaced = 0, False
    for at, character in enumerate(text):
        if part := _plain(character):
            parts.append(part)
            starts += [at] * len(part)
            ends += [at + 1] * len(part)
            gaps += [gap] + [0] * (len(part) - 1)
            gap, spaced = 0, False
        elif _is_silent(character):
            if ends and ends[-1] == at and unicodedata.category(character).startswith("M"):
                ends[-1] = at + 1  # an accent belongs to its letter
        else:
            space = character.isspace()
            gap += not (space and spaced)
            spaced = space
    return "".join(parts), starts, ends, gaps


@lru_cache(maxsize=1 << 16)
def _plain(character: str) -> str:
    """What is compared of one character."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(
        one if one.isascii() else str(unicodedata.decimal(one, "")) or _spelled(one)
        for one in folded
        if (one.isalnum() or _is_vowel_sign(one)) and one not in _UNSEEN
    )


def _spelled(character: str) -> str:
    """A letter without its stroke, hook or tail."""
    found = _WITH.fullmatch(unicodedata.name(character, ""))
    return found[1].lower() if found else _SPELLED.get(character, character)


def _is_vowel_sign(character: str) -> bool:
    """Whether a mark is a letter of its script: accents have a class of combination, vowel signs none."""
    return unicodedata.category(character) in ("Mn", "Mc") and not unicodedata.combining(character)


@lru_cache(maxsize=1 << 16)
def _is_silent(character: str) -> bool:
    """Whether a character neither counts nor parts: accents and what nobody sees."""
    return unicodedata.category(character) in ("Cf", "Mn", "Mc", "Me") or character in _UNSEEN
