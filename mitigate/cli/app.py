"""Command line: one short function per verb. `mitigate --help`."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mitigate import __version__
from mitigate.cli import bench_unlearn, bench_verify  # noqa: F401  (they add their verbs)
from mitigate.cli.audit import audit
from mitigate.cli.bench import bench
from mitigate.cli.compare import compare
from mitigate.cli.guard import guard
from mitigate.cli.options import (
    FailOnLeak,
    ReportText,
    ShownText,
    Yes,
    is_main_process,
    leave_processes,
    print_loading,
    quiet,
    said_yes,
    stop_as_ctrl_c,
)
from mitigate.cli.results import fail_unless_clean, print_summary
from mitigate.cli.training import references, retrain, unlearn
from mitigate.cli.verify import verify
from mitigate.errors import DoubtfulError, MitigateError, first_line, printable_lines


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mitigate {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="mitigate",
    help="Find what a language model memorized, token by token. Remove just that. Prove it.",
    epilog="Start with: mitigate run recipes/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def mitigate(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Find what a language model memorized, token by token. Remove just that. Prove it."""


app.add_typer(bench, name="bench")
app.add_typer(guard, name="guard")


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="YAML recipe; see recipes/ for commented ones.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for instance unlearn.objective=npo.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Empty the run's directory first.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="List every recipe key and stop.")] = False,
    yes: Yes = False,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Find, remove and prove in one go: documents, references, audit, unlearn, re-audit, report.

    Stages whose inputs are unchanged are skipped; an interrupted run goes on when the command is given again. Where the
    audit is doubtful (references that fit less than the model, most of the text selected) it asks before it unlearns.

    Example: mitigate run recipes/quickstart.yaml out=runs/mine unlearn.objective=npo

    Example: mitigate run recipes/finetuned.yaml models.target=my-model models.base=its-base --yes --fail-on-leak
    """
    from mitigate.recipe.loading import known_keys, load_recipe

    if keys:
        typer.echo("\n".join(known_keys()))
        return
    if recipe is None:
        raise MitigateError("no recipe given; start from one in recipes/, for instance recipes/finetuned.yaml")
    loaded = load_recipe(recipe, overrides or [])
    quiet()
    from mitigate.pipeline.run import run as run_recipe

    try:
        comparison = run_recipe(loaded, replace=replace, yes=yes)
    except DoubtfulError as doubtful:
        said_yes(doubtful)
        comparison = run_recipe(loaded, yes=True)
    print_summary(comparison, loaded.out)
    if comparison.after is not None and is_main_process():
        print_loading(loaded.out / ("adapter" if loaded.unlearn is not None else "retrained"))
        typer.echo(f"to attack it: {shlex.join(['mitigate', 'verify', '--run', str(loaded.out)])}")
    if fail_on_leak:
        fail_unless_clean(comparison)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, as for `mitigate run`.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as for `mitigate run`.")] = None,
) -> None:
    """Say what a run will cost before anything is spent: tokens, time, memory and disk of every stage.

    A model's pace is measured here for about 20 seconds. Ends with status 1 where something would not fit.

    Example: mitigate plan recipes/finetuned.yaml models.target=my-model models.base=its-base
    """
    from mitigate.recipe.loading import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    quiet()
    from mitigate.pipeline.plan import plan as plan_recipe

    found = plan_recipe(loaded)
    typer.echo(f"{found}\n\nrun it with:\n    {_launch(recipe, overrides or [])}")
    if found.problems:
        raise typer.Exit(1)


def _launch(recipe: Path, overrides: Sequence[str]) -> str:
    """The command for `mitigate run` that uses all GPUs of this machine."""
    from torch.cuda import device_count

    command = shlex.join(["run", str(recipe), *overrides])
    if device_count() < 2:
        return f"mitigate {command}"
    launcher = f"accelerate launch --config_file recipes/accelerate/ddp.yaml --num_processes {device_count()}"
    return f"{launcher} -m mitigate {command}"


for verb in (audit, references, unlearn, retrain, verify, compare):
    app.command()(verb)


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(help="Directory of a finished `mitigate run`.")],
    text: ReportText = ShownText.MASKED,
) -> None:
    """Write a finished run's report.html anew, with no text, with its sensitive text masked, or with all text."""
    quiet()
    from mitigate.artifacts.locks import sole_worker
    from mitigate.detection.record import Audit
    from mitigate.pipeline.stages import RESULTS, damaged_results, note_results
    from mitigate.reporting.content import read_report
    from mitigate.runtime import process_state
    from mitigate.verification.compare import Comparison

    with sole_worker(run_directory, process_state(), option="directory"):
        figures = read_report(run_directory / "report.json")
        if wrong := damaged_results(run_directory):
            raise MitigateError(f"{run_directory}: {wrong[0]}; give the command again that ran it")
        after = Audit.load(run_directory / "reaudit") if (run_directory / "reaudit").is_dir() else None
        Comparison({**figures, "text": text.value}, Audit.load(run_directory / "audit"), after).save_into(run_directory)
        note_results(run_directory, RESULTS)
    typer.echo(f"{run_directory / 'report.html'}")


