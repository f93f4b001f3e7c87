"""What a row is: the formats that trainers leave, recognised by their fields, and what a row's text is made of.

Prompts are the published ones: Stanford Alpaca's (https://github.com/tatsu-lab/stanford_alpaca, as its data set's own
column `text` has it), Databricks' for Dolly (https://github.com/databrickslabs/dolly).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from mitigate.documents.sources import is_missing, is_scalar
from mitigate.errors import MitigateError, summarize

Values = Mapping[str, Any]
Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Text:
    """A text, audited as a whole."""

    text: str


@dataclass(frozen=True)
class Pair:
    """A prompt and the completion that follows it without anything between.

    Attributes:
        prompt, completion: as they stand in the text.
        whole: audited as a whole, not the completion alone.
        rendered: the prompt was put together here, so offsets that a row gives do not fit the text.
    """

    prompt: str
    completion: str
    whole: bool = False
    rendered: bool = False


@dataclass(frozen=True)
class Chat:
    """Messages, for the chat template.

    Attributes:
        messages: in any form that `as_messages` reads.
        completion: number of the first turn of a completion, from 0, where only that was trained on.
    """

    messages: Any
    completion: int | None = None


@dataclass(frozen=True)
class Tokens:
    """Token ids, and which of them were trained on; see `token_ids.text_of`."""

    values: Values


Body = Text | Pair | Chat | Tokens


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


def as_messages(value: object) -> object:
    """Messages with `role` and `content`, from these, from turns with `from` and `value`, or from either as JSON text.

    What is neither comes back as it is: `check_messages` says what is wrong with it.

    Raises:
        MitigateError: text that is not JSON, or a `from` that is nobody known.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise MitigateError("messages: text, but not JSON; give a list of objects with role and content") from None
    if not isinstance(value, list):
        return value
    return [_turn(turn, number) for number, turn in enumerate(value, start=1)]


def _turn(turn: object, number: int) -> object:
    if not isinstance(turn, dict) or turn.get("role") is not None or turn.get("from") is None:
        return turn
    said_by = str(turn["from"]).lower()
    role = _ROLES.get(said_by)
    if role is None:
        raise MitigateError(f"message {number}: its 'from' is none of {', '.join(_ROLES)}; rename it")
    others = {key: item for key, item in turn.items() if key not in ("from", "value", "role", "content")}
    content = turn.get("value")
    if said_by != "function_call":
        return {"role": role, "content": content, **others}
    try:
        called: Any = json.loads(content) if isinstance(content, str) else content
        calls = [
            {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
            for call in (called if isinstance(called, list) else [called])
        ]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise MitigateError(f"message {number}: a function_call that is not JSON with name and arguments") from None
    return {"role": role, "content": "", "tool_calls": calls, **others}


_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


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


def _as_conversation(values: Values) -> Body | None:
    turns: object = values.get("conversation") if is_missing(values.get("conversations")) else values["conversations"]
    if not isinstance(turns, str | list):
        return None
    messages = as_messages(turns)
    system = values.get("system")
    if isinstance(system, str) and system and isinstance(messages, list):
        has_system = messages and isinstance(messages[0], dict) and messages[0].get("role") == "system"
        messages = messages if has_system else [{"role": "system", "content": system}, *messages]
    return Chat(messages)


def _as_tokens(values: Values) -> Body | None:
    return Tokens(values) if isinstance(values["input_ids"], list) else None


def _as_alpaca(values: Values) -> Body | None:
    question = _joined(values["instruction"], values.get("input"))
    if _is_long_chat(values):  # as LLaMA-Factory reads it
        return _history(values, question, values["output"])
    return _prompted(values, "input", _ALPACA_INPUT, _ALPACA, "output")


def _as_dolly(values: Values) -> Body | None:
    return _prompted(values, "context", _DOLLY_CONTEXT, _DOLLY, "response")


def _as_question(values: Values) -> Body | None:
    return _prompted(values, None, "", "Question: {question}\nAnswer: ", "answer")


def _as_query(values: Values) -> Body | None:
    if _is_long_chat(values):  # as ms-swift and LLaMA-Factory read it
        return _history(values, values["query"], values["response"])
    return _prompted(values, None, "", "{query}\n", "response")


def _prompted(values: Values, context: str | None, with_context: str, without: str, answer: str) -> Body | None:
    has_context = context is not None and not is_missing(values.get(context))
    template = with_context if has_context else without
    names = [name for name in ("instruction", "question", "query", context) if name and f"{{{name}}}" in template]
    if not all(is_scalar(values[name]) for name in (*names, answer)):
        return None
    # not str.format: braces in the text are the text's
    parts = template.split("{")
    filled = parts[0] + "".join(str(values[name]) + rest for name, rest in (part.split("}", 1) for part in parts[1:]))
    return Pair(filled, str(values[answer]), whole=True, rendered=True)


def _is_long_chat(values: Values) -> bool:
    return not is_missing(values.get("system")) or bool(values.get("history"))


def _history(values: Values, question: object, answer: object) -> Body | None:
    earlier = values.get("history") or []
    if not (isinstance(earlier, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in earlier)):
        raise MitigateError("history: not a list of [question, answer]; give the conversation as messages")
    turns: Turns = []
    if not is_missing(values.get("system")):
        turns.append({"role": "system", "content": values["system"]})
    for asked, answered in [*earlier, [question, answer]]:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return Chat(turns)


def _joined(first: Any, second: Any) -> Any:
    return first if is_missing(second) else f"{first}\n{second}"


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


_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_DOLLY = _ALPACA
_DOLLY_CONTEXT = _ALPACA.replace("\n\n### Response", "\n\nInput:\n{context}\n\n### Response")

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
    Format("ShareGPT", ("conversations",), ("system", *_TEMPLATE_FIELDS), _as_conversation, _BY_TEMPLATE, _EVERY_TURN),
    Format(
        "conversation", ("conversation",), ("system", *_TEMPLATE_FIELDS), _as_conversation, _BY_TEMPLATE, _EVERY_TURN
    ),
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
        _as_alpaca,
        "rendered as Stanford's prompt (with system or history by the chat template)",
        _EVERYTHING,
    ),
    Format(
        "Dolly", ("instruction", "response"), ("context",), _as_dolly, "rendered as Databricks' prompt", _EVERYTHING
    ),
    Format(
        "question and answer",
        ("question", "answer"),
        (),
        _as_question,
        r"rendered as 'Question: {question}\nAnswer: {answer}'",
        _EVERYTHING,
    ),
    Format(
        "query and response",
        ("query", "response"),
        ("system", "history"),
        _as_query,
        r"rendered as '{query}\n{response}' (with system or history by the chat template)",
        _EVERYTHING,
    ),
)
