"""The adapter that is given out: loaded as people load it, it is the model that was audited."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyModelFactory
from forgetting import QUICK, changed, cpu
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from world import LORA

from mitigate.adapters.addition import Part, add, check_sum
from mitigate.adapters.card import loading_lines
from mitigate.adapters.merging import merge_adapters
from mitigate.adapters.trained import DIFFERENCE
from mitigate.detection.record import Audit
from mitigate.errors import MitigateError
from mitigate.models.adapters import OVERLAY_FILE
from mitigate.models.fitting.training import NEW_ADAPTER
from mitigate.models.store import ModelStore
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainable import AdapterTrainable
from mitigate.unlearning.trainer import unlearn

IDS = torch.arange(5, 45)[None]
ALIKE = 1e-3  # of logits
APART = 0.1  # at least so much lies between the models that must not be taken for one another

LOADED_THREE_WAYS = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ids, off = torch.arange(5, 45)[None], {}
for base, directory in json.loads(sys.argv[1]):
    right = load_file(directory + "/../right.safetensors")["logits"]
    third = AutoModelForCausalLM.from_pretrained(base)
    third.load_adapter(directory)
    models = {
        "PeftModel": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory),
        "AutoPeftModelForCausalLM": AutoPeftModelForCausalLM.from_pretrained(directory),
        "load_adapter": third,
    }
    with torch.no_grad():
        off[directory] = {way: float((model.eval()(ids).logits - right).abs().max()) for way, model in models.items()}
assert "mitigate" not in sys.modules
print(json.dumps(off))
"""


