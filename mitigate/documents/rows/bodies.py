"""What the text of a row is made of: a text, a prompt with its completion, a conversation, or token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
