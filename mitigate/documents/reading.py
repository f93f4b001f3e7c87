"""Turn the rows of files and data sets into documents, by the keys of a `DocumentSource`."""

from __future__ import annotations

import json
import logging
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mitigate.documents.chat.rendering import SPOKEN, check_arguments, check_messages, check_tools, render_chat
from mitigate.documents.chat.turns import UNTOUCHED
from mitigate.documents.duplicates import key_of, without_trained_controls
from mitigate.documents.rows.bodies import Body, Chat, Pair, Text, Tokens
from mitigate.documents.rows.formats import Format, recognise
from mitigate.documents.rows.messages import as_messages
from mitigate.documents.rows.reader import Row, read_rows
from mitigate.documents.rows.token_ids import text_of
from mitigate.documents.sources import (
    DocumentSource,
    SpanSettings,
    Where,
    conditions_met,
    is_missing,
    is_scalar,
    template_fields,
)
from mitigate.documents.tails import with_tails
from mitigate.documents.types import SETS, Document, Documents, Marks, Span
from mitigate.documents.written import FIELD, as_written
from mitigate.errors import MitigateError, summarize
from mitigate.text.patterns import SlowPatternError, find_all, substitute

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_MOST_PROBLEMS = 20  # bad rows after which reading gives up
_MOST_CHARACTERS = 10_000_000  # of one document: tokens, offsets and scores of it take about 80 bytes a character
_LONGEST_NAME = 1000  # characters of an id, a group or a label
_KNOWN_FIELDS = {"id", "set", "group", "spans", FIELD}
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
            filter that keeps nothing, a split larger than there are documents, a pattern that takes too long, a holdout
            set that was trained on.
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
    items, left_out = without_trained_controls(items)
    skipped += left_out
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


