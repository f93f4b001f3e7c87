"""Chat messages as the text a model was trained on, and the characters of it that the assistant wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jinja2

from mitigate.errors import MitigateError, printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]


def render_chat(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Render messages through the tokenizer's chat template.

    A turn's place is where the rendering of the messages before it, with the generation prompt, ends. Templates that
    treat the last turn in a way of its own break that rule; then the turn is looked for behind the one before.

    Args:
        messages: `role` and `content` of each turn.
        tokenizer: its `chat_template` is used.

    Returns:
        The text, special tokens included, and the half-open character range of each assistant turn's content (all that
        the template made of the turn, where the content as such is not in the text).

    Raises:
        MitigateError: no template, a template that refuses the messages or hides a turn, or no assistant turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise MitigateError(
            "the tokenizer has no chat template; use that of the instruction-tuned model, or write text"
        )
    text = _render(messages, tokenizer)
    ranges = []
    cursor = 0
    for number, message in enumerate(messages):
        is_assistant = message["role"] == "assistant"
        start, end = _turn(messages, number, text, tokenizer) if is_assistant else (None, None)
        place = _find(message.get("content") or "", text, start=max(cursor, start or 0), end=end)
        if place is None and start is not None and end is not None:
            place = start, end
        if place is not None:
            cursor = place[1]
        if is_assistant and place is None:
            raise MitigateError(
                f"message {number + 1}: the chat template changes this assistant turn, its place is unknown; "
                "give the conversation as prompt and completion"
            )
        if is_assistant and place is not None:
            ranges.append(place)
    if not ranges:
        raise MitigateError("messages: no assistant turn, so there is nothing to score; give the conversation as text")
    return text, tuple(ranges)


def check_messages(value: object) -> Messages:
    """The value as messages.

    Raises:
        MitigateError: it is not a list of objects with a role and, as text, a content.
    """
    if not isinstance(value, list) or not value:
        raise MitigateError("messages: not a list of objects with role and content")
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise MitigateError(f"message {number}: not an object with a role")
        if not isinstance(message.get("content"), str | None):
            raise MitigateError(f"message {number}: its content is not text")
    return value


def _turn(
    messages: Messages, number: int, text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[int | None, int | None]:
    """Where an assistant turn starts and ends in the text, each None where the prefixes do not tell."""
    try:
        before = _render(messages[:number], tokenizer, add_generation_prompt=True)
        until = _render(messages[: number + 1], tokenizer)
    except MitigateError:
        return None, None
    start = len(before) if text.startswith(before) else None
    return start, len(until) if text.startswith(until) and until.startswith(before) else None


def _find(content: str, text: str, *, start: int, end: int | None) -> tuple[int, int] | None:
    for candidate in (content, content.strip()):
        position = text.find(candidate, start, end) if candidate else -1
        if position >= 0:
            return position, position + len(candidate)
    return None


def _render(messages: Messages, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except jinja2.TemplateError as error:
        raise MitigateError(f"messages: the chat template refuses them ({printable(error)})") from None
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise MitigateError(f"messages: the chat template fails on them ({type(error).__name__})") from None
