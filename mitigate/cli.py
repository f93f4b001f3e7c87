"""Command line: one short function per verb. `mitigate --help`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mitigate.errors import MitigateError

if TYPE_CHECKING:
    from mitigate.models import ModelStore
    from mitigate.verification.compare import Comparison

app = typer.Typer(
    name="mitigate",
    help="Find what a language model memorized, token by token. Remove just that. Prove it.",
    epilog="Start with: mitigate run recipes/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("--out", help="Directory for the result; must be new or empty.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto (float32 on a CPU, else the checkpoint's), float32, bfloat16, float16.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with a checkpoint.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Accept weights that are not safetensors.")]
BaseModelPath = Annotated[
    str | None,
    typer.Option("--base", help="Base to use for adapters instead of the one they name.", show_default=False),
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting as key=value, as in a recipe; may be given again.", show_default=False),
]


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="YAML recipe; see recipes/ for commented ones.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for instance unlearn.objective=npo.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Empty the run's directory first.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="List every recipe key and stop.")] = False,
) -> None:
    """Find, remove and prove in one go: documents, references, audit, unlearn, re-audit, report.

    Stages whose inputs are unchanged are skipped; an interrupted run goes on when the command is given again.

    Example: mitigate run recipes/quickstart.yaml out=runs/mine unlearn.objective=npo
    """
    from mitigate.recipe import known_keys, load_recipe

    if keys:
        typer.echo("\n".join(known_keys()))
        return
    if recipe is None:
        raise MitigateError("no recipe given; start from one in recipes/, for instance recipes/finetuned.yaml")
    loaded = load_recipe(recipe, overrides or [])
    _quiet()
    from mitigate.pipeline import run as run_recipe

    _print_summary(run_recipe(loaded, replace=replace), loaded.out)


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
    """
    generate = generate or bool(prompts or match or sampling)
    if recipe is not None:
        if target or documents or reference or again or generate:
            raise MitigateError(
                "a recipe names target, documents and references itself: leave the options out and give key=value "
                "after the recipe, for instance models.target=DIR"
            )
        from mitigate.recipe import load_recipe

        loaded = load_recipe(recipe, [*(overrides or []), "unlearn=null"])
        _quiet()
        from mitigate.pipeline import run as run_recipe

        _print_summary(run_recipe(loaded), loaded.out)
        return
    if target is None:
        raise MitigateError("--target: missing; give the model to audit, or a recipe that names one")
    _check_free(out)
    _quiet()
    from mitigate.detection.audit import Audit, reaudit
    from mitigate.detection.audit import audit as audit_documents
    from mitigate.detection.settings import Detect

    store = _store(base, device, dtype, trust_remote_code, allow_pickle)
    if again is not None:
        if documents or reference or settings or generate:
            raise MitigateError(
                "--again takes documents, references and settings from that audit; leave those options out"
            )
        result = reaudit(Audit.load(again), target, store=store)
    elif generate:
        from mitigate.detection.generation import Sampling, audit_generated

        if documents:
            raise MitigateError("--generate audits the model's own text: leave --documents out (--match links to it)")
        result = audit_generated(
            target,
            list(reference or []),
            prompts=prompts,
            match=match,
            sampling=_settings(Sampling, sampling),
            detect=_settings(Detect, settings),
            store=store,
            seed=seed,
        )
    else:
        if documents is None:
            raise MitigateError(
                "--documents: missing; give the text to judge, --again DIR for a re-audit, or --generate for what the "
                "model writes itself"
            )
        detect = _settings(Detect, settings)
        result = audit_documents(
            target, list(reference or []), documents=documents, detect=detect, store=store, seed=seed
        )
    if _is_main():
        result.save(out)
        spans = [row for row in result.spans.to_pylist() if row["source"] == "found"]
        chosen = [row for row in result.spans.to_pylist() if row["selected"]]
        typer.echo(
            f"{len(result.documents)} documents, {len(result.tokens)} tokens: {len(spans)} memorized spans found, "
            f"{len(chosen)} selected for unlearning -> {out}"
        )
        if generate:
            from mitigate.detection.generation import memorized_stretches

            stretches = memorized_stretches(result)
            linked = sum(stretch["training_id"] is not None for stretch in stretches)
            typer.echo(f"{len(stretches)} memorized stretches in what it wrote, {linked} linked to training text")
            for stretch in [stretch for stretch in stretches if stretch["training_id"] is not None][:20]:
                where = f"{stretch['doc_id']} [{stretch['char_start']}, {stretch['char_end']})"
                typer.echo(f"  {where} score {stretch['score']:.2f} from {stretch['training_id']}")
        for line in result.metadata["skipped"]:
            typer.echo(f"skipped {line}", err=True)


