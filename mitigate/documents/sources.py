"""The recipe keys that say where documents come from and how a row becomes one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mitigate.text.patterns import search

SetName = Literal["forget", "retain", "holdout"]
Audited = Literal["all", "completion", "assistant"] | Annotated[list[str], Field(min_length=1)]
_MOST_ROWS = 2**63 - 1


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {pattern!r} ({error})") from None
    return pattern


def _template(template: str) -> str:
    try:
        template_fields(template)
    except ValueError as error:
        raise ValueError(
            f"not a template: {template!r} ({error}); write fields as {{name}}, braces as {{{{ }}}}"
        ) from None
    return template


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("not a finite number; a missing value is null")
    return number


Scalar = str | int | Annotated[float, AfterValidator(_finite)] | bool | None
Regex = Annotated[str, AfterValidator(_regex)]
Template = Annotated[str, Field(min_length=1), AfterValidator(_template)]


def template_fields(template: str) -> list[tuple[str, str | None]]:
    """Split a template into (literal text, name of the field that follows it or None).

    A template without braces is the name of one field: `text` is the same as `{text}`.

    Raises:
        ValueError: unbalanced braces, an empty field name, or a conversion or format after the name.
    """
    if "{" not in template and "}" not in template:
        return [("", template)]
    parts = []
    for literal, name, form, conversion in Formatter().parse(template):
        if name == "" or form or conversion:
            raise ValueError("a field is a plain name in braces")
        parts.append((literal, name))
    return parts


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Condition(_Settings):
    """One test of a field: `{matches: regex}` or `{not: value or list of values}`."""

    matches: Regex | None = Field(default=None, description="regular expression to be found in the field")
    unless: Scalar | list[Scalar] = Field(
        default=None, alias="not", description="value, or list of values, to leave out"
    )

    @model_validator(mode="after")
    def _one_test(self) -> Condition:
        if len(self.model_fields_set) != 1:
            raise ValueError("give either matches or not")
        return self

    def holds(self, value: object, *, name: str = "where") -> bool:
        """Whether a field's value passes; `name` is for the message of a pattern that takes too long."""
        if self.matches is not None:
            return not is_missing(value) and search(self.matches, str(value), name=f"{name}.matches")
        return not equals_any(value, self.unless)


def equals_any(value: object, wanted: Scalar | list[Scalar]) -> bool:
    """Whether a field's value is the wanted one or one of them; 87 and "87" are the same, since CSV knows only text."""
    choices = wanted if isinstance(wanted, list) else [wanted]
    if is_missing(value):
        return any(is_missing(choice) for choice in choices)
    return any(value == choice or (not is_missing(choice) and str(value) == str(choice)) for choice in choices)


