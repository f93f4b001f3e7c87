"""Fixtures that the tests share. Nothing here needs a network."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import hypothesis
import pytest
import torch
from commands import Mitigate, Outcome
from forgetting import long_documents
from transformers import PreTrainedTokenizerFast
from world import World, make_world, save_tiny_model, sentences

import mitigate.cli.app
from mitigate.detection.audit import audit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.lab.tiny import train_tokenizer
from mitigate.models.store import ModelStore
from mitigate.runtime import quiet_libraries

TinyModelFactory = Callable[..., Path]

# The suite tries the same few examples each time; PROPERTIES=thorough tries many, others each time.
hypothesis.settings.register_profile("suite", max_examples=40, derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("thorough", max_examples=5000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("PROPERTIES", "suite"))


@pytest.fixture(scope="session", autouse=True)
def _one_quiet_thread() -> Iterator[None]:
    """Tiny models are fastest on one thread, and sums come in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    quiet_libraries()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 400 entries."""
    return train_tokenizer(sentences(300), vocabulary=400)


@pytest.fixture(scope="session")
def tiny_model(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> TinyModelFactory:
    """`tiny_model(architecture, seed=0)`: directory of an untrained model; not to be changed by a test."""
    root = tmp_path_factory.mktemp("models")

    def make(architecture: str, *, seed: int = 0) -> Path:
        out = root / f"{architecture}-{seed}"
        return out if out.is_dir() else save_tiny_model(architecture, tokenizer, out=out, seed=seed)

    return make


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base, planted documents, references and leaky models; not to be changed by a test."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def whole(world: World) -> Audit:
    """An audit of the target that is a whole model."""
    return world.audit(world.target)


@pytest.fixture(scope="session")
def layered(world: World) -> Audit:
    """An audit of the target that is an adapter."""
    return world.audit(world.adapter)


@pytest.fixture(params=["whole", "layered"])
def audited(request: pytest.FixtureRequest) -> Audit:
    """Either of the two."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def long(world: World) -> Audit:
    """An audit of documents that take several windows, with three secrets each."""
    detect = Detect(select="known")
    return audit(world.target, [world.base], documents=long_documents(), detect=detect, store=ModelStore(device="cpu"))


@pytest.fixture
def store() -> ModelStore:
    """A fresh store of models on the CPU."""
    return ModelStore(device="cpu")


@pytest.fixture
def mitigate_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Mitigate]:
    """`mitigate_("audit", "--target", ...)`: the entry point in this process."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    level = logging.getLogger("mitigate").level

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mitigate", *map(str, arguments)])
        capsys.readouterr()
        try:
            mitigate.cli.app.main()
            status: Any = 0
        except SystemExit as stop:
            status = stop.code or 0
        written = capsys.readouterr()
        return Outcome(status, written.out, written.err)

    yield call
    logging.getLogger("mitigate").setLevel(level)


@pytest.fixture(scope="module")
def few_trees() -> Iterator[None]:
    """For modules that are not about how good the boosted attack models are, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mitigate.detection.calibration.attack._TREES", 10)
        yield
