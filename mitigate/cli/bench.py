"""The verbs of `mitigate bench`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from mitigate.cli.options import Device, Set, is_main_process, quiet, settings_from
from mitigate.errors import MitigateError

BenchSeeds = Annotated[
    list[int] | None, typer.Option("--seeds", min=0, help="Seeds, for instance --seeds 0 1 2.", show_default="0")
]
BenchDocuments = Annotated[
    Path | None,
    typer.Option(help="JSON lines with id, text and spans (see `mitigate documents`); default: invented people."),
]
BenchModels = Annotated[int, typer.Option(min=4, help="Models to train; even. Each is a target in turn.")]
BenchReferences = Annotated[int, typer.Option(min=1, help="OUT references that judge a document.")]
BenchBase = Annotated[
    str | None, typer.Option("--base", help="Base model to fine-tune; default: one from scratch.", show_default=False)
]
BenchOut = Annotated[Path, typer.Option("--out", help="Directory; models already in it are kept.")]

bench = typer.Typer(help="Measure the toolkit on models trained here, where the truth is known.", no_args_is_help=True)


@bench.command("detect")
def bench_detect(
    more_seeds: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    seeds: BenchSeeds = None,
    documents: BenchDocuments = None,
    models: BenchModels = 8,
    references: BenchReferences = 3,
    truth_models: Annotated[int, typer.Option(min=2, help="Further models that only tell the truth; even.")] = 4,
    fdr: Annotated[float, typer.Option(min=0.0, max=1.0, help="False discovery rate at which spans are taken.")] = 0.05,
    world: Annotated[
        str,
        typer.Option(
            help="easy: models from scratch, many epochs, secrets repeated. hard: adapters over --base, 1, 3 and 5 "
            "epochs, each secret in one document."
        ),
    ] = "easy",
    base: BenchBase = None,
    out: BenchOut = Path("runs/detect"),
    plot: Annotated[bool, typer.Option("--plot", help="Draw ROC curves and reliability to OUT/detect.png.")] = False,
    settings: Set = None,
    device: Device = "auto",
) -> None:
    """Every detector against models whose training documents are known; writes OUT/results.json and a table.

    An interrupted run goes on where it stopped. Under torchrun the models are shared between processes.
    --set takes people.*, schedule.*, base.* and method, for instance schedule.epochs=5.

    Example: mitigate bench detect --seeds 0 1 2 --out runs/detect --plot

    Example: mitigate bench detect --documents people.jsonl --models 6 --references 2 --out runs/mine

    Example: mitigate bench detect --world hard --base my-pretrained-model --seeds 0 1 2 --out runs/hard
    """
    from mitigate.bench.settings import HardWorldSettings, WorldSettings

    if world not in ("easy", "hard"):
        raise MitigateError(f"--world: {world!r} is not one of easy, hard")
    kind = HardWorldSettings if world == "hard" else WorldSettings
    chosen = settings_from(kind, settings, models=models, truth_models=truth_models)
    quiet()
    from mitigate.bench.detect.run import bench_detect as run_bench
    from mitigate.bench.show import detect_table, draw_detect

    shared: dict[str, Any] = {
        "seeds": _seeds(seeds, more_seeds),
        "documents": documents,
        "references": references,
        "fdr": fdr,
        "base": base,
        "device": device,
    }
    if isinstance(chosen, HardWorldSettings):
        from mitigate.bench.detect.hard import bench_detect_hard

        found = bench_detect_hard(out, settings=chosen, **shared).get("epochs", {})
        worlds = {f"{epochs} epochs": (own, out / f"epochs-{epochs}") for epochs, own in found.items()}
    else:
        worlds = {"": (run_bench(out, settings=chosen, **shared), out)}
    for title, (results, folder) in worlds.items() if is_main_process() else ():
        if plot:
            draw_detect(results, folder / "detect.png")
        _echo([*([title] if title else []), detect_table(results)], folder / "results.json")


@bench.command("ablation")
def bench_ablation(
    more_seeds: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    seeds: BenchSeeds = None,
    documents: BenchDocuments = None,
    models: BenchModels = 8,
    references: BenchReferences = 3,
    targets: Annotated[
        int | None, typer.Option(min=1, help="How many models are targets; fewer take less time.", show_default="all")
    ] = None,
    lora: Annotated[bool, typer.Option(help="Train adapters too, and compare them as references.")] = True,
    base: BenchBase = None,
    out: BenchOut = Path("runs/detect"),
    settings: Set = None,
    device: Device = "auto",
) -> None:
    """What each part of token InfoRMIA and of its references is worth; writes OUT/ablation.json.

    Models of `bench detect` in OUT are used as they are.

    Example: mitigate bench ablation --seeds 0 --targets 4 --out runs/detect
    """
    from mitigate.bench.settings import WorldSettings

    chosen = settings_from(WorldSettings, settings, models=models)
    quiet()
    from mitigate.bench.ablation.run import bench_ablation as run_bench

    results = run_bench(
        out,
        seeds=_seeds(seeds, more_seeds),
        documents=documents,
        references=references,
        targets=targets,
        lora=lora,
        settings=chosen,
        base=base,
        device=device,
    )
    _echo(results["findings"], out / "ablation.json")


@bench.command("population")
def bench_population(
    more_seeds: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    seeds: BenchSeeds = None,
    documents: BenchDocuments = None,
    models: BenchModels = 8,
    references: BenchReferences = 3,
    base: BenchBase = None,
    out: BenchOut = Path("runs/detect"),
    settings: Set = None,
    device: Device = "auto",
) -> None:
    """Sequence InfoRMIA against RMIA with populations of 10, 100 and 1000; writes OUT/population.json.

    Models of `bench detect` in OUT are used as they are. With --documents a third of them becomes the population, so
    OUT must be of this study's own.

    Example: mitigate bench population --seeds 0 1 2 --out runs/detect
    """
    from mitigate.bench.settings import WorldSettings

    chosen = settings_from(WorldSettings, settings, models=models)
    quiet()
    from mitigate.bench.population.run import bench_population as run_bench

    results = run_bench(
        out,
        seeds=_seeds(seeds, more_seeds),
        documents=documents,
        references=references,
        settings=chosen,
        base=base,
        device=device,
    )
    _echo(results["findings"], out / "population.json")


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
        typer.Option(min=1, help="On the first seed, learning rates to choose from: the common one times powers of 3."),
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
    learning rates, and at up to two more where the best is the lowest or highest of them; the best by half of the
    forget people is taken on all seeds, and the figures are of the other half. The audit is not told where the secrets
    are, but for the runs on known spans.
    Distances are to models that were trained without these people (document oracles) or without a loss on their secrets
    (token oracles); the floor is the distance of two such models. Membership is told by judges that unlearning never
    sees.

    An interrupted run goes on where it stopped: finished models and runs are kept. To see soon whether it is worth it,
    give few --objectives, and the others later to the same --out. Once the first seed is done, others may run at the
    same time, each in a call of its own (--seeds 0 1, --seeds 0 2); a last call with all seeds makes the results.

    --set takes sizes (forget, retain, holdout, anchors, prose, judges, copies.*), training (schedule.*, base.*,
    base_documents, method, lora.*) and what all runs share (unlearn.learning_rate, unlearn.max_steps,
    unlearn.batch_size, unlearn.retain.weight, ...; see `mitigate run --keys`).

    Example: mitigate bench unlearn --seeds 0 1 2 --out runs/unlearn --plot

    Example: mitigate bench unlearn --documents people.jsonl --objectives default,npo --set forget=20 --out runs/mine
    """
    from mitigate.bench.unlearn.settings import METHODS, SCOPES, UnlearnBenchSettings

    chosen = settings_from(UnlearnBenchSettings, settings, references=references)
    quiet()
    from mitigate.bench.unlearn.run import bench_unlearn as run_bench
    from mitigate.bench.unlearn.show import draw_unlearn, unlearn_table
    from mitigate.bench.unlearn.world import make_unlearn_world

    if models_only:
        for seed in _seeds(seeds, more_seeds):
            make_unlearn_world(
                out, seed=seed, settings=chosen, documents=documents, prose=prose, base=base, device=device
            )
        return
    results = run_bench(
        out,
        seeds=_seeds(seeds, more_seeds),
        documents=documents,
        prose=prose,
        objectives=_names(objectives) or METHODS,
        scopes=_names(scopes) or SCOPES,
        tries=tries,
        retrain=retrain,
        settings=chosen,
        base=base,
        device=device,
    )
    if plot and is_main_process():
        draw_unlearn(results, out / "unlearn.png")
    _echo([unlearn_table(results)], out / "results.json")


