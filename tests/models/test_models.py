"""Loading models: what cannot be loaded is refused with its remedy, and adapters share one base in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from on_disk import edit_json
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from world import World, architecture_config, sentences

from mitigate.detection.signals.compute import token_log_probs
from mitigate.errors import MitigateError
from mitigate.lab.tiny import train_tokenizer
from mitigate.models.adapters import OVERLAY_FILE
from mitigate.models.directory import adapter_stack, load_tokenizer, model_fingerprint
from mitigate.models.fitting.training import add_lora, lora_config
from mitigate.models.model import Model, check_same_tokenizer
from mitigate.models.settings import Lora
from mitigate.models.store import ModelStore
from mitigate.tokens.rules import tokenizer_fingerprint
from mitigate.tokens.tokenization import tokenize_documents

TinyModel = Callable[..., Path]


@pytest.fixture
def copy(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A model directory that a test may damage."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


@pytest.fixture
def adapter(world: World, tmp_path: Path) -> Path:
    """An adapter directory that a test may damage."""
    return Path(shutil.copytree(world.adapter, tmp_path / "adapter"))


def log_probs(model: Model, world: World) -> np.ndarray:
    return token_log_probs(model, tokenize_documents(world.documents, model.tokenizer))


def embeddings_at(module: Any) -> int:
    return module.get_input_embeddings().weight.data_ptr()


def test_a_directory_that_is_not_there_is_refused(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match="nowhere: no such directory, and no such model on the hub"):
        store.load(tmp_path / "nowhere")


def test_a_file_is_refused(store: ModelStore, copy: Path) -> None:
    with pytest.raises(MitigateError, match=r"model\.safetensors: a file; give the directory"):
        store.load(copy / "model.safetensors")


def test_a_directory_without_config_is_refused(store: ModelStore, copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(MitigateError, match=r"model: has no config.json; .*save_pretrained"):
        store.load(copy)


def test_a_config_of_no_language_model_is_refused(store: ModelStore, copy: Path) -> None:
    (copy / "config.json").write_text("{}")
    with pytest.raises(MitigateError, match="model: cannot be loaded as a causal language model"):
        store.load(copy)


def test_a_directory_without_weights_is_refused(store: ModelStore, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(MitigateError, match="model: has no weights"):
        store.load(copy)


def test_damaged_weights_are_refused(store: ModelStore, copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\x01" * 40)
    with pytest.raises(MitigateError, match=r"model\.safetensors: cannot be read as safetensors"):
        store.load(copy)


def test_pickled_weights_are_refused_unless_allowed(store: ModelStore, copy: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(copy)
    torch.save(module.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(MitigateError, match=r"pickled, and loading them can run code; .*models.allow_pickle: true"):
        store.load(copy)
    assert ModelStore(device="cpu", allow_pickle=True).load(copy).vocabulary_size == 400


def test_a_pickled_adapter_is_refused(store: ModelStore, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(MitigateError, match="adapter: its weights are pickled"):
        store.load(adapter)


def test_an_adapter_without_weights_is_refused(store: ModelStore, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(MitigateError, match="adapter: has no weights"):
        store.load(adapter)


def test_a_model_without_tokenizer_is_refused(store: ModelStore, copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(MitigateError, match=r"model: no tokenizer there.*save the tokenizer beside the model"):
        store.load(copy)


def test_an_adapter_whose_base_is_missing_is_refused_with_both_names(store: ModelStore, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="/gone/base")
    with pytest.raises(MitigateError, match=r"adapter: its base model '/gone/base' .*is not there; .*--base"):
        store.load(adapter)


def test_an_adapter_that_names_no_base_is_refused(store: ModelStore, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(MitigateError, match=r"adapter: its base model '' .*--base"):
        store.load(adapter)


def test_a_given_base_takes_the_place_of_the_one_an_adapter_names(world: World, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="/gone/base")
    moved = ModelStore(device="cpu", base=str(world.base)).load(adapter)
    expected = ModelStore(device="cpu").load(world.adapter)
    np.testing.assert_array_equal(log_probs(moved, world), log_probs(expected, world))


def test_a_base_is_found_relative_to_its_adapter(
    world: World, store: ModelStore, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adapter.parent)  # a directory ../base of the working directory would come first
    shutil.copytree(world.base, adapter.parent / "base")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="../base")
    assert store.load(adapter).adapters


def test_an_adapter_of_another_architecture_is_refused(store: ModelStore, adapter: Path, tiny_model: TinyModel) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(tiny_model("llama")))
    with pytest.raises(MitigateError, match="adapter: this adapter does not fit its base"):
        store.load(adapter)


def test_an_adapter_that_lacks_weights_for_some_modules_is_refused(store: ModelStore, adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: w for name, w in weights.items() if "q_proj" not in name}, adapter / "adapter_model.safetensors")
    with pytest.raises(MitigateError, match=r"adapter: this adapter does not fit its base .*missing adapter keys"):
        store.load(adapter)


def test_damaged_adapter_weights_are_refused(store: ModelStore, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"\x01" * 40)
    with pytest.raises(MitigateError, match=r"adapter_model\.safetensors: cannot be read as safetensors"):
        store.load(adapter)


def test_an_overlay_whose_lower_adapter_is_missing_is_refused(store: ModelStore, adapter: Path) -> None:
    (adapter / OVERLAY_FILE).write_text('{"over": ["/gone/lower"]}')
    with pytest.raises(MitigateError, match="lies over the adapter '/gone/lower', which is not there"):
        store.load(adapter)


def test_a_tokenizer_with_more_entries_than_the_model_predicts_is_refused(
    store: ModelStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = architecture_config("llama", tokenizer)
    config.vocab_size = 390
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(MitigateError, match=r"small: its tokenizer has 400 entries but .* only 390"):
        store.load(tmp_path / "small")


def test_a_reference_with_another_tokenizer_is_refused_with_both_names(
    store: ModelStore, tiny_model: TinyModel, copy: Path
) -> None:
    other = train_tokenizer([text.upper() for text in sentences(200)], vocabulary=400)
    other.save_pretrained(copy)
    target, reference = store.load(tiny_model("llama"), name="the target"), store.load(copy, name="the reference")
    with pytest.raises(MitigateError, match="tokenizer of the reference differs from that of the target"):
        check_same_tokenizer(target, reference)


def test_a_reference_with_another_vocabulary_size_is_refused_with_both_names(
    store: ModelStore, tiny_model: TinyModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = architecture_config("llama", tokenizer)
    config.vocab_size = 416
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    target, reference = store.load(tiny_model("llama"), name="the target"), store.load(tmp_path / "wide", name="wide")
    with pytest.raises(MitigateError, match="wide predicts 416 tokens but the target predicts 400"):
        check_same_tokenizer(target, reference)


def test_an_unknown_number_format_or_device_is_refused() -> None:
    with pytest.raises(MitigateError, match="dtype: 'int8' is not one of auto, float32, bfloat16, float16"):
        ModelStore(dtype="int8")
    with pytest.raises(MitigateError, match="device: 'gpu' cannot be used"):
        ModelStore(device="gpu")


def test_the_number_format_is_float32_on_a_cpu_unless_asked(tiny_model: TinyModel) -> None:
    module = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.bfloat16)
    assert module.dtype == torch.bfloat16
    assert ModelStore(device="cpu").load(tiny_model("llama")).base.model.dtype == torch.float32
    assert ModelStore(device="cpu", dtype="bfloat16").load(tiny_model("llama")).base.model.dtype == torch.bfloat16


def test_adapters_on_one_base_share_its_memory(world: World, store: ModelStore) -> None:
    base = store.load(world.base)
    adapters = [store.load(path) for path in (world.adapter, world.references / "reference-0")]
    assert all(model.base is base.base for model in adapters)
    with base.active() as module:
        pointer = embeddings_at(module)
    for model in adapters:
        with model.active() as module:
            assert embeddings_at(module) == pointer
    weights = [name for name, _ in base.base.model.named_parameters() if "base_layer.weight" in name]
    assert len(weights) == 2 * 7, "each projection of the base is there once"


def test_a_path_written_in_two_ways_is_one_base(world: World, store: ModelStore) -> None:
    assert store.load(world.base).base is store.load(f"{world.base}/../{world.base.name}").base


def test_switching_adapters_gives_what_each_model_gives_alone(world: World, store: ModelStore) -> None:
    sources = [world.base, world.adapter, world.references / "reference-0", world.target]
    shared = [store.load(source) for source in sources]
    alone = [log_probs(ModelStore(device="cpu").load(source), world) for source in sources]
    for number in (0, 1, 2, 3, 1, 0, 2):
        np.testing.assert_allclose(log_probs(shared[number], world), alone[number], rtol=0, atol=1e-6)
    audited = ~np.isnan(alone[0])
    assert np.abs(alone[0] - alone[1])[audited].max() > 1, "the models differ"


def test_no_weight_is_trainable_after_switching(world: World, store: ModelStore) -> None:
    for source in (world.adapter, world.references / "reference-1", world.base):
        with store.load(source).active() as module:
            assert not module.training
            assert not any(parameter.requires_grad for parameter in module.parameters())


def test_an_adapters_stack_is_its_lower_adapters_first(adapter: Path, world: World) -> None:
    lower = str(world.references / "reference-0")
    (adapter / OVERLAY_FILE).write_text(json.dumps({"over": [lower]}))
    assert adapter_stack(str(adapter)) == [lower, str(adapter)]
    assert adapter_stack(str(world.base)) == []


def test_fingerprints_follow_contents_not_places(world: World, tiny_model: TinyModel, copy: Path) -> None:
    assert model_fingerprint(copy) == model_fingerprint(tiny_model("llama"))
    assert model_fingerprint(copy) != model_fingerprint(tiny_model("llama", seed=1))
    references = [model_fingerprint(world.references / f"reference-{number}") for number in range(2)]
    assert len({*references, model_fingerprint(world.adapter), model_fingerprint(world.base)}) == 4
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_fingerprint(copy) != model_fingerprint(tiny_model("llama"))


def test_a_tokenizers_fingerprint_does_not_depend_on_how_it_was_used(world: World) -> None:
    tokenizer = load_tokenizer(world.base)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == before
    assert tokenizer_fingerprint(load_tokenizer(world.adapter)) == before
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_fingerprint(tokenizer) != before


def test_switching_back_and_forth_is_what_peft_makes_of_it(tiny_model: TinyModel, tmp_path: Path) -> None:
    store = ModelStore(device="cpu")
    base = tiny_model("llama")
    paths: list[Path] = [base]
    for seed in range(3):
        peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora_config(Lora(rank=2, alpha=4)))
        torch.manual_seed(seed)
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        paths.append(tmp_path / f"adapter-{seed}")
        peft.save_pretrained(paths[-1])
    models = [store.load(path) for path in paths]
    ids = torch.arange(5, 25).unsqueeze(0)

    def said(model: Model) -> torch.Tensor:
        with model.active() as module, torch.no_grad():
            assert not module.training
            assert not any(parameter.requires_grad for parameter in module.parameters())
            return module(input_ids=ids).logits

    def alone(path: Path) -> torch.Tensor:
        with torch.no_grad():
            return AutoModelForCausalLM.from_pretrained(path)(input_ids=ids).logits

    expected = [alone(path) for path in paths]
    for number in (2, 0, 3, 1, 1, 0, 2):
        torch.testing.assert_close(said(models[number]), expected[number], rtol=0, atol=1e-5)
    assert (expected[1] - expected[2]).abs().max() > 0.1
    trained = add_lora(models[1], Lora(rank=2, alpha=4), seed=0)  # over the first adapter, and then trained
    trained.train()
    assert any(parameter.requires_grad for parameter in trained.parameters())
    for number in (0, 1, 2, 3, 1):
        torch.testing.assert_close(said(models[number]), expected[number], rtol=0, atol=1e-5)


def test_merged_in_half_precision_all_else_keeps_its_number_format(world: World, tmp_path: Path) -> None:
    """Rotary frequencies in bfloat16 would put late tokens elsewhere; models are loaded with them in float32."""
    store = ModelStore(device="cpu", dtype="bfloat16")
    for rounded in (True, False):
        model = store.fresh().load(world.adapter)
        before = {name: buffer.clone() for name, buffer in model.base.model.named_buffers()}
        assert any(buffer.dtype == torch.float32 for buffer in before.values())
        model.base.merge(model.adapters, instead="-", rounded=rounded)
        for name, buffer in model.base.model.named_buffers():
            assert torch.equal(buffer, before[name]), name
        formats = {parameter.dtype for parameter in model.base.model.parameters()}
        assert formats == {torch.bfloat16 if rounded else torch.float32}
