"""Chat messages as the text a model was trained on, and which characters of it come from which turn.

Where the place of a turn cannot be told exactly, the whole text is judged, or the conversation refused where only some
turns were asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from mitigate.documents.chat.template import ChatTemplate, Messages
from mitigate.documents.chat.turns import marked_places, prefix_places, strings_of
from mitigate.documents.sources import Audited
from mitigate.errors import MitigateError, summarize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ranges = tuple[tuple[int, int], ...]
SPOKEN = frozenset({"content", "tool_calls", "reasoning", "reasoning_content", "thinking"})  # keys of what a turn says


def render_chat(
    messages: Messages,
    tokenizer: PreTrainedTokenizerBase,
    *,
    audit: Audited | None = None,
    completion: int | None = None,
    tools: list[dict[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[str, Ranges]:
    """Render messages through the tokenizer's chat template.

    Args:
        messages: turns, as `check_messages` passes them.
        tokenizer: its `chat_template` is used.
        audit (*optional*): which turns to judge: `all`, `completion`, `assistant`, or roles. By default all, or those
            of the completion where `completion` says where it begins. Turns with `weight: 0` were not trained on.
        completion (*optional*): number of the completion's first message; by default the last assistant turn is it.
        tools, arguments (*optional*): see `ChatTemplate`.

    Returns:
        The text, special tokens included, and the half-open ranges of the characters to judge: all that the template
        made of these turns, from the first character of each to its last, tool calls and reasoning included.

    Raises:
        MitigateError: no template, a template that refuses the messages, leaves a turn out or hides where it went; no
            turn to judge.
    """
    template = ChatTemplate(tokenizer, tools, arguments)
    wanted = _wanted(messages, audit, completion)
    messages, text = _rendered(messages, template)
    places = marked_places(messages, text, template)
    if places is None and len(wanted) == len(messages):
        return text, ((0, len(text)),)
    if places is None:
        places = prefix_places(messages, wanted, text, template)
    for number in wanted:
        said = {key: messages[number].get(key) for key in ("content", "tool_calls")}  # reasoning may be left out
        if not places[number] and any(map(str.strip, strings_of(said))):
            raise MitigateError(
                f"message {number + 1}: the chat template leaves this turn out, so no model was trained on it; take it "
                "out of the row, or use the tokenizer that the target was trained with"
            )
    ranges = sorted(chain.from_iterable(places[number] for number in wanted))
    if not ranges:
        raise MitigateError("messages: the turns to judge are empty; leave the row out")
    return text, tuple(ranges)


def check_messages(value: object) -> Messages:
    """The value as messages.

    Raises:
        MitigateError: it is not a list of objects with a role and, as text or parts of text, a content.
    """
    if not isinstance(value, list) or not value:
        raise MitigateError("messages: not a list of objects with role and content")
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise MitigateError(f"message {number}: not an object with a role")
        content = message.get("content")
        if isinstance(content, list):
            for part in content:
                _check_part(part, number)
        elif not isinstance(content, str | None):
            raise MitigateError(f"message {number}: its content is not text")
    return value


def check_tools(value: object) -> list[dict[str, Any]] | None:
    """The `tools` of a row, as a list or as JSON, as the template takes them; None where there are none.

    Raises:
        MitigateError: it is no list of JSON schemas.
    """
    tools = _parsed(value)
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise MitigateError("tools: not a list of JSON schemas, nor one written as JSON")
    return tools


def check_arguments(value: object) -> dict[str, Any]:
    """The `chat_template_kwargs` of a row; none where there are none.

    Raises:
        MitigateError: it is no object.
    """
    arguments = _parsed(value)
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise MitigateError("chat_template_kwargs: not an object with the template's arguments")
    return {name: item for name, item in arguments.items() if item is not None}


def _parsed(value: object) -> object:
    """The value of a text that is JSON, or the value itself."""
    if isinstance(value, str) and value.strip():
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value or None


def _check_part(part: object, number: int) -> None:
    if isinstance(part, str):
        return
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise MitigateError(f"message {number}: a part of its content is neither text nor an object with a type")
    if part["type"] != "text":
        raise MitigateError(
            f"message {number}: a part of its content is not text (an image, a sound), and only text is audited; "
            "leave such rows out with on_error: skip"
        )
    if not isinstance(part.get("text"), str):
        raise MitigateError(f"message {number}: a part of type text without a text")


def _wanted(messages: Messages, audit: Audited | None, completion: int | None) -> list[int]:
    """The numbers of the turns to judge."""
    roles = [message["role"] for message in messages]
    audit = audit or ("all" if completion is None else "completion")
    if audit == "completion":
        if completion is None:
            completion = max((n for n, role in enumerate(roles) if role == "assistant"), default=len(roles))
            numbers = [completion] if completion < len(roles) else []
        else:
            numbers = list(range(completion, len(roles)))
    elif audit == "all":
        numbers = list(range(len(roles)))
    else:
        chosen = {"assistant"} if audit == "assistant" else set(audit)
        numbers = [number for number, role in enumerate(roles) if role in chosen]
    if not numbers:
        raise MitigateError(
            f"messages: audit: {audit if isinstance(audit, str) else summarize(audit)} finds no turn among the roles "
            f"{summarize(dict.fromkeys(map(repr, roles)))}, so there is nothing to score; set audit to all or to roles "
            "that are there"
        )
    numbers = [number for number in numbers if not _is_weightless(messages[number])]
    if not numbers:
        raise MitigateError("messages: every turn to judge has weight 0, so none was trained on; leave the row out")
    return numbers


def _is_weightless(message: Mapping[str, Any]) -> bool:
    """Whether the OpenAI format's `weight: 0` keeps the turn out of the loss."""
    weight = message.get("weight")
    return isinstance(weight, int | float) and weight == 0


def _rendered(messages: Messages, template: ChatTemplate) -> tuple[Messages, str]:
    """The messages as the template takes them, and their text; one part of text is plain text where it takes no parts.

    Raises:
        MitigateError: the template refuses them, or takes plain text only where a content has several parts.
    """
    in_parts = [number for number, message in enumerate(messages, 1) if isinstance(message.get("content"), list)]
    try:
        text = template.render(messages)
    except MitigateError:
        if not in_parts:
            raise
    else:  # a template that knows no parts writes the list as Python would
        if not any(str(messages[number - 1]["content"]) in text for number in in_parts):
            return messages, text
    if several := [number for number in in_parts if len(messages[number - 1]["content"]) > 1]:
        raise MitigateError(
            f"message {summarize(several)}: its content has several parts, and the chat template takes plain text; "
            "join them as they were joined for the training"
        )
    plain = [{**message, "content": _plain(message.get("content"))} for message in messages]
    return plain, template.render(plain)


def _plain(content: object) -> object:
    if not isinstance(content, list):
        return content
    return "".join(part if isinstance(part, str) else part["text"] for part in content)
