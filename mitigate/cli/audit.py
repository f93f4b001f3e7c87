"""The verb `audit`: of given documents, of a recipe's, of an earlier audit's again, of what a model writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitigate.cli.options import (
    BaseModelPath,
    Device,
    Dtype,
    ForgetContains,
    ForgetIds,
    ForgetWhere,
    Linked,
    Out,
    Pickle,
    Remote,
    Seed,
    Set,
    check_free_out,
    is_main_process,
    model_store,
    quiet,
    request_from,
    settings_from,
)
from mitigate.cli.results import print_erasure, print_summary
from mitigate.errors import MitigateError, printable

if TYPE_CHECKING:
    from mitigate.detection.record import Audit
    from mitigate.detection.settings import Detect
    from mitigate.documents.request import Request
    from mitigate.models.store import ModelStore

_MOST_STRETCHES = 20  # that are printed


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
    references_again: Annotated[
        bool,
        typer.Option(
            "--references-again",
            help="With --again: run the references again, too, for the signals that compare whole distributions (kl, "
            "informia); without, what they said is taken from the audit where the score needs no more.",
        ),
    ] = False,
    part_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For documents that memory does not hold: audit about so many tokens at once, for instance 1000000. "
            "OUT/parts keeps every part, OUT/exposed is an audit of what stands out; run again, it goes on.",
        ),
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

    Example: mitigate audit --target my-model --reference base --documents large.jsonl --part-tokens 1000000 --out large
    """
    generate = generate or bool(prompts or match or sampling)
    request = request_from(forget_ids, forget_contains, forget_where, linked=forget_linked)
    if request is not None and (recipe or again or generate):
        raise MitigateError(
            "the --forget options go with --target and --documents: in a recipe give forget.ids, forget.contains or "
            "forget.where; a re-audit keeps the request of its audit; generated text has no documents to forget"
        )
    if part_tokens is not None and (recipe or again or generate):
        raise MitigateError(
            "--part-tokens goes with --target and --documents: a recipe goes on to unlearn; audit by parts, and go on "
            "from OUT/exposed"
        )
    if recipe is not None:
        if target or documents or reference or again or generate:
            raise MitigateError(
                "a recipe names target, documents and references itself: leave the options out and give key=value "
                "after the recipe, for instance models.target=DIR"
            )
        _audit_recipe(recipe, overrides or [])
        return
    if target is None:
        raise MitigateError("--target: missing; give the model to audit, or a recipe that names one")
    if again is not None and (documents or reference or settings or generate):
        raise MitigateError("--again takes documents, references and settings from that audit; leave those options out")
    if references_again and again is None:
        raise MitigateError("--references-again: goes with --again DIR; an audit runs its references in any case")
    if generate and documents:
        raise MitigateError("--generate audits the model's own text: leave --documents out (--match links to it)")
    if not (again or generate or documents):
        raise MitigateError(
            "--documents: missing; give the text to judge, --again DIR for a re-audit, or --generate for what the "
            "model writes itself"
        )
    from mitigate.detection.settings import Detect
    from mitigate.generation.settings import Sampling

    detect, drawn = settings_from(Detect, settings), settings_from(Sampling, sampling)
    quiet()
    store = model_store(base, device, dtype, trust_remote_code, allow_pickle)
    references = reference or []
    if part_tokens is not None and documents is not None:
        _audit_parts(
            target, references, documents, out, part_tokens, detect=detect, store=store, forget=request, seed=seed
        )
        return
    check_free_out(out)
    from mitigate.detection.audit import audit as audit_documents
    from mitigate.detection.audit import reaudit
    from mitigate.detection.record import Audit
    from mitigate.generation.audit import audit_generated

    if again is not None:
        result = reaudit(Audit.load(again), target, store=store, references_again=references_again)
    elif documents is None:
        result = audit_generated(
            target, references, prompts=prompts, match=match, sampling=drawn, detect=detect, store=store, seed=seed
        )
    else:
        result = audit_documents(
            target, references, documents=documents, detect=detect, store=store, forget=request, seed=seed
        )
    if is_main_process():
        result.save(out)
        _print_found(result, out)
        if generate:
            _print_stretches(result)
        for line in result.metadata.skipped:
            typer.echo(f"skipped {printable(line)}", err=True)


def _audit_parts(
    target: str,
    references: Sequence[str],
    documents: str,
    out: Path,
    part_tokens: int,
    *,
    detect: Detect,
    store: ModelStore,
    forget: Request | None,
    seed: int,
) -> None:
    from mitigate.detection.parts.audit import audit_parts

    made = audit_parts(
        target,
        references,
        documents=documents,
        out=out,
        part_tokens=part_tokens,
        detect=detect,
        store=store,
        forget=forget,
        seed=seed,
    )
    if is_main_process():
        total = made.total
        typer.echo(
            f"{total.documents} documents, {total.tokens} tokens in {total.parts} parts: {total.found} memorized spans "
            f"found, {total.selected} selected for unlearning, in {total.exposed} documents -> "
            + (f"{out / 'exposed'}" if made.exposed else f"{out / 'parts'} (nothing stands out: no {out / 'exposed'})")
        )
        if made.exposed is not None and made.exposed.metadata.erasure is not None:
            print_erasure(made.exposed.metadata.erasure.written())
        for line in made.skipped:
            typer.echo(f"skipped {printable(line)}", err=True)


def _audit_recipe(recipe: Path, overrides: Sequence[str]) -> None:
    """All of a run but its unlearning: the report is of the audit alone."""
    from mitigate.recipe.loading import load_recipe

    loaded = load_recipe(recipe, [*overrides, "unlearn=null", "retrain=null"])
    quiet()
    from mitigate.pipeline.run import run

    print_summary(run(loaded), loaded.out)


def _print_found(result: Audit, out: Path) -> None:
    found = sum(span.source == "found" for span in result.span_rows)
    selected = sum(span.selected for span in result.span_rows)
    typer.echo(
        f"{len(result.documents)} documents, {len(result.tokens)} tokens: {found} memorized spans found, "
        f"{selected} selected for unlearning -> {out}"
    )
    if result.metadata.erasure is not None:
        print_erasure(result.metadata.erasure.written())


def _print_stretches(result: Audit) -> None:
    from mitigate.generation.audit import memorized_stretches

    stretches = memorized_stretches(result)
    linked = [stretch for stretch in stretches if stretch["training_id"] is not None]
    typer.echo(f"{len(stretches)} memorized stretches in what it wrote, {len(linked)} linked to training text")
    for stretch in linked[:_MOST_STRETCHES]:
        where = f"{printable(stretch['doc_id'])} [{stretch['char_start']}, {stretch['char_end']})"
        typer.echo(f"  {where} score {stretch['score']:.2f} from {printable(stretch['training_id'])}")