@app.command()
def references(
    base: Annotated[str, typer.Option(help="The model that the target was fine-tuned from.")],
    documents: Annotated[str, typer.Option(help="The documents that the audit will judge.")],
    out: Annotated[Path, typer.Option(help="Directory for the references; finished ones in it are kept.")] = Path(
        "references"
    ),
    count: Annotated[int, typer.Option(min=2, help="How many; even. Each document is judged by half of them.")] = 4,
    method: Annotated[str, typer.Option(help="lora: adapters that share the base; full: whole models.")] = "lora",
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
    seed: Seed = 0,
) -> None:
    """Cross-fit reference models: each is trained on a random half of the documents.

    --set takes schedule.* and lora.* keys: schedule.epochs=10, lora.rank=32.

    Example: mitigate references --base gpt2 --documents train.jsonl --count 4 --out references
    """
    _quiet()
    from mitigate.detection.references import crossfit_references
    from mitigate.documents import read_documents
    from mitigate.recipe import ReferenceSettings

    chosen = _settings(ReferenceSettings, settings)

    def store() -> ModelStore:
        return _store(None, device, dtype, trust_remote_code, allow_pickle)

    tokenizer = store().load(base).tokenizer
    made = crossfit_references(
        base,
        read_documents(documents, tokenizer=tokenizer),
        out=out,
        count=count,
        method=method,
        lora=chosen.lora,
        schedule=chosen.schedule,
        seed=seed,
        new_store=store,
    )
    if _is_main():
        typer.echo(f"{len(made.paths)} references -> {out}")


@app.command()
def unlearn(
    audit: Annotated[Path, typer.Option(help="Directory of the audit that selected the tokens.")],
    out: Out = Path("adapter"),
    objective: Annotated[
        str | None, typer.Option(help="npo, hinge, distill, grad_diff; several with weights: hinge=1,distill=0.5.")
    ] = None,
    retain: Annotated[str | None, typer.Option(help="Documents to hold still, besides the audit's own.")] = None,
    target: Annotated[str | None, typer.Option(help="Where the audited model is now, if it moved.")] = None,
    settings: Set = None,
    base: BaseModelPath = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
    seed: Seed = 0,
) -> None:
    """Train a LoRA adapter that forgets the selected tokens and keeps the rest; goes on from a checkpoint.

    Example: mitigate unlearn --audit audit --retain other.jsonl --objective hinge --out adapter
    """
    _check_free(out)
    from mitigate.unlearning.objectives import parse_objective

    chosen_objective = parse_objective(objective) if objective else None
    _quiet()
    from mitigate.unlearning.trainer import Unlearn
    from mitigate.unlearning.trainer import unlearn as train

    chosen = _settings(Unlearn, settings)
    if chosen_objective:
        chosen = chosen.model_copy(update={"objective": chosen_objective})
    result = train(
        audit,
        out=out,
        retain=retain,
        settings=chosen,
        target=target,
        store=_store(base, device, dtype, trust_remote_code, allow_pickle),
        seed=seed,
    )
    if _is_main():
        summary = result.summary
        typer.echo(
            f"{summary['steps']} steps, {summary['stopped']}; "
            f"{summary['adapter_parameters']:,} parameters beside the model's {summary['model_parameters']:,} -> {out}"
        )


