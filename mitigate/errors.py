"""The one exception a user is meant to read: what was got, where, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class MitigateError(Exception):
    """Input, a model or a directory that cannot be used as it is.

    The message names what was got, where (file and line, recipe key or document id) and what to do about it.
    The command line prints it without a traceback and exits with status 2.
    """


class NothingToUnlearnError(MitigateError):
    """An audit that leaves unlearning nothing to do: no token is selected, or all are at the control level already.

    `mitigate run` then writes the report of the audit alone; the verb `unlearn` says so and stops.
    """


class DoubtfulError(MitigateError):
    """A question before something is changed that is likely not what the user wants: given `--yes`, it is done.

    Args:
        doubts: sentences, each with what was found and its remedy.
    """

    def __init__(self, doubts: Sequence[str]) -> None:
        self.doubts = tuple(doubts)
        lines = "".join(f"\n  - {doubt}" for doubt in doubts)
        super().__init__(
            f"nothing was unlearned yet, for the audit is doubtful:{lines}\n  to go on all the same: --yes"
        )


def summarize(items: Iterable[object], *, most: int = 5) -> str:
    """Join `items` for a message, naming at most `most` of them and counting the rest."""
    listed = [printable(item) for item in items]
    shown = ", ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most} more"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, for a message of ours; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def one_line(error: BaseException, *, most: int | None = None) -> str:
    """All that an error says in one line, cut to `most` characters."""
    return " ".join(str(error).split())[:most]


def printable(value: object) -> str:
    """Text of others, such as an id, as it may stand in a message or a log: in one line that is no other's.

    Line breaks, escape sequences of terminals, overrides of the writing direction and other characters that nobody sees
    are written as Python writes them in a string.
    """
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """A whole message of ours, line breaks in it being ours, with everything else as `printable` writes it."""
    return "\n".join(map(printable, text.split("\n")))
