"""What a benchmark measures on: documents, models trained on known halves of them, and truth models kept apart.

    out/base                   a base from scratch that saw none of the documents
    out/seed-0/documents.jsonl
    out/seed-0/models/         the detector's: every one is a target in turn, and a reference of the others
    out/seed-0/truth/          the truth's: no detector sees them

Every trained document is in half of the models and in half of the truth models. Training is seeded, resumable model by
model, and shared between processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mitigate.artifacts.files import read_json
from mitigate.bench.settings import ModelSettings, WorldSettings
from mitigate.detection.references.crossfit import References, crossfit_references
from mitigate.documents import Documents, read_documents
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError, summarize
from mitigate.lab.planting import plant
from mitigate.lab.tiny import make_base
from mitigate.lab.writing import general_text
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state


@dataclass(frozen=True)
class World:
    """Documents, models, and which document trained which model.

    Attributes:
        documents: all that are judged; those that trained no model are non-members of every target.
        models: the detector's models.
        truth: models for the counterfactual truth.
        member: (D, models) bool, whether a document trained a model.
        truth_member: (D, truth models) bool.
        copies: document id -> how many documents hold its secrets, or those of whom it mirrors (lab people only).
        owner: group of a never-trained twin -> group of the person it mirrors (lab people only).
    """

    documents: Documents
    models: References
    truth: References
    member: np.ndarray
    truth_member: np.ndarray
    copies: Mapping[str, int] = field(default_factory=dict)
    owner: Mapping[str, str] = field(default_factory=dict)


def make_world(
    out: Path,
    *,
    seed: int,
    settings: WorldSettings,
    documents: Path | None = None,
    base: str | None = None,
    device: str = "auto",
) -> World:
    """Documents and models of one seed; what is already there is kept.

    Args:
        out: directory of the benchmark.
        seed: of the people, the halves, the initialization and the order.
        settings: sizes and schedules.
        documents (*optional*): JSON lines with id, text and spans instead of invented people.
        base (*optional*): an existing base model instead of one from scratch.
        device (`str`, *optional*, defaults to `auto`): where the models are trained.

    Raises:
        MitigateError: `out` holds models of other documents or settings; the file cannot be read.
    """
    base = base or str(make_bench_base(out, settings=settings, device=device))
    directory = out / f"seed-{seed}"
    judged, trained, copies, owner = documents_of(settings, seed=seed, documents=documents)
    write_once(judged, directory / "documents.jsonl")

    schedule = settings.schedule or Schedule(epochs=20 if documents else 10, learning_rate=1.5e-3, batch_size=8)

    def train(name: str, count: int, *, seed: int) -> References:
        return crossfit_references(
            base,
            trained,
            out=directory / name,
            count=count,
            method=settings.method,
            lora=settings.lora,
            schedule=schedule,
            seed=seed,
            new_store=lambda: ModelStore(device=device),
        )

    models = train("models", settings.models, seed=2 * seed)
    truth = train("truth", settings.truth_models, seed=2 * seed + 1)
    return World(judged, models, truth, _membership(judged, models), _membership(judged, truth), copies, owner)


def documents_of(
    settings: WorldSettings, *, seed: int, documents: Path | None
) -> tuple[Documents, Documents, dict[str, int], dict[str, str]]:
    """What is judged, what of it may be trained on, and `copies` and `owner` of a `World`."""
    if documents is not None:
        given = Documents(read_documents(documents).items)
        return given, given, {}, {}
    planting = plant(seed=f"bench/{seed}", people_per_count=settings.people)
    owner = {twin: member for member, twin in planting.twins.items()}
    copies = {d.id: planting.copies[owner.get(d.group, d.group)] for d in planting.documents}
    return planting.documents, planting.documents.subset(("forget", "retain")), copies, owner


def make_bench_base(out: Path, *, settings: ModelSettings, device: str = "auto") -> Path:
    """The base of all seeds: it plays the public pretrained model, so its own seed is fixed.

    Raises:
        MitigateError: the one in `out` was made with other settings.
    """
    path, state = out / "base", process_state(device)
    if state.is_main_process and not path.is_dir():
        text = general_text(settings.base_documents, seed="bench")
        make_base(text, out=path, shape=settings.base, seed=0, device=device)
    state.wait_for_everyone()
    wanted = {"documents": settings.base_documents, "shape": settings.base.model_dump(mode="json")}
    made = read_json(path / "training.json")
    if differing := [name for name, value in wanted.items() if made.get(name) != value]:
        raise MitigateError(
            f"{path}: a base of another {summarize(differing)} than --set base.* and base_documents ask for; "
            "choose another --out or remove that directory"
        )
    return path


FROM_SCRATCH = "from scratch, of the shape base"


def world_line(results: Mapping[str, Any]) -> list[str]:
    """What a table says first where its figures are of the easy world; nothing elsewhere."""
    if results["settings"]["base_model"] != FROM_SCRATCH:
        return []
    return ["easy world: models from scratch, many epochs, repeated secrets (--world hard: adapters, few epochs)"]


def sources(documents: Path | None, base: str | None) -> dict[str, str]:
    """Where a benchmark's documents and base come from, for the settings in its results."""
    named = None if base is None else Path(base).name if Path(base).exists() else base
    return {
        "documents": documents.name if documents else "invented people",
        "base_model": named or FROM_SCRATCH,
    }


def write_once(documents: Documents, path: Path) -> None:
    """Keep a copy of the documents, and refuse to go on with others.

    Raises:
        MitigateError: the copy that is there is of other documents.
    """
    state = process_state()
    if state.is_main_process and not path.is_file():
        write_jsonl(documents, path)
    state.wait_for_everyone()
    if [document.text for document in read_documents(path)] != [document.text for document in documents]:
        raise MitigateError(f"{path}: other documents than before; choose another --out or remove that directory")


def _membership(documents: Documents, models: References) -> np.ndarray:
    return np.array([[document.group in (seen or ()) for seen in models.trained_on] for document in documents])
