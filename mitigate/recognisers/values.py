"""Sensitive values: what in a text is sensitive by itself, whatever a detector found.

    sensitive_values("Mail ann@example.org")      # [Value(start=5, end=20, kind='email')]

Recognisers of two kinds. Those that are seldom wrong look at the whole text: addresses of the net and of the post,
numbers of people, cards, accounts and tickets, keys and passwords. Weaker ones look only inside spans that a detector
found: names, units of a building, dates, runs of four digits. Names are words with a capital letter, so scripts
without one (Chinese, Arabic) yield none.

Time is linear in the text: a pattern's repeats are bounded, possessive, or followed by what they cannot match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mitigate.recognisers.accounts import numbers_behind_words
from mitigate.recognisers.addresses import addresses
from mitigate.recognisers.inside import names, weak_numbers
from mitigate.recognisers.keys import keys_and_codes
from mitigate.recognisers.networks import network_addresses
from mitigate.recognisers.numbers import coordinates, number_runs
from mitigate.text.stretches import joined

_ANYWHERE = (network_addresses, numbers_behind_words, keys_and_codes, number_runs, coordinates, addresses)
_INSIDE = (weak_numbers, names)  # the earlier one first


@dataclass(frozen=True, order=True)
class Value:
    """Characters [start, end) of a text that are sensitive by themselves, and as what."""

    start: int
    end: int
    kind: str


def sensitive_values(text: str, *, spans: Sequence[tuple[int, int]] = ()) -> list[Value]:
    """The sensitive values of a text, in order; none overlaps another.

    Where recognisers overlap, what they cover together is one value of the longer one's kind.

    Args:
        text: any text.
        spans (*optional*): character ranges that a detector found; weaker recognisers look inside them, at what the
            others left.
    """
    strong = united([Value(*place) for recogniser in _ANYWHERE for place in recogniser(text)])
    gaps = _gaps(_inside(spans, len(text)), strong)
    weak = [Value(*place) for recogniser in _INSIDE for start, end in gaps for place in recogniser(text, start, end)]
    return sorted([*strong, *_first_come(weak, len(text))])


def united(values: Sequence[Value]) -> list[Value]:
    """Values that overlap become one, of the longest one's kind."""
    result: list[Value] = []
    longest = 0
    for value in sorted(values, key=lambda value: (value.start, -value.end)):
        length = value.end - value.start
        if result and value.start < result[-1].end:
            last = result.pop()
            kind = value.kind if length > longest else last.kind
            result.append(Value(last.start, max(last.end, value.end), kind))
            longest = max(longest, length)
        else:
            result.append(value)
            longest = length
    return result


def _first_come(values: Sequence[Value], length: int) -> list[Value]:
    """Of values that overlap, the one found by the earlier recogniser."""
    taken, kept = bytearray(length), []
    for value in values:
        if not any(taken[value.start : value.end]):
            taken[value.start : value.end] = b"1" * (value.end - value.start)
            kept.append(value)
    return kept


def _inside(spans: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    cut = ((max(0, start), min(length, end)) for start, end in spans)
    return joined((start, end) for start, end in cut if start < end)


def _gaps(spans: Sequence[tuple[int, int]], values: Sequence[Value]) -> list[tuple[int, int]]:
    """What of the spans lies outside the values."""
    gaps = []
    taken = iter([*values, None])
    value = next(taken)
    for start, end in spans:
        while value is not None and value.start < end:
            if value.end > start:
                if value.start > start:
                    gaps.append((start, value.start))
                start = max(start, value.end)
            if value.end > end:
                break
            value = next(taken)
        if start < end:
            gaps.append((start, end))
    return gaps
