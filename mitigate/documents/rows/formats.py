"""What a row is: the formats that trainers leave, recognised by their fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from mitigate.documents.rows import prompts
from mitigate.documents.rows.bodies import Body, Chat, Pair, Text, Tokens, Turns, Values
from mitigate.documents.rows.messages import conversation
from mitigate.documents.sources import is_missing, is_scalar
from mitigate.errors import MitigateError, summarize


@dataclass(frozen=True)
class Format:
    """A format of rows.

    Attributes:
        name: in words.
        needs: fields that make a row one of this format.
        may: fields that it reads where they are there.
        body: of a row's values; None where these are of other types than the format has.
        made: how the text is made.
        judged: what of it is audited, unless the source says otherwise.
    """

    name: str
    needs: tuple[str, ...]
    may: tuple[str, ...]
    body: Callable[[Values], Body | None]
    made: str
    judged: str

    def fields(self, values: Values) -> tuple[str, ...]:
        """The fields of a row that this format reads."""
        return tuple(name for name in (*self.needs, *self.may) if not is_missing(values.get(name)))


def recognise(values: Values) -> tuple[Format, Body, tuple[str, ...]]:
    """The first format of `FORMATS` that a row has.

    Returns:
        the format, what the text is made of, and the names of the formats that the row has besides.

    Raises:
        MitigateError: the row has none; or it has one, but not what that format promises.
    """
    fitting = [form for form in FORMATS if not any(is_missing(values.get(name)) for name in form.needs)]
    for form in fitting:
        if (body := form.body(values)) is not None:
            return form, body, tuple(other.name for other in fitting if other is not form)
    for form in FORMATS:
        bad = [name for name in form.needs if is_missing(values.get(name)) or not is_scalar(values[name])]
        if bad and all(name in values for name in form.needs):
            raise MitigateError(
                f"field {bad[0]!r} is empty or not text (it is of type {type(values[bad[0]]).__name__})"
            )
    others = ", ".join(form.name for form in FORMATS[3:])
    raise MitigateError(
        "no field text, prompt and completion, or messages; set text to a field or template of: "
        f"{summarize(values, most=20)}; or bring the rows into another format of trainers ({others})"
    )


def _as_text(values: Values) -> Body | None:
    return Text(str(values["text"])) if is_scalar(values["text"]) else None


def _as_pair(values: Values) -> Body | None:
    prompt, completion = values.get("prompt"), values["completion"]
    if _is_turns(completion) and (_is_turns(prompt) or isinstance(prompt, str)):
        turns = _prompt_turns(prompt)
        return Chat(turns + completion, completion=len(turns))
    if _is_turns(prompt) and isinstance(completion, str):
        return Chat([*prompt, {"role": "assistant", "content": completion}], completion=len(prompt))
    return Pair(str(prompt), str(completion)) if is_scalar(prompt) and is_scalar(completion) else None


def _as_messages(values: Values) -> Body | None:
    return Chat(values["messages"])


def _as_chosen(values: Values) -> Body | None:
    prompt, chosen, rejected = values.get("prompt"), values["chosen"], values.get("rejected")
    if is_missing(prompt) and is_missing(rejected):
        return None  # a lone `chosen` says not where the prompt ends
    if not (is_missing(prompt) or _is_turns(prompt) or isinstance(prompt, str)):
        return None
    turns = _prompt_turns(prompt)
    if _is_turns(chosen):
        if is_missing(prompt):
            return Chat(chosen, completion=_common(chosen, rejected if _is_turns(rejected) else []))
        is_whole = len(chosen) > len(turns) and chosen[: len(turns)] == turns
        return Chat(chosen if is_whole else turns + chosen, completion=len(turns))
    if not isinstance(chosen, str):
        return None
    if is_missing(prompt) and isinstance(rejected, str):
        length = _common(chosen, rejected)
        length -= length > 0 and chosen[length - 1] == " "  # tokens begin with their space
        return Pair(chosen[:length], chosen[length:]) if length < len(chosen) else Text(chosen)
    return _as_pair({"prompt": prompt, "completion": chosen})


def _as_tokens(values: Values) -> Body | None:
    return Tokens(values) if isinstance(values["input_ids"], list) else None


def _is_turns(value: object) -> TypeGuard[Turns]:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _prompt_turns(prompt: Any) -> Turns:
    if is_missing(prompt):
        return []
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _common(one: Any, other: Any) -> int:
    """How many items two sequences begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


_TEMPLATE_FIELDS = ("tools", "chat_template_kwargs")
_BY_TEMPLATE = "rendered by the tokenizer's chat template"
_EVERYTHING = "all of it (audit: completion for the answer alone)"
_EVERY_TURN = "every turn (audit: assistant for the assistant's alone)"

FORMATS = (
    Format("text", ("text",), (), _as_text, "as it stands", "all of it"),
    Format(
        "prompt and completion",
        ("completion",),
        ("prompt", *_TEMPLATE_FIELDS),
        _as_pair,
        "joined, or by the chat template where they are messages",
        "the completion",
    ),
    Format("chat messages", ("messages",), _TEMPLATE_FIELDS, _as_messages, _BY_TEMPLATE, _EVERY_TURN),
    Format(
        "preference",
        ("chosen",),
        ("prompt", "rejected", *_TEMPLATE_FIELDS),
        _as_chosen,
        "prompt and chosen answer joined, or by the chat template where they are messages",
        "the chosen answer",
    ),
    Format("ShareGPT", ("conversations",), ("system", *_TEMPLATE_FIELDS), conversation, _BY_TEMPLATE, _EVERY_TURN),
    Format("conversation", ("conversation",), ("system", *_TEMPLATE_FIELDS), conversation, _BY_TEMPLATE, _EVERY_TURN),
    Format(
        "token ids",
        ("input_ids",),
        ("labels", "attention_mask", "completion_mask", "assistant_masks"),
        _as_tokens,
        "decoded by the tokenizer",
        "tokens whose label is not -100",
    ),
    Format(
        "Alpaca",
        ("instruction", "output"),
        ("input", "system", "history"),
        prompts.alpaca,
        "rendered as Stanford's prompt (with system or history by the chat template)",
        _EVERYTHING,
    ),
    Format(
        "Dolly", ("instruction", "response"), ("context",), prompts.dolly, "rendered as Databricks' prompt", _EVERYTHING
    ),
    Format(
        "question and answer",
        ("question", "answer"),
        (),
        prompts.question,
        r"rendered as 'Question: {question}\nAnswer: {answer}'",
        _EVERYTHING,
    ),
    Format(
        "query and response",
        ("query", "response"),
        ("system", "history"),
        prompts.query,
        r"rendered as '{query}\n{response}' (with system or history by the chat template)",
        _EVERYTHING,
    ),
)
