"""Turn the rows of files and data sets into documents, by the keys of a `DocumentSource`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitigate.documents.chat import SPOKEN, check_arguments, check_messages, check_tools, render_chat
from mitigate.documents.places import UNTOUCHED
from mitigate.documents.rows import Row, read_rows
from mitigate.documents.sources import DocumentSource, SpanSettings, Where, conditions_met, template_fields
from mitigate.documents.tails import with_tails
from mitigate.documents.types import SETS, Document, Documents, Marks, Span
from mitigate.documents.written import as_written
from mitigate.errors import MitigateError, summarize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_PROBLEMS = 20  # bad rows after which reading gives up
_PIECES = {"line": re.compile(r"\S.*"), "paragraph": re.compile(r"\S(?:.|\n(?!\s*\n))*")}


def read_documents(
    source: str | Path | DocumentSource | Sequence[str | Path | DocumentSource],
    *,
    root: Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    mark: Where | None = None,
    load_tokenizer: Callable[[], PreTrainedTokenizerBase] | None = None,
) -> Documents:
    """Read files or hub data sets as documents.

    Documents with equal text and no group of their own share a group, the id of the first of them.

    Args:
        source: a path, a hub id, a `DocumentSource` or several of these.
        root (*optional*): folder that relative paths start from; default: the current one.
        tokenizer (*optional*): renders chat messages and counts `max_tokens`; needed for these only.
        mark (*optional*): conditions on the fields of rows, as in a source's `where`. `Documents.marks` says which
            documents meet them all; those of a source without the fields do not.
        load_tokenizer (*optional*): instead of `tokenizer`; called when one is needed.

    Raises:
        MitigateError: a missing or empty file, bad rows (all in one message) where `on_error` is `raise`, equal ids, a
            filter that keeps nothing, a split larger than there are documents.
    """
    sources = [source] if isinstance(source, str | Path | DocumentSource) else source
    items: list[Document] = []
    skipped: list[str] = []
    ids: dict[str, str] = {}
    groups: dict[str, str] = {}
    markers = []
    for one in sources:
        settings = one if isinstance(one, DocumentSource) else DocumentSource(path=str(one))
        marker = _Marker(mark or {})
        reader = _Reader(settings, tokenizer, marker, ids=ids, groups=groups, load_tokenizer=load_tokenizer)
        items += reader.read(root)
        skipped += [f"{where}: {reason}" for where, reason in reader.problems]
        markers.append(marker)
    there = {document.id for document in items}
    return Documents(tuple(items), tuple(skipped), _joined(markers, mark, there) if mark else None)


class _Marker:
    """Which documents of one source meet each of some conditions, and the fields of its rows."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self.fields: dict[str, None] = {}
        self.met: dict[str, set[str]] = {name: set() for name in where}

    def note(self, values: dict[str, Any], doc_ids: Sequence[str]) -> None:
        if self.where:
            self.fields |= dict.fromkeys(values)
        for name, holds in conditions_met(values, self.where).items():
            if holds:
                self.met[name].update(doc_ids)


def _joined(markers: Sequence[_Marker], where: Where, there: set[str]) -> Marks:
    """The marks of all sources; a field that a source does not have is no condition met, not even `{not: ...}`."""
    met: dict[str, set[str]] = {name: set() for name in where}
    fields: dict[str, None] = {}
    for marker in markers:
        fields |= marker.fields
        for name, doc_ids in marker.met.items():
            met[name] |= (doc_ids & there) if name in marker.fields else set()
    return Marks(
        doc_ids=frozenset(set.intersection(*met.values())),
        met={name: len(doc_ids) for name, doc_ids in met.items()},
        fields=tuple(fields),
    )