@app.command()
def compare(
    before: Annotated[Path, typer.Option(help="Directory of the audit.")],
    after: Annotated[Path, typer.Option(help="Directory of the re-audit.")],
    out: Out = Path("report"),
    oracle: Annotated[
        str | None, typer.Option(help="A model retrained without the forget documents, to measure the distance to.")
    ] = None,
    extraction: Annotated[bool, typer.Option(help="Try to extract the secrets from both models.")] = True,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Show sensitive text; for invented people only.")
    ] = False,
    name: Annotated[str, typer.Option(help="Title of the report.")] = "comparison",
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
) -> None:
    """Write report.json and report.html: how far the leakage fell from one audit to the next.

    Example: mitigate compare --before audit --after reaudit --out report
    """
    _check_free(out)
    _quiet()
    from mitigate.detection.audit import Audit
    from mitigate.verification.compare import compare as compare_audits
    from mitigate.verification.compare import measure

    audits = Audit.load(before), Audit.load(after)
    store = _store(None, device, dtype, trust_remote_code, allow_pickle)
    oracle_log_probs, extracted = measure(*audits, oracle=oracle, extraction=extraction, store=store)
    comparison = compare_audits(
        *audits, oracle_log_probs=oracle_log_probs, extraction=extracted, name=name, show_text=show_text
    )
    if _is_main():
        comparison.save(out)
        _print_summary(comparison, out)


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(help="Directory of a finished `mitigate run`.")],
    show_text: Annotated[bool, typer.Option("--show-text/--mask-text", help="Show or mask sensitive text.")] = False,
) -> None:
    """Write a finished run's report.html anew, with its sensitive text shown or masked."""
    _quiet()
    from mitigate.artifacts import read_json
    from mitigate.detection.audit import Audit
    from mitigate.verification.compare import Comparison

    figures = {**read_json(run_directory / "report.json"), "show_text": show_text}
    after = Audit.load(run_directory / "reaudit") if (run_directory / "reaudit").is_dir() else None
    Comparison(figures, Audit.load(run_directory / "audit"), after).save_into(run_directory)
    typer.echo(f"{run_directory / 'report.html'}")


bench = typer.Typer(help="Measure the toolkit on models trained here, where the truth is known.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("detect")
def bench_detect(
    more_seeds: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(min=0, help="Seeds, for instance --seeds 0 1 2.", show_default="0")
    ] = None,
    documents: Annotated[
        Path | None,
        typer.Option(help="JSON lines with id, text and spans (see `mitigate documents`); default: invented people."),
    ] = None,
    models: Annotated[int, typer.Option(min=4, help="Models to train; even. Each is a target in turn.")] = 8,
    references: Annotated[int, typer.Option(min=1, help="OUT references that judge a document.")] = 3,
    truth_models: Annotated[int, typer.Option(min=2, help="Further models that only tell the truth; even.")] = 4,
    fdr: Annotated[float, typer.Option(min=0.0, max=1.0, help="False discovery rate at which spans are taken.")] = 0.05,
    base: Annotated[
        str | None, typer.Option(help="Base model to fine-tune; default: one from scratch.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Directory; models already in it are kept.")] = Path("runs/detect"),
    plot: Annotated[bool, typer.Option("--plot", help="Draw ROC curves and reliability to OUT/detect.png.")] = False,
    settings: Set = None,
    device: Device = "auto",
) -> None:
    """Every detector against models whose training documents are known; writes OUT/results.json and a table.

    An interrupted run goes on where it stopped. Under torchrun the models are shared between processes.
    --set takes people.*, schedule.*, base.* and method, for instance schedule.epochs=5.

    Example: mitigate bench detect --seeds 0 1 2 --out runs/detect --plot

    Example: mitigate bench detect --documents people.jsonl --models 6 --references 2 --out runs/mine
    """
    _quiet()
    from mitigate.lab.bench.detect import bench_detect as run_bench
    from mitigate.lab.bench.show import detect_table, draw_detect
    from mitigate.lab.bench.world import WorldSettings

    chosen = _settings(WorldSettings, [f"models={models}", f"truth_models={truth_models}", *(settings or [])])
    results = run_bench(
        out,
        seeds=[*(seeds or []), *(more_seeds or [])] or [0],
        documents=documents,
        references=references,
        fdr=fdr,
        settings=chosen,
        base=base,
        device=device,
    )
    if _is_main():
        if plot:
            draw_detect(results, out / "detect.png")
        typer.echo(detect_table(results))
        typer.echo(f"results: {out / 'results.json'}")


