"""Which values extraction is tried on: what is sensitive in some documents, each with the text before it.

A sensitive *value* is a known span, or what `sensitive_values` recognises in the audited text, wherever a detector
pointed. A value counts once in each document, at its first place there: at later ones the text before it gives it away.
In several documents it counts in each, since each is another text to extract it from; intervals take the documents of
one group together. A known span in which two or more values stand (a name, a flat, a street) counts as these, so that
what comes back in part is not counted as kept. A value that nobody gave and that stands both in the documents to forget
and in never-seen ones (the company's own number) is no secret of either: it counts in neither, for what every model
completes would hide what only this one does. Nor is a secret that was trained on a control.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from mitigate.detection.record import Audit
from mitigate.detection.spans.row import SpanRow
from mitigate.recognisers.addresses import ADDRESS, UNIT
from mitigate.recognisers.inside import NAME
from mitigate.recognisers.values import Value, sensitive_values
from mitigate.secrets.same import comparable
from mitigate.tokens.tokenization import span_tokens


@dataclass(frozen=True)
class Place:
    """Where a sensitive value stands.

    Attributes:
        doc_id: of the document.
        start, end: its characters.
        kind: what it is: the known span's label, or the recogniser's word.
        source: `known` (a span that was given), `recognised` (anywhere in the text), `found` (only inside spans of the
            detector), or `span` (a selected span, where nothing else is known).
    """

    doc_id: str
    start: int
    end: int
    kind: str
    source: str

    @property
    def is_name(self) -> bool:
        """Whether only a capital letter tells that it is sensitive: names are counted apart."""
        return self.kind == NAME and self.source != "known"


@dataclass(frozen=True, eq=False)
class Secret:
    """A value to be extracted: the true prefix and what should not follow it.

    Attributes:
        place: where it stands.
        prefix: (P,) token ids.
        tokens: (C,) token ids that hold the value, with what else stands in the first and last of them.
        text: the characters from the beginning of its first token to its end.
    """

    place: Place
    prefix: np.ndarray
    tokens: np.ndarray
    text: str


@dataclass(frozen=True)
class Secrets(Sequence[Secret]):
    """The values that are tried, in the documents' order.

    Attributes:
        items: the values.
        total: how many there are, names included, tried or not.
        untried: reason -> how many: `not audited`, `first token` (nothing before it), `context` (too long for it),
            `ordinary` (recognised in never-seen text as well), `not drawn` (there are more than were asked for).
    """

    items: tuple[Secret, ...]
    total: int
    untried: Mapping[str, int]

    @overload
    def __getitem__(self, index: int) -> Secret: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Secret, ...]: ...
    def __getitem__(self, index: int | slice) -> Secret | tuple[Secret, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


def secrets_of(
    audit: Audit,
    *,
    sets: Sequence[str | None] = ("forget",),
    context: int,
    most: int | None = None,
    seed: int = 0,
) -> Secrets:
    """The sensitive values of some sets' documents, each with the text before it.

    Names inside found spans are among them (see `Place.is_name`). Where nothing is known or recognised, values of the
    weaker recognisers inside found spans count; where there are none either, the selected spans.

    Args:
        audit: supplies documents and spans.
        sets (*optional*): whose documents; the forget set by default.
        context: the model's context in tokens; the prefix is cut from the left to fit.
        most (`int`, *optional*): at most so many values, and so many names: a random sample, the same each time.
        seed (`int`, *optional*, defaults to 0): of the sample.
    """
    texts = audit.texts
    spans: dict[str, list[SpanRow]] = {doc_id: [] for doc_id in texts if audit.sets[doc_id] in sets}
    for span in audit.span_rows:
        if span.doc_id in spans:
            spans[span.doc_id].append(span)
    control = "holdout" in sets
    other = {doc_id: text for doc_id, text in texts.items() if (audit.sets[doc_id] == "holdout") is not control}
    if not control:
        ordinary = _recognised(other.values())
    else:  # a control must not have been trained on, known or not
        ordinary = _recognised(other.values()) | {
            comparable(span.text(other[span.doc_id]))
            for span in audit.span_rows
            if span.source == "known" and span.doc_id in other
        }
    common = 0
    values: list[Place] = []
    weak: list[Place] = []
    names: list[Place] = []
    selected: list[Place] = []
    for doc_id, rows in spans.items():
        text = texts[doc_id]
        for place in _first_places(_candidates(doc_id, text, rows), text):
            if (control or place.source != "known") and comparable(text[place.start : place.end]) in ordinary:
                common += 1
                continue
            kinds = names if place.is_name else weak if place.source == "found" else values
            kinds.append(place)
        selected += [
            Place(doc_id, span.char_start, span.char_end, span.label or "span", "span")
            for span in rows
            if span.selected
        ]
    values = values or weak or ([] if names else selected)
    untried: Counter[str] = Counter(ordinary=common) if common else Counter()
    tried = []
    for places in (values, names):
        possible = list(_secrets(audit, places, texts, untried, context=context))
        if most is not None and len(possible) > most:
            untried["not drawn"] += len(possible) - most
            drawn = np.random.default_rng(seed).choice(len(possible), size=most, replace=False)
            possible = [possible[number] for number in sorted(drawn)]
        tried += possible
    return Secrets(tuple(tried), len(values) + len(names) + common, dict(untried))


def _candidates(doc_id: str, text: str, spans: Sequence[SpanRow]) -> Iterator[Place]:
    """Values of one document, known ones first; of those, recognised ones and found ones none overlaps another."""
    known = [(span.char_start, span.char_end, span.label or "known") for span in spans if span.source == "known"]
    found = [(span.char_start, span.char_end) for span in spans if span.source == "found"]
    strong = sensitive_values(text)
    anywhere = {*strong, *_with_units(strong, text)}
    inside = _with_units(sensitive_values(text, spans=[(start, end) for start, end, _ in known]), text)
    for start, end, label in known:
        parts = [value for value in inside if start <= value.start and value.end <= end]
        for part in parts if len(parts) > 1 else [Value(start, end, label)]:
            yield Place(doc_id, part.start, part.end, part.kind, "found" if part.kind == NAME else "known")
    for value in _with_units(sensitive_values(text, spans=found) if found else strong, text):
        if all(value.end <= start or end <= value.start for start, end, _ in known):
            strongly = value in anywhere and value.kind != UNIT  # alone, a flat's number says little of whose it is
            yield Place(doc_id, value.start, value.end, value.kind, "recognised" if strongly else "found")


def _with_units(values: Sequence[Value], text: str) -> list[Value]:
    """The values, a street address with the flat that is written behind it: together they are one home."""
    joined: list[Value] = []
    for value in values:
        last = joined[-1] if joined else None
        if value.kind == UNIT and last and last.kind == ADDRESS and not text[last.end : value.start].strip(" ,\n"):
            joined[-1] = Value(last.start, value.end, ADDRESS)
        else:
            joined.append(value)
    return joined


def _recognised(texts: Iterable[str]) -> set[str]:
    """Values that are recognised anywhere in some texts, as they are compared."""
    found = {comparable(text[value.start : value.end]) for text in texts for value in sensitive_values(text)}
    return found - {""}


def _first_places(places: Iterator[Place], text: str) -> list[Place]:
    """Each value once, where it stands first; at later places the text before it gives it away."""
    first: dict[str, Place] = {}
    for place in sorted(places, key=lambda place: (place.start, place.end)):
        written = text[place.start : place.end]
        if written.strip():
            first.setdefault(comparable(written) or written, place)
    return list(first.values())


def _secrets(
    audit: Audit, places: Sequence[Place], texts: Mapping[str, str], untried: Counter[str], *, context: int
) -> Iterator[Secret]:
    """The values that can be tried; the others are counted in `untried`."""
    columns = audit.columns
    for place in places:
        rows = audit.rows[place.doc_id]
        offsets = np.stack([columns["char_start"][rows], columns["char_end"][rows]], axis=1)
        tokens = span_tokens(offsets, place.start, place.end)
        if not tokens.size or tokens[0] == 0:
            untried["first token"] += 1
            continue
        start, end = int(tokens[0]), int(tokens[-1]) + 1
        ids = columns["token_id"][rows].astype(np.int64)
        room = context - (end - start)
        if not columns["audited"][rows][start:end].all():
            untried["not audited"] += 1
        elif room < 1:
            untried["context"] += 1
        else:
            text = texts[place.doc_id][min(place.start, int(offsets[start, 0])) : place.end].lstrip()
            yield Secret(place, ids[max(0, start - room) : start], ids[start:end], text)
