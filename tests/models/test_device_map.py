"""Weights dealt out over devices: the same numbers, adapters over them trained, and what cannot be done refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import dispatch_model
from forgetting import cpu
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from world import LORA, World

from mitigate.detection.audit import audit, reaudit
from mitigate.detection.references.crossfit import crossfit_references
from mitigate.detection.settings import Detect
from mitigate.errors import MitigateError
from mitigate.generation.decoding import continuations
from mitigate.models.probes import probe_logits
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.recipe.loading import load_recipe
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainer import unlearn


def places(model: Path, *, aside: str) -> dict[str, int | str]:
    """A device for each part of a model: the CPU, but for the second half of its layers."""
    layers = cpu().load(model).base.model.config.num_hidden_layers
    parts = ["model.norm", "model.rotary_emb", "model.embed_tokens", "lm_head"]
    found: dict[str, int | str] = dict.fromkeys(parts, "cpu")
    return found | {f"model.layers.{n}": "cpu" if n < layers // 2 else aside for n in range(layers)}


def apart(model: Path) -> ModelStore:
    """A store that leaves half of a model's layers on the disk."""
    return ModelStore(device="cpu", device_map=places(model, aside="disk"))


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models whose layers are moved to and fro between devices, of which there is one here."""
    load = AutoModelForCausalLM.from_pretrained

    def dealt_out(source: str, *, device_map: Any = None, **options: Any) -> Any:
        model, info = load(source, **options)
        if device_map is not None:
            dispatch_model(model, device_map, force_hooks=True)
            assert any(hasattr(module, "_hf_hook") for module in model.modules())
        return model, info

    monkeypatch.setattr("mitigate.models.store.AutoModelForCausalLM.from_pretrained", dealt_out)


def test_a_model_dealt_out_says_what_it_says_in_one_place(world: World) -> None:
    model, whole = apart(world.base).load(world.base), cpu().load(world.base)
    assert {weight.device.type for weight in model.base.model.parameters()} == {"meta", "cpu"}
    with model.active() as module, whole.active() as other:
        np.testing.assert_allclose(probe_logits(module).numpy(), probe_logits(other).numpy(), rtol=0, atol=1e-5)
    [there, here] = [
        audit(world.target, [str(world.base)], documents=world.documents[:4], store=store)
        for store in (apart(world.base), cpu())
    ]
    np.testing.assert_allclose(there.columns["kl"], here.columns["kl"], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("hooked")
def test_audit_unlearning_and_references_go_through_it(world: World, tmp_path: Path) -> None:
    settings = Unlearn(max_steps=3, check_every=2, batch_size=4, lora=LORA, stop_at_control=False)
    weights, scores = [], []

    def dealt_out() -> ModelStore:
        return ModelStore(device="cpu", device_map=places(world.base, aside="cpu"))

    for name, new_store in (("dealt out", dealt_out), ("whole", cpu)):
        out, store = tmp_path / name, new_store()
        detect = Detect(select="known")
        before = audit(world.adapter, world.references, documents=world.documents, detect=detect, store=store)
        unlearn(before, out=out / "adapter", settings=settings, store=store)
        after = reaudit(before, out / "adapter", store=store)
        crossfit_references(
            world.base,
            world.documents,
            out=out / "references",
            count=2,
            lora=LORA,
            schedule=Schedule(epochs=1),
            new_store=new_store,
        )
        scores.append([before.columns["score"], after.columns["score"]])
        weights.append(load_file(out / "references" / "reference-0" / "adapter_model.safetensors"))
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-3)
    for name, tensor in weights[1].items():
        np.testing.assert_allclose(weights[0][name].numpy(), tensor.numpy(), rtol=0, atol=1e-4, err_msg=name)


def test_it_writes_as_it_does_in_one_place(world: World) -> None:
    written = []
    for store in (apart(world.base), cpu()):
        model = store.load(world.base)
        prefixes = [np.array(model.tokenizer(one.text)["input_ids"][:6]) for one in world.documents[:3]]
        with model.active() as module:
            written.append(continuations(module, prefixes, new_tokens=5))
    np.testing.assert_array_equal(*written)


def test_what_needs_the_weights_in_one_place_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match=r"put aside \(models\.device_map\); an adapter needs all of it there"):
        apart(world.base).load(world.adapter)
    with pytest.raises(MitigateError, match="over several devices are not trained"):
        apart(world.base).check_whole("unlearn.method: full")
    assert apart(world.base).fresh(device="cpu").device_map is None, "merging takes all weights in one place"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"models: {{target: {world.base}, device_map: auto}}\ndata: {{documents: [{{path: a.jsonl}}]}}\n")
    with pytest.raises(MitigateError, match=r"references\.method: full: weights in models\.device_map: auto are not"):
        load_recipe(recipe, ["references.method=full", f"models.base={world.base}"])
    with pytest.raises(MitigateError, match=r"models\.device_map"):
        load_recipe(recipe, ["models.device_map=everywhere"])


def test_several_processes_have_no_model_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        num_processes = 2
        device = "cpu"

    monkeypatch.setattr("mitigate.models.store.process_state", lambda device: Two())
    with pytest.raises(MitigateError, match=r"models\.device_map: one process has all devices"):
        ModelStore(device="cpu", device_map="auto")