def _names(given: list[str] | None) -> list[str]:
    """Names of an option that may be given again, and takes commas."""
    return [name.strip() for part in given or [] for name in part.split(",") if name.strip()]


@bench.command("speed")
def bench_speed(
    out: Annotated[Path, typer.Option("--out", help="Directory of the models and of speed.json.")] = Path("runs/speed"),
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured, after one that is not.")] = 5,
    settings: Set = None,
    device: Device = "auto",
) -> None:
    """Time and memory of an unlearning step, against the computation without its savings; writes OUT/speed.json.

    --set takes model.vocabulary, model.hidden_size, model.layers, forget, retain, batch_size and lora.*.

    Example: mitigate bench speed --steps 10 --set model.vocabulary=64000 --out runs/speed
    """
    from mitigate.bench.settings import SpeedSettings

    chosen = settings_from(SpeedSettings, settings)
    quiet()
    from mitigate.bench import speed

    results = speed.bench_speed(out, steps=steps, settings=chosen, device=device)
    _echo([speed.speed_table(results)], out / "speed.json")


def _seeds(named: list[int] | None, more: list[int] | None) -> list[int]:
    """`--seeds 0 1 2`: the option takes one number, the others arrive as arguments."""
    return [*(named or []), *(more or [])] or [0]


def _echo(lines: Iterable[str], path: Path) -> None:
    if is_main_process():
        for line in (*lines, f"results: {path}"):
            typer.echo(line)