def adapter_over(base: Path | str, out: Path, *, seed: int = 0, **config: Any) -> Path:
    """A PEFT adapter of drawn weights, as if it had been trained."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter) * ("lora_A" not in name)
    model.save_pretrained(out)
    return out


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def ours(source: Path, store: ModelStore | None = None) -> torch.Tensor:
    with (store or cpu()).load(source).active() as module:
        return logits(module)


def mitigated(target: Path, out: Path, **settings: Any) -> tuple[AdapterTrainable, torch.Tensor]:
    """The target with a new adapter of drawn weights, saved to `out`, and what the two say in memory."""
    model = cpu().load(target)
    trainable = AdapterTrainable(model, Unlearn(lora=LORA, **settings), seed=3)
    torch.manual_seed(4)
    for name, parameter in trainable.module.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    right = logits(trainable.module)
    out.mkdir(parents=True)
    trainable.save(trainable.state(), out)
    save_file({"logits": right.contiguous()}, out.parent / "right.safetensors")
    return trainable, right


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "another rank": ("llama", {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}),
    "fewer modules": ("llama", {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "the output head, its weights saved": ("llama", {"r": 4, "target_modules": ["lm_head", "down_proj"]}),
    "embeddings, their weights saved": ("gpt2", {"r": 4, "target_modules": ["wte", "c_proj"]}),
    "biases": ("gpt_neox", {"r": 4, "target_modules": ["dense"], "bias": "all"}),
    "rsLoRA": ("llama", {"r": 9, "lora_alpha": 7, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]}),
    "patterns": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "k_proj", "v_proj"],
            "rank_pattern": {"q_proj": 2, "layers.1.self_attn.k_proj": 7},
            "alpha_pattern": {"v_proj": 1},
        },
    ),
    "one layer": ("llama", {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "Conv1D": ("gpt2", {"r": 4, "lora_alpha": 5, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "whole modules": ("gpt_neox", {"r": 4, "target_modules": ["query_key_value"], "modules_to_save": ["embed_out"]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_over_an_adapter_the_result_is_one_adapter_that_replaces_it(
    tiny_model: TinyModelFactory, tmp_path: Path, kind: str
) -> None:
    architecture, config = KINDS[kind]
    base = tiny_model(architecture)
    target = adapter_over(base, tmp_path / "target", **config)
    _, right = mitigated(target, tmp_path / "out/adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out/adapter")
    assert (logits(loaded) - right).abs().max() < ALIKE
    assert (ours(tmp_path / "out/adapter") - right).abs().max() < ALIKE
    assert (ours(target) - right).abs().max() > APART
    assert (ours(target) - ours(base)).abs().max() > APART
    written = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}


def test_in_a_fresh_process_it_is_the_same_model_however_plain_peft_loads_it(
    tiny_model: TinyModelFactory, tmp_path: Path
) -> None:
    pairs = []
    for kind in ("another rank", "patterns", "Conv1D"):
        architecture, config = KINDS[kind]
        base, folder = tiny_model(architecture), tmp_path / kind.replace(" ", "-")
        mitigated(adapter_over(base, folder / "target", **config), folder / "adapter")
        pairs.append((str(base), str(folder / "adapter")))
    base, folder = tiny_model("llama"), tmp_path / "stack"
    target = adapter_over(base, folder / "target", **KINDS["rsLoRA"][1])
    mitigated(target, folder / "first/adapter", give="difference")
    mitigated(folder / "first/adapter", folder / "second/adapter")
    pairs.append((str(base), str(folder / "second/adapter")))
    done = subprocess.run(
        [sys.executable, "-c", LOADED_THREE_WAYS, json.dumps(pairs)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    off = json.loads(done.stdout.splitlines()[-1])
    assert len(off) == len(pairs)
    for directory, ways in off.items():
        assert len(ways) == 3
        assert max(ways.values()) < ALIKE, (directory, ways)


def test_over_a_plain_model_it_is_an_adapter_of_its_own_rank(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    base = tiny_model("llama")
    _, right = mitigated(base, tmp_path / "out/adapter")
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (LORA.rank, LORA.alpha)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out/adapter")
    assert (logits(loaded) - right).abs().max() < ALIKE


def test_a_difference_is_found_by_mitigate_and_not_by_peft(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    base, out = tiny_model("llama"), tmp_path / "out/adapter"
    target = adapter_over(base, tmp_path / "target", **KINDS["another rank"][1])
    _, right = mitigated(target, out, give="difference")
    assert (ours(out) - right).abs().max() < ALIKE
    assert json.loads((out / OVERLAY_FILE).read_text())["over"] == [str(target)]
    with pytest.raises(ValueError, match=r"Can't find 'adapter_config\.json'"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    named = json.loads((out / DIFFERENCE / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == f"none: lies over {target}, see README.md"


def test_over_an_adapter_that_others_were_merged_under_the_result_is_not_one_adapter(
    tiny_model: TinyModelFactory, tmp_path: Path
) -> None:
    """DoRA that was trained over LoRA, which its adapter_config.json names as its base."""
    lower = adapter_over(tiny_model("llama"), tmp_path / "lower", **KINDS["another rank"][1])
    merge_adapters(lower, out=tmp_path / "whole", store=cpu())
    target = adapter_over(tmp_path / "whole", tmp_path / "target", r=4, target_modules=["q_proj"], use_dora=True)
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(lower)}))
    trainable, right = mitigated(target, tmp_path / "out/adapter")
    assert trainable.to_merge is not None
    assert not (tmp_path / "out/adapter/adapter_config.json").exists(), "PEFT would load it over the wrong base"
    assert (ours(tmp_path / "out/adapter") - right).abs().max() < ALIKE
    merge_adapters(tmp_path / "out/adapter", out=tmp_path / "merged", store=cpu())
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) - right).abs().max() < ALIKE


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, r"is DoRA \(use_dora\)"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights when it is loaded .*'pissa'"),
        ({"lora_bias": True}, "uses lora_bias"),
        ({"target_parameters": ["mlp.gate_proj.weight"]}, "uses target_parameters"),
    ],
)
def test_what_cannot_be_added_is_said(config: dict[str, Any], reason: str) -> None:
    pair = {"base_model.model.a.lora_A.weight": torch.ones(1, 2), "base_model.model.a.lora_B.weight": torch.ones(2, 1)}
    plain = Part(LoraConfig(r=1, target_modules=["a"]), pair)
    with pytest.raises(MitigateError, match=rf"cannot be added: one {reason}"):
        add([plain, Part(LoraConfig(r=1, target_modules=["a"], **config), pair)])
    stranger = {**pair, "base_model.model.a.lora_magnitude_vector": torch.ones(2)}
    with pytest.raises(MitigateError, match=r"holds more than pairs of LoRA matrices \(a.lora_magnitude_vector\)"):
        add([plain, Part(plain.config, stranger)])
    add([plain, plain])


def test_a_sum_that_is_not_the_sum_is_noticed(tiny_model: TinyModelFactory, tmp_path: Path) -> None:
    target = adapter_over(tiny_model("llama"), tmp_path / "target", **KINDS["another rank"][1])
    trainable, _ = mitigated(target, tmp_path / "out/adapter")
    peft = trainable.model.base.peft
    assert peft is not None
    peft.load_adapter(str(tmp_path / "out/adapter"), adapter_name="sum")
    parts = [*trainable.model.adapters, NEW_ADAPTER]
    check_sum(peft, parts, total="sum")
    with pytest.raises(MitigateError, match=r"the sum of the adapters is off by 0\.\d+ of the update of .*_proj"):
        check_sum(peft, parts[:1], total="sum")


# Merging


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT loses an update when it merges, as versions under 0.21 did with DoRA over LoRA."""
    merge = LoraModel.merge_and_unload

    def lossy(self: Any, adapter_names: Sequence[str], **options: Any) -> Any:
        self.model.model.layers[1].self_attn.q_proj.scaling[adapter_names[0]] = 0.0
        return merge(self, adapter_names=list(adapter_names), **options)

    monkeypatch.setattr(LoraModel, "merge_and_unload", lossy)


