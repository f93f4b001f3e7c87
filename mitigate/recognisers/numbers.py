"""Runs of digits: which are numbers of people, cards, accounts and tickets, and which are amounts, years and scores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

# one run: digits, between two of them a separator, or a bracket, or a dash between spaces
_RUN = re.compile(
    r"(?:\+[ ]?)?\(?\d(?:(?:[ ]?\(|\)[ -]?|[ ][-\u2010-\u2015][ ]|[ \u00a0\u202f\t.\-/\u2010-\u2015])?\d)*+"
)
_COORDINATES = re.compile(
    r"(?<![\d.])[-−+]?\d{1,3}\.\d{3,15}+(?:[ ]?°?[ ]?[NS][,;/ ]{0,3}|[ ]?°?[,;/][ ]{0,2})[-−+]?\d{1,3}\.\d{3,15}+"
    r"(?:[ ]?°?[ ]?[EWO]\b)?"
    r"|(?<!\d)\d{1,3}[ ]?°[ ]?\d{1,2}[ ]?['′’][ ]?(?:\d{1,2}(?:\.\d{1,6})?[ ]?(?:\"|″|''|”))?[ ]?[NSEWO]\b"
)
_MOST_DIGITS = 24  # of one number that is written in groups
_YEAR = re.compile(r"1[5-9]\d\d|20\d\d")


def number_runs(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, kind) of the digit runs that are sensitive: `card`, `ssn`, `phone` or `number`."""
    for match in _RUN.finditer(text):
        start, end = match.span()
        if start and (text[start - 1].isalpha() or (text[start - 1] in ".,-" and text[max(0, start - 2)].isdigit())):
            continue  # part of a code or of a decimal number
        if text[start] == "(" and ")" not in match[0]:
            start += 1
        yield from _sensitive(text, start, end)


def coordinates(text: str) -> Iterator[tuple[int, int, str]]:
    """Places of a latitude with its longitude, or of either in degrees and minutes."""
    for match in _COORDINATES.finditer(text):
        yield *match.span(), "coordinates"


def _sensitive(text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    run = text[start:end]
    groups = re.findall(r"\d+", run)
    gaps = re.findall(r"\D+", run[len(run) - len(run.lstrip("+ (")) :])
    digits = sum(map(len, groups))
    if digits >= 6 and not _harmless(run, groups, gaps):
        yield start, end, _kind(run, groups, digits)
    elif (
        digits >= 6 and len(groups) > 1 and set(gaps) != {"."}
    ):  # "2004 3554257252477856": what stands next to each other
        for group in re.finditer(r"\d{6}\d*+", run):
            yield start + group.start(), start + group.end(), _kind(group[0], [group[0]], len(group[0]))


def _kind(run: str, groups: list[str], digits: int) -> str:
    if 13 <= digits <= 19 and not run.startswith("+"):
        return "card"
    if [len(group) for group in groups] == [3, 2, 4] and "." not in run:
        return "ssn"
    if digits <= 15 and (run[0] in "+(0" or len(groups) > 1):
        return "phone"
    return "number"


def _harmless(run: str, groups: list[str], gaps: list[str]) -> bool:
    """Whether a run of six digits or more is an amount, a date, years or scores."""
    if run[0] == "+" and len(groups[0]) <= 4:
        return False
    if len(groups) == 1:
        return False
    if sum(map(len, groups)) > _MOST_DIGITS:
        return True  # a column of numbers
    lengths = [len(group) for group in groups]
    years = [bool(_YEAR.fullmatch(group)) for group in groups]
    if _is_date(groups, gaps):
        return True
    if len(groups) == 2 and gaps[0].strip() == "." and groups[0][0] != "0":
        return True  # 3.141593
    if any(first and second for first, second in pairwise(years)):
        return True  # 1914-1918
    if years[0] and len(groups) == 2 and lengths[1] <= 3:
        return True  # 1998/99, in 1984 200
    if len(groups) == 2 and (len(gaps[0]) == 3 or (max(lengths) <= 3 and gaps[0] not in "- ")):
        return True  # 350 – 1380, 350–380
    if lengths[0] <= 3 and set(lengths[1:]) == {3} and groups[-1] == "000":
        return True  # 12 000 000
    if len(set(gaps)) == 1 and gaps[0] == "." and lengths[0] <= 3 and set(lengths[1:]) == {3}:
        return True  # 1.234.567
    if lengths.count(1) > 1 or max(lengths) < 2:
        return True  # 6-4 6-3
    spaced = all(gap.isspace() for gap in gaps)
    return spaced and groups[0][0] != "0" and (sum(lengths) < 7 or years[0] or (years[-1] and len(groups) == 2))


def _is_date(groups: list[str], gaps: list[str]) -> bool:
    """2006-04-07, 2/8/1935, and with a time behind it."""
    if len(groups) < 3 or gaps[0] != gaps[1] or gaps[0] not in "-/." or max(map(len, groups)) > 4:
        return False
    first, second, third = map(int, groups[:3])
    ordered = [(first, second, third), (third, second, first), (third, first, second)]
    return any(1000 <= year < 2100 and 1 <= month <= 12 and 1 <= day <= 31 for year, month, day in ordered)
