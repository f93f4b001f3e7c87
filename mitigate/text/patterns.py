"""Regular expressions that a user gave, with a limit on their time: some backtrack for years on forty characters.

The limit is processor time, so a busy machine changes nothing. It is kept in the main thread (where the command line
runs) on systems that have such a timer; elsewhere patterns run without it.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mitigate.errors import MitigateError

SECONDS = 2.0  # for a text, however short
SECONDS_PER_CHARACTER = 1e-5


class SlowPatternError(MitigateError):
    """A pattern that was stopped: a fault of the recipe, not of the row, so `on_error: skip` does not pass over it."""


def search(pattern: str, text: str, *, name: str) -> bool:
    """Whether a pattern is found in a text.

    Args:
        pattern: regular expression.
        text: to look at.
        name: of the pattern, for the message: the recipe key it comes from.

    Raises:
        SlowPatternError: it takes longer than 2 s and 10 s for each million characters.
    """
    with _limited(text, name):
        return re.search(pattern, text) is not None


def find_all(pattern: str, text: str, *, name: str) -> list[tuple[int, int]]:
    """Half-open character ranges where a pattern, or its first group where it has one, stands; empty ones left out.

    Args and Raises: see `search`.
    """
    with _limited(text, name):
        matches = list(re.finditer(pattern, text))
    ranges = (match.span(1 if match.re.groups else 0) for match in matches)
    return [(start, end) for start, end in ranges if start < end]


def substitute(pattern: str, replacement: str, text: str, *, name: str) -> str:
    """The text with every match of a pattern replaced. Args and Raises: see `search`."""
    with _limited(text, name):
        return re.sub(pattern, replacement, text)


@contextmanager
def _limited(text: str, name: str) -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    seconds = SECONDS + len(text) * SECONDS_PER_CHARACTER

    def stop(number: int, frame: FrameType | None) -> None:
        raise SlowPatternError(
            f"{name}: still running after {seconds:.3g} s on a text of {len(text):,} characters: it backtracks without "
            "end; write it without a repeat inside a repeat, as in (a+)+, or with possessive repeats such as a++"
        )

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)  # `re` looks for signals while it matches
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