@pytest.mark.usefixtures("forgetful")
def test_a_merge_that_says_something_else_is_refused_with_the_number(
    tiny_model: TinyModelFactory, tmp_path: Path
) -> None:
    target = adapter_over(tiny_model("llama"), tmp_path / "target", **KINDS["another rank"][1])
    model = cpu().load(target)
    with pytest.raises(MitigateError, match=r"merged into its base it says something else .* off by [\d.]+ nats"):
        model.base.merge(model.adapters, instead="use the adapter unmerged")
    with pytest.raises(MitigateError, match="merged into its base it says something else"):
        merge_adapters(target, out=tmp_path / "merged", store=cpu())
    assert not (tmp_path / "merged").exists()


@pytest.mark.usefixtures("forgetful")
def test_an_adapter_that_cannot_be_merged_is_given_out_all_the_same(
    layered: Audit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quick = {"max_steps": 1, "check_every": 1}
    with pytest.raises(MitigateError, match=r"asked: is written, but without merged/: .* off by [\d.]+ nats"):
        unlearn(layered, out=tmp_path / "asked", settings=changed(QUICK, merge=True, **quick), store=cpu())
    assert not (tmp_path / "asked/merged").exists()
    made = unlearn(layered, out=tmp_path / "dora", settings=changed(QUICK, method="dora", **quick), store=cpu())
    assert "cannot be one adapter: one is DoRA (use_dora); the result is a plain model" in caplog.text
    assert "says something else" in caplog.text
    assert "the new adapter is given alone" in caplog.text
    assert (made.directory / DIFFERENCE).is_dir()
    assert "of no use alone" in (made.directory / "README.md").read_text()
    for out in ("asked", "dora"):
        assert not any(path.name in ("stack", "whole") for path in (tmp_path / out).iterdir())
        assert (ours(tmp_path / out) - ours(Path(layered.metadata.target.source))).abs().max() > 1e-4


@pytest.mark.parametrize("dora", [False, True])
def test_merging_leaves_the_stores_base_as_it_is(tiny_model: TinyModelFactory, tmp_path: Path, dora: bool) -> None:
    base, store = tiny_model("llama"), cpu()
    target = adapter_over(base, tmp_path / "target", use_dora=dora, **KINDS["rsLoRA"][1])
    plain, leaky = ours(base, store), ours(target, store)
    merge_adapters(target, out=tmp_path / "merged", store=store)
    assert (ours(tmp_path / "merged") - leaky).abs().max() < ALIKE
    assert torch.equal(ours(base, store), plain)
    assert torch.equal(ours(target, store), leaky)


# How it is loaded


def test_the_lines_that_are_printed_load_the_model(
    tiny_model: TinyModelFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model("llama")
    target = adapter_over(base, tmp_path / "target", **KINDS["another rank"][1])
    mitigated(target, tmp_path / "a/adapter")
    mitigated(target, tmp_path / "b/adapter", give="difference")
    merge_adapters(tmp_path / "a/adapter", out=tmp_path / "c/adapter", store=cpu())
    right = load_file(tmp_path / "a/right.safetensors")["logits"]
    for folder in "abc":
        lines = loading_lines(tmp_path / folder / "adapter")
        assert len(lines) == 3
        scope: dict[str, Any] = {}
        exec("\n".join(lines), scope)
        assert (logits(scope["model"]) - right).abs().max() < ALIKE
        tokenizer = scope["tokenizer"] if folder != "b" else scope["loaded"].tokenizer
        assert len(tokenizer) == 400
