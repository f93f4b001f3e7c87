"""Keys, tokens, passwords and codes: what somebody who knows it can use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import log2

Place = tuple[int, int, str]  # start, end, kind

_RUN = re.compile(r"[A-Za-z0-9]++(?:[-_/.:#+~][A-Za-z0-9]++)*+=*+")
_SEPARATOR = re.compile(r"[-_/.:#+~]")
_YEAR = re.compile(r"(?:1\d|20)\d\d")
_YEARS = re.compile(r"(?:[A-Za-z]{2,8}-)?(?:1\d|20)\d\d(?:s|[-/.]\w+)")
_RANDOM = 2.5  # bits a character: above words and numbers of this length
_PEM = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----")
_KNOWN_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,200}|(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|hf_|AIza)[A-Za-z0-9_-]{10,200}"
    r"|(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,2000}+(?:\.[A-Za-z0-9_-]{4,4000}+){1,4}"
)
_CUED = re.compile(
    r"\b(?:pass ?word|pass ?code|pass ?phrase|passwd|pwd|passwort|kennwort|contraseña|mot de passe|senha|hasło|"
    r"(?:api|access|secret|private|licen[cs]e)[ _-]?key|(?:access|auth|bearer)[ _-]?token|token|secret|"
    r"pin(?: code)?|otp|(?:door|gate|access|entry|security|verification|alarm|safe)[ -]code|cvv|cvc|credentials)\b"
    r"[\"'`*]{0,3}(?:\s{1,3}+(?:for|of|to|at)\s[^:=\n.,;]{1,40}?)?"
    r"(?:\s{0,3}[:=]\s{0,3}|\s{1,3}(?:is|was|ist|es|est|è|é)\b[: ]{1,3}(?:now |to )?)[\"'`*]{0,3}"
    r"([^\s\"'`*<>,;]{4,128})",
    re.I,
)


def keys_and_codes(text: str) -> Iterator[Place]:
    """`key`, `password` (behind a word for it) and `code`, such as QX-7741-ZEPHYR-0092."""
    for begin in _PEM.finditer(text):
        end = text.find("-----END", begin.end())
        close = text.find("-----", end + 8) if end >= 0 else -1
        yield begin.start(), close + 5 if close >= 0 else begin.end(), "key"
        if close < 0:
            break
    for match in _KNOWN_KEY.finditer(text):
        yield *match.span(), "key"
    for match in _CUED.finditer(text):
        word = match[1].rstrip(".!?)]:")
        if len(word) >= 4 and not re.fullmatch(r"[A-Z]?[a-zß-ÿ'’-]+|(?:1[89]|20)\d\d", word):
            yield match.start(1), match.start(1) + len(word), "password"
    for match in _RUN.finditer(text):
        if kind := _code(match[0]):
            yield *match.span(), kind


def _code(run: str) -> str | None:
    """What a run of letters and digits is: a key, a code such as QX-7741-ZEPHYR-0092, or nothing of the kind."""
    digits = sum(map(str.isdigit, run))
    if not digits or not any(map(str.isalpha, run)):
        return None
    parts = _SEPARATOR.split(run)
    longest = max(parts, key=len)
    mixed = any(map(str.isdigit, longest)) and any(map(str.isalpha, longest))
    if len(longest) >= 16 and mixed and _bits(longest) >= _RANDOM:
        return "key"
    numbers, words = [part for part in parts if part.isdigit()], [part for part in parts if part.isalpha()]
    in_prose = len(numbers + words) == len(parts) and all(part.islower() or part.istitle() for part in words)
    if (in_prose and all(map(_YEAR.fullmatch, numbers))) or _YEARS.fullmatch(run):
        return None  # mid-1990, 1990s, 1998/99a
    return "code" if digits >= 6 or (digits >= 4 and (mixed or not run.islower())) else None


def _bits(text: str) -> float:
    """Shannon entropy of the characters, bits."""
    shares = [text.count(character) / len(text) for character in set(text)]
    return -sum(share * log2(share) for share in shares)
