"""What unlearning trains: only that changes, the saved directory is the trained model, over any stack of adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyModelFactory
from forgetting import QUICK, changed, cpu, log_ratio, loop_of, selected_of
from peft import PeftModel
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from world import World, planted_documents

from mitigate.adapters.merging import MERGED
from mitigate.adapters.trained import DIFFERENCE, as_before, is_sharded
from mitigate.detection.audit import audit, reaudit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.detection.signals.compute import token_log_probs
from mitigate.errors import MitigateError
from mitigate.mistakes import checked
from mitigate.models.adapters import OVERLAY_FILE
from mitigate.models.fitting.training import NEW_ADAPTER
from mitigate.models.inside.layers import decoder_layers
from mitigate.models.model import Model
from mitigate.models.store import ModelStore
from mitigate.tokens.batches import collate
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainable import Trainable
from mitigate.unlearning.trainer import unlearn
from mitigate.unlearning.training.loop import Loop

METHODS = {"lora": {}, "dora": {}, "full": {}, "last_layers": {"layers": 1}}


def settings_of(method: str, **values: Any) -> Unlearn:
    return changed(QUICK, method=method, max_steps=3, **METHODS[method], **values)


def log_probs(model: Model, audited: Audit) -> np.ndarray:
    """(M,) of the audited tokens."""
    everything = token_log_probs(model, audited.tokenized())
    return everything[audited.columns["audited"].astype(bool)]


def trained_model(trainable: Trainable) -> Model:
    """The model as it stands after training, the new adapter on."""
    model = trainable.model
    return replace(model, adapters=(*model.adapters, NEW_ADAPTER)) if trainable.can_step_back else model


def files(directory: str | Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Trained:
    """A loop after training, the store that it was given, what it saved, and what all files were before."""

    before: Audit
    loop: Loop
    store: ModelStore
    weights: dict[str, torch.Tensor]  # the store's own, before training
    inputs: dict[Path, bytes]
    history: list[dict[str, Any]]
    directory: Path


@pytest.fixture(
    scope="module",
    params=[("lora", "whole"), ("full", "whole"), *((method, "layered") for method in METHODS)],
    ids="-".join,
)
def trained(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    method, target = request.param
    before: Audit = request.getfixturevalue(target)
    store, directory = cpu(), tmp_path_factory.mktemp("trained") / "out"
    base = store.load(before.metadata.target.source).base.model
    weights = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    inputs = files(world.base.parent)
    loop = loop_of(before, settings_of(method), directory, store=store)
    history, _, _ = loop.train(resume=False)
    directory.mkdir()
    loop.trainable.save(loop.trainable.state(), directory)
    return Trained(before, loop, store, weights, inputs, history, directory)


def test_the_saved_directory_is_the_trained_model(trained: Trained) -> None:
    now = log_probs(trained_model(trained.loop.trainable), trained.before)
    loaded = log_probs(cpu().load(trained.directory), trained.before)
    np.testing.assert_allclose(loaded, now, rtol=0, atol=1e-5)
    earlier = trained.before.columns["log_prob"][trained.before.columns["audited"].astype(bool)]
    assert np.abs(now - earlier).max() > 1e-3


def test_training_lowers_the_selected_tokens_from_where_the_audit_saw_them(trained: Trained) -> None:
    begun, *_, ended = (entry["selected_log_ratio"] for entry in trained.history)
    assert begun == pytest.approx(log_ratio(trained.before)[selected_of(trained.before)].mean(), abs=2e-4)
    assert ended < begun - 0.01


def test_neither_files_nor_the_callers_models_change(trained: Trained, world: World) -> None:
    assert files(world.base.parent) == trained.inputs
    source = trained.before.metadata.target.source
    model = trained.store.load(source)
    now = dict(model.base.model.named_parameters())
    assert len(trained.weights) > 10
    for name, parameter in trained.weights.items():
        [same] = [p for n, p in now.items() if n.replace(".base_layer", "") == name.replace(".base_layer", "")]
        assert torch.equal(same, parameter), name
    again = reaudit(trained.before, source, store=trained.store)
    for name in ("log_prob", "log_prob_out"):
        np.testing.assert_allclose(again.columns[name], trained.before.columns[name], rtol=0, atol=1e-5)


def test_only_what_is_to_be_trained_is(trained: Trained, world: World) -> None:
    trainable, method = trained.loop.trainable, trained.loop.settings.method
    state = trainable.state()
    assert all(trainable.reached(state).values())
    if method in ("lora", "dora"):
        assert all(any(part in name for part in ("lora_A", "lora_B", "lora_magnitude_vector")) for name in state)
        assert any("magnitude" in name for name in state) == (method == "dora")
        return
    assert not (trained.directory / "adapter_config.json").exists()
    before = plain_weights(world, trained.before)
    after = AutoModelForCausalLM.from_pretrained(trained.directory).state_dict()
    assert before.keys() == after.keys()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    if method == "full":
        assert moved == set(before)
    else:
        assert moved == {name for name in before if ".layers.1." in name}, "the last of two layers"


def plain_weights(world: World, before: Audit) -> dict[str, torch.Tensor]:
    """Weights of the target as a plain model."""
    source = before.metadata.target.source
    if Path(source) == world.target:
        return AutoModelForCausalLM.from_pretrained(source).state_dict()
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.base), source)
    return plain.merge_and_unload().state_dict()


def test_p_0_is_the_audited_model_its_own_adapter_included(trained: Trained) -> None:
    loop = trained.loop
    tasks = list({task.key: task for step in range(3) for task in loop.tasks(step)}.values())
    for task in tasks:
        kept = loop.losses.before.of(collate([task])).distribution
        assert kept is not None
        tokens = torch.from_numpy(task.ids[task.scored]).unsqueeze(1)
        own = torch.where(kept.ids == tokens, kept.log_probs, 0.0).sum(1)
        rows = trained.before.rows[task.doc_id]
        expected = trained.before.columns["log_prob"][rows][task.start + task.scored]
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-4)


def test_an_adapter_is_off_inside_the_block_and_trainable_again_after_it(trained: Trained) -> None:
    trainable = trained.loop.trainable
    if not trainable.can_step_back:
        return
    first = trained.before.tokenized()[0]

    def said() -> np.ndarray:
        with torch.no_grad():
            logits = trainable.module(torch.from_numpy(first.ids)[None]).logits[0, :-1].double()
        return torch.log_softmax(logits, -1).gather(1, torch.from_numpy(first.ids[1:, None])).squeeze(1).numpy()

    earlier = trained.before.columns["log_prob"][trained.before.rows[first.id]][1:]
    with as_before(trainable.model):
        np.testing.assert_allclose(said(), earlier, rtol=0, atol=1e-5)
    assert np.abs(said() - earlier).max() > 1e-3
    names = {name for name, parameter in trainable.module.named_parameters() if parameter.requires_grad}
    assert names == {name for name, _ in trainable.module.named_parameters() if f".{NEW_ADAPTER}." in name} != set()


# Stacks of adapters


@pytest.fixture(scope="module")
def stacked(layered: Audit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audit]:
    """An adapter over the target's own, by DoRA, and the audit of both."""
    settings = settings_of("dora", give="difference")
    first = unlearn(layered, out=tmp_path_factory.mktemp("stack") / "first", settings=settings, store=cpu())
    return first.directory, reaudit(layered, first.directory, store=cpu())


