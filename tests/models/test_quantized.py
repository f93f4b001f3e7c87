"""Bases in 4 and 8 bits: adapters over them are trained and judged, their own weights never."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import tiny_recipe
from world import LORA, World

from mitigate.detection.audit import audit
from mitigate.detection.settings import Detect
from mitigate.detection.signals.compute import token_log_probs
from mitigate.errors import MitigateError
from mitigate.models.fitting.training import fine_tune
from mitigate.models.settings import Lora, Schedule
from mitigate.models.store import ModelStore
from mitigate.tokens.tokenization import tokenize_documents
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainer import unlearn

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def said(world: World, store: ModelStore, source: str | Path) -> np.ndarray:
    model = store.load(source)
    return token_log_probs(model, tokenize_documents(world.documents, model.tokenizer))


@needs_bitsandbytes
def test_a_quantized_model_says_about_what_it_is(world: World) -> None:
    exact = said(world, ModelStore(device="cpu"), world.target)
    quantized = said(world, ModelStore(device="cpu", load_in="8bit"), world.target)
    difference = np.abs(quantized - exact)
    assert 0 < np.nanmean(difference) < 0.1
    assert np.array_equal(np.isnan(quantized), np.isnan(exact))


@needs_bitsandbytes
def test_adapters_are_trained_judged_and_forget_over_a_quantized_base(world: World, tmp_path: Path) -> None:
    store = ModelStore(device="cpu", load_in="8bit")
    fine_tune(
        world.base,
        world.documents.subset(["forget", "retain"]),
        out=tmp_path / "target",
        method="lora",
        lora=LORA,
        schedule=Schedule(epochs=20, learning_rate=1e-2, batch_size=4),
        seed=0,
        description="target",
        store=store,
    )
    known = Detect(select="known")
    found = audit(tmp_path / "target", world.base, documents=world.documents, detect=known, store=store.fresh())
    settings = Unlearn(max_steps=10, check_every=5, stop_at_control=False, learning_rate=3e-3, lora=LORA)
    made = unlearn(found, out=tmp_path / "out", settings=settings, store=store.fresh())
    begun, *_, ended = (look["selected_log_ratio"] for look in made.summary["history"])
    assert begun > 0.3, "the adapter learned"
    assert ended < begun - 0.1, "and forgets"
    now = said(world, store.fresh(), made.directory)
    selected = found.columns["selected"].astype(bool)
    ratio = np.clip(now - found.columns["log_prob_out"], -3, 3)[selected]
    assert ratio.mean() == pytest.approx(ended, abs=0.02), "the adapter that is loaded is the one that was trained"


@needs_bitsandbytes
def test_quantized_weights_are_not_trained(world: World, tmp_path: Path) -> None:
    store = ModelStore(device="cpu", load_in="8bit")
    options: dict[str, Any] = {
        "lora": Lora(),
        "schedule": Schedule(epochs=1),
        "seed": 0,
        "store": store,
    }
    with pytest.raises(MitigateError, match="method: full: weights in 8bit are not trained"):
        fine_tune(world.base, world.documents, out=tmp_path / "whole", method="full", description="x", **options)
    found = world.audit(select="known")
    with pytest.raises(MitigateError, match="method: full: weights in 8bit are not trained"):
        unlearn(found, out=tmp_path / "out", settings=Unlearn(method="full"), store=store)


def test_a_recipe_that_would_train_quantized_weights_is_refused() -> None:
    told = "lab.target.method: full: weights in models.load_in: 4bit are not trained; take lora"
    with pytest.raises(MitigateError, match=told):
        tiny_recipe(models={"load_in": "4bit"})


def test_what_is_asked_for_is_checked() -> None:
    with pytest.raises(MitigateError, match=r"load_in: '2bit' is not one of 4bit, 8bit"):
        ModelStore(device="cpu", load_in="2bit")
    missing = find_spec("bitsandbytes") is None
    told = "8bit needs bitsandbytes: pip install" if missing else "4bit: its kernels for CPUs take few models"
    with pytest.raises(MitigateError, match=told):
        ModelStore(device="cpu", load_in="8bit" if missing else "4bit")


def test_attention_is_the_implementation_that_is_asked_for(world: World) -> None:
    stores = {name: ModelStore(device="cpu", attention=name) for name in ("eager", "sdpa")}
    for name, store in stores.items():
        assert store.load(world.target).base.model.config._attn_implementation == name
    eager, sdpa = (said(world, store, world.target) for store in stores.values())
    np.testing.assert_allclose(eager, sdpa, rtol=0, atol=1e-4)
