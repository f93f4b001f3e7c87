"""What the fields of a row say of its document: id, group, set and known spans; and templates filled with fields."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from typing import Any, Literal

from mitigate.documents.rows.bodies import Values
from mitigate.documents.sources import DocumentSource, SpanSettings, is_missing, is_scalar, template_fields
from mitigate.documents.types import SETS, Document, Span
from mitigate.errors import MitigateError, summarize
from mitigate.recognisers.presidio import presidio_values
from mitigate.recognisers.values import Value, sensitive_values
from mitigate.text.patterns import find_all

_LONGEST_NAME = 1000  # characters of an id, a group or a label


def name_of(source: DocumentSource, role: Literal["id", "group"], values: Values) -> str:
    """The id or the group: of the source's template, or of the field of that name; empty where that is empty.

    Raises:
        MitigateError: a template of several fields, one of them empty: rows without it would share a name.
    """
    template = getattr(source, role)
    names = [name for _, name in template_fields(template or role) if name is not None]
    if template is None and role not in values:
        return ""
    empty = [name for name in names if name in values and is_missing(values[name])]
    if empty and len(names) > 1:
        raise MitigateError(f"{role}: field {empty[0]!r} is empty; fill it in, or leave it out of the template")
    if empty:
        return ""
    return fill(template or role, values)


def set_of(source: DocumentSource, values: Values) -> str | None:
    """The set that the source assigns, or that of its field; None for none of them.

    Raises:
        MitigateError: no such field, or no such set.
    """
    if source.assign is not None or source.sets is not None:
        return source.assign
    name = source.set or "set"
    value = values.get(name) if source.set is None else field_of(values, name)
    if is_missing(value):
        return None
    if value not in SETS:
        raise MitigateError(f"{name}: unknown set; the sets are {', '.join(SETS)}, or null for none of them")
    return str(value)


def spans_of(source: DocumentSource, values: Values, text: str, *, rendered: bool) -> tuple[Span, ...]:
    """The known spans: found by the source's patterns, given in its field, and recognised outside of these.

    A source that says nothing of spans has those of the field `spans`, and of a row without it what is known by its
    form.

    Args:
        source: its `spans` and `replace` are used.
        values: of the row.
        text: of the document.
        rendered: the text is none that the row holds, so the offsets that it gives do not fit.

    Raises:
        MitigateError: no list of spans in the field, offsets of another text, or Presidio cannot be used.
    """
    settings = source.spans
    if settings is None:
        settings = SpanSettings(recognise="built-in") if marks_nothing(source, values) else SpanSettings(field="spans")
    spans = set(_matches(settings.patterns, text))
    if settings.field is not None:
        given = _given_spans(settings.field, settings, values)
        if given and (source.replace or rendered):
            raise MitigateError(
                f"{settings.field}: offsets do not fit a text that is rewritten or rendered; find the spans with "
                "spans.patterns, or leave them out with spans: {}"
            )
        spans.update(given)
    for value in _recognised(settings, text):
        if not any(value.start < span.end and span.start < value.end for span in spans):
            spans.add(Span(value.start, value.end, value.kind))
    return tuple(sorted(spans))


def marks_nothing(source: DocumentSource, values: Values) -> bool:
    """Whether neither a source nor its row says where secrets are: then they are known by their form."""
    return source.spans is None and is_missing(values.get("spans"))


def fill(template: str, values: Values) -> str:
    """A template with the row's fields in it.

    Raises:
        MitigateError: a field that is not there, empty or no text.
    """
    parts = []
    for literal, name in template_fields(template):
        parts.append(literal)
        if name is None:
            continue
        if not is_scalar(value := field_of(values, name)):
            raise MitigateError(f"field {name!r} is empty or not text (it is of type {type(value).__name__})")
        parts.append(str(value))
    return "".join(parts)


def field_of(values: Values, name: str) -> Any:
    """The value of a field.

    Raises:
        MitigateError: the row has no such field.
    """
    if name not in values:
        raise MitigateError(f"no field {name!r}; fields there: {summarize(values, most=20)}")
    return values[name]


def check_names(document: Document) -> None:
    """Refuse what files, tables and terminals would change or obey: half and control characters, whole texts as ids."""
    named = {"id": document.id, "group": document.group}
    named |= {f"label of span {number}": span.label for number, span in enumerate(document.spans, start=1)}
    for what, part in {"text": document.text, **named}.items():
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise MitigateError(
                f"{what}: half of a surrogate pair at character {error.start}; repair the encoding"
            ) from None
    for what, part in named.items():
        if len(part) > _LONGEST_NAME:
            raise MitigateError(f"{what}: {len(part):,} characters, {_LONGEST_NAME:,} at most; is it the text?")
        if control := next((character for character in part if unicodedata.category(character) == "Cc"), None):
            raise MitigateError(
                f"{what}: it has the control character U+{ord(control):04X}, which tables and terminals do not keep as "
                f"it is; take it out, or set {what.split()[0]} to another field or template"
            )


def _matches(patterns: dict[str, str], text: str) -> Iterator[Span]:
    for label, pattern in patterns.items():
        for start, end in find_all(pattern, text, name=f"spans.patterns.{label}"):
            yield Span(start, end, label)


def _recognised(settings: SpanSettings, text: str) -> list[Value]:
    if settings.recognise == "built-in":
        return sensitive_values(text)
    if settings.recognise == "presidio":
        return presidio_values(
            text, config=settings.presidio, language=settings.language, least_score=settings.least_score
        )
    return []


def _given_spans(name: str, settings: SpanSettings, values: Values) -> list[Span]:
    listed = [] if is_missing(field_of(values, name)) else values[name]
    if isinstance(listed, str):
        try:
            listed = json.loads(listed)
        except (ValueError, RecursionError):
            listed = None
    if not isinstance(listed, list) or not all(isinstance(span, dict) for span in listed):
        raise MitigateError(f"{name}: not a list of objects with {settings.start} and {settings.end}")
    spans = []
    for span in listed:
        start, end, label = (span.get(key) for key in (settings.start, settings.end, settings.label))
        if type(start) is not int or type(end) is not int:
            raise MitigateError(
                f"{name}: a span without whole numbers {settings.start!r} and {settings.end!r} (its keys: "
                f"{summarize(span)}); set spans.start and spans.end to the right keys, or spans: {{}} to read none"
            )
        spans.append(Span(start, end, "" if label is None else str(label)))
    return spans
