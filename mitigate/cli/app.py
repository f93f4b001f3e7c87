"""Command line: one short function per verb. `mitigate --help`."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mitigate import __version__
from mitigate.cli.bench import bench
from mitigate.cli.guard import guard
from mitigate.cli.options import (
    LEAKS,
    BaseModelPath,
    Device,
    Dtype,
    FailOnLeak,
    ForgetContains,
    ForgetIds,
    ForgetWhere,
    Linked,
    Out,
    Pickle,
    Remote,
    ReportText,
    Seed,
    Set,
    ShownText,
    Yes,
    check_free_out,
    is_main_process,
    leave_processes,
    model_store,
    print_loading,
    quiet,
    request_from,
    said_yes,
    settings_from,
    stop_as_ctrl_c,
)
from mitigate.cli.training import references, retrain, unlearn
from mitigate.errors import DoubtfulError, MitigateError, printable, printable_lines, summarize

if TYPE_CHECKING:
    from mitigate.verification.compare import Comparison


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
    from mitigate.recipe.schema import known_keys, load_recipe

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
    _print_summary(comparison, loaded.out)
    if comparison.after is not None and is_main_process():
        print_loading(loaded.out / ("adapter" if loaded.unlearn is not None else "retrained"))
    if fail_on_leak:
        _fail_unless_clean(comparison)


@app.command()
def audit(
    recipe: Annotated[
        Path | None, typer.Argument(help="YAML recipe: audit what it names and write the report, unlearn nothing.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="With a recipe: key=value, for instance detect.fdr=0.05.")
    ] = None,
    documents: Annotated[str | None, typer.Option(help="JSONL, CSV, Parquet or text file, or hub data set.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Model to audit: hub id, directory or PEFT adapter directory.", show_default=False),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="Model that never saw the documents, or directory of `mitigate references`; may be given again."
        ),
    ] = None,
    out: Out = Path("audit"),
    generate: Annotated[
        bool, typer.Option("--generate", help="Audit what the model writes itself, instead of given documents.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(help="With --generate (implied): prompts, one a line or JSON lines; default: the start token."),
    ] = None,
    match: Annotated[
        Path | None, typer.Option(help="With --generate (implied): training documents to link what is found to.")
    ] = None,
    sampling: Annotated[
        list[str] | None,
        typer.Option(help="With --generate: key=value (count, max_tokens, temperature, top_k, top_p, batch_size)."),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option(help="Re-audit: take documents, references, settings and spans from this earlier audit."),
    ] = None,
    forget_ids: ForgetIds = None,
    forget_contains: ForgetContains = None,
    forget_where: ForgetWhere = None,
    forget_linked: Linked = True,
    settings: Set = None,
    base: BaseModelPath = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
    seed: Seed = 0,
) -> None:
    """Score every token of the documents and find the memorized spans.

    Example: mitigate audit --target my-model --reference references --documents train.jsonl --out audit

    Example: mitigate audit --target adapter --again audit --out reaudit

    Example: mitigate audit --target my-model --reference references --prompts prompts.txt --match train.jsonl

    Example: mitigate audit recipes/lume.yaml data.root=lume detect.fdr=0.05 out=runs/lume-audit

    Example: mitigate audit --target my-model --reference references --documents a.jsonl --forget-contains "Jane Roe"
    """
    generate = generate or bool(prompts or match or sampling)
    request = request_from(forget_ids, forget_contains, forget_where, linked=forget_linked)
    if request is not None and (recipe or again or generate):
        raise MitigateError(
            "the --forget options go with --target and --documents: in a recipe give forget.ids, forget.contains or "
            "forget.where; a re-audit keeps the request of its audit; generated text has no documents to forget"
        )
    if recipe is not None:
        if target or documents or reference or again or generate:
            raise MitigateError(
                "a recipe names target, documents and references itself: leave the options out and give key=value "
                "after the recipe, for instance models.target=DIR"
            )
        from mitigate.recipe.schema import load_recipe

        loaded = load_recipe(recipe, [*(overrides or []), "unlearn=null", "retrain=null"])
        quiet()
        from mitigate.pipeline.run import run as run_recipe

        _print_summary(run_recipe(loaded), loaded.out)
        return
    if target is None:
        raise MitigateError("--target: missing; give the model to audit, or a recipe that names one")
    check_free_out(out)
    quiet()
    from mitigate.detection.audit import audit as audit_documents
    from mitigate.detection.audit import reaudit
    from mitigate.detection.record import Audit
    from mitigate.detection.settings import Detect

    store = model_store(base, device, dtype, trust_remote_code, allow_pickle)
    if again is not None:
        if documents or reference or settings or generate:
            raise MitigateError(
                "--again takes documents, references and settings from that audit; leave those options out"
            )
        result = reaudit(Audit.load(again), target, store=store)
    elif generate:
        from mitigate.generation.sampling import Sampling, audit_generated

        if documents:
            raise MitigateError("--generate audits the model's own text: leave --documents out (--match links to it)")
        result = audit_generated(
            target,
            list(reference or []),
            prompts=prompts,
            match=match,
            sampling=settings_from(Sampling, sampling),
            detect=settings_from(Detect, settings),
            store=store,
            seed=seed,
        )
    else:
        if documents is None:
            raise MitigateError(
                "--documents: missing; give the text to judge, --again DIR for a re-audit, or --generate for what the "
                "model writes itself"
            )
        detect = settings_from(Detect, settings)
        result = audit_documents(
            target, list(reference or []), documents=documents, detect=detect, store=store, forget=request, seed=seed
        )
    if is_main_process():
        result.save(out)
        spans = [row for row in result.spans.to_pylist() if row["source"] == "found"]
        chosen = [row for row in result.spans.to_pylist() if row["selected"]]
        typer.echo(
            f"{len(result.documents)} documents, {len(result.tokens)} tokens: {len(spans)} memorized spans found, "
            f"{len(chosen)} selected for unlearning -> {out}"
        )
        if result.metadata.erasure is not None:
            _print_erasure(result.metadata.erasure.written())
        if generate:
            from mitigate.generation.sampling import memorized_stretches

            stretches = memorized_stretches(result)
            linked = sum(stretch["training_id"] is not None for stretch in stretches)
            typer.echo(f"{len(stretches)} memorized stretches in what it wrote, {linked} linked to training text")
            for stretch in [stretch for stretch in stretches if stretch["training_id"] is not None][:20]:
                where = f"{printable(stretch['doc_id'])} [{stretch['char_start']}, {stretch['char_end']})"
                typer.echo(f"  {where} score {stretch['score']:.2f} from {printable(stretch['training_id'])}")
        for line in result.metadata.skipped:
            typer.echo(f"skipped {printable(line)}", err=True)


for verb in (references, unlearn, retrain):
    app.command()(verb)


@app.command()
def compare(
    before: Annotated[Path, typer.Option(help="Directory of the audit.")],
    after: Annotated[Path, typer.Option(help="Directory of the re-audit.")],
    out: Out = Path("report"),
    oracle: Annotated[
        str | None, typer.Option(help="A model retrained without the forget documents, to measure the distance to.")
    ] = None,
    extraction: Annotated[bool, typer.Option(help="Try to extract the secrets from both models.")] = True,
    text: ReportText = ShownText.MASKED,
    name: Annotated[str, typer.Option(help="Title of the report.")] = "comparison",
    fail_on_leak: FailOnLeak = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
) -> None:
    """Write report.json and report.html: how far the leakage fell from one audit to the next.

    Example: mitigate compare --before audit --after reaudit --out report
    """
    check_free_out(out)
    quiet()
    from mitigate.detection.record import Audit
    from mitigate.verification.compare import verify

    audits = Audit.load(before), Audit.load(after)
    store = model_store(None, device, dtype, trust_remote_code, allow_pickle)
    comparison = verify(*audits, oracle=oracle, extraction=extraction, store=store, name=name, text=text.value)
    if is_main_process():
        comparison.save(out)
        _print_summary(comparison, out)
    if fail_on_leak:
        _fail_unless_clean(comparison)


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(help="Directory of a finished `mitigate run`.")],
    text: ReportText = ShownText.MASKED,
) -> None:
    """Write a finished run's report.html anew, with no text, with its sensitive text masked, or with all text."""
    quiet()
    from mitigate.artifacts.files import read_json
    from mitigate.artifacts.locks import sole_worker
    from mitigate.detection.record import Audit
    from mitigate.pipeline.stages import RESULTS, damaged_results, note_results
    from mitigate.runtime import process_state
    from mitigate.verification.compare import Comparison

    with sole_worker(run_directory, process_state(), option="directory"):
        if wrong := damaged_results(run_directory):
            raise MitigateError(f"{run_directory}: {wrong[0]}; give the command again that ran it")
        figures = {**read_json(run_directory / "report.json"), "text": text.value}
        figures.pop("show_text", None)  # of an earlier version
        after = Audit.load(run_directory / "reaudit") if (run_directory / "reaudit").is_dir() else None
        Comparison(figures, Audit.load(run_directory / "audit"), after).save_into(run_directory)
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
    quiet()
    from mitigate.documents import read_documents
    from mitigate.documents.written import write_jsonl
    from mitigate.models.directory import load_tokenizer
    from mitigate.pipeline.inputs import Inputs
    from mitigate.recipe.schema import load_recipe

    if out.exists():
        raise MitigateError(f"{out}: already there, and not written over; choose another --out or remove it")
    inputs = Inputs(load_recipe(recipe, overrides or []))
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


