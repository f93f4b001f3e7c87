"""`mitigate bench unlearn --world hard`: a pretrained base, adapters, few epochs, each secret in one document.

    mitigate bench unlearn --world hard --base my-pretrained-model --seeds 0 1 2 --out runs/hard

Each number of epochs is a world of its own, in OUT/epochs-N, made and measured as `bench unlearn` does it. The default
runs as it is shipped, without a search; for the others rate and weight of anchors are searched.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import write_json
from mitigate.bench.cost import TRAINING, time_of
from mitigate.bench.unlearn.methods import RETRAINED
from mitigate.bench.unlearn.run import bench_unlearn, check_methods
from mitigate.bench.unlearn.settings import METHODS, SCOPES, HardUnlearnBenchSettings, UnlearnBenchSettings
from mitigate.bench.unlearn.tries import MORE_TRIES, WEIGHTS
from mitigate.bench.unlearn.world import ORACLES, deal_people, find_people
from mitigate.bench.world import sources
from mitigate.errors import MitigateError
from mitigate.runtime import process_state

logger = logging.getLogger(__name__)


def bench_unlearn_hard(
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    documents: Path | None = None,
    prose: Path | None = None,
    objectives: Sequence[str] = METHODS,
    scopes: Sequence[str] = SCOPES,
    tries: int = 3,
    retrain: bool = True,
    settings: HardUnlearnBenchSettings | None = None,
    base: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run the benchmark for each number of epochs and write `out/results.json`; finished models and runs are kept.

    Args:
        out, seeds, documents, prose, objectives, scopes, tries, retrain, device: as for `bench_unlearn`.
        settings (*optional*): people, models, schedule, the numbers of epochs, and what all runs have in common.
        base: a pretrained model.

    Returns:
        what `results.json` holds: `epochs`: number -> the results of `bench_unlearn`.

    Raises:
        MitigateError: no base, or as `bench_unlearn` says.
    """
    settings = settings or HardUnlearnBenchSettings()
    if base is None:
        raise MitigateError("--base: missing; the hard world is adapters over a pretrained model: give its directory")
    methods = check_methods(objectives, scopes, tries)
    _tell_cost(
        out,
        settings,
        seeds=seeds,
        documents=documents,
        methods=methods,
        tries=tries,
        retrain=retrain,
        base=base,
        device=device,
    )
    found: dict[str, Any] = {}
    for epochs in settings.epochs:
        logger.info("%g epochs", epochs)
        found[f"{epochs:g}"] = bench_unlearn(
            folder_of(out, epochs),
            seeds=seeds,
            documents=documents,
            prose=prose,
            objectives=objectives,
            scopes=scopes,
            tries=tries,
            retrain=retrain,
            settings=settings.of(UnlearnBenchSettings, epochs),
            base=base,
            device=device,
            as_shipped=True,
        )
    results = {
        "world": "hard",
        "epochs": found,
        "settings": {"seeds": list(seeds), **sources(documents, base), **settings.model_dump(mode="json")},
    }
    if process_state(device).is_main_process:
        write_json(out / "results.json", results)
    return results


def folder_of(out: Path, epochs: float) -> Path:
    """Where the world of a number of epochs lies."""
    return out / f"epochs-{epochs:g}"


def _tell_cost(
    out: Path,
    settings: HardUnlearnBenchSettings,
    *,
    seeds: Sequence[int],
    documents: Path | None,
    methods: Sequence[tuple[str, str]],
    tries: int,
    retrain: bool,
    base: str,
    device: str,
) -> None:
    """Say how many models and runs there are to be, and about how long they take here."""
    people, _, _ = deal_people(find_people(documents, settings, seed=seeds[0]), settings, seed=seeds[0])
    seen, retained = len(people.subset(("forget", "retain"))), len(people.subset("retain"))
    singles = {"target": seen} | {f"document-oracle-{number}": retained for number in range(ORACLES)}
    singles |= {f"token-oracle-{number}": seen for number in range(ORACLES)}
    models = {f"models/{name}": size for name, size in singles.items()}
    for name, count in (("references", settings.references), ("judges", settings.judges)):
        models |= {f"{name}/reference-{number}": len(people) // 2 for number in range(count)}
    folders = [(epochs, folder_of(out, epochs) / f"seed-{seed}") for epochs in settings.epochs for seed in seeds]
    missing = [
        (epochs, size) for epochs, folder in folders for name, size in models.items() if not (folder / name).is_dir()
    ]
    tried = tries + (MORE_TRIES + len(WEIGHTS) if tries > 1 else 0)
    searched = sum(objective != "default" for objective, _ in methods)
    runs = (len(methods) + 2) * len(seeds)  # with recognised and with known spans
    runs += searched * (tried - 1)  # a search on the first seed
    runs *= len(settings.epochs)
    runs += len(RETRAINED) * len(folders) if retrain else 0
    done = sum(len(list((folder / "runs").glob("*/run.json"))) for _, folder in folders)
    steps = max(0, runs - done) * settings.unlearn.max_steps
    a_step = settings.unlearn.batch_size + settings.unlearn.retain_batch_size
    passes = TRAINING * (sum(epochs * size for epochs, size in missing) + steps * a_step)
    logger.info(
        "%d models to train (%s epochs; %d are there), then %d runs of unlearning and retraining (%d are there): at "
        "most about %s on this machine",
        len(missing),
        ", ".join(f"{epochs:g}" for epochs in settings.epochs),
        len(folders) * len(models) - len(missing),
        runs,
        done,
        time_of(passes, people, base=base, device=device),
    )