class _NoTokenizerError(MitigateError):
    """What the documents need to be read with is not there."""


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
        self.formats: dict[Format, Counter[str]] = {}  # rows of each, by its own name, and what they are besides
        self.fields: dict[Format, dict[str, None]] = {}  # of them that were read
        self.unread: dict[str, None] = {}
        self.grouped: Counter[bool] = Counter()  # rows with a group of their own, and rows without

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Renders chat messages and counts tokens."""
        if self._tokenizer is not None or self._load_tokenizer is None:
            return self._tokenizer
        try:
            return self._load_tokenizer()
        except MitigateError as error:
            raise _NoTokenizerError(f"{self.name}: chats and max_tokens need a tokenizer; {error}") from None

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
            except SlowPatternError as error:
                raise MitigateError(f"{row.where}: {error}") from None
            except _NoTokenizerError:  # no fault of the row
                raise
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
        self._say()
        documents = _split(documents, self.source) if self.source.sets else documents
        if self.source.max_tokens is None:
            return documents
        return with_tails(documents, self.source.max_tokens, self.tokenizer)

    def _say(self) -> None:
        """One line for each format that was recognised, and one for each thing that was passed over."""
        judged = self.source.audit
        for form, counts in self.formats.items():
            also = [f"{count} are {name} too, and were read as {form.name}" for name, count in counts.items()][1:]
            logger.info(
                "%s: %s",
                self.name,
                "; ".join(
                    [
                        f"{counts[form.name]} rows of {form.name} ({', '.join(self.fields[form])}), {form.made}",
                        *also,
                        f"audited: {form.judged if judged is None else judged}",
                        "set text to a template to change it",
                    ]
                ),
            )
        if self.unread:
            logger.info("%s: fields that are not read: %s", self.name, summarize(self.unread, most=20))
        if self.grouped[True] and self.grouped[False]:
            logger.warning(
                "%s: %d of %d rows have no group; each of them stands for itself",
                self.name,
                self.grouped[False],
                self.grouped.total(),
            )
        if self.problems:
            places = summarize((where for where, _ in self.problems), most=3)
            logger.warning("%s: %d rows left out (on_error: skip): %s", self.name, len(self.problems), places)

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
            try:
                holds = conditions_met(row.values, where)
            except SlowPatternError as error:
                raise SlowPatternError(f"{row.where}: {error}") from None
            for name in where:
                passed[name] += holds[name]
            if all(holds.values()):
                kept += 1
                yield row
        if seen and (missing := [name for name in where if name not in known]):
            raise MitigateError(
                f"{self.name}: where: no field {summarize(missing)}; fields there: {summarize(known, most=20)}"
            )
        if seen and not kept:
            counts = summarize((f"{name} by {count}" for name, count in passed.items()), most=20)
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
        id = self._name("id", {"file": row.stem, "row": row.number, **values}) or default_id
        group = self._name("group", values)
        self.grouped[group != ""] += 1
        if source.rows_per_group is not None:
            group = f"{row.stem}-{(row.number - 1) // source.rows_per_group + 1}"
        body, recognised = self._body(values)
        text, audited, special_tokens = self._text(body, values)
        rendered = not special_tokens or isinstance(body, Tokens) or (isinstance(body, Pair) and body.rendered)
        document = Document(
            id=id,
            text=text,
            audited=audited,
            spans=self._spans(values, text, rendered=rendered),
            set=self._set(values),
            group=group,
            special_tokens=special_tokens,
        )
        document = as_written(document, values, source)
        _check_names(document)
        pieces = [piece for piece in _cut(document, source.per) if len(piece.text) >= source.min_characters]
        for piece in pieces:
            if len(piece.text) > _MOST_CHARACTERS:
                raise MitigateError(
                    f"a text of {len(piece.text):,} characters, which would take gigabytes of memory to tokenize and "
                    f"score; documents have {_MOST_CHARACTERS:,} at most: set per: paragraph or line, or cut it up"
                )
            if piece.id in self.ids:
                raise MitigateError(
                    f"id {piece.id!r} was given before, at {self.ids[piece.id]}; "
                    "set id to a field or template that is unique, such as 'name-{row}'"
                )
        self.ids |= dict.fromkeys((piece.id for piece in pieces), row.where)
        self.marker.note(values, [piece.id for piece in pieces])
        if recognised is not None:
            self._note(*recognised, values)
        return [replace(piece, group=group or self.groups.setdefault(piece.text, piece.id)) for piece in pieces]

    def _name(self, role: Literal["id", "group"], values: dict[str, Any]) -> str:
        """The id or the group: of the source's template, or of the field of that name; empty where that is empty.

        Raises:
            MitigateError: a template of several fields, one of them empty: rows without it would share a name.
        """
        template = getattr(self.source, role)
        names = [name for _, name in template_fields(template or role) if name is not None]
        if template is None and role not in values:
            return ""
        empty = [name for name in names if name in values and is_missing(values[name])]
        if empty and len(names) > 1:
            raise MitigateError(f"{role}: field {empty[0]!r} is empty; fill it in, or leave it out of the template")
        if empty:
            return ""
        return _fill(template or role, values)

    def _note(self, form: Format, besides: tuple[str, ...], values: dict[str, Any]) -> None:
        """Remember the format of a row, for the line that says so; plain text goes without saying."""
        if form.name == "text" and not besides:
            return
        read = form.fields(values)
        self.formats.setdefault(form, Counter()).update([form.name, *besides])
        self.fields.setdefault(form, {}).update(dict.fromkeys(read))
        ignored = {*read, *_KNOWN_FIELDS, *self.source.where}
        self.unread |= dict.fromkeys(
            name for name, value in values.items() if name not in ignored and not is_missing(value)
        )

    def _body(self, values: dict[str, Any]) -> tuple[Body, tuple[Format, tuple[str, ...]] | None]:
        """What the row's text is made of, by the source's keys or, without any, by the format that it is recognised as.

        Returns:
            and the format, with the names of others that the row has besides.
        """
        source = self.source
        if source.text is not None:
            return Text(_fill(source.text, values)), None
        if source.prompt is not None and source.completion is not None:
            return Pair(_fill(source.prompt, values), _fill(source.completion, values)), None
        if source.messages is not None:
            if source.messages not in values:
                raise MitigateError(f"no field {source.messages!r}; fields there: {summarize(values, most=20)}")
            return Chat(values[source.messages]), None
        form, body, besides = recognise(values)
        return body, (form, besides)

    def _text(self, body: Body, values: dict[str, Any]) -> tuple[str, tuple[tuple[int, int], ...], bool]:
        """Text, audited ranges (none: the whole text), and whether special tokens are still to be added."""
        audit = self.source.audit
        match body:
            case Text():
                if audit not in (None, "all"):
                    raise MitigateError(f"audit: {audit}, but a text has neither turns nor a completion; set it to all")
                return self._rewrite(body.text), (), True
            case Pair():
                before, after = self._rewrite(body.prompt), self._rewrite(body.completion)
                if not after.strip():
                    raise MitigateError("the completion is empty")
                if isinstance(audit, list):
                    raise MitigateError(
                        "audit: roles are those of chat messages; of a completion, give all or completion"
                    )
                whole = body.whole if audit is None else audit == "all"
                return before + after, ((0 if whole else len(before), len(before) + len(after)),), True
            case Chat():
                return (*self._chat(body.messages, values, completion=body.completion), False)
            case Tokens():
                if self.source.replace:
                    raise MitigateError("replace cannot rewrite token ids (input_ids); leave it out, or give the text")
                if audit is not None:
                    raise MitigateError(
                        "audit: of token ids (input_ids) the labels say what was trained on; leave it out"
                    )
                if self.source.per != "file":
                    raise MitigateError(f"per: {self.source.per} cannot cut up token ids (input_ids); leave it out")
                return text_of(body.values, self.tokenizer)

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
            for message in check_messages(as_messages(value))
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
        for number, rule in enumerate(self.source.replace, start=1):
            text = substitute(rule.pattern, rule.replacement, text, name=f"replace, rule {number}")
        return text

    def _spans(self, values: dict[str, Any], text: str, *, rendered: bool) -> tuple[Span, ...]:
        settings = self.source.spans
        if settings is None:
            settings = SpanSettings(field=None if is_missing(values.get("spans")) else "spans")
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
        if is_missing(value):
            return None
        if value not in SETS:
            raise MitigateError(f"{name}: unknown set; the sets are {', '.join(SETS)}, or null for none of them")
        return str(value)


def _fill(template: str, values: dict[str, Any]) -> str:
    parts = []
    for literal, name in template_fields(template):
        parts.append(literal)
        if name is None:
            continue
        if name not in values:
            raise MitigateError(f"no field {name!r}; fields there: {summarize(values, most=20)}")
        if not is_scalar(values[name]):
            raise MitigateError(f"field {name!r} is empty or not text (it is of type {type(values[name]).__name__})")
        parts.append(str(values[name]))
    return "".join(parts)


def _matches(patterns: dict[str, str], text: str) -> Iterator[Span]:
    for label, pattern in patterns.items():
        for start, end in find_all(pattern, text, name=f"spans.patterns.{label}"):
            yield Span(start, end, label)


def _given_spans(settings: SpanSettings, values: dict[str, Any]) -> list[Span]:
    name = settings.field or ""
    if name not in values:
        raise MitigateError(f"no field {name!r}; fields there: {summarize(values, most=20)}")
    listed = [] if is_missing(values[name]) else values[name]
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


def _check_names(document: Document) -> None:
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
    joined = _joined_groups(documents)
    groups = list(dict.fromkeys(joined[document.group] for document in documents))
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
    return [replace(document, set=set_of.get(joined[document.group])) for document in documents]


def _joined_groups(documents: list[Document]) -> dict[str, str]:
    """group -> the first of the groups that it must go with, for they have equal texts.

    Dealt apart, a text would be trained on in one set and count as never seen in another.
    """
    first: dict[str, str] = {}

    def root(group: str) -> str:
        while first.setdefault(group, group) != group:
            group = first[group]
        return group

    holders: dict[bytes, str] = {}
    for document in documents:
        one, other = root(holders.setdefault(key_of(document.text), document.group)), root(document.group)
        first[other] = one
    return {document.group: root(document.group) for document in documents}
