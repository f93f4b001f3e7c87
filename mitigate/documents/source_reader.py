"""The rows of one source as documents, one after the other, and a count of those that are none."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitigate.documents.marks import MarkedRows
from mitigate.documents.pieces import cut
from mitigate.documents.rows.fields import check_names, marks_nothing, name_of, set_of, spans_of
from mitigate.documents.rows.formats import Format
from mitigate.documents.rows.reader import Row, read_rows
from mitigate.documents.rows.texts import body_of, row_text
from mitigate.documents.sets.dealing import deal
from mitigate.documents.sets.duplicates import exact_key
from mitigate.documents.sources import DocumentSource, conditions_met, is_missing
from mitigate.documents.tails import with_tails
from mitigate.documents.types import Document
from mitigate.documents.written import FIELD, as_written
from mitigate.errors import MitigateError, summarize
from mitigate.recognisers.presidio import NoPresidioError
from mitigate.text.patterns import SlowPatternError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_MOST_PROBLEMS = 20  # bad rows after which reading gives up
_MOST_CHARACTERS = 10_000_000  # of one document: tokens, offsets and scores of it take about 80 bytes a character
_KNOWN_FIELDS = {"id", "set", "group", "spans", FIELD}


class _NoTokenizerError(MitigateError):
    """What the documents need to be read with is not there."""


class SourceReader:
    """Turns the rows of one source into documents and keeps count of those that it cannot."""

    def __init__(
        self,
        source: DocumentSource,
        tokenizer: PreTrainedTokenizerBase | None,
        marked: MarkedRows,
        *,
        ids: dict[str, str],
        groups: dict[bytes, str],
        load_tokenizer: Callable[[], PreTrainedTokenizerBase] | None,
    ) -> None:
        self.source = source
        self._tokenizer, self._load_tokenizer = tokenizer, load_tokenizer
        self.marked = marked
        self.ids = ids  # of the documents so far, and where each was read
        self.groups = groups  # digest of a text -> group, for documents without a group of their own
        self.problems: list[tuple[str, str]] = []
        self.name = summarize(source.paths)
        self.by_form: Counter[str] = Counter()  # kinds of known spans that no row marks
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
        """All documents, dealt to sets and cut."""
        documents = list(self.stream(root))
        documents = deal(documents, self.source) if self.source.sets else documents
        if self.source.max_tokens is None:
            return documents
        return with_tails(documents, self.source.max_tokens, self.tokenizer)

    def stream(self, root: Path | None, *, tell: bool = True) -> Iterator[Document]:
        """The documents one after the other, as their rows have them; at the end bad rows are refused, or told."""
        rows: Iterator[Row] = self._wanted(read_rows(self.source, root=root))
        if self.source.shuffle is not None:
            shuffled = list(rows)
            random.Random(self.source.shuffle).shuffle(shuffled)
            rows = iter(shuffled)
        count = 0
        for document in islice(self._documents(rows), self.source.limit):
            count += 1
            yield document
        if self.problems and (self.source.on_error == "raise" or not count):
            self._refuse()
        if not count:
            raise MitigateError(
                f"{self.name}: no document of at least {self.source.min_characters} characters; lower min_characters"
            )
        if tell:
            self._say()

    def _documents(self, rows: Iterator[Row]) -> Iterator[Document]:
        for row in self._after_skipped(rows):
            try:
                documents = self._of_row(row)
            except SlowPatternError as error:
                raise MitigateError(f"{row.where}: {error}") from None
            except (_NoTokenizerError, NoPresidioError):  # no fault of the row
                raise
            except MitigateError as error:
                self._bad(row, str(error))
            else:
                yield from documents

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
        if self.by_form:
            logger.info(
                "%s: marks no secrets; %d values that are known by their form count as known spans (%s); set spans to "
                "change it, {} for none",
                self.name,
                self.by_form.total(),
                ", ".join(f"{kind} {count}" for kind, count in self.by_form.most_common()),
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

    def _of_row(self, row: Row) -> list[Document]:
        values, source = row.values, self.source
        default_id = f"{row.stem}-{row.number}" if row.number else row.stem
        id = name_of(source, "id", {"file": row.stem, "row": row.number, **values}) or default_id
        group = name_of(source, "group", values)
        self.grouped[group != ""] += 1
        if source.rows_per_group is not None:
            group = f"{row.stem}-{(row.number - 1) // source.rows_per_group + 1}"
        body, recognised = body_of(source, values)
        made = row_text(source, body, values, lambda: self.tokenizer)
        if source.per == "file":
            _check_length(made.text)  # before it is looked at
        document = Document(
            id=id,
            text=made.text,
            audited=made.audited,
            spans=spans_of(source, values, made.text, rendered=made.rendered),
            set=set_of(source, values),
            group=group,
            special_tokens=made.special_tokens,
        )
        if marks_nothing(source, values):
            self.by_form.update(span.label for span in document.spans)
        document = as_written(document, values, source)
        check_names(document)
        pieces = [piece for piece in cut(document, source.per) if len(piece.text) >= source.min_characters]
        for piece in pieces:
            _check_length(piece.text)
            if piece.id in self.ids:
                raise MitigateError(
                    f"id {piece.id!r} was given before, at {self.ids[piece.id]}; "
                    "set id to a field or template that is unique, such as 'name-{row}'"
                )
        self.ids |= dict.fromkeys((piece.id for piece in pieces), row.where)
        self.marked.note(values, [piece.id for piece in pieces])
        if recognised is not None:
            self._note(*recognised, values)
        return [
            replace(piece, group=group or self.groups.setdefault(exact_key(piece.text), piece.id)) for piece in pieces
        ]

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


def _check_length(text: str) -> None:
    if len(text) > _MOST_CHARACTERS:
        raise MitigateError(
            f"a text of {len(text):,} characters, which would take gigabytes of memory to tokenize and score; "
            f"documents have {_MOST_CHARACTERS:,} at most: set per: paragraph or line, or cut it up"
        )
