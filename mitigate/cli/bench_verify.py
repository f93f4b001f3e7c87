"""`mitigate bench verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mitigate.cli.bench import BenchBase, BenchOut, BenchSeeds, BenchWorld, bench, echo, is_hard, seeds_of
from mitigate.cli.options import Device, Set, quiet, settings_from


@bench.command("verify")
def bench_verify(
    more_seeds: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    seeds: BenchSeeds = None,
    documents: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with id, text, spans and group; sets are dealt anew. Default: invented people.",
            show_default=False,
        ),
    ] = None,
    candidates: Annotated[
        list[str] | None, typer.Option(help="Models to verify, with commas between them.", show_default="all")
    ] = None,
    world: BenchWorld = "easy",
    base: BenchBase = None,
    out: BenchOut = Path("runs/cheats"),
    settings: Set = None,
    device: Device = "auto",
) -> None:
    """Models that only look as if they had forgotten, and honest ones: who is caught, and by which check?

    The untouched target; a guard in the decoding; refusals after the true beginning; an adapter that was lost on
    merging; unlearning against the very references that judge; pushed too low; hidden by the last layer alone; undone
    by 4-bit rounding; an edited report; a secret that stands in another document. Each has checks that are meant for
    it. Models that never saw the people, or were fitted without a loss on their secrets, must be caught by none. The
    default is verified, too, as it is and with the objective lens: what catches it is a finding about the default.
    OUT/verify.json, and a table.

    --set takes the keys of `bench unlearn` for people and models, and proof.* (see `mitigate verify`). In a directory
    of `bench unlearn` with the same people its models are used.

    Example: mitigate bench verify --out runs/cheats

    Example: mitigate bench verify --world hard --base my-model --candidates default,untouched --out runs/hard
    """
    from mitigate.bench.verify.settings import HardVerifyBenchSettings, VerifyBenchSettings

    hard = is_hard(world)
    chosen = settings_from(HardVerifyBenchSettings if hard else VerifyBenchSettings, settings)
    quiet()
    from mitigate.bench.verify.cheats import CANDIDATES
    from mitigate.bench.verify.run import bench_verify as run_bench
    from mitigate.bench.verify.run import bench_verify_hard, verify_table

    names = [name.strip() for part in candidates or [] for name in part.split(",") if name.strip()]
    shared: dict[str, Any] = {"seeds": seeds_of(seeds, more_seeds), "documents": documents, "base": base}
    shared |= {"candidates": names or tuple(CANDIDATES), "device": device}
    if isinstance(chosen, HardVerifyBenchSettings):
        for epochs, found in bench_verify_hard(out, settings=chosen, **shared)["epochs"].items():
            echo([f"{epochs} epochs", verify_table(found)], out / "verify.json")
    else:
        echo([verify_table(run_bench(out, settings=chosen, **shared))], out / "verify.json")
