"""Fine-tuning: a batch in parts has the gradient of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from world import sentences

from mitigate.documents import Document, Documents
from mitigate.models.fitting import training
from mitigate.models.fitting.training import fit
from mitigate.models.settings import Schedule
from mitigate.tokens.tokenization import tokenize_documents


def test_a_batch_in_parts_trains_as_a_whole_one_does(
    tiny_model: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text * (1 + number % 3) for number, text in enumerate(sentences(12, seed=3))]
    documents = tokenize_documents(Documents(tuple(Document(str(n), text) for n, text in enumerate(texts))), tokenizer)
    schedule = Schedule(epochs=2, learning_rate=3e-3, batch_size=6)
    sizes: list[int] = []
    found = []
    batch_log_probs = training.batch_log_probs

    def watched(module: torch.nn.Module, batch: training.Batch) -> torch.Tensor:
        sizes.append(len(batch.pieces))
        return batch_log_probs(module, batch)

    monkeypatch.setattr(training, "batch_log_probs", watched)
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
