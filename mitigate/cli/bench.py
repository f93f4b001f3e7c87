"""The verbs of `mitigate bench`, but for `unlearn` (`mitigate.cli.bench_unlearn`), and what all of them share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from mitigate.cli.options import Device, Set, is_main_process, quiet, settings_from
from mitigate.errors import MitigateError
from mitigate.mistakes import not_one_of

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
BenchWorld = Annotated[
    str,
    typer.Option(
        help="easy: models from scratch, many epochs, secrets repeated. hard: adapters over --base, few epochs (--set "
        "epochs=[3,5]), each secret in one document."
    ),
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
    world: BenchWorld = "easy",
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

    kind = HardWorldSettings if is_hard(world) else WorldSettings
    chosen = settings_from(kind, settings, models=models, truth_models=truth_models)
    quiet()
    from mitigate.bench.detect.run import bench_detect as run_bench
    from mitigate.bench.show import detect_table, draw_detect

    shared: dict[str, Any] = {
        "seeds": seeds_of(seeds, more_seeds),
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
        echo([*([title] if title else []), detect_table(results)], folder / "results.json")


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
        seeds=seeds_of(seeds, more_seeds),
        documents=documents,
        references=references,
        targets=targets,
        lora=lora,
        settings=chosen,
        base=base,
        device=device,
    )
    echo(results["findings"], out / "ablation.json")


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
        seeds=seeds_of(seeds, more_seeds),
        documents=documents,
        references=references,
        settings=chosen,
        base=base,
        device=device,
    )
    echo(results["findings"], out / "population.json")


@bench.command("speed")
def bench_speed(
    out: Annotated[Path, typer.Option("--out", help="Directory of the models and of speed.json.")] = Path("runs/speed"),
    shape: Annotated[
        str, typer.Option(help="Of the models, which have random weights: tiny, gpt2 (124 million) or 1b (for a GPU).")
    ] = "tiny",
    parts: Annotated[
        list[str] | None,
        typer.Option(
            help="audit: audits against bare forward passes; step: unlearning steps; processes: two against one; "
            "memory: of more and more documents; several with commas between them.",
            show_default="audit,step",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured, after one that is not.")] = 5,
    settings: Set = None,
    device: Device = "auto",
) -> None:
    """What an audit and an unlearning step cost, as ratios measured in one run; writes OUT/speed.json.

    An audit is timed against the bare forward passes of its models, and against going through the documents one by one;
    a step against the computation without its savings, and its peak memory too; an audit by two processes against one
    by one, on the clock; and the peak memory of audits of 300, 3,000 and 30,000 documents.

    --set takes model.vocabulary, model.hidden_size, model.layers, tokens, turns, forget, retain, batch_size and lora.*.

    Example: mitigate bench speed --shape gpt2 --out runs/speed

    Example: mitigate bench speed --parts step --steps 10 --set model.vocabulary=64000 --out runs/speed
    """
    from mitigate.bench.settings import SHAPES, Part, Shape, SpeedSettings

    wanted = [part.strip() for given in parts or ["audit,step"] for part in given.split(",")]
    problems = [f"--shape: {wrong}"] if (wrong := not_one_of(Shape, shape)) else []
    problems += [f"--parts: {wrong}" for part in wanted if (wrong := not_one_of(Part, part))]
    if problems:
        raise MitigateError("\n".join(problems))
    chosen = settings_from(SpeedSettings, settings, **SHAPES[shape])
    quiet()
    from mitigate.bench.speed import run

    results = run.bench_speed(out, steps=steps, parts=wanted, settings=chosen, device=device)
    echo([run.speed_table(results)], out / "speed.json")


def is_hard(world: str) -> bool:
    """Whether the hard world is asked for.

    Raises:
        MitigateError: neither of the two is.
    """
    if world not in ("easy", "hard"):
        raise MitigateError(f"--world: {world!r} is not one of easy, hard")
    return world == "hard"


def seeds_of(named: list[int] | None, more: list[int] | None) -> list[int]:
    """`--seeds 0 1 2`: the option takes one number, the others arrive as arguments."""
    return [*(named or []), *(more or [])] or [0]


def echo(lines: Iterable[str], path: Path) -> None:
    """Print a benchmark's lines and where its results are."""
    if is_main_process():
        for line in (*lines, f"results: {path}"):
            typer.echo(line)
