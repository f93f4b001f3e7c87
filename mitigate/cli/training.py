"""The verbs that train models: `references`, `unlearn`, `retrain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitigate.cli.options import (
    BaseModelPath,
    Device,
    Dtype,
    Out,
    Pickle,
    Remote,
    Seed,
    Set,
    Yes,
    check_doubts,
    check_free_out,
    is_main_process,
    model_store,
    print_loading,
    quiet,
    settings_from,
)
from mitigate.errors import MitigateError

if TYPE_CHECKING:
    from mitigate.models.store import ModelStore

_JUDGES = 1_000_003  # added to the seed of references that are to judge, so that they are others than those that teach


def references(
    base: Annotated[str, typer.Option(help="The model that the target was fine-tuned from.")],
    documents: Annotated[
        str | None, typer.Option(help="The documents that the audit will judge.", show_default=False)
    ] = None,
    judges: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --documents: an audit. The references are for `verify --judges`: of its documents, and, "
            "where --target is not given, of its target; no unlearning may use them.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for the references; finished ones in it are kept.")] = Path(
        "references"
    ),
    count: Annotated[
        int, typer.Option(min=2, max=1000, help="How many; even. Each document is judged by half of them.")
    ] = 8,
    method: Annotated[str, typer.Option(help="lora: adapters that share the base; full: whole models.")] = "lora",
    target: Annotated[
        str | None,
        typer.Option(
            help="The model that the audit will judge: references are trained until they know their documents as it "
            "does, and its chat template reads the documents.",
            show_default="none: give --set schedule.epochs=...",
        ),
    ] = None,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
    seed: Seed = 0,
) -> None:
    """Cross-fit reference models: each is trained on a random half of the documents.

    Each is trained until it knows its documents as well as the target does. Where it is known how the target was
    trained, say so: --set takes schedule.* and lora.* keys: schedule.epochs=10, lora.rank=32.

    Example: mitigate references --base gpt2 --target my-model --documents train.jsonl --out references

    Example: mitigate references --base gpt2 --judges audit --out judges
    """
    if (documents is None) == (judges is None):
        raise MitigateError("give --documents of an audit to come, or --judges with the audit that is there")
    from mitigate.detection.settings import ReferenceFit

    chosen = settings_from(ReferenceFit, settings)
    if chosen.schedule == "auto" and target is None and judges is None:
        raise MitigateError(
            "--target: missing; references are trained until they know their documents as the target does; give it, "
            "or how it was trained: --set schedule.epochs=3 --set schedule.learning_rate=2e-4"
        )
    quiet()
    from mitigate.detection.record import Audit
    from mitigate.detection.references.crossfit import crossfit_references
    from mitigate.documents import read_documents
    from mitigate.models.compatible import check_tokenizers
    from mitigate.models.directory import load_tokenizer

    def store() -> ModelStore:
        return model_store(None, device, dtype, trust_remote_code, allow_pickle)

    audited = Audit.load(judges) if judges is not None else None
    if audited is not None and chosen.schedule == "auto":
        target = target or audited.metadata.target.source

    if target is not None:
        check_tokenizers(target, {"base": base}, store=store())
    store().check(target or base)
    tokenizer = load_tokenizer(target or base, trust_remote_code=trust_remote_code)
    if documents is not None:
        read = read_documents(documents, tokenizer=tokenizer)
    else:
        assert audited is not None
        read, seed = audited.document_list(), seed + _JUDGES
    made = crossfit_references(
        base,
        read,
        out=out,
        count=count,
        method=method,
        lora=chosen.lora,
        schedule=chosen.schedule,
        target=target,
        seed=seed,
        new_store=store,
    )
    if is_main_process():
        typer.echo(f"{len(made.paths)} references -> {out}")


def unlearn(
    audit: Annotated[Path, typer.Option(help="Directory of the audit that selected the tokens.")],
    out: Out = Path("adapter"),
    objective: Annotated[
        str | None,
        typer.Option(
            help="default, ascent, grad_diff, npo, simnpo, wga, satimp, undial, dpo, idk, substitute, rmu, hinge, "
            "distill, match, consensus, lens; several with weights: match=1,consensus=0.5 (which is the default)."
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(help="token: the selected tokens; sequence: whole documents that hold any.", show_default="token"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="What is trained: lora, dora, full (all weights), last_layers.", show_default="lora"),
    ] = None,
    give: Annotated[
        str | None,
        typer.Option(
            help="Where the target is an adapter: replace: one adapter to load in its place; difference: what is to be "
            "added to it alone, which only mitigate loads.",
            show_default="replace",
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Also write the model with the adapter merged in, to OUT/merged.")
    ] = False,
    retain: Annotated[str | None, typer.Option(help="Documents to hold still, besides the audit's own.")] = None,
    target: Annotated[str | None, typer.Option(help="Where the audited model is now, if it moved.")] = None,
    settings: Set = None,
    base: BaseModelPath = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
    seed: Seed = 0,
    yes: Yes = False,
) -> None:
    """Train an adapter that forgets the selected tokens and keeps the rest; goes on from a checkpoint.

    --set takes every key of a recipe's unlearn section: retain.budget=0.02, max_steps=200, lora.rank=32.

    Example: mitigate unlearn --audit audit --retain other.jsonl --objective hinge --out adapter
    """
    from mitigate.unlearning.objectives.names import parse_objective
    from mitigate.unlearning.settings import Unlearn

    chosen_objective = parse_objective(objective) if objective else None
    chosen = settings_from(Unlearn, settings, scope=scope, method=method, give=give, merge=merge or None)
    if chosen_objective:
        chosen = chosen.model_copy(update={"objective": chosen_objective})
    check_free_out(out)
    quiet()
    from mitigate.detection.record import Audit
    from mitigate.unlearning.trainer import unlearn as train

    audited = Audit.load(audit)
    check_doubts(audited, yes=yes)
    result = train(
        audited,
        out=out,
        retain=retain,
        settings=chosen,
        target=target,
        store=model_store(base, device, dtype, trust_remote_code, allow_pickle),
        seed=seed,
    )
    if is_main_process():
        summary = result.summary
        typer.echo(
            f"{summary['steps']} steps, {summary['stopped']}; "
            f"{summary['adapter_parameters']:,} parameters beside the model's {summary['model_parameters']:,} -> {out}"
        )
        print_loading(out)


def retrain(
    audit: Annotated[Path, typer.Option(help="Directory of the audit that selected what is to be forgotten.")],
    base: Annotated[str, typer.Option(help="The model that the target was fine-tuned from.")],
    out: Annotated[
        Path, typer.Option(help="Directory for the model; one of an earlier retrain: shards without changes are kept.")
    ] = Path("retrained"),
    redact: Annotated[
        str,
        typer.Option(
            help="mask: no loss on the selected tokens; placeholder: [PHONE]; fake: another number of that format; "
            "drop: leave the documents to forget out."
        ),
    ] = "mask",
    documents: Annotated[
        str | None, typer.Option(help="More text that the target was trained on, besides the audit's.")
    ] = None,
    copies: Annotated[
        bool | None,
        typer.Option(
            "--copies/--no-copies",
            help="Remove the selected text wherever else it stands, too.",
            show_default="yes, but not after an audit with --no-linked",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="lora: an adapter; full: a whole model.")] = "lora",
    shards: Annotated[int, typer.Option(min=1, help="Adapters on disjoint documents.")] = 1,
    combine: Annotated[
        str,
        typer.Option(
            help="Shards as one model: mixture, or sum, a plain adapter that knows little of single documents."
        ),
    ] = "mixture",
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
    seed: Seed = 0,
    yes: Yes = False,
) -> None:
    """Unlearn exactly: fit the model anew from its base, on the training text without the selected spans.

    Exact, given that the base never saw what is removed. The model learns the audit's documents (not the holdout set)
    and those of --documents. With --shards, forgetting more later (same --out, another audit) fits only the shards
    concerned. The file private.json in --out says what was removed: keep it to yourself.

    --set takes schedule.* and lora.* keys: schedule.epochs=10, lora.rank=32.

    Example: mitigate retrain --audit audit --base gpt2 --redact placeholder --shards 4 --out retrained
    """
    from mitigate.models.settings import FitSettings

    chosen = settings_from(FitSettings, settings)
    quiet()
    from mitigate.detection.record import Audit
    from mitigate.retraining.retrain import retrain as fit_anew

    def store() -> ModelStore:
        return model_store(None, device, dtype, trust_remote_code, allow_pickle)

    audited = Audit.load(audit)
    check_doubts(audited, yes=yes)
    summary = fit_anew(
        audited,
        base=base,
        out=out,
        redact=redact,
        documents=documents,
        copies=copies,
        method=method,
        lora=chosen.lora,
        schedule=chosen.schedule,
        shards=shards,
        combine=combine,
        seed=seed,
        new_store=store,
    ).summary
    if not is_main_process():
        return
    removed, fitted = summary["removed"], [str(number) for number in summary["refitted"]]
    line = f"removed: {removed['spans']} selected spans"
    if removed["too_short_to_seek"] is not None:  # copies were looked for
        line += f" and {removed['copies']} copies of them in {removed['copies_documents']} documents"
        if unsought := removed["too_short_to_seek"] + removed["too_common_to_seek"]:
            line += f" ({unsought} strings are too short or too common to look for)"
    typer.echo(f"{line}; {removed['documents_left_out']} documents left out")
    typer.echo(f"fitted: {'shard ' + ', '.join(fitted) if fitted else 'nothing'} of {len(summary['shards'])} shards")
    typer.echo(f"{summary['exact']} -> {out}")
    print_loading(out)