@app.command()
def documents(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe whose data.documents are read.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for instance data.root=DIR.")] = None,
    out: Annotated[Path, typer.Option("--out", help="JSON lines file to write.")] = Path("documents.jsonl"),
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Model whose tokenizer renders chats and counts max_tokens.", show_default="the target"),
    ] = None,
) -> None:
    """Write a recipe's documents as JSON lines that are read back equal: id, text, spans, set, group.

    Of chats, the text is what the model saw, and a field `mitigate` says what of it is judged.

    Example: mitigate documents recipes/lume.yaml data.root=lume --out lume-people.jsonl
    """
    from mitigate.recipe.loading import load_recipe

    if out.exists():
        raise MitigateError(f"{out}: already there, and not written over; choose another --out or remove it")
    loaded = load_recipe(recipe, overrides or [])
    quiet()
    from mitigate.documents import read_documents
    from mitigate.documents.written import write_jsonl
    from mitigate.models.directory import load_tokenizer
    from mitigate.pipeline.inputs import Inputs

    inputs = Inputs(loaded)
    chosen = load_tokenizer(tokenizer) if tokenizer else None
    data = inputs.recipe.data
    found = read_documents(data.documents, root=data.root, tokenizer=chosen, load_tokenizer=lambda: inputs.tokenizer)
    write_jsonl(found, out)
    typer.echo(f"{len(found)} documents, {sum(len(document.spans) for document in found)} spans -> {out}")


def main() -> None:
    """Entry point: messages instead of tracebacks for what a user can mend."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("mitigate").setLevel(logging.INFO)
    with stop_as_ctrl_c() as stopped:
        _answer(stopped)


def _answer(stopped: Sequence[signal.Signals]) -> None:
    try:
        app()
    except MitigateError as error:
        typer.echo(f"mitigate: {printable_lines(str(error))}", err=True)
        sys.exit(2)
    except OSError as error:  # of a path or a disk, where no better message was made of it
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"mitigate: {where}{error.strerror or error}; correct the path, or make room", err=True)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; a command that did without torch does not load it
            raise
        typer.echo(
            f"mitigate: the device's memory is full ({first_line(error)}); set models.load_in: 8bit, models.dtype: "
            "bfloat16, unlearn.batch_tokens or detect.batch_tokens lower, or models.device: cpu",
            err=True,
        )
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # typer turns Ctrl-C into this exit status
            if not stop.code:
                leave_processes()
            raise
        by = f" by {stopped[0].name}" if stopped else ""
        with contextlib.suppress(OSError):  # the terminal is gone, which is what SIGHUP says
            typer.echo(
                f"\nmitigate: interrupted{by}; finished stages are kept, give the same command again to go on", err=True
            )
        sys.exit(128 + (stopped[0] if stopped else signal.SIGINT))


class _Plain(logging.Formatter):
    """Log lines that cannot move a terminal's cursor or colour it, whatever text of others is in them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


if __name__ == "__main__":
    main()