@pytest.mark.parametrize(
    ("method", "give", "layers"), [("lora", "difference", 3), ("lora", "replace", 0), ("full", "replace", 0)]
)
def test_unlearning_goes_on_over_an_earlier_unlearning(
    world: World, stacked: tuple[Path, Audit], tmp_path: Path, method: str, give: str, layers: int
) -> None:
    first, audited = stacked
    store, settings = cpu(), settings_of(method, give=give)
    loop = loop_of(audited, settings, tmp_path / "second", store=store)
    loop.losses.before.fill(loop.tasks(0))
    begun = loop._watch(step=0)["selected_log_ratio"]
    assert begun == pytest.approx(log_ratio(audited)[selected_of(audited)].mean(), abs=2e-4)
    second = unlearn(audited, out=tmp_path / "second", settings=settings, store=cpu())
    loaded = cpu().load(second.directory)
    assert len(loaded.adapters) == layers
    if loaded.adapters:
        written = json.loads((second.directory / OVERLAY_FILE).read_text())
        assert written == {"over": [str(world.adapter), str(first / DIFFERENCE)], "adapter": DIFFERENCE}
    last = reaudit(audited, second.directory, store=cpu())
    expected = second.summary["history"][-1]["selected_log_ratio"]
    assert log_ratio(last)[selected_of(audited)].mean() == pytest.approx(expected, abs=2e-4)


