"""What is audited is what was saved: weights, configurations and adapters that do not fit are refused, with the "
"cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyModelFactory
from kinds import TOLERANCE, merged_logits, plain_logits, save_adapter, text_of
from on_disk import edit_json
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast
from world import CONTEXT, World, architecture_config

import mitigate.models.store
from mitigate.detection.audit import audit
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.models.directory import check_layering, load_tokenizer, model_fingerprint, resolve
from mitigate.models.fitting.training import fine_tune
from mitigate.models.settings import Lora, Schedule
from mitigate.models.store import ModelStore
from mitigate.retraining.retrain import retrain

Change = Callable[[Path], None]
WEIGHTS, ADAPTER, INDEX = "model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def model(tiny_model: TinyModelFactory, tmp_path: Path) -> Path:
    """A model directory that a test may damage."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


@pytest.fixture
def adapter(tiny_model: TinyModelFactory, tmp_path: Path) -> Path:
    """A LoRA adapter over the model, that a test may damage."""
    save_adapter(
        tiny_model("llama"), lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), tmp_path / "adapter"
    )
    return tmp_path / "adapter"


def rewrite(file: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    """Changes the tensors in a file of a directory."""
    return lambda directory: save_file(change(load_file(directory / file)), directory / file, metadata={"format": "pt"})


def write(file: str, content: str | bytes) -> Change:
    """Replaces a file of a directory."""
    return lambda directory: (directory / file).write_bytes(content.encode() if isinstance(content, str) else content)


def config(**changes: Any) -> Change:
    return lambda directory: edit_json(directory / "config.json", **changes)


def adapter_config(**changes: Any) -> Change:
    return lambda directory: edit_json(directory / "adapter_config.json", **changes)


def prefixed(prefix: str) -> Change:
    return rewrite(WEIGHTS, lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()})


def without(part: str, file: str = WEIGHTS) -> Change:
    return rewrite(file, lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name})


def with_more(name: str, *shape: int) -> Change:
    return rewrite(WEIGHTS, lambda tensors: {**tensors, name: torch.zeros(*shape)})


def cut(file: str, length: int) -> Change:
    return lambda directory: (directory / file).write_bytes((directory / file).read_bytes()[:length])


def with_nan(file: str, name: str) -> Change:
    return rewrite(
        file, lambda tensors: {key: torch.full_like(t, torch.nan) if name in key else t for key, t in tensors.items()}
    )


def pickled_beside_another(directory: Path) -> None:
    (directory / ADAPTER).rename(directory / "adapter_model.old.safetensors")
    torch.save({}, directory / "adapter_model.bin")


