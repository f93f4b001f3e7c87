"""`mitigate bench detect --world hard`: a pretrained base, adapters, few epochs, each secret in one document.

    mitigate bench detect --world hard --base my-pretrained-model --seeds 0 1 2 --out runs/hard

Models from scratch that read a secret many times give almost every detector an AUC of 1; users have a pretrained model
and an adapter of a few epochs. Each number of epochs is a world of its own, in OUT/epochs-N, made and measured as
`bench detect` does it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import write_json
from mitigate.bench.cost import TRAINING, time_of
from mitigate.bench.detect.run import bench_detect
from mitigate.bench.settings import HardWorldSettings, WorldSettings
from mitigate.bench.world import documents_of, sources
from mitigate.errors import MitigateError
from mitigate.runtime import process_state

logger = logging.getLogger(__name__)
_JUDGED = 2  # times that every model reads every document


def bench_detect_hard(
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    documents: Path | None = None,
    references: int = 3,
    fdr: float = 0.05,
    settings: HardWorldSettings | None = None,
    base: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run the benchmark for each number of epochs and write `out/results.json`; finished models are kept.

    Args:
        out, seeds, documents, references, fdr, device: as for `bench_detect`.
        settings (*optional*): models, people, schedule, and the numbers of epochs.
        base: a pretrained model.

    Returns:
        what `results.json` holds: `epochs`: number -> the figures of `bench_detect`.

    Raises:
        MitigateError: no base, or as `bench_detect` says.
    """
    settings = settings or HardWorldSettings()
    if base is None:
        raise MitigateError("--base: missing; the hard world is adapters over a pretrained model: give its directory")
    settings.check_references(references)
    _tell_cost(out, settings, seeds=seeds, documents=documents, base=base, device=device)
    state = process_state(device)
    found: dict[str, Any] = {}
    for epochs in settings.epochs:
        logger.info("%g epochs", epochs)
        found[f"{epochs:g}"] = bench_detect(
            out / f"epochs-{epochs:g}",
            seeds=seeds,
            documents=documents,
            references=references,
            fdr=fdr,
            settings=settings.of(WorldSettings, epochs),
            base=base,
            device=device,
        )
    if not state.is_main_process:
        return {}
    results = {
        "world": "hard",
        "epochs": found,
        "settings": {
            "seeds": list(seeds),
            "references": references,
            "fdr": fdr,
            **sources(documents, base),
            **settings.model_dump(mode="json"),
        },
    }
    write_json(out / "results.json", results)
    return results


def _tell_cost(
    out: Path,
    settings: HardWorldSettings,
    *,
    seeds: Sequence[int],
    documents: Path | None,
    base: str,
    device: str,
) -> None:
    """Say how many models are to be trained, and about how long that and the judging will take here."""
    judged, trained, _, _ = documents_of(settings, seed=seeds[0], documents=documents)
    each = settings.models + settings.truth_models
    missing = {
        epochs: sum(
            not (out / f"epochs-{epochs:g}" / f"seed-{seed}" / name / f"reference-{number}").is_dir()
            for seed in seeds
            for name, count in (("models", settings.models), ("truth", settings.truth_models))
            for number in range(count)
        )
        for epochs in settings.epochs
    }
    training = sum(count * epochs for epochs, count in missing.items()) * len(trained) / 2 * TRAINING
    judging = len(settings.epochs) * len(seeds) * each * len(judged) * _JUDGED
    logger.info(
        "%d models to train (%s epochs; %d are there), %d documents each judged by %d: about %s on this machine",
        sum(missing.values()),
        ", ".join(f"{epochs:g}" for epochs in settings.epochs),
        len(settings.epochs) * len(seeds) * each - sum(missing.values()),
        len(judged),
        each,
        time_of(training + judging, judged, base=base, device=device),
    )
