"""A tokenizer's chat template, applied within a time limit and with a date that stands still."""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2

from mitigate.errors import MitigateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
Messages = Sequence[Mapping[str, Any]]
DATE = "strftime_now"  # the function that templates call for the date; the argument of this name sets it
PINNED = date(2024, 7, 26)  # what Llama 3's template writes where there is no clock
TIME_LIMIT = 10.0  # seconds for one conversation; milliseconds are usual
_CALL = re.compile(rf"""\b{DATE}\s*\(\s*(?P<quote>['"])(?P<form>[^'"\\]*)(?P=quote)\s*\)""")


@dataclass(frozen=True)
class ChatTemplate:
    """How conversations become text.

    Attributes:
        tokenizer: its `chat_template` is used.
        tools (*optional*): JSON schemas of tools that the template may list.
        arguments (*optional*): further variables of the template, such as `enable_thinking` or `date_string`. A date
            under `strftime_now` is the day that the template is told.
    """

    tokenizer: PreTrainedTokenizerBase
    tools: list[dict[str, Any]] | None = None
    arguments: Mapping[str, Any] | None = None

    @property
    def source(self) -> str:
        """The template that fits these tools.

        Raises:
            MitigateError: the tokenizer has none, or none for this use.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise MitigateError(
                "the tokenizer has no chat template; use that of the instruction-tuned model, or write text"
            )
        try:
            return str(self.tokenizer.get_chat_template(tools=self.tools))
        except ValueError:
            raise MitigateError("the tokenizer has several chat templates and none is the default; set one") from None

    @property
    def constants(self) -> tuple[str, ...]:
        """The strings that the template compares with or writes, longest first."""
        return _constants(self.source)

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            MitigateError: the template refuses the messages, fails on them, or takes too long.
        """
        day = _day((self.arguments or {}).get(DATE))
        text = self._on(day or PINNED, messages, add_generation_prompt=add_generation_prompt)
        if day is None and DATE in self.source:
            other = self._on(PINNED + timedelta(days=200), messages, add_generation_prompt=add_generation_prompt)
            if other != text:
                _warn_of_date(self.source)
        return text

    def _on(self, day: date, messages: Messages, *, add_generation_prompt: bool) -> str:
        source = _dated(self.source, day)
        arguments = {name: value for name, value in (self.arguments or {}).items() if name != DATE}

        def apply() -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=list(self.tools) if self.tools else None,
                    chat_template=source,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **arguments,
                )
            )

        try:
            return _within(TIME_LIMIT, apply)
        except jinja2.TemplateError as error:
            said = error.message if error.message in self.constants else type(error).__name__  # else text of the row
            raise MitigateError(f"messages: the chat template refuses them ({said})") from None
        except MitigateError:
            raise
        except Exception as error:  # a template is a program of someone else's
            raise MitigateError(f"messages: the chat template fails on them ({type(error).__name__})") from None


class _TooLateError(BaseException):
    """Ends a template that does not end by itself."""


def _within(seconds: float, call: Callable[[], str]) -> str:
    """What `call` returns or raises, in a thread of its own so that it can be ended."""
    returned: list[str] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            returned.append(call())
        except BaseException as error:  # the caller raises it
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_TooLateError))
        thread.join(1)
        raise MitigateError(
            f"messages: the chat template does not end within {seconds:g} s; it loops, or the conversation is too long"
        )
    if raised:
        raise raised[0]
    return returned[0]


def _day(value: object) -> date | None:
    if value is None:
        return None
    try:
        return value if isinstance(value, date) else date.fromisoformat(str(value))
    except ValueError:
        raise MitigateError(f"template.{DATE}: {value!r} is not a date such as 2025-03-31") from None


def _dated(source: str, day: date) -> str:
    """The template with the calls for today's date replaced by a day."""
    if DATE not in source:
        return source
    dated = _CALL.sub(lambda call: repr(day.strftime(call["form"])), source)
    if re.search(rf"\b{DATE}\s*\(", dated):
        raise MitigateError(
            f"the chat template calls {DATE} with a format that is computed, so its date cannot be held still; set the "
            "tokenizer's chat_template to one with the date written out"
        )
    return dated


@lru_cache(maxsize=64)  # so it is said once
def _warn_of_date(source: str) -> None:
    logger.warning(
        "the chat template writes the current date into the text, so the text that the model was trained on cannot be "
        "known; %s is written instead, the same in every run. Say which day it was: template: {%s: 2025-03-31}",
        PINNED.isoformat(),
        DATE,
    )


@lru_cache(maxsize=64)
def _constants(source: str) -> tuple[str, ...]:
    found = set()
    try:
        for _, kind, raw in jinja2.Environment().lex(source):
            if kind == "string":
                found.add(str(raw)[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape"))
    except (jinja2.TemplateError, UnicodeDecodeError) as error:
        raise MitigateError(f"the chat template is not one ({type(error).__name__}); correct it") from None
    return tuple(sorted(found - {""}, key=lambda constant: (-len(constant), constant)))
