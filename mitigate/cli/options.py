"""What the command line's verbs share: options with one name, help and default everywhere, and their handling."""

from __future__ import annotations

import csv
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from mitigate.errors import DoubtfulError, MitigateError, one_line

if TYPE_CHECKING:
    from mitigate.detection.record import Audit
    from mitigate.documents import Request
    from mitigate.mistakes import Settings
    from mitigate.models.store import ModelStore

Out = Annotated[Path, typer.Option("--out", help="Directory for the result; must be new or empty.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto (float32 on a CPU, else the checkpoint's), float32, bfloat16, float16.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with a checkpoint.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Accept weights that are not safetensors.")]
BaseModelPath = Annotated[
    str | None,
    typer.Option("--base", help="Base to use for adapters instead of the one they name.", show_default=False),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of everything random.")]
Yes = Annotated[
    bool, typer.Option("--yes", help="Unlearn what is selected also where that is doubtful, without a question.")
]
FailOnLeak = Annotated[
    bool,
    typer.Option(
        "--fail-on-leak", help="End with status 3 unless the verdict is that nothing leaks; for scripts and pipelines."
    ),
]
LEAKS = 3  # exit status
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting as key=value, as in a recipe; may be given again.", show_default=False),
]

ForgetIds = Annotated[
    list[str] | None,
    typer.Option(
        help="Erasure request: ids of documents to forget, with commas between them; may be given again.",
        show_default=False,
    ),
]
ForgetContains = Annotated[
    list[str] | None,
    typer.Option(
        help="Erasure request: a text, such as a name, that stands in the documents; may be given again.",
        show_default=False,
    ),
]
ForgetWhere = Annotated[
    list[str] | None,
    typer.Option(
        help="Erasure request: field=value that the documents' rows have; given again, all must hold.",
        show_default=False,
    ),
]
Linked = Annotated[
    bool,
    typer.Option("--linked/--no-linked", help="Forget the same secrets in other documents too, or only list them."),
]


class ShownText(StrEnum):
    """What a report shows of the documents."""

    NONE = "none"
    MASKED = "masked"
    ALL = "all"


ReportText = Annotated[
    ShownText,
    typer.Option(
        "--text", help="What the report shows of the documents: no text, text with its secrets masked, or all."
    ),
]


def quiet() -> None:
    """Silence the libraries' own output, and other processes than the first."""
    from mitigate.runtime import is_main, quiet_libraries

    quiet_libraries()
    if not is_main():
        logging.getLogger("mitigate").setLevel(logging.WARNING)


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    from mitigate.runtime import is_main

    return is_main()


def check_doubts(audit: Audit, *, yes: bool) -> None:
    """Ask before what an audit selected is unlearned, where that is doubtful.

    Raises:
        DoubtfulError: it is, and nobody said yes.
    """
    from mitigate.detection.doubts import doubts_of

    if not yes and (doubts := doubts_of(audit)):
        said_yes(DoubtfulError(doubts))


def said_yes(doubtful: DoubtfulError) -> None:
    """Ask at a terminal whether to go on.

    Raises:
        DoubtfulError: there is no terminal, or the answer was no.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty() and int(os.environ.get("WORLD_SIZE", "1")) == 1):
        raise doubtful
    for doubt in doubtful.doubts:
        typer.echo(f"doubtful: {doubt}", err=True)
    if not typer.confirm("Unlearn what was selected all the same?", err=True):
        raise doubtful


def leave_processes() -> None:
    """Close the process group at the end of a command that succeeded; without it a process may abort while it ends.

    Not after a failure: the other processes may still wait for this one, and closing would wait for them.
    """
    torch = sys.modules.get("torch")  # a command that did without it has no group
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def stop_as_ctrl_c() -> Iterator[list[signal.Signals]]:
    """Have SIGTERM and SIGHUP, which batch schedulers and closed terminals send, end the block as Ctrl-C does.

    A signal that the caller ignores (nohup) stays ignored; a second one does not cut the cleaning short.

    Yields:
        a list that will hold the signal that came.
    """
    came: list[signal.Signals] = []

    def stop(number: int, _: object) -> None:
        if not came:
            came.append(signal.Signals(number))
            raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    try:
        for number in heard:
            signal.signal(number, stop)
        yield came
    finally:
        for number in heard:
            signal.signal(number, before[number])


def check_free_out(out: Path) -> None:
    """Refuse an occupied directory before the work, not after it. What a killed process left there goes."""
    from mitigate.artifacts.temporaries import holds_something, sweep

    if holds_something(out):
        raise MitigateError(f"{out}: already holds something; choose another --out or remove it")
    if is_main_process():
        for directory in (out.parent, out):
            sweep(directory)


def model_store(base: str | None, device: str, dtype: str, trust_remote_code: bool, allow_pickle: bool) -> ModelStore:
    """A store with the options' device, number format and permissions."""
    from mitigate.models.store import ModelStore

    return ModelStore(
        device=device, dtype=dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, base=base
    )


def print_loading(directory: Path) -> None:
    """Print the lines of code that load a mitigated model."""
    from mitigate.adapters.card import loading_lines

    typer.echo("\n".join(["to load it:", *(f"    {line}" for line in loading_lines(directory))]))


def settings_from(kind: type[Settings], assignments: list[str] | None, **named: object) -> Settings:
    """Settings from options of their own name (None: not given) and from `key=value`, checked like a recipe's."""
    from mitigate.recipe.loading import check_settings

    own = [f"{name}={value}" for name, value in named.items() if value is not None]
    return check_settings(kind, [*own, *(assignments or [])])


def request_from(
    ids: list[str] | None, contains: list[str] | None, where: list[str] | None, *, linked: bool
) -> Request | None:
    """The erasure request of the --forget options; None where there is none of them.

    Raises:
        MitigateError: a --forget-where that is not field=value, or --no-linked without a request.
    """
    from mitigate.documents import Request
    from mitigate.mistakes import checked
    from mitigate.recipe.yaml12 import load_yaml

    if not (ids or contains or where):
        if not linked:
            raise MitigateError("--no-linked belongs to an erasure request: give --forget-ids, -contains or -where")
        return None
    values: dict[str, Any] = {"contains": contains or [], "where": {}, "linked": linked}
    values["ids"] = [doc_id for row in csv.reader(ids or [], skipinitialspace=True) for doc_id in row]
    for condition in where or []:
        name, equals, text = condition.partition("=")
        if not equals or not name:
            raise MitigateError(f"--forget-where {condition}: written field=value, for instance customer=17")
        try:
            value = load_yaml(text)
        except yaml.YAMLError as error:
            raise MitigateError(f"--forget-where {condition}: the value is not YAML ({one_line(error)})") from None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        values["where"][name] = [value, text.strip()] if number else value  # CSV rows have it as it is written
    return checked(Request, values, name="erasure request")