class _Reader:
    """Turns the rows of one source into documents and keeps count of those that it cannot."""

    def __init__(
        self,
        source: DocumentSource,
        tokenizer: PreTrainedTokenizerBase | None,
        marker: _Marker,
        *,
        ids: dict[str, str],
        groups: dict[str, str],
        load_tokenizer: Callable[[], PreTrainedTokenizerBase] | None,
    ) -> None:
        self.source = source
        self._tokenizer, self._load_tokenizer = tokenizer, load_tokenizer
        self.marker = marker
        self.ids = ids  # of the documents so far, and where each was read
        self.groups = groups  # text -> group, for documents without a group of their own
        self.problems: list[tuple[str, str]] = []
        self.name = summarize(source.paths)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Renders chat messages and counts tokens."""
        return self._load_tokenizer() if self._tokenizer is None and self._load_tokenizer else self._tokenizer

    def read(self, root: Path | None) -> list[Document]:
        rows: Iterator[Row] = self._wanted(read_rows(self.source, root=root))
        if self.source.shuffle is not None:
            shuffled = list(rows)
            random.Random(self.source.shuffle).shuffle(shuffled)
            rows = iter(shuffled)
        documents: list[Document] = []
        for row in self._after_skipped(rows):
            try:
                documents += self._documents(row)
            except MitigateError as error:
                self._bad(row, str(error))
            if self.source.limit is not None and len(documents) >= self.source.limit:
                documents = documents[: self.source.limit]
                break
        if self.problems and (self.source.on_error == "raise" or not documents):
            self._refuse()
        if not documents:
            raise MitigateError(
                f"{self.name}: no document of at least {self.source.min_characters} characters; lower min_characters"
            )
        documents = _split(documents, self.source) if self.source.sets else documents
        if self.source.max_tokens is None:
            return documents
        return with_tails(documents, self.source.max_tokens, self.tokenizer)

    def _wanted(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows that pass every condition of `where`; a row that could not be read is noted here."""
        where = self.source.where
        passed = dict.fromkeys(where, 0)
        known: dict[str, None] = {}
        seen = kept = 0
        for row in rows:
            if row.problem is not None:
                self._bad(row, row.problem)
                continue
            seen += 1
            known |= dict.fromkeys(row.values)
            holds = conditions_met(row.values, where)
            for name in where:
                passed[name] += holds[name]
            if all(holds.values()):
                kept += 1
                yield row
        if seen and (missing := [name for name in where if name not in known]):
            raise MitigateError(f"{self.name}: where: no field {summarize(missing)}; fields there: {', '.join(known)}")
        if seen and not kept:
            counts = ", ".join(f"{name} by {count}" for name, count in passed.items())
            raise MitigateError(
                f"{self.name}: where keeps none of {seen} rows (each condition alone is met: {counts}); loosen it"
            )

    def _after_skipped(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows after the first `skip`."""
        empty = True
        for row in islice(rows, self.source.skip, None):
            empty = False
            yield row
        if empty and self.source.skip:
            raise MitigateError(f"{self.name}: skip: {self.source.skip} leaves no row; lower it")

    def _bad(self, row: Row, problem: str) -> None:
        self.problems.append((row.where, problem))
        if self.source.on_error == "raise" and len(self.problems) == _MOST_PROBLEMS:
            self._refuse()

    def _refuse(self) -> None:
        places: dict[str, list[str]] = {}
        for where, reason in self.problems:
            places.setdefault(reason, []).append(where)
        reasons = [f"{summarize(wheres, most=3)}: {reason}" for reason, wheres in places.items()]
        remedy = "correct them, or set on_error: skip" if self.source.on_error == "raise" else "no other row is left"
        raise MitigateError(
            "\n  ".join([f"{self.name}: rows that are no documents; {remedy}", *reasons[:_MOST_PROBLEMS]])
        )

    def _documents(self, row: Row) -> list[Document]:
        values, source = row.values, self.source
        default_id = f"{row.stem}-{row.number}" if row.number else row.stem
        id = _one(source.id, {"file": row.stem, "row": row.number, **values}, default="id") or default_id
        group = _one(source.group, values, default="group")
        if source.rows_per_group is not None:
            group = f"{row.stem}-{(row.number - 1) // source.rows_per_group + 1}"
        text, audited, special_tokens = self._text(values)
        document = Document(
            id=id,
            text=text,
            audited=audited,
            spans=self._spans(values, text, rendered=not special_tokens),
            set=self._set(values),
            group=group,
            special_tokens=special_tokens,
        )
        document = as_written(document, values, source)
        _check_encodable(document)
        pieces = [piece for piece in _cut(document, source.per) if len(piece.text) >= source.min_characters]
        for piece in pieces:
            if piece.id in self.ids:
                raise MitigateError(
                    f"id {piece.id!r} was given before, at {self.ids[piece.id]}; "
                    "set id to a field or template that is unique, such as 'name-{row}'"
                )
        self.ids |= dict.fromkeys((piece.id for piece in pieces), row.where)
        self.marker.note(values, [piece.id for piece in pieces])
        return [replace(piece, group=group or self.groups.setdefault(piece.text, piece.id)) for piece in pieces]

    def _text(self, values: dict[str, Any]) -> tuple[str, tuple[tuple[int, int], ...], bool]:
        """Text, audited ranges, and whether special tokens are still to be added."""
        source = self.source
        text, prompt, completion, messages = source.text, source.prompt, source.completion, source.messages
        if text is prompt is messages is None:
            if "text" in values:
                text = "text"
            elif "prompt" in values and "completion" in values:
                prompt, completion = "prompt", "completion"
            elif "messages" in values:
                messages = "messages"
            else:
                raise MitigateError(
                    "no field text, prompt and completion, or messages; "
                    f"set text to a field or template of: {summarize(values, most=20)}"
                )
        audit = source.audit
        if text is not None:
            if audit not in (None, "all"):
                raise MitigateError(f"audit: {audit}, but a text has neither turns nor a completion; set it to all")
            return self._rewrite(_fill(text, values)), (), True
        if prompt is not None and completion is not None:
            before, after = self._rewrite(_fill(prompt, values)), self._rewrite(_fill(completion, values))
            if not after.strip():
                raise MitigateError("the completion is empty")
            if isinstance(audit, list):
                raise MitigateError("audit: roles are those of chat messages; of a completion, give all or completion")
            return before + after, ((0 if audit == "all" else len(before), len(before) + len(after)),), True
        if messages not in values:
            raise MitigateError(f"no field {messages!r}; fields there: {summarize(values, most=20)}")
        return (*self._chat(values[messages], values), False)

    def _chat(
        self, value: object, values: dict[str, Any], *, completion: int | None = None
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        """A conversation's text and audited ranges; `completion`: number of the first message of a completion."""
        if self.tokenizer is None:
            raise MitigateError("chat messages need a tokenizer with a chat template; pass the target's")
        if self.source.per != "file":
            raise MitigateError(f"per: {self.source.per} cannot cut up chat messages; leave it out")
        messages = [
            {key: self._rewritten(item) if key in SPOKEN else item for key, item in message.items()}
            for message in check_messages(value)
        ]
        return render_chat(
            messages,
            self.tokenizer,
            audit=self.source.audit,
            completion=completion,
            tools=check_tools(values.get("tools")),
            arguments={**self.source.template, **check_arguments(values.get("chat_template_kwargs"))},
        )

    def _rewritten(self, value: Any) -> Any:
        """The value with every text in it rewritten."""
        if isinstance(value, str):
            return self._rewrite(value)
        if isinstance(value, list):
            return [self._rewritten(item) for item in value]
        if isinstance(value, dict):
            return {key: item if key in UNTOUCHED else self._rewritten(item) for key, item in value.items()}
        return value

    def _rewrite(self, text: str) -> str:
        for rule in self.source.replace:
            text = re.sub(rule.pattern, rule.replacement, text)
        return text

    def _spans(self, values: dict[str, Any], text: str, *, rendered: bool) -> tuple[Span, ...]:
        settings = self.source.spans
        if settings is None:
            settings = SpanSettings(field="spans" if values.get("spans") else None)
        spans = set(_matches(settings.patterns, text))
        if settings.field is not None:
            given = _given_spans(settings, values)
            if given and (self.source.replace or rendered):
                raise MitigateError(
                    f"{settings.field}: offsets do not fit a text that is rewritten or rendered; find the spans with "
                    "spans.patterns, or leave them out with spans: {}"
                )
            spans.update(given)
        return tuple(sorted(spans))

    def _set(self, values: dict[str, Any]) -> str | None:
        if self.source.assign is not None or self.source.sets is not None:
            return self.source.assign
        name = self.source.set or "set"
        if self.source.set is not None and name not in values:
            raise MitigateError(f"no field {name!r}; fields there: {summarize(values, most=20)}")
        value = values.get(name)
        if value not in (None, "", *SETS):
            raise MitigateError(f"{name}: unknown set; the sets are {', '.join(SETS)}, or null for none of them")
        return value or None


def _one(template: str | None, values: dict[str, Any], *, default: str) -> str:
    """The filled template, or the default field where no template is given; empty where there is no such field."""
    if template is not None:
        return _fill(template, values)
    return _fill(default, values) if values.get(default) is not None else ""


def _fill(template: str, values: dict[str, Any]) -> str:
    parts = []
    for literal, name in template_fields(template):
        parts.append(literal)
        if name is None:
            continue
        if name not in values:
            raise MitigateError(f"no field {name!r}; fields there: {summarize(values, most=20)}")
        if not isinstance(values[name], str | int | float):
            raise MitigateError(f"field {name!r} is empty or not text (it is of type {type(values[name]).__name__})")
        parts.append(str(values[name]))
    return "".join(parts)


def _matches(patterns: dict[str, str], text: str) -> Iterator[Span]:
    for label, pattern in patterns.items():
        for match in re.finditer(pattern, text):
            start, end = match.span(1 if match.re.groups else 0)
            if start < end:
                yield Span(start, end, label)


def _given_spans(settings: SpanSettings, values: dict[str, Any]) -> list[Span]:
    name = settings.field or ""
    if name not in values:
        raise MitigateError(f"no field {name!r}; fields there: {summarize(values, most=20)}")
    listed = values[name] or []
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


def _check_encodable(document: Document) -> None:
    for part in (document.text, document.id, document.group, *(span.label for span in document.spans)):
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise MitigateError(f"half of a surrogate pair at character {error.start}; repair the encoding") from None


def _cut(document: Document, per: str) -> list[Document]:
    """The document's lines or paragraphs that have something audited, with their share of ranges and spans."""
    if per == "file":
        return [document]
    pieces = []
    for number, match in enumerate(_PIECES[per].finditer(document.text), start=1):
        start, end = match.start(), match.start() + len(match.group().rstrip())
        audited = [(max(first, start) - start, min(last, end) - start) for first, last in document.audited]
        spans = [
            Span(max(span.start, start) - start, min(span.end, end) - start, span.label) for span in document.spans
        ]
        audited = [limits for limits in audited if limits[0] < limits[1]]
        if audited:
            pieces.append(
                replace(
                    document,
                    id=f"{document.id}-{number}",
                    text=document.text[start:end],
                    audited=tuple(audited),
                    spans=tuple(span for span in spans if span.start < span.end),
                )
            )
    return pieces


def _split(documents: list[Document], source: DocumentSource) -> list[Document]:
    """Deal whole groups at random to the sets, by the counts and shares of `source.sets`."""
    groups = list(dict.fromkeys(document.group for document in documents))
    random.Random(source.seed).shuffle(groups)
    wanted = source.sets or {}
    sizes = {
        name: size if isinstance(size, int) else round(size * len(groups))
        for name, size in wanted.items()
        if not isinstance(size, str)
    }
    if rest := [name for name in wanted if name not in sizes]:
        sizes[rest[0]] = len(groups) - sum(sizes.values())
    if min(sizes.values()) < 1 or sum(sizes.values()) > len(groups):
        asked = ", ".join(f"{name} {size}" for name, size in wanted.items())
        raise MitigateError(
            f"{summarize(source.paths)}: sets: cannot deal {len(groups)} groups (of {len(documents)} documents) as "
            f"{asked}: every set needs one at least; lower the numbers"
        )
    dealt = iter(groups)
    set_of = {group: name for name, size in sizes.items() for group in [next(dealt) for _ in range(size)]}
    return [replace(document, set=set_of.get(document.group)) for document in documents]
