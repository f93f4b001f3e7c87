"""`mitigate bench unlearn`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mitigate.cli.bench import BenchBase, BenchOut, BenchSeeds, BenchWorld, bench, echo, is_hard, seeds_of
from mitigate.cli.options import Device, Set, is_main_process, quiet, settings_from


@bench.command("unlearn")
def bench_unlearn(
    more_seeds: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    seeds: BenchSeeds = None,
    documents: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with id, text, spans and group (see `mitigate documents`); sets are dealt anew. "
            "Default: invented people.",
            show_default=False,
        ),
    ] = None,
    prose: Annotated[
        Path | None,
        typer.Option(
            help="Documents without anyone's data: one part may be held still, on the other the loss is measured. "
            "Default: invented prose.",
            show_default=False,
        ),
    ] = None,
    references: Annotated[
        int, typer.Option(min=4, help="Cross-fitted references of the audit; even, half of them judge a document.")
    ] = 8,
    world: BenchWorld = "easy",
    base: BenchBase = None,
    out: BenchOut = Path("runs/unlearn"),
    objectives: Annotated[
        list[str] | None,
        typer.Option(
            help="Objectives to run, with commas between them; `default` with token scope always runs.",
            show_default="all",
        ),
    ] = None,
    scopes: Annotated[
        list[str] | None,
        typer.Option(
            help="token: forget the tokens that the audit selected; sequence: the documents that hold them.",
            show_default="both",
        ),
    ] = None,
    tries: Annotated[
        int,
        typer.Option(
            min=1,
            help="On the first seed, learning rates to choose from: the common one times powers of 3; with more than "
            "one, then a third and three times the weight of the anchors.",
        ),
    ] = 3,
    retrain: Annotated[
        bool, typer.Option(help="Fit anew without the secrets, too: what exact unlearning gives.")
    ] = True,
    models_only: Annotated[
        bool, typer.Option("--models-only", help="Train the models and stop; a later call goes on from them.")
    ] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw forgetting against utility to OUT/unlearn.png.")] = False,
    settings: Set = None,
    device: Device = "auto",
) -> None:
    """Every way to unlearn, against models that never saw what is forgotten; OUT/results.json, and a table.

    Each seed deals people to forget, retain and holdout, fine-tunes a target, audits it, and lets every objective
    forget the audit's tokens (token scope) and whole documents (sequence scope). On the first seed each runs at --tries
    learning rates, at up to two more where the best is the lowest or highest of them, and then with two more weights of
    its anchors; the best by half of the forget people is taken on all seeds, and the figures are of the other half. In
    the hard world the default runs as it is shipped, without tries. The audit is not told where the secrets are, but
    for two more runs of the default: with what is known by its form, as files have it that mark nothing, and with the
    secrets as known spans. Published objectives run as published: their anchors and weights, NPO and DPO on sums
    over a sequence; those whose names end in _token are of tokens. Distances are to models that were trained without
    these people (document oracles) or without a loss on their secrets (token oracles); the floor is the distance of two
    such models. Membership is told by judges that unlearning never sees.

    An interrupted run goes on where it stopped: finished models and runs are kept. To see soon whether it is worth it,
    give few --objectives, and the others later to the same --out. Once the first seed is done, others may run at the
    same time, each in a call of its own (--seeds 0 1, --seeds 0 2); a last call with all seeds makes the results.

    --set takes sizes (forget, retain, holdout, anchors, prose, judges, copies.*), training (schedule.*, base.*,
    base_documents, method, lora.*) and what all runs share (unlearn.learning_rate, unlearn.max_steps,
    unlearn.batch_size, unlearn.retain.weight, ...; see `mitigate run --keys`).

    Example: mitigate bench unlearn --seeds 0 1 2 --out runs/unlearn --plot

    Example: mitigate bench unlearn --documents people.jsonl --objectives default,npo --set forget=20 --out runs/mine

    Example: mitigate bench unlearn --world hard --base my-pretrained-model --objectives default,npo --out runs/hard
    """
    from mitigate.bench.unlearn.settings import METHODS, SCOPES, HardUnlearnBenchSettings, UnlearnBenchSettings

    kind = HardUnlearnBenchSettings if is_hard(world) else UnlearnBenchSettings
    chosen = settings_from(kind, settings, references=references)
    quiet()
    from mitigate.bench.unlearn.hard import bench_unlearn_hard, folder_of
    from mitigate.bench.unlearn.run import bench_unlearn as run_bench
    from mitigate.bench.unlearn.show import draw_unlearn, unlearn_table
    from mitigate.bench.unlearn.world import make_unlearn_world

    given: dict[str, Any] = {"documents": documents, "prose": prose, "base": base, "device": device}
    shared = {**given, "objectives": _names(objectives) or METHODS, "scopes": _names(scopes) or SCOPES}
    shared |= {"seeds": seeds_of(seeds, more_seeds), "tries": tries, "retrain": retrain}
    hard = chosen if isinstance(chosen, HardUnlearnBenchSettings) else None
    if models_only:
        worlds = [(out, chosen)]
        if hard is not None:
            worlds = [(folder_of(out, epochs), hard.of(UnlearnBenchSettings, epochs)) for epochs in hard.epochs]
        for folder, own in worlds:
            for seed in shared["seeds"]:
                make_unlearn_world(folder, seed=seed, settings=own, **given)
        return
    if hard is not None:
        found = bench_unlearn_hard(out, settings=hard, **shared)["epochs"]
        results = [(folder_of(out, epochs), found[f"{epochs:g}"]) for epochs in hard.epochs]
    else:
        results = [(out, run_bench(out, settings=chosen, **shared))]
    for folder, measured in results if is_main_process() else ():
        if plot:
            draw_unlearn(measured, folder / "unlearn.png")
        echo([*([folder.name] if hard else []), unlearn_table(measured)], folder / "results.json")


def _names(given: list[str] | None) -> list[str]:
    """Names of an option that may be given again, and takes commas."""
    return [name.strip() for part in given or [] for name in part.split(",") if name.strip()]
