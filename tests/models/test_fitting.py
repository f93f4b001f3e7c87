"""Fine-tuning: a batch in parts has the gradient of the whole, and memory that runs out makes the parts smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from world import sentences

from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.models.fitting import gradients
from mitigate.models.fitting.training import fit
from mitigate.models.settings import Schedule
from mitigate.tokens.batches import Batch
from mitigate.tokens.tokenization import TokenizedDocument, tokenize_documents


@pytest.fixture
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training whose weights can be compared: Adam blows rounding up, for it divides by the gradient's size."""

    def sgd(parameters: Iterable[torch.nn.Parameter], *, lr: float, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr)

    monkeypatch.setattr(torch.optim, "AdamW", sgd)


@pytest.mark.usefixtures("plain_steps")
def test_a_batch_in_parts_trains_as_a_whole_one_does(
    tiny_model: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text * (1 + number % 3) for number, text in enumerate(sentences(12, seed=3))]
    documents = tokenize_documents(Documents(tuple(Document(str(n), text) for n, text in enumerate(texts))), tokenizer)
    schedule = Schedule(epochs=2, learning_rate=0.3, batch_size=6)
    sizes: list[int] = []
    found = []
    batch_log_probs = gradients.batch_log_probs

    def watched(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        sizes.append(len(batch.pieces))
        return batch_log_probs(module, batch)

    monkeypatch.setattr(gradients, "batch_log_probs", watched)
    for batch_tokens in (10**6, 60, 1, None):
        module = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
        losses = fit(module, documents, schedule=schedule, context=64, seed=0, batch_tokens=batch_tokens)
        found.append((losses, module.get_output_embeddings().weight.detach().clone(), sizes[:]))
        sizes.clear()
    (whole, weights, counts), *others = found
    assert counts == [6] * 4
    assert len(whole) == 4
    assert whole[-1] < whole[0]
    for losses, other, _ in others:
        np.testing.assert_allclose(losses, whole, rtol=1e-4)
        torch.testing.assert_close(other, weights, rtol=0, atol=1e-4)
    assert others[1][2] == [1] * 24, "one piece at a time"
    assert 4 < len(others[0][2]) < 24
    assert others[2][2] == counts, "so few tokens fit"


def tokenized_texts(tokenizer: PreTrainedTokenizerFast) -> list[TokenizedDocument]:
    texts = sentences(12, seed=3)
    return tokenize_documents(Documents(tuple(Document(str(n), text) for n, text in enumerate(texts))), tokenizer)


@pytest.mark.usefixtures("plain_steps")
@pytest.mark.parametrize("fits", ["two windows", "a window whose activations are computed twice"])
@pytest.mark.parametrize("lora", [False, True])
def test_training_goes_on_in_smaller_parts_where_memory_runs_out(
    tiny_model: Callable[..., Path],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fits: str,
    lora: bool,
) -> None:
    documents, schedule = tokenized_texts(tokenizer), Schedule(epochs=2, learning_rate=0.3, batch_size=6)
    batch_log_probs, sizes = gradients.batch_log_probs, list[int]()

    def model() -> torch.nn.Module:
        module = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
        torch.manual_seed(0)
        return (
            get_peft_model(module, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")) if lora else module
        )

    def full(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        twice = any(getattr(part, "gradient_checkpointing", False) for part in module.modules())
        if len(batch.pieces) > (2 if fits == "two windows" else 1) or not (twice or fits == "two windows"):
            raise torch.OutOfMemoryError("of 80 GiB")
        sizes.append(len(batch.pieces))
        return batch_log_probs(module, batch)

    plain, small = model(), model()
    losses = fit(plain, documents, schedule=schedule, context=64, seed=0)
    monkeypatch.setattr(gradients, "batch_log_probs", full)
    np.testing.assert_allclose(fit(small, documents, schedule=schedule, context=64, seed=0), losses, rtol=1e-4)
    for one, other in zip(plain.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-4)
    assert sum(sizes) == 24
    assert set(sizes) <= {1, 2}
    assert "does not fit in memory" in caplog.text


def test_training_that_fits_in_no_way_ends_with_what_helps(
    tiny_model: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        raise torch.OutOfMemoryError("of 80 GiB")

    monkeypatch.setattr(gradients, "batch_log_probs", full)
    module = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    with pytest.raises(MitigateError, match=r"a window of \d+ tokens does not fit .*models\.load_in"):
        fit(module, tokenized_texts(tokenizer), schedule=Schedule(), context=64, seed=0)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_as_float32_is(
    tiny_model: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype, lora: bool
) -> None:
    """Steps as small as users take: in half precision itself most weights would stay where they are, or become NaN."""
    moved, seen = [], []
    for own in (torch.float32, dtype):
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=dtype).to(own)
        if lora:
            module = get_peft_model(module, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
        before = torch.cat([p.detach().float().flatten() for p in module.parameters() if p.requires_grad])
        module.register_forward_pre_hook(
            lambda module, _: seen.append({p.dtype for p in module.parameters() if p.requires_grad})
        )
        schedule = Schedule(epochs=40, learning_rate=5e-5, batch_size=4)
        losses = fit(module, tokenized_texts(tokenizer), schedule=schedule, context=64, seed=0)
        assert np.isfinite(losses).all()
        after = torch.cat([p.detach().float().flatten() for p in module.parameters() if p.requires_grad])
        moved.append(after - before)
        assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32 if lora else own}
    assert set().union(*seen) == {torch.float32}
    single, half = moved
    assert torch.nn.functional.cosine_similarity(single, half, dim=0) > 0.9
    assert half.norm() == pytest.approx(float(single.norm()), rel=0.1)
