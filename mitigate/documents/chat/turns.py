"""Where the turns of a conversation stand in the text that a chat template makes of it.

Nothing is searched for: the conversation is rendered once more with every character of its turns replaced by a mark,
and the marks say where each turn went. Words that the template itself compares with, white space and what JSON escapes
stay, so that the template takes the same way. Whether it did is checked: but for the marks the two texts must be equal.
If they are not, the renderings of the messages before a turn may tell its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from mitigate.documents.chat.template import ChatTemplate, Messages
from mitigate.errors import MitigateError

Places = list[list[tuple[int, int]]]  # for each message, half-open character ranges
UNTOUCHED = frozenset({"role", "type", "weight"})  # keys whose values say how to render, not what

_MARKS = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # private use planes
_MOST_GROWTH = 1000  # characters looked at beyond a mark, where a template cut a turn
_LEFT_ALONE = frozenset("\"'\\<>&")  # what JSON or HTML may escape: its length would change


def marked_places(messages: Messages, text: str, template: ChatTemplate) -> Places | None:
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
            if character.casefold() not in marker.letters[mark]:
                return None
            owners.append((place, *marker.strings[mark]))
        elif mark != character:
            if not (mark.isdigit() and character.isdigit() and owners):
                return None
            owners.append((place, owners[-1][1], character))  # a number of the turn that it follows
    places: Places = [[] for _ in messages]
    end = 0
    for first, last in _runs(owners):
        start = _grown(text, owners[first][0], owners[first][2], -1, end, marker.kept)
        following = owners[last + 1][0] if last + 1 < len(owners) else len(text)
        end = _grown(text, owners[last][0] + 1, owners[last][2], 1, following, marker.kept)
        places[owners[first][1]].append((start, end))
    return places


def prefix_places(messages: Messages, wanted: Collection[int], text: str, template: ChatTemplate) -> Places:
    """The character ranges of the wanted turns, headers included: from where the messages before it end.

    Raises:
        MitigateError: the template writes a turn in another way when others follow.
    """
    places: Places = [[] for _ in messages]
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
        if len(before) < len(until):
            places[number].append((len(before), len(until)))
    return places


def strings_of(value: object, *, key: str = "") -> Iterator[str]:
    """The strings of a message that a template may write."""
    if isinstance(value, str) and key not in UNTOUCHED:
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from strings_of(item, key=name)
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item, key=key)


class _Marker:
    """Replaces the characters of messages by marks, one mark for each string.

    Attributes:
        strings: mark -> (number of the message, the string that it stands for).
        letters: mark -> the characters of that string, without case.
        kept: what is left as it is, for the template may look for it.
    """

    def __init__(self, messages: Messages, text: str, constants: Sequence[str]) -> None:
        used = set(text).union(*map(_joined, messages))
        self._fresh = (chr(code) for code in chain(*_MARKS) if chr(code) not in used)
        self.kept = re.compile("|".join(map(re.escape, constants)) or r"(?!)")
        self.strings: dict[str, tuple[int, str]] = {}
        self.letters: dict[str, set[str]] = {}

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
        if not places:
            return string
        if (mark := next(self._fresh, None)) is None:
            raise ValueError("more strings than marks")
        self.strings[mark] = number, string
        self.letters[mark] = set(string.casefold())
        characters = list(string)
        for place in places:
            characters[place] = mark
        return "".join(characters)


def _other_number(value: int | float) -> int | float:
    """A number written with as many digits, each another one."""
    written = re.sub(r"\d", lambda digit: str(int(digit[0]) % 9 + 1), repr(value))
    return type(value)(written)


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
    """The places of the characters that marks replace; if the template knows every word of the string, all of them."""
    left = {place for match in kept.finditer(string) for place in range(*match.span())}
    solid = [n for n, character in enumerate(string) if character.isprintable() and not character.isspace()]
    return [n for n in solid if n not in left and string[n] not in _LEFT_ALONE] or solid


def _joined(value: object) -> str:
    return "".join(strings_of(value))