def test_a_store_that_has_unlearned_before_gives_the_same_again(audited: Audit, tmp_path: Path) -> None:
    store, read = cpu(), []
    for number, method in enumerate(("lora", "dora", "lora")):
        result = unlearn(audited, out=tmp_path / str(number), settings=settings_of(method), store=store)
        read.append(files(result.directory))
    assert list(read[0].values()) == list(read[2].values())


def test_the_adapter_of_a_whole_model_loads_with_peft_alone(world: World, whole: Audit, tmp_path: Path) -> None:
    result = unlearn(whole, out=tmp_path / "out", settings=settings_of("lora"), store=cpu())
    assert not (result.directory / OVERLAY_FILE).exists()
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.target), result.directory).eval()
    first = whole.tokenized()[0]
    with torch.no_grad():
        logits = plain(torch.from_numpy(first.ids)[None]).logits[0].double()
    expected = torch.log_softmax(logits, -1)[torch.arange(len(first.ids) - 1), torch.from_numpy(first.ids[1:])]
    after = reaudit(whole, result.directory, store=cpu())
    np.testing.assert_allclose(after.columns["log_prob"][after.rows[first.id]][1:], expected.numpy(), rtol=0, atol=1e-5)


# Merging


@pytest.mark.parametrize(
    ("target", "method"),
    [("whole", "lora"), ("layered", "dora"), ("stacked", "lora")],
)
def test_merged_it_is_a_plain_model_that_says_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, method: str, target: str
) -> None:
    given = request.getfixturevalue(target)
    audited = given[1] if isinstance(given, tuple) else given
    settings = settings_of(method, merge=True)
    result = unlearn(audited, out=tmp_path / "out", settings=settings, store=cpu())
    layers, merged = (cpu().load(path) for path in (result.directory, result.directory / MERGED))
    assert layers.adapters
    assert merged.adapters == ()
    np.testing.assert_allclose(log_probs(merged, audited), log_probs(layers, audited), rtol=1e-5, atol=1e-5)
    assert {path.name for path in (result.directory / MERGED).iterdir()} >= {
        *("config.json", "tokenizer.json", "unlearn.json")
    }


def test_there_is_nothing_to_merge_where_no_adapter_is_trained() -> None:
    with pytest.raises(MitigateError, match="merge: method last_layers writes a plain model already"):
        checked(Unlearn, {"method": "last_layers", "merge": True}, name="unlearn")


# Gradient checkpointing


@pytest.fixture(scope="module")
def small_audits(tiny_model: TinyModelFactory) -> dict[str, Audit]:
    """Audits of untrained models of several architectures."""
    documents = planted_documents(each=2)
    return {
        name: audit(
            tiny_model(name),
            [tiny_model(name, seed=1)],
            documents=documents,
            detect=Detect(select="known"),
            store=cpu(),
        )
        for name in ("llama", "gpt2", "gpt_neox")
    }


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize(
    "values",
    [
        {"lora": {"rank": 4, "dropout": 0.5}},
        {"method": "full"},
        {"method": "last_layers", "layers": 1, "objective": "rmu"},
    ],
    ids=["lora", "full", "rmu on the last layer"],
)
def test_recomputed_activations_train_the_same(
    small_audits: dict[str, Audit], tmp_path: Path, name: str, values: dict[str, Any]
) -> None:
    states = []
    for recompute in (False, True):
        settings = changed(QUICK, gradient_checkpointing=recompute, max_steps=3, **values)
        loop = loop_of(small_audits[name], settings, tmp_path / "out")
        counted = count_forwards(loop)
        loop.train(resume=False)
        state = loop.trainable.state()
        assert all(loop.trainable.reached(state).values()), "every layer is trained"
        states.append((state, counted[0]))
    (plain, once), (again, twice) = states
    assert twice > once, "layers ran again in the backward pass"
    for part, tensor in plain.items():
        torch.testing.assert_close(again[part], tensor, rtol=0, atol=1e-5, msg=part)


