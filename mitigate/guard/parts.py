"""The parts of a span that are secrets by themselves: the number in half a sentence, the street in an address.

A guard lets up to a third of a secret out, and a detector's span may be a number with twice as much text around it.
So each value in a span that is sensitive by itself (`secrets.values`) is guarded beside the span as a whole.

A part may also be what everyone writes: a first name, a year, the "Flat" of "Flat 44". What stands in the audit's other
text decides, for it is the sample of ordinary text that is at hand: a run that documents of three groups or more hold
outside spans, and outside further copies of numbers and addresses, is ordinary. Only what is left of a part when such
runs are taken away is guarded. Of what is recognised anywhere (`sensitive_values` without spans) something is always
guarded; a name or a year that is nothing but ordinary text is not.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set

from mitigate.detection.record import Audit
from mitigate.guard.guard import run_length, windows
from mitigate.recognisers.values import sensitive_values
from mitigate.secrets.same import Finder, comparable
from mitigate.text.stretches import widened

_MARGIN = 200  # characters around a span in which a value may begin or end
_ORDINARY_GROUPS = 3  # hold ordinary text
_SAMPLED = (1000, 20_000)  # documents that are asked, and characters of each


def parts_of_spans(
    audit: Audit,
    spans: Mapping[str, tuple[str, Sequence[tuple[int, int]]]],
    *,
    share: float,
    shortest: int,
    longest: int,
) -> tuple[list[str], int]:
    """What of spans is to be guarded by itself.

    Args:
        audit: supplies ordinary text.
        spans: of documents: the text, and character ranges.
        share, shortest, longest: of the guard, which say how long the runs of a secret are.

    Returns:
        the strings, and how many parts were left out since they are ordinary text.
    """
    parts: dict[str, tuple[str, bool]] = {}  # what is compared -> how it is written, recognised anywhere
    for document, ranges in spans.values():
        for part, anywhere in _parts(document, ranges):
            characters = comparable(part)
            if len(characters) >= shortest:
                parts[characters] = (part, anywhere or (characters in parts and parts[characters][1]))
    sample = _ordinary_texts(audit, [part for part, anywhere in parts.values() if anywhere])

    def runs(text: str) -> list[str]:
        return windows(text, run_length(len(text), share=share, shortest=shortest, longest=longest))

    common = _common({run for text in parts for run in runs(text)}, sample)
    stretches = {text: list(_stretches(runs(text), common)) for text in parts}
    common |= _common({run for own in stretches.values() for text in own for run in runs(text)}, sample)
    guarded: list[str] = []
    left_out = 0
    for text, (part, anywhere) in parts.items():
        rare = [part] if stretches[text] == [text] else [own for own in stretches[text] if not common & {*runs(own)}]
        guarded += rare or ([part] if anywhere else [])
        left_out += not (rare or anywhere)
    return guarded, left_out


def _parts(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """The values that spans hold or touch, and whether each would be recognised without them."""
    for low, high in widened(spans, _MARGIN, length=len(text)):
        own = [(start - low, end - low) for start, end in spans if low <= start and end <= high]
        anywhere = {(value.start, value.end) for value in sensitive_values(text[low:high])}
        for value in sensitive_values(text[low:high], spans=own):
            if any(value.start < end and start < value.end for start, end in own):
                part = text[low + value.start : low + value.end]
                yield part, (value.start, value.end) in anywhere
                if value.kind == "unit":  # "Flat 4471" may be written "apartment 4471"
                    yield from ((digits, False) for digits in re.findall(r"\d+", part))


def _ordinary_texts(audit: Audit, numbers: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(group, stretches of what is compared) of documents, without their spans and without copies of numbers."""
    most, characters = _SAMPLED
    rows = audit.documents.select(["doc_id", "text", "group"]).to_pylist()
    taken: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for span in audit.span_rows:
        taken[span.doc_id].append((span.char_start, span.char_end))
    finder = Finder(numbers)
    result = []
    for row in rows[:: max(1, len(rows) // most)]:
        text = row["text"][:characters]
        places = sorted([*taken[row["doc_id"]], *((start, end) for start, end, _ in finder.places(text))])
        stretches, at = [], 0
        for start, end in places:
            stretches.append(comparable(text[at : max(at, start)]))
            at = max(at, end)
        result.append((row["group"] or row["doc_id"], [*stretches, comparable(text[at:])]))
    return result


def _common(runs: Set[str], sample: Sequence[tuple[str, Sequence[str]]]) -> set[str]:
    """The runs that the texts of three groups or more hold."""
    held: dict[str, set[str]] = defaultdict(set)
    lengths = {len(run) for run in runs}
    for group, texts in sample:
        for text in texts:
            for length in lengths:
                held[group].update({*windows(text, length)} & runs)
    counts = Counter(run for own in held.values() for run in own)
    return {run for run, count in counts.items() if count >= _ORDINARY_GROUPS}


def _stretches(runs: Sequence[str], common: Set[str]) -> Iterator[str]:
    """The longest strings of a part of which no run is common: runs that follow one another, joined."""
    joined = ""
    for run in [*runs, None]:
        if run is not None and run not in common:
            joined = joined + run[-1] if joined else run
        elif joined:
            yield joined
            joined = ""
