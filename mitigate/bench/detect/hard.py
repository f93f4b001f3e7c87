"""`mitigate bench detect --world hard`: a pretrained base, adapters, few epochs, each secret in one document.

    mitigate bench detect --world hard --base my-pretrained-model --seeds 0 1 2 --out runs/hard

Models from scratch that read a secret many times give almost every detector an AUC of 1; users have a pretrained model
and an adapter of a few epochs. Each number of epochs is a world of its own, in OUT/epochs-N, made and measured as
`bench detect` does it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mitigate.artifacts.files import write_json
from mitigate.bench.detect.run import bench_detect
from mitigate.bench.settings import HardWorldSettings
from mitigate.bench.world import documents_of, sources
from mitigate.errors import MitigateError
from mitigate.models.fitting.training import document_losses
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state
from mitigate.tokens.tokenization import tokenize_documents

logger = logging.getLogger(__name__)
_TIMED = 16  # documents of the forward pass by which the cost is told
_TRAINING = 3.5  # forward passes that a training step on an adapter costs
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
            settings=settings.of(epochs),
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
    model = ModelStore(device=device).load(base)
    some = tokenize_documents(judged[:_TIMED], model.tokenizer)
    document_losses(model.base.model, some, model=model)  # the first pass also loads and compiles
    started = time.monotonic()
    document_losses(model.base.model, some, model=model)
    per_document = (time.monotonic() - started) / len(some)
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
    training = sum(count * epochs for epochs, count in missing.items()) * len(trained) / 2 * _TRAINING
    judging = len(settings.epochs) * len(seeds) * each * len(judged) * _JUDGED
    minutes = math.ceil((training + judging) * per_document / process_state(device).num_processes / 60)
    logger.info(
        "%d models to train (%s epochs; %d are there), %d documents each judged by %d: about %s on this machine",
        sum(missing.values()),
        ", ".join(f"{epochs:g}" for epochs in settings.epochs),
        len(settings.epochs) * len(seeds) * each - sum(missing.values()),
        len(judged),
        each,
        f"{minutes} minutes" if minutes < 120 else f"{np.round(minutes / 60, 1):g} hours",
    )