def is_missing(value: object) -> bool:
    """Whether a field is empty: null, NaN (a table's missing number) or text of no length (a CSV's missing cell)."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def is_scalar(value: object) -> bool:
    """Whether a field can stand in a text: text, or a finite number."""
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


Where = dict[str, Condition | Scalar | list[Scalar]]


def conditions_met(values: Mapping[str, object], where: Where) -> dict[str, bool]:
    """Whether a row meets each condition of a `where`; a field that it does not have counts as empty."""
    return {
        name: test.holds(values.get(name), name=f"where.{name}")
        if isinstance(test, Condition)
        else equals_any(values.get(name), test)
        for name, test in where.items()
    }


class Replacement(_Settings):
    """A rewrite of the text before anything else looks at it."""

    pattern: Regex = Field(description="regular expression")
    replacement: str = Field(alias="with", description=r"what to put in its place; \1 is the first group")

    @model_validator(mode="after")
    def _known_groups(self) -> Replacement:
        try:
            re.sub(f"{self.pattern}|", self.replacement, "")  # always matches, so that the replacement is parsed
        except (re.error, IndexError) as error:
            raise ValueError(f"with: {self.replacement!r} does not fit the pattern ({error})") from None
        return self


class SpanSettings(_Settings):
    """Where the known sensitive spans are: in a field of the row, found by patterns or recognisers; `{}` reads none."""

    field: str | None = Field(
        default=None, description="field with a list of spans; offsets count characters of the text"
    )
    start: str = Field(default="start", description="key of a span's first character")
    end: str = Field(default="end", description="key of the character after a span's last")
    label: str = Field(default="label", description="key of a span's label")
    patterns: dict[str, Regex] = Field(
        default_factory=dict, description="label: regular expression; its first group, where it has one, is the span"
    )
    recognise: Literal["built-in", "presidio"] | None = Field(
        default=None,
        description="built-in: phone numbers, e-mail and postal addresses, cards, accounts, keys and the like; "
        "presidio: what Presidio finds, where it is installed, names among them",
    )
    presidio: str | None = Field(default=None, description="its analyzer configuration (YAML); default: its own")
    language: str = Field(default="en", description="of the text, for Presidio")
    least_score: float = Field(default=0.5, ge=0, le=1, description="of what is taken from Presidio")


class DocumentSource(_Settings):
    """Files or a hub data set, and how their rows become documents."""

    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="local file or files, or patterns such as data/*.jsonl.gz (JSON lines, JSON array, CSV, Parquet, "
        "Arrow, text; packed as gz, bz2, xz or zst), folder of save_to_disk, or id of a hub data set"
    )
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "arrow", "text", "hub"] = Field(
        default="auto",
        description="auto goes by the file's suffix; what is no file and has no suffix is a hub data set",
    )
    name: str | None = Field(default=None, description="configuration of a hub data set")
    split: str = Field(default="train", description="split of a hub data set or of a folder of save_to_disk")
    id: Template | None = Field(
        default=None,
        description="field or template of the id, {file} and {row} included; default: field `id`, else '{file}-{row}'",
    )
    text: Template | None = Field(default=None, description="field or template of the text, such as '{input} {output}'")
    prompt: Template | None = Field(
        default=None, description="field or template before the completion; not scored by default"
    )
    completion: Template | None = Field(
        default=None, description="field or template of the scored part; joined to the prompt with nothing between"
    )
    messages: str | None = Field(
        default=None, description="field with chat messages; default: field `messages`, tools from the field `tools`"
    )
    template: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of the chat template, such as enable_thinking; strftime_now: the day that it is told",
    )
    audit: Audited | None = Field(
        default=None,
        description="what the loss was on: all, completion (of a chat: the last assistant turn), assistant, or a list "
        "of roles; default: the completion of a prompt, else all, as trainers have it",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=2,
        description="where the trainer cut the text (TRL: 1024); what lies beyond counts as never trained on",
    )
    set: str | None = Field(
        default=None, description="field with forget, retain, holdout or nothing; default: field `set`"
    )
    group: Template | None = Field(
        default=None,
        description="field or template; one group (a person) is never split up; default: field `group`, else id",
    )
    rows_per_group: int | None = Field(
        default=None, ge=1, description="instead of group: so many rows of a file that follow one another are one"
    )
    assign: SetName | None = Field(default=None, description="put every document of this source in this set")
    sets: dict[SetName, int | float | Literal["rest"]] | None = Field(
        default=None, description="random split by group: a number of groups, a share of them in (0, 1), or rest"
    )
    seed: int = Field(default=0, description="seed of `sets`")
    where: Where = Field(
        default_factory=dict,
        description="rows to keep, field: value, list of values, {matches: regex} or {not: value}",
    )
    replace: list[Replacement] = Field(default_factory=list, description="rewrites of the text, in order")
    spans: SpanSettings | None = Field(
        default=None,
        description="known sensitive spans; default: field `spans` with start, end, label, and of a row without it "
        "what is known by its form (recognise: built-in); {}: none",
    )
    per: Literal["file", "line", "paragraph"] = Field(
        default="file", description="what is one document: a whole text file or row, each line, each paragraph of it"
    )
    min_characters: int = Field(default=0, ge=0, description="leave out documents shorter than this")
    shuffle: int | None = Field(default=None, description="seed of a random order of the rows; default: as they are")
    skip: int = Field(default=0, ge=0, le=_MOST_ROWS, description="leave out so many rows first")
    limit: int | None = Field(default=None, ge=1, le=_MOST_ROWS, description="read no more documents than this")
    on_error: Literal["raise", "skip"] = Field(
        default="raise", description="skip leaves bad rows out, counts and lists them"
    )

    @property
    def paths(self) -> list[str]:
        """The path or paths as a list."""
        return [self.path] if isinstance(self.path, str) else self.path

    @model_validator(mode="after")
    def _fits_together(self) -> DocumentSource:
        mistakes = []
        if (self.prompt is None) != (self.completion is None):
            mistakes.append("prompt and completion go together: give both, or text")
        if sum(key is not None for key in (self.text, self.completion, self.messages)) > 1:
            mistakes.append("give one of text, prompt + completion, messages")
        if sum(key is not None for key in (self.set, self.assign, self.sets)) > 1:
            mistakes.append("give one of set, assign, sets")
        if self.group is not None and self.rows_per_group is not None:
            mistakes.append("give one of group, rows_per_group")
        if self.messages is not None and self.per != "file":
            mistakes.append(f"per: {self.per} cannot cut up chat messages")
        if self.spans is not None and self.spans.field is not None and self.replace:
            mistakes.append(
                "replace would shift the offsets in spans.field: use spans.patterns, which look at the result"
            )
        if self.spans is not None and self.spans.field is not None and self.messages is not None:
            mistakes.append("offsets in spans.field do not fit rendered messages: use spans.patterns")
        if self.audit not in (None, "all") and self.text is not None:
            mistakes.append("audit: a text has neither turns nor a completion: give prompt and completion, or messages")
        if isinstance(self.audit, list) and self.completion is not None:
            mistakes.append("audit: roles are those of chat messages; of prompt and completion give all or completion")
        mistakes += _split_mistakes(self.sets or {})
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


def without_spans(sources: Sequence[DocumentSource]) -> list[DocumentSource]:
    """The same sources, of which nobody asks where secrets are: no known spans are read, where none are asked for."""
    return [one if one.spans is not None else one.model_copy(update={"spans": SpanSettings()}) for one in sources]


def _split_mistakes(sets: dict[SetName, int | float | Literal["rest"]]) -> list[str]:
    mistakes = [
        f"sets.{name}: {size} is neither a number of groups, a share in (0, 1), nor rest"
        for name, size in sets.items()
        if (isinstance(size, int) and size < 1) or (isinstance(size, float) and not 0 < size < 1)
    ]
    if list(sets.values()).count("rest") > 1:
        mistakes.append("sets: only one of them can be the rest")
    if sum(size for size in sets.values() if isinstance(size, float)) > 1 + 1e-9:
        mistakes.append("sets: the shares add up to more than 1")
    return mistakes
