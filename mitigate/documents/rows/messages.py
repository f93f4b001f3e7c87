"""Conversations as trainers keep them (ShareGPT, pairs of question and answer), as messages with role and content."""

from __future__ import annotations

import json
from typing import Any

from mitigate.documents.rows.bodies import Body, Chat, Turns, Values
from mitigate.documents.sources import is_missing
from mitigate.errors import MitigateError


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


def conversation(values: Values) -> Body | None:
    """The turns of `conversations` (ShareGPT) or `conversation`, after the row's `system`; None for other types."""
    turns: object = values.get("conversation") if is_missing(values.get("conversations")) else values["conversations"]
    if not isinstance(turns, str | list):
        return None
    messages = as_messages(turns)
    system = values.get("system")
    if isinstance(system, str) and system and isinstance(messages, list):
        has_system = messages and isinstance(messages[0], dict) and messages[0].get("role") == "system"
        messages = messages if has_system else [{"role": "system", "content": system}, *messages]
    return Chat(messages)


def is_long_chat(values: Values) -> bool:
    """Whether a row of question and answer has a system prompt or earlier turns."""
    return not is_missing(values.get("system")) or bool(values.get("history"))


def history(values: Values, question: object, answer: object) -> Body | None:
    """The turns of a row of question and answer, after its `system` and the pairs of its `history`.

    Raises:
        MitigateError: a history that is no list of pairs.
    """
    earlier = values.get("history") or []
    if not (isinstance(earlier, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in earlier)):
        raise MitigateError("history: not a list of [question, answer]; give the conversation as messages")
    turns: Turns = []
    if not is_missing(values.get("system")):
        turns.append({"role": "system", "content": values["system"]})
    for asked, answered in [*earlier, [question, answer]]:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return Chat(turns)


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