def encoder(kind: type) -> Change:
    def make(directory: Path) -> None:
        settings = BertConfig(
            vocab_size=400, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
        (directory / WEIGHTS).unlink()
        kind(settings).save_pretrained(directory)

    return make


MODELS: dict[str, tuple[Change, str]] = {
    "compiled": (prefixed("_orig_mod."), r"21 that the model needs are not there .*_orig_mod.*torch.compile"),
    "parallel": (prefixed("module."), "inside DataParallel or FSDP: save model.module"),
    "not merged": (prefixed("base_model.model."), "a PEFT model that was saved without merging"),
    "value head": (prefixed("pretrained_model."), "a model with a value head around it"),
    "layer missing": (without("layers.1."), r"9 that the model needs .*layers\.1\..*the file has 1 layers and config"),
    "layer too many in config": (config(num_hidden_layers=3), "9 that the model needs .*2 layers and config.json more"),
    "layer too few in config": (config(num_hidden_layers=1), "9 that the model does not have .*config.json fewer"),
    "one weight missing": (without("layers.0.mlp.up_proj"), r"1 that the model needs .*\(model.layers.0.mlp"),
    "head missing": (without("lm_head"), "its head was not saved, and is not tied"),
    "another task": (with_more("score.weight", 2, 16), r"1 that the model does not .*\(score.weight\).*another task"),
    "another width": (config(intermediate_size=64), "of another shape|cannot be loaded"),
    "a million layers": (config(num_hidden_layers=10**6), "num_hidden_layers = 1000000, but there are only 21 tensors"),
    "more layers than memory": (config(num_hidden_layers=10**13), "there are only 21 tensors of weights"),
    "no heads": (config(num_attention_heads=0), "cannot be loaded as a causal language model"),
    "config cut short": (write("config.json", '{"model_type": '), r"config\.json: not JSON .*save it again"),
    "config a list": (write("config.json", "[]"), r"config\.json: a JSON list, not an object"),
    "config of nothing": (write("config.json", "{}"), "cannot be loaded as a causal language model"),
    "weights empty": (write(WEIGHTS, b""), r"model\.safetensors: cannot be read .*copy or save it again"),
    "weights cut short": (cut(WEIGHTS, 3000), r"model\.safetensors: cannot be read as safetensors"),
    "index of a shard that is gone": (
        lambda at: (at / WEIGHTS).rename(at / "c") and write(INDEX, '{"weight_map": {"a": "b.safetensors"}}')(at),
        "b.safetensors named in model.safetensors.index.json is missing",
    ),
    "NaN": (with_nan(WEIGHTS, "layers.0.mlp"), "its logits are not finite on plain text; its weights are damaged"),
    "masked encoder": (encoder(BertForMaskedLM), "BertLMHeadModel does not read from left to right"),
    "bare encoder": (encoder(BertModel), "weights do not fit its config.json: .*another task"),
    "a mixture of itself": (write("mixture.json", '{"members": ["."]}'), "its member .* is a mixture itself"),
    "a mixture of nothing": (write("mixture.json", '{"members": []}'), r"mixture\.json: members is \[\], not a list"),
    "a mixture, a list": (write("mixture.json", "[]"), r"mixture\.json: a JSON list, not an object"),
}  # fmt: skip

ADAPTERS: dict[str, tuple[Change, str]] = {
    "config cut short": (write("adapter_config.json", "{"), r"adapter_config\.json: not JSON .*copy or save it again"),
    "config a list": (write("adapter_config.json", "[]"), r"adapter_config\.json: a JSON list, not an object"),
    "unknown kind": (adapter_config(peft_type="MAGIC"), "peft_type 'MAGIC' is not a kind .*upgrade peft"),
    "kind a list": (adapter_config(peft_type=["LORA"]), r"peft_type \['LORA'\] is not a kind"),
    "base a number": (
        adapter_config(base_model_name_or_path=7),
        "base_model_name_or_path is 7, not a path or a hub id",
    ),
    "a setting of a later PEFT": (
        adapter_config(use_magic=True),
        r"settings that the installed PEFT does not know .*magic",
    ),
    "rank nothing": (adapter_config(r=0), "settings that PEFT refuses|does not fit its base"),
    "another task": (adapter_config(task_type="SEQ_CLS"), "an adapter for SEQ_CLS; give one that was trained to write"),
    "weights empty": (write(ADAPTER, b""), r"adapter_model\.safetensors: cannot be read as safetensors"),
    "weights cut short": (cut(ADAPTER, 900), r"adapter_model\.safetensors: cannot be read as safetensors"),
    "pickled beside an unused file": (pickled_beside_another, "its weights are pickled, and loading them can run code"),
    "layer missing": (
        without("layers.1.", ADAPTER),
        "4 weights that it needs are not in its file: missing adapter keys",
    ),
    "layers of a longer base": (
        rewrite(ADAPTER, lambda t: {**t, **{n.replace("layers.1.", "layers.2."): w.clone() for n, w in t.items()}}),
        r"4 weights that it has are not in the base: unexpected adapter keys \(.*layers\.2",
    ),
    "another rank": (adapter_config(r=8), "does not fit its base .*size mismatch"),
    "names itself": (adapter_config(base_model_name_or_path="."), r"lies over itself \(.* over "),
    "NaN": (with_nan(ADAPTER, "lora_B"), "with this adapter the logits are not finite"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_not_what_was_saved_is_refused(name: str, model: Path, store: ModelStore) -> None:
    damage, message = MODELS[name]
    damage(model)
    before = sorted(model.iterdir())
    with pytest.raises(MitigateError, match=f"(?s){message}"):
        store.load(model)
    assert sorted(model.iterdir()) == before


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_is_not_what_was_saved_is_refused(
    name: str, adapter: Path, tiny_model: TinyModelFactory, store: ModelStore
) -> None:
    damage, message = ADAPTERS[name]
    good = shutil.copytree(adapter, adapter.parent / "good")
    damage(adapter)
    if name == "names itself":
        edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(MitigateError, match=f"(?s){message}"):
        store.load(adapter)
    base, ids = tiny_model("llama"), text_of(20)  # what was refused has left nothing behind
    for source, expected in ((base, plain_logits(base, None, ids)), (good, plain_logits(base, good, ids))):
        torch.testing.assert_close(logits(store, source, ids), expected, rtol=0, atol=TOLERANCE)


def logits(store: ModelStore, source: Path, ids: torch.Tensor) -> torch.Tensor:
    """(T, V) of a model from the store."""
    with store.load(source).active() as module, torch.inference_mode():
        return module(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False).logits[0]


def test_a_path_too_long_for_the_disk_is_refused(store: ModelStore) -> None:
    for source in ("x" * 300, "/" + "y" * 300, "a\0b"):
        with pytest.raises(MitigateError, match="no such directory, and no such model on the hub"):
            store.load(source)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama"])
def test_masks_and_frequencies_that_models_compute_anew_may_lie_in_a_file(
    architecture: str, tiny_model: TinyModelFactory, tmp_path: Path, store: ModelStore
) -> None:
    old = Path(shutil.copytree(tiny_model(architecture), tmp_path / "old"))
    buffers = {
        "gpt2": {"transformer.h.0.attn.bias": (1, 1, CONTEXT, CONTEXT), "transformer.h.0.attn.masked_bias": ()},
        "gpt_neox": {"gpt_neox.layers.0.attention.bias": (1, 1, CONTEXT, CONTEXT)},
        "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)},
    }[architecture]
    rewrite(WEIGHTS, lambda tensors: {**tensors, **{name: torch.ones(shape) for name, shape in buffers.items()}})(old)
    ids = text_of(20)
    expected = plain_logits(tiny_model(architecture), None, ids)
    torch.testing.assert_close(logits(store, old, ids), expected, rtol=0, atol=TOLERANCE)


def test_a_bias_that_is_no_mask_is_not_left_out(model: Path, store: ModelStore) -> None:
    with_more("model.layers.0.self_attn.bias", 16)(model)
    with pytest.raises(MitigateError, match=r"1 that the model does not have \(model.layers.0.self_attn.bias\)"):
        store.load(model)


def test_references_and_oracles_that_do_not_fit_are_refused_before_anything_is_scored(
    world: World, model: Path
) -> None:
    without("layers.1.")(model)
    with pytest.raises(MitigateError, match="the file has 1 layers"):
        audit(world.base, [model], documents=world.documents, store=ModelStore(device="cpu"))


# Stacks of adapters


def over(lower: Path, upper: Path) -> Path:
    edit_json(upper / "adapter_config.json", base_model_name_or_path=str(lower))
    return upper


@pytest.fixture
def chain(tiny_model: TinyModelFactory, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base and three adapters, each over the one before it."""
    base, parts = tiny_model("llama"), [tmp_path / name for name in ("sft", "dpo", "last")]
    for seed, part in enumerate(parts):
        save_adapter(base, lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), part, seed=seed)
    for lower, upper in pairwise(parts):
        over(lower, upper)
    return base, parts


def test_adapters_over_adapters_are_followed_to_the_base(chain: tuple[Path, list[Path]], store: ModelStore) -> None:
    base, parts = chain
    ids = text_of(20)
    for depth in (3, 1, 2):
        expected = merged_logits(base, parts[:depth], ids)
        torch.testing.assert_close(logits(store, parts[depth - 1], ids), expected, rtol=0, atol=TOLERANCE)
    assert resolve(str(parts[2])) == ([str(part) for part in parts], str(base))
    assert (logits(store, parts[2], ids) - plain_logits(base, parts[2], ids)).abs().max() > 0.1, "the lower ones count"


def test_an_adapter_over_one_that_it_is_under_is_refused(chain: tuple[Path, list[Path]], store: ModelStore) -> None:
    _, parts = chain
    over(parts[2], parts[0])
    for call in (store.load, model_fingerprint, load_tokenizer):
        with pytest.raises(MitigateError, match=r"last: this adapter lies over itself .*sft over .*dpo over .*last"):
            call(str(parts[2]))


def test_a_stack_moves_as_a_whole_by_relative_paths(
    chain: tuple[Path, list[Path]], store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, parts = chain
    monkeypatch.chdir(parts[0].parent)  # directories of these names beside the working directory would come first
    expected = merged_logits(base, parts, text_of(20))
    moved = parts[0].parent / "moved"
    moved.mkdir()
    shutil.copytree(base, moved / "base")
    for part, lower in zip(parts, ("../base", "../sft", "../dpo"), strict=True):
        shutil.copytree(part, moved / part.name)
        edit_json(moved / part.name / "adapter_config.json", base_model_name_or_path=lower)
    torch.testing.assert_close(logits(store, moved / "last", text_of(20)), expected, rtol=0, atol=TOLERANCE)
    assert model_fingerprint(moved / "last") == model_fingerprint(parts[2])


def test_every_adapter_of_a_stack_counts_in_its_fingerprint(chain: tuple[Path, list[Path]]) -> None:
    base, parts = chain
    before = model_fingerprint(parts[2])
    rewrite(ADAPTER, lambda tensors: {name: 1.01 * tensor for name, tensor in tensors.items()})(parts[0])
    assert model_fingerprint(parts[2]) != before
    assert model_fingerprint(parts[2], base=str(base)) != before


def test_a_base_that_is_given_may_be_an_adapter_or_one_of_the_stack(chain: tuple[Path, list[Path]]) -> None:
    base, parts = chain
    whole = [str(part) for part in parts]
    edit_json(parts[2] / "adapter_config.json", base_model_name_or_path="/gone")
    assert resolve(whole[2], base=whole[1]) == (whole, str(base))
    assert resolve(whole[1], base=whole[0]) == (whole[:2], str(base))
    stored = ModelStore(device="cpu", base=whole[1])
    expected = merged_logits(base, parts, text_of(20))
    torch.testing.assert_close(logits(stored, parts[2], text_of(20)), expected, rtol=0, atol=TOLERANCE)


def test_a_tokenizer_beside_a_lower_adapter_is_that_of_the_upper(
    chain: tuple[Path, list[Path]], tokenizer: PreTrainedTokenizerFast
) -> None:
    _, parts = chain
    tokenizer.save_pretrained(parts[0])
    edit_json(parts[0] / "tokenizer_config.json", chat_template="of the lower adapter")
    assert load_tokenizer(str(parts[2])).chat_template == "of the lower adapter"


def test_references_trained_over_an_adapter_lie_over_it(world: World, tmp_path: Path) -> None:
    documents = Documents(world.documents.items[:4])
    fine_tune(
        world.adapter,
        documents,
        out=tmp_path / "reference",
        method="lora",
        lora=Lora(rank=4),
        schedule=Schedule(epochs=1, learning_rate=1e-2, batch_size=2),
        seed=0,
        description="",
        store=ModelStore(device="cpu"),
    )
    ids = torch.from_numpy(np.arange(30) * 7 % 400)
    expected = merged_logits(world.base, [world.adapter, tmp_path / "reference"], ids)
    got = logits(ModelStore(device="cpu"), tmp_path / "reference", ids)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    first = json.loads((tmp_path / "reference" / "training.json").read_text())["losses"][0]
    assert first < 1, "training began at the adapter, which knows these documents"


def test_retraining_over_an_adapter_begins_there(world: World, layered: Any, tmp_path: Path) -> None:
    made = retrain(
        layered,
        base=world.references / "reference-0",
        out=tmp_path / "retrained",
        redact="mask",
        lora=Lora(rank=4),
        schedule=Schedule(epochs=1, learning_rate=1e-3, batch_size=4),
        new_store=lambda: ModelStore(device="cpu"),
    )
    ids, store = torch.arange(30) * 7 % 400, ModelStore(device="cpu")
    result, start, bare = (
        logits(store, at, ids) for at in (made.directory, world.references / "reference-0", world.base)
    )
    assert 0 < (result - start).abs().mean() < 0.2 * (result - bare).abs().mean()
    assert any("lies over an adapter" in warning for warning in made.summary["warnings"])


def test_nothing_is_trained_over_an_adapter_of_another_kind(
    tiny_model: TinyModelFactory, world: World, tmp_path: Path
) -> None:
    from peft import IA3Config

    save_adapter(
        tiny_model("llama"),
        lambda: IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        tmp_path / "ia3",
    )
    with pytest.raises(MitigateError, match="no new LoRA adapter can be trained over an adapter of kind IA3; merge it"):
        check_layering(str(tmp_path / "ia3"))
    with pytest.raises(MitigateError, match="method full trains a whole model"):
        check_layering(str(world.adapter), whole=True)
    check_layering(str(world.adapter))
    check_layering(str(world.base), whole=True)


# Vocabularies


@pytest.fixture
def chat_adapter(
    tiny_model: TinyModelFactory, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> Callable[..., Path]:
    """An adapter trained over a base that was given tokens for a chat format."""

    def make(**saved: Any) -> Path:
        from peft import get_peft_model

        longer = load_tokenizer(tiny_model("llama"))
        longer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        torch.manual_seed(3)
        base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
        base.resize_token_embeddings(len(longer), mean_resizing=False)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
        torch.nn.init.normal_(model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
        out = tmp_path / "chat"
        model.save_pretrained(out, **saved)
        longer.save_pretrained(out)
        torch.save(model.eval()(input_ids=text_of(20, beyond=402)[None]).logits[0].detach(), tmp_path / "logits")
        return out

    return make


def test_embeddings_that_an_adapter_brings_along_make_the_vocabulary(
    chat_adapter: Callable[..., Path], tiny_model: TinyModelFactory, tmp_path: Path, store: ModelStore
) -> None:
    source, base = chat_adapter(), tiny_model("llama")
    plain = plain_logits(base, None, text_of(20))
    model = store.load(source)
    assert (model.vocabulary_size, len(model.tokenizer)) == (402, 402)
    expected = torch.load(tmp_path / "logits")
    torch.testing.assert_close(logits(store, source, text_of(20, beyond=402)), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(logits(store, base, text_of(20)), plain, rtol=0, atol=TOLERANCE)


def test_tokens_whose_weights_were_not_saved_are_named(chat_adapter: Callable[..., Path], store: ModelStore) -> None:
    with pytest.raises(MitigateError, match=r"402 entries but .* only 400 \(beyond them: <\|im_start\|>, .*save_embed"):
        store.load(chat_adapter(save_embedding_layers=False))


def test_embeddings_without_their_head_are_refused(chat_adapter: Callable[..., Path], store: ModelStore) -> None:
    source = chat_adapter()
    without("lm_head", ADAPTER)(source)
    with pytest.raises(MitigateError, match="brings embeddings for 402 tokens over a base of 400, but no head"):
        store.load(source)


def test_a_head_may_be_longer_than_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, store: ModelStore
) -> None:
    settings = architecture_config("llama", tokenizer)
    settings.vocab_size = 448
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    assert store.load(tmp_path / "padded").vocabulary_size == 448


# Fingerprints


def test_what_training_leaves_beside_a_model_is_no_part_of_its_fingerprint(model: Path, adapter: Path) -> None:
    before = [model_fingerprint(model), model_fingerprint(adapter)]
    for directory in (model, adapter):
        for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "scheduler.pt", "README.md", "rng.pth"):
            (directory / name).write_bytes(b"left")
        (directory / "generation_config.json").write_text("{}")
    edit_json(model / "config.json", transformers_version="9.9", _name_or_path="elsewhere", use_cache=False)
    edit_json(model / "tokenizer_config.json", chat_template="{{ strftime_now('%d') }}", name_or_path="elsewhere")
    edit_json(
        adapter / "adapter_config.json", inference_mode=False, revision="main", peft_version="9", lora_dropout=0.5
    )
    assert [model_fingerprint(model), model_fingerprint(adapter)] == before


@pytest.mark.parametrize(
    "change",
    [config(rms_norm_eps=0.1), rewrite(WEIGHTS, lambda t: {n: w + 1e-3 for n, w in t.items()}), with_more("x", 1)],
)
def test_what_changes_a_model_changes_its_fingerprint(change: Change, model: Path) -> None:
    before = model_fingerprint(model)
    change(model)
    assert model_fingerprint(model) != before


def test_a_tokenizer_of_other_ids_changes_a_fingerprint(model: Path) -> None:
    before = model_fingerprint(model)
    rules = json.loads((model / "tokenizer.json").read_text())
    rules["padding"] = None
    (model / "tokenizer.json").write_text(json.dumps(rules))
    assert model_fingerprint(model) == before
    words = list(rules["model"]["vocab"].items())
    (first, one), (second, two) = words[-2:]
    rules["model"]["vocab"] |= {first: two, second: one}
    (model / "tokenizer.json").write_text(json.dumps(rules))
    assert model_fingerprint(model) != before


def test_what_changes_an_adapter_changes_its_fingerprint(adapter: Path) -> None:
    seen = {model_fingerprint(adapter)}
    for changes in ({"lora_alpha": 64}, {"use_rslora": True}, {"target_modules": ["v_proj"]}):
        edit_json(adapter / "adapter_config.json", **changes)
        seen.add(model_fingerprint(adapter))
    assert len(seen) == 4
    edit_json(adapter / "adapter_config.json", target_modules=["v_proj"], exclude_modules=None)
    assert model_fingerprint(adapter) in seen


def test_an_adapter_in_use_elsewhere_is_read_with_peft_alone(adapter: Path, tiny_model: TinyModelFactory) -> None:
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model("llama")), adapter)
    assert len(whole.peft_config) == 1


def test_models_of_the_hub_are_known_by_their_commit_and_never_unpickled(
    adapter: Path, model: Path, store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache on the disk, without the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))

    def published(name: str, directory: Path, commit: str) -> str:
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        shutil.copytree(directory, folder / "snapshots" / commit)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        return name

    base = published("someone/base", model, "b" * 40)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=base)
    first = published("someone/adapter", adapter, "a" * 40)
    second = published("someone/later", adapter, "c" * 40)
    loaded = store.load(first)
    assert loaded.adapters
    assert loaded.base is store.load(base).base
    expected = plain_logits(model, adapter, text_of(20))
    torch.testing.assert_close(logits(store, Path(first), text_of(20)), expected, rtol=0, atol=TOLERANCE)
    assert len({model_fingerprint(source) for source in (base, first, second)}) == 3
    (adapter / ADAPTER).unlink()
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(MitigateError, match=r"has no adapter_model\.safetensors, and loading pickled weights can run"):
        store.load(published("someone/pickled", adapter, "d" * 40))


@pytest.mark.parametrize("error", [MemoryError("of 24 GiB"), torch.OutOfMemoryError("of 24 GiB")])
def test_a_model_that_does_not_fit_in_memory_is_not_called_damaged(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(mitigate.models.store.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(MitigateError, match=r"does not fit in memory; .* \(of 24 GiB\)"):
        ModelStore(device="cpu").load(tiny_model("llama"))