@app.command()
def documents(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe whose data.documents are read.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for instance data.root=DIR.")] = None,
    out: Annotated[Path, typer.Option("--out", help="JSON lines file to write.")] = Path("documents.jsonl"),
) -> None:
    """Write a recipe's documents as JSON lines: id, text, spans, set, group. For `bench detect --documents`.

    Example: mitigate documents recipes/lume.yaml data.root=lume --out lume-people.jsonl
    """
    _quiet()
    from mitigate.documents import read_documents
    from mitigate.lab.people import write_jsonl
    from mitigate.recipe import load_recipe

    data = load_recipe(recipe, overrides or []).data
    found = read_documents(data.documents, root=data.root)
    write_jsonl(found, out)
    typer.echo(f"{len(found)} documents, {sum(len(document.spans) for document in found)} spans -> {out}")


def main() -> None:
    """Entry point: messages instead of tracebacks for what a user can mend."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("mitigate").setLevel(logging.INFO)
    try:
        app()
    except MitigateError as error:
        typer.echo(f"mitigate: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # typer turns Ctrl-C into this exit status
            raise
        typer.echo("\nmitigate: interrupted; finished stages are kept, give the same command again to go on", err=True)
        sys.exit(130)


def _quiet() -> None:
    from mitigate.runtime import is_main, quiet_libraries

    quiet_libraries()
    if not is_main():
        logging.getLogger("mitigate").setLevel(logging.WARNING)


def _is_main() -> bool:
    from mitigate.runtime import is_main

    return is_main()


def _check_free(out: Path) -> None:
    """Refuse an occupied directory before the work, not after it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MitigateError(f"{out}: already holds something; choose another --out or remove it")


def _store(base: str | None, device: str, dtype: str, trust_remote_code: bool, allow_pickle: bool) -> ModelStore:
    from mitigate.models import ModelStore

    return ModelStore(
        device=device, dtype=dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, base=base
    )


def _settings(kind: Any, assignments: list[str] | None) -> Any:
    """Settings from `key=value` options, checked like a recipe's."""
    from mitigate.recipe import check_settings

    return check_settings(kind, assignments or [])


def _print_summary(comparison: Comparison, out: Path) -> None:
    if not _is_main():
        return
    figures = comparison.report
    before, after = figures["leakage"]["before"], figures["leakage"]["after"] or {}

    def line(label: str, *values: float | None) -> None:
        shown = " -> ".join("not measured" if value is None else f"{value:.3f}" for value in values)
        typer.echo(f"  {label:<42}{shown}")

    typer.echo(f"{figures['name']}: {figures['selected']['spans']} spans selected")
    line("span AUC (0.5 = as if never seen)", before["span_auc"], after.get("span_auc"))
    line("secrets extracted", figures["extraction"]["before"], figures["extraction"]["after"])
    line("distance to the oracle, nats", figures["oracle_distance"]["before"], figures["oracle_distance"]["after"])
    for name in ("retain", "holdout"):
        nll = figures["utility"][f"{name}_nll"]
        line(f"{name} loss, nats", nll["before"], nll["after"])
    typer.echo(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    main()
