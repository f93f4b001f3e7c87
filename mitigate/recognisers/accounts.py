"""Numbers that belong to somebody by the words before them: accounts, tickets, dates of birth."""

from __future__ import annotations

import re
from collections.abc import Iterator

Place = tuple[int, int, str]  # start, end, kind

_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]{4}){2,7}(?:[ -]?[A-Za-z0-9]{1,3})?(?![A-Za-z0-9])"
)
_BRITISH = re.compile(r"(?<!\w)[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-DT](?!\w)")  # National Insurance number
_CUED = re.compile(
    r"\b(?:account|acct|konto|compte|cuenta|customer|client|member(?:ship)?|policy|ticket|case|order|invoice|booking|"
    r"reference|ref|patient|mrn|medical record|health card|badge|employee|staff|student|user|passport|"
    r"driver'?s? licen[cs]e|licen[cs]e|licen[cs]e plate|number plate|plate|tax|vat|vin|ssn|social security|nhs|"
    r"national insurance|insurance|id|id card|serial|confirmation|tracking|docket)\b[\"'`*]{0,3}"
    r"(?:[ ]?(?:number|no\b\.?|nr\b\.?|num\b\.?|id|code|#|№)[\"'`*]{0,3})?[ ]?(?:[:=#]|is\b|was\b)?[ ]?#?[\"'`*]{0,3}"
    r"([A-Za-z0-9]{1,24}+(?:[-/._ ][A-Za-z0-9]{1,24}+){0,6})",
    re.I,
)
_MONTHS = (
    r"(?:jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez|janv|févr|avr|juin|juil|août|déc|ene|abr|ago|"
    r"dic|fev|set|out|gen|mag|giu|lug|ott)[a-zéäûç]{0,7}\.?"
)
DATE = (
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})|"
    rf"\d{{1,2}}(?:st|nd|rd|th|\.|er|º)?\s(?:of\s|de\s)?{_MONTHS},?\s(?:de\s|del\s)?\d{{4}}|"
    rf"{_MONTHS}\s\d{{1,2}}(?:st|nd|rd|th)?,?\s\d{{4}})"
)
_BIRTH = re.compile(
    r"\b(?:born|birth(?:day|date)?|dob|d\.o\.b\.?|geboren|geburtsdatum|geburtstag|geb\.|née?|naissance|nacid[oa]|"
    r"nacimiento|nascid[oa]|nascimento|nat[oa]|nascita|geboortedatum|urodzon[ya])\b"
    rf"[^\n\d]{{0,30}}?(?<![\d])({DATE})(?!\d)",
    re.I,
)


def numbers_behind_words(text: str) -> Iterator[Place]:
    """`iban`, `number` of an account, a ticket, a person, ..., and `date of birth`."""
    for match in _IBAN.finditer(text):
        compact = re.sub(r"[ -]", "", match[0]).upper()
        if len(compact) >= 14 and (_is_iban(compact) or (" " not in match[0] and sum(map(str.isdigit, compact)) >= 10)):
            yield *match.span(), "iban"
    for match in _CUED.finditer(text):
        # the words after a number are no part of it: "ticket 4821 is open"
        pieces = re.finditer(r"[^ ]+", match[1])
        end = 0
        for piece in pieces:
            if not any(map(str.isdigit, piece[0])) and not (piece[0].isupper() and piece.start() == 0):
                break
            end = piece.end()
        number = match[1][:end]
        if sum(map(str.isdigit, number)) >= 3 and not re.fullmatch(r"(?:1[89]|20)\d\d", number):
            yield match.start(1), match.start(1) + end, "number"
    for match in _BRITISH.finditer(text):
        yield *match.span(), "ssn"
    for match in _BIRTH.finditer(text):
        yield *match.span(1), "date of birth"


def _is_iban(compact: str) -> bool:
    """ISO 13616: the number, its first four characters moved to the end and letters read as 10 to 35, is 1 mod 97."""
    return int("".join(str(int(letter, 36)) for letter in compact[4:] + compact[:4])) % 97 == 1