@pytest.mark.parametrize("objective", ["default", "match"])
def test_activations_are_recomputed_where_references_share_the_base(
    layered: Audit, tmp_path: Path, objective: str
) -> None:
    """They are asked after the model was made ready, in evaluation mode, in which nothing is recomputed."""
    loop = loop_of(layered, changed(QUICK, gradient_checkpointing=True, objective=objective), tmp_path / "out")
    layers = decoder_layers(loop.trainable.module)
    loop.step(0)
    loop._watch(step=1)
    assert all(layer.training for layer in layers)
    assert not any(part.training for part in loop.trainable.module.modules() if isinstance(part, torch.nn.Dropout))


def count_forwards(loop: Loop) -> list[int]:
    """How often the last decoder layer's inside runs."""
    counted = [0]
    inside = next(iter(decoder_layers(loop.trainable.module)[-1].children()))

    def count(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        counted[0] += 1

    inside.register_forward_hook(count)
    return counted


# Number formats


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, method) for name in ("llama", "gpt2", "gpt_neox") for method in ("lora", "full")),
        ("gpt2", "last_layers"),
    ],
)
def test_a_model_in_half_precision_is_trained_and_saved_in_it(
    tiny_model: TinyModelFactory, tmp_path: Path, name: str, method: str
) -> None:
    half = lambda: ModelStore(device="cpu", dtype="bfloat16")  # noqa: E731
    documents, detect = planted_documents(each=2), Detect(select="known")
    before = audit(tiny_model(name), [tiny_model(name, seed=1)], documents=documents, detect=detect, store=half())
    loop = loop_of(before, settings_of(method), tmp_path / "out", store=half())
    loop.train(resume=False)
    assert {parameter.dtype for parameter in loop.parameters} == {torch.float32}, "small steps need it"
    state = loop.trainable.state()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert all(loop.trainable.reached(state).values())
    (tmp_path / "out").mkdir()
    loop.trainable.save(state, tmp_path / "out")
    [weights] = (tmp_path / "out").glob("*.safetensors")
    saved = {tensor.dtype for tensor in load_file(weights).values()}
    assert saved == {torch.float32 if method in ("lora", "dora") else torch.bfloat16}
    after = reaudit(before, tmp_path / "out", store=half())
    selected = selected_of(before)
    last = loop._watch(step=3)["selected_log_ratio"]
    assert np.isfinite(after.columns["log_prob"][selected]).all()
    assert log_ratio(after)[selected].mean() == pytest.approx(last, abs=0.05)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_fingerprint_of_what_stays_is_the_same_in_shards(whole: Audit, tmp_path: Path, method: str) -> None:
    loop = loop_of(whole, settings_of(method), tmp_path / "out", store=cpu())  # sharded it serves no other test
    if method == "full":  # something must stay
        next(loop.trainable.module.parameters()).requires_grad_(False)
    frozen = loop.trainable.frozen_checksum()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(loop.trainable.module, mesh=init_device_mesh("cpu", (1,)))
        assert is_sharded(loop.trainable.module)
        assert loop.trainable.frozen_checksum() == frozen
    finally:
        torch.distributed.destroy_process_group()


# Refusals


def test_a_model_without_a_list_of_layers_is_refused(whole: Audit) -> None:
    model = cpu().load(whole.metadata.target.source).base.model
    model.config.num_hidden_layers = 7
    with pytest.raises(MitigateError, match=r"no list of 7 layers in it; unlearn.method: last_layers, rmu"):
        decoder_layers(model)


def test_a_model_that_cannot_recompute_is_refused(
    whole: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cpu().load(whole.metadata.target.source).base.model
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(MitigateError, match=r"unlearn.gradient_checkpointing: .*; set it to false"):
        loop_of(whole, changed(QUICK, gradient_checkpointing=True), tmp_path / "out")


def test_a_run_that_changes_nothing_is_no_result(whole: Audit, tmp_path: Path) -> None:
    settings = changed(QUICK, method="full", learning_rate=1e-30, max_steps=1)
    with pytest.raises(MitigateError, match=r"unlearning changed nothing; raise unlearn.learning_rate"):
        unlearn(whole, out=tmp_path / "out", settings=settings, store=cpu())
    assert list(tmp_path.iterdir()) == []
