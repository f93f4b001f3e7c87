"""Chat messages as the text a model was trained on, and which characters of it come from which turn.

Where a turn stands in the text is not searched for: the conversation is rendered once more with every character of its
turns replaced by a mark, and the marks say where each turn went. Words that the template itself compares with, white
space and what JSON escapes stay, so that the template takes the same way. Whether it did is checked: but for the marks
the two texts must be equal. If they are not, turns are placed by the renderings of the messages before them; if these
do not tell either, the whole text is judged or the conversation is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from mitigate.documents.sources import Audited
from mitigate.documents.template import ChatTemplate, Messages
from mitigate.errors import MitigateError, summarize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ranges = tuple[tuple[int, int], ...]
UNTOUCHED = frozenset({"role", "type", "weight"})  # keys whose values say how to render, not what
SPOKEN = frozenset({"content", "tool_calls", "reasoning", "reasoning_content", "thinking"})  # keys of what a turn says

_MARKS = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # private use planes
_MOST_GROWTH = 1000  # characters looked at beyond a mark, where a template cut a turn
_LEFT_ALONE = frozenset("\"'\\<>&")  # what JSON or HTML may escape: its length would change


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
    places = _marked_places(messages, text, template)
    if places is None and len(wanted) == len(messages):
        return text, ((0, len(text)),)
    if places is None:
        places = _prefix_places(messages, wanted, text, template)
    for number in wanted:
        said = {key: messages[number].get(key) for key in ("content", "tool_calls")}  # reasoning may be left out
        if not places[number] and any(map(str.strip, _strings(said))):
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


class _Marker:
    """Replaces the characters of messages by marks, one mark for each string.

    Attributes:
        strings: mark -> (number of the message, the string that it stands for).
        kept: what is left as it is, for the template may look for it.
    """

    def __init__(self, messages: Messages, text: str, constants: Sequence[str]) -> None:
        used = set(text).union(*map(_strings_joined, messages))
        self._fresh = (chr(code) for code in chain(*_MARKS) if chr(code) not in used)
        self.kept = re.compile("|".join(map(re.escape, constants)) or r"(?!)")
        self.strings: dict[str, tuple[int, str]] = {}

    def message(self, message: Mapping[str, Any], number: int) -> dict[str, Any]:
        return {
            key: value if key in UNTOUCHED else self._value(value, number, within=key) for key, value in message.items()
        }

    def _value(self, value: Any, number: int, *, within: str) -> Any:
        if isinstance(value, str):
            return self._string(value, number)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int | float):
            return _other_number(value)
        if isinstance(value, list):
            return [self._value(item, number, within=within) for item in value]
        if isinstance(value, dict) and within == "arguments":  # its keys are the model's words, too
            return {self._string(key, number): self._value(item, number, within=within) for key, item in value.items()}
        if isinstance(value, dict):
            return {
                key: item if key in UNTOUCHED else self._value(item, number, within=key) for key, item in value.items()
            }
        return value

    def _string(self, string: str, number: int) -> str:
        places = _marked(string, self.kept)
        mark = next(self._fresh, None) if places else None
        if mark is None:
            return string
        self.strings[mark] = number, string
        characters = list(string)
        for place in places:
            characters[place] = mark
        return "".join(characters)


def _other_number(value: int | float) -> int | float:
    """A number written with as many digits, each another one."""
    written = re.sub(r"\d", lambda digit: str(int(digit[0]) % 9 + 1), repr(value))
    return type(value)(written)


def _marked_places(messages: Messages, text: str, template: ChatTemplate) -> list[list[tuple[int, int]]] | None:
    """The character ranges that each message became, by marks; None where the marks change more than themselves."""
    marker = _Marker(messages, text, template.constants)
    try:
        marked = template.render([marker.message(message, number) for number, message in enumerate(messages)])
    except (MitigateError, ValueError):
        return None
    if len(marked) != len(text):
        return None
    owners: list[tuple[int, int, str]] = []  # place, number of the message, its string
    for place, (mark, character) in enumerate(zip(marked, text, strict=True)):
        if mark in marker.strings:
            owners.append((place, *marker.strings[mark]))
        elif mark != character:
            if not (mark.isdigit() and character.isdigit() and owners):
                return None
            owners.append((place, owners[-1][1], character))  # a number of the turn that it follows
    places: list[list[tuple[int, int]]] = [[] for _ in messages]
    end = 0
    for first, last in _runs(owners):
        start = _grown(text, owners[first][0], owners[first][2], -1, end, marker.kept)
        following = owners[last + 1][0] if last + 1 < len(owners) else len(text)
        end = _grown(text, owners[last][0] + 1, owners[last][2], 1, following, marker.kept)
        places[owners[first][1]].append((start, end))
    return places


def _runs(owners: Sequence[tuple[int, int, str]]) -> Iterator[tuple[int, int]]:
    """First and last index of each stretch of characters of one message."""
    first = 0
    for index in range(1, len(owners) + 1):
        if index == len(owners) or owners[index][1] != owners[first][1]:
            yield first, index - 1
            first = index


def _grown(text: str, edge: int, string: str, step: int, limit: int, kept: re.Pattern[str]) -> int:
    """A range's edge moved outwards over characters that were left unmarked, as far as they go on in the string.

    Where that is not to the string's own end, the template cut the string. Then what it cut at (white space, a word
    that it knows) stands in the string and may stand in the template's own text, so the range ends before it.
    """
    inner = edge + 1 if step < 0 else edge - 1  # with the marked character at the edge
    forms = (string.casefold(), json.dumps(string, ensure_ascii=False)[1:-1].casefold())

    def place() -> tuple[str, int]:
        stretch = text[min(edge, inner) : max(edge, inner)].casefold()
        return next(((form, at) for form in forms if (at := form.find(stretch)) >= 0), ("", -1))

    if (rim := _rim(string, step, kept)) and abs(limit - edge) >= len(rim):
        beyond = text[edge - len(rim) : edge] if step < 0 else text[edge : edge + len(rim)]
        if beyond == rim:
            return edge + step * len(rim)
    while edge != limit and abs(edge - inner) <= _MOST_GROWTH:
        edge += step
        if place()[1] < 0:
            edge -= step
            break
    form, at = place()
    end = at if step < 0 else at + abs(edge - inner)
    if at < 0 or end == (0 if step < 0 else len(form)):
        return edge
    for match in kept.finditer(form):
        if match.start() < end < match.end():
            edge += min(match.end() - end, inner - 1 - edge) if step < 0 else max(match.start() - end, inner + 1 - edge)
    while edge != inner + step and text[edge if step < 0 else edge - 1].isspace():
        edge -= step
    return edge


def _rim(string: str, step: int, kept: re.Pattern[str]) -> str:
    """What was left unmarked at the beginning (`step` −1) or end of a string."""
    marked = _marked(string, kept)
    return string[: marked[0]] if step < 0 else string[marked[-1] + 1 :]


def _marked(string: str, kept: re.Pattern[str]) -> list[int]:
    """Places of the characters that marks replace: all that can be seen, if the template knows every word."""
    left = {place for match in kept.finditer(string) for place in range(*match.span())}
    solid = [n for n, character in enumerate(string) if character.isprintable() and not character.isspace()]
    return [n for n in solid if n not in left and string[n] not in _LEFT_ALONE] or solid


def _prefix_places(
    messages: Messages, wanted: Collection[int], text: str, template: ChatTemplate
) -> list[list[tuple[int, int]]]:
    """The character ranges of the wanted turns, headers included: from where the messages before it end.

    Raises:
        MitigateError: the template writes a turn in another way when others follow.
    """
    places: list[list[tuple[int, int]]] = [[] for _ in messages]
    for number in wanted:
        is_assistant = messages[number]["role"] == "assistant"
        try:
            before = template.render(messages[:number], add_generation_prompt=is_assistant) if number else ""
            until = template.render(messages[: number + 1])
        except MitigateError:
            before = until = "\0"
        if not (text.startswith(until) and until.startswith(before)):
            raise MitigateError(
                f"message {number + 1}: the chat template changes this turn, so its place in the text is unknown; set "
                "audit: all, or give the conversation as prompt and completion"
            )
        places[number].append((len(before), len(until)))
    return places


def _strings(value: object, *, key: str = "") -> Iterator[str]:
    """The strings of a message that a template may write."""
    if isinstance(value, str) and key not in UNTOUCHED:
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _strings(item, key=name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key=key)


def _strings_joined(value: object) -> str:
    return "".join(_strings(value))