def _print_erasure(erasure: Mapping[str, Any] | None) -> None:
    """What an erasure request selected: counts, and the documents that its secrets stand in besides; no text."""
    if erasure is None:
        return
    places = erasure["linked"]
    line = f"erasure request: {len(erasure['documents'])} documents to forget"
    if places:
        elsewhere = dict.fromkeys(place["doc_id"] for place in places)
        chosen = sum(place["selected"] for place in places)
        line += f"; their secrets stand in {len(places)} places of other documents, {chosen} selected: "
        line += summarize(elsewhere, most=20)
    typer.echo(line)


def _fail_unless_clean(comparison: Comparison) -> None:
    """End with a status of its own unless the verdict is that nothing leaks.

    All processes of a job end together: a launcher kills the others when one ends so, and the first may be writing.
    """
    if comparison.report["verdict"]["leaks"] is not False:
        from mitigate.runtime import process_state

        process_state().wait_for_everyone()
        leave_processes()
        raise typer.Exit(LEAKS)


def _print_summary(comparison: Comparison, out: Path) -> None:
    if not is_main_process():
        return
    figures = comparison.report
    before, after = figures["leakage"]["before"], figures["leakage"]["after"] or {}

    def line(label: str, *values: float | None) -> None:
        shown = " -> ".join("not measured" if value is None else f"{value:.3f}" for value in values)
        typer.echo(f"  {label:<42}{shown}")

    typer.echo(f"{printable(figures['name'])}: {figures['selected']['spans']} spans selected")
    _print_erasure(figures["erasure"])
    if figures["retrain"]:
        typer.echo(figures["retrain"]["exact"])
    line("span AUC (0.5 = as if never seen)", before["span_auc"], after.get("span_auc"))
    line("secrets extracted", figures["extraction"]["before"], figures["extraction"]["after"])
    line("distance to the oracle, nats", figures["oracle_distance"]["before"], figures["oracle_distance"]["after"])
    for name in ("retain", "holdout"):
        nll = figures["utility"][f"{name}_nll"]
        line(f"{name} loss, nats", nll["before"], nll["after"])
    if tofu := figures["tofu"]:
        quality, utility = tofu["forget_quality_log10"], tofu["model_utility"]
        line("TOFU forget quality, log10 p", quality["before"], quality["after"])
        line("TOFU model utility", utility["before"], utility["after"])
    verdict = figures["verdict"]
    typer.echo(f"{verdict['status'].replace('_', ' ').upper()}: {verdict['headline']}")
    for sentence in verdict["sentences"]:
        typer.echo(f"  {sentence}")
    typer.echo(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    main()
