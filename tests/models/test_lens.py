"""What a lens reads does not depend on how the model computes; what it cannot read it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mitigate.models.fitting.gradients import recompute_activations
from mitigate.models.fitting.training import add_lora
from mitigate.models.inside.lens import Lens, NoLensError
from mitigate.models.settings import Lora
from mitigate.models.store import ModelStore

IDS = torch.tensor([[3, 5, 7, 9, 11, 2], [4, 6, 8, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
PLACES = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
TARGETS = torch.tensor([7, 2, 6, 8])


def read(module: torch.nn.Module) -> torch.Tensor:
    with Lens.of(module).reading(PLACES, TARGETS) as said:
        logits = module(input_ids=IDS, attention_mask=MASK).logits
    own = logits[PLACES].log_softmax(-1).gather(1, TARGETS[:, None])[:, 0]
    said.check(own.detach(), name="model")
    return said.log_probs


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_recomputed_activations_give_the_same_gradient(architecture: str, tiny_model: Callable[..., Path]) -> None:
    found = []
    for recomputed in (False, True):
        module = AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=torch.float32)
        if recomputed:
            recompute_activations(module)
            for part in module.modules():
                part.training = hasattr(part, "gradient_checkpointing")
        said = read(module)
        said.sum().backward()
        found.append((said.detach(), [p.grad for p in module.parameters() if p.grad is not None]))
    (said, gradients), (again, gradients_again) = found
    torch.testing.assert_close(said, again)
    assert said.shape == (4, 2)
    for one, other in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(one, other)


def test_an_adapter_is_read_through_and_trained(tiny_model: Callable[..., Path]) -> None:
    model = ModelStore(device="cpu").load(str(tiny_model("llama")))
    with model.active() as module, torch.no_grad():
        before = read(module)
    adapted = add_lora(model, Lora(rank=2, alpha=4), seed=0)
    said = read(adapted)
    torch.testing.assert_close(said.detach(), before)  # a fresh adapter is none
    said.sum().backward()
    trained = [p for name, p in adapted.named_parameters() if "lora_B" in name and ".layers.0." in name]
    assert trained
    assert all(p.grad is not None and p.grad.any() for p in trained)


def test_hooks_are_gone_afterwards(tiny_model: Callable[..., Path]) -> None:
    module = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    read(module)
    with pytest.raises(RuntimeError, match="stop"), Lens.of(module).reading(PLACES, TARGETS):
        raise RuntimeError("stop")
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_what_it_cannot_read_it_refuses(tiny_model: Callable[..., Path]) -> None:
    capped = AutoModelForCausalLM.from_pretrained(tiny_model("gemma2"))
    with pytest.raises(NoLensError, match="not what its head makes of the last layer"):
        read(capped)
    unnamed = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    unnamed.model.last = unnamed.model.norm
    del unnamed.model.norm
    with pytest.raises(NoLensError, match="where its final norm is, is not known"):
        Lens.of(unnamed)


@pytest.mark.parametrize(
    ("dtype", "off", "fits"), [("float32", 0.06, False), ("bfloat16", 0.1, True), ("bfloat16", 0.3, False)]
)
def test_a_logit_that_half_precision_rounds_elsewhere_is_no_misfit(
    tiny_model: Callable[..., Path], dtype: str, off: float, fits: bool
) -> None:
    module = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=getattr(torch, dtype))
    with Lens.of(module).reading(PLACES, TARGETS) as said, torch.no_grad():
        logits = module(input_ids=IDS, attention_mask=MASK).logits.float()
    own = logits[PLACES].log_softmax(-1).gather(1, TARGETS[:, None])[:, 0]
    said.check(own, name="model")
    own[1] += off
    if fits:
        said.check(own, name="model")
    else:
        with pytest.raises(NoLensError, match="not what its head makes"):
            said.check(own, name="model")
