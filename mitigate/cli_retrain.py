"""The verb `retrain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitigate.cli_options import (
    Device,
    Dtype,
    Pickle,
    Remote,
    Seed,
    Set,
    is_main_process,
    model_store,
    quiet,
    settings_from,
)

if TYPE_CHECKING:
    from mitigate.models import ModelStore


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
    copies: Annotated[bool, typer.Option(help="Remove the selected text wherever else it stands, too.")] = True,
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
) -> None:
    """Unlearn exactly: fit the model anew from its base, on the training text without the selected spans.

    Exact, given that the base never saw what is removed. The model learns the audit's documents (not the holdout set)
    and those of --documents. With --shards, forgetting more later (same --out, another audit) fits only the shards
    concerned. The file private.json in --out says what was removed: keep it to yourself.

    --set takes schedule.* and lora.* keys: schedule.epochs=10, lora.rank=32.

    Example: mitigate retrain --audit audit --base gpt2 --redact placeholder --shards 4 --out retrained
    """
    quiet()
    from pydantic import BaseModel, ConfigDict, Field

    from mitigate.training import Lora, Schedule
    from mitigate.unlearning.exact import retrain as fit_anew

    class Fit(BaseModel):
        model_config = ConfigDict(extra="forbid")

        lora: Lora = Field(default_factory=Lora, description="shape of the adapters")
        schedule: Schedule = Field(default_factory=Schedule, description="as the target's, where that is known")

    chosen = settings_from(Fit, settings)

    def store() -> ModelStore:
        return model_store(None, device, dtype, trust_remote_code, allow_pickle)

    summary = fit_anew(
        audit,
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
    if copies:
        line += f" and {removed['copies']} copies of them in {removed['copies_documents']} documents"
        if unsought := removed["too_short_to_seek"] + removed["too_common_to_seek"]:
            line += f" ({unsought} strings are too short or too common to look for)"
    typer.echo(f"{line}; {removed['documents_left_out']} documents left out")
    typer.echo(f"fitted: {'shard ' + ', '.join(fitted) if fitted else 'nothing'} of {len(summary['shards'])} shards")
    typer.echo(f"{summary['exact']} -> {out}")
