"""A fit that is killed goes on from its newest checkpoint, to the very weights of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed import Killed, kill_after
from world import LORA, World

from mitigate.artifacts.files import read_json
from mitigate.artifacts.temporaries import partial_of
from mitigate.models.fitting import saves
from mitigate.models.fitting.gradients import document_losses
from mitigate.models.fitting.pace import Goal
from mitigate.models.fitting.training import fine_tune
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.tokens.tokenization import tokenize_documents

SCHEDULE = Schedule(epochs=4, learning_rate=5e-3, batch_size=4)


def tune(world: World, out: Path, **options: Any) -> bytes:
    """The weights of a fine-tuned model."""
    chosen = world.documents.subset(["forget", "retain"])
    settings = {"method": "lora", "lora": LORA, "schedule": SCHEDULE, "seed": 3, "description": "Tuned", **options}
    fine_tune(world.base, chosen, out=out, store=ModelStore(device="cpu"), **settings)
    name = "model.safetensors" if settings["method"] == "full" else "adapter_model.safetensors"
    return (out / name).read_bytes()


def most_of_what_the_adapter_knows(world: World) -> Goal:
    model = ModelStore(device="cpu").load(world.adapter)
    documents = tuple(tokenize_documents(world.documents.subset("retain"), model.tokenizer))
    with model.active() as module:
        return Goal(documents, document_losses(module, documents, model=model) + 0.5)


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saves, "SAVE_EVERY", 0.0)


@pytest.mark.parametrize("options", [{"lora": LORA.model_copy(update={"dropout": 0.2})}, {"method": "full"}, {}])
@pytest.mark.usefixtures("at_every_step")
def test_a_fit_killed_twice_ends_with_the_weights_of_one_that_was_not(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    if not options:
        options["goal"] = most_of_what_the_adapter_knows(world)
    whole = tune(world, tmp_path / "whole", **options)
    steps = len(read_json(tmp_path / "whole" / "training.json")["losses"])
    assert steps > 8
    out, seen = tmp_path / "killed", list[int]()
    for _ in range(2):
        with monkeypatch.context() as patched:
            first = kill_after(4, patched)
            with pytest.raises(Killed):
                tune(world, out, **options)
        seen += first
    assert seen == list(range(1, 9)), "the second began where the first had been killed"
    assert partial_of(out).is_dir()
    assert tune(world, out, **options) == whole
    assert not partial_of(out).exists()
    for name in ("training.json", "digests.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.usefixtures("at_every_step")
@pytest.mark.parametrize("other", [{"seed": 4}, {"schedule": SCHEDULE.model_copy(update={"epochs": 5.0})}])
def test_a_checkpoint_of_another_fit_is_not_gone_on_from(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    with monkeypatch.context() as patched:
        kill_after(5, patched)
        with pytest.raises(Killed):
            tune(world, tmp_path / "out")
    steps = kill_after(10**6, monkeypatch)
    assert tune(world, tmp_path / "out", **other) == tune(world, tmp_path / "alone", **other)
    assert steps[0] == 1


def test_a_short_fit_writes_no_checkpoint(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_after(3, monkeypatch)
    with pytest.raises(Killed):
        tune(world, tmp_path / "out")
    assert not partial_of(tmp_path / "out").exists()
    assert np.isclose(saves.SAVE_EVERY, 300)
