"""Adapters merged into their base: checked to say what they said before, or refused with the number."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from mitigate.artifacts import new_directory
from mitigate.errors import MitigateError
from mitigate.models import Model, ModelStore

MERGED = "merged"  # directory of the merged model beside the adapter
_TOLERANCE = 0.01  # nats, of weights in float32: their rounding moves log-probabilities by some 1e-5
_SEQUENCES, _LENGTH = 4, 32


def merge_adapters(directory: Path, *, out: Path, store: ModelStore) -> None:
    """Merge a model's adapters into its base and write the plain model with its tokenizer.

    The base is loaded anew on the CPU: the store's own stays as it is.

    Args:
        directory: PEFT adapter directory.
        out: a new directory.
        store: settles number format, permissions and base.

    Raises:
        MitigateError: the merged model says something else than the adapters over their base.
    """
    model = store.fresh(device="cpu").load(directory)
    merged = merged_model(model)
    with new_directory(out) as made:
        merged.save_pretrained(made)
        model.tokenizer.save_pretrained(made)


def merged_model(model: Model) -> PreTrainedModel:
    """The plain model that a model with adapters is. Its base's weights become those of the merged model.

    Weights in half precision are merged in float32 and then rounded once.

    Args:
        model: of a store of its own, for the base is changed.

    Raises:
        MitigateError: a kind of adapter that cannot be merged, or log-probabilities on random tokens differ between the
            model merged and not merged.
    """
    base = model.base
    assert base.peft is not None
    dtype = base.model.dtype
    with model.active() as module:
        module.float()
        before = probe(module, model.vocabulary_size, context=model.context)
    try:
        merged = cast(Any, base.peft).merge_and_unload(adapter_names=list(model.adapters), safe_merge=True)
    except Exception as error:  # each kind of adapter says in its own way that it cannot
        raise MitigateError(
            f"{model.name}: PEFT cannot merge its adapter into the base ({type(error).__name__}: {error}); use lora, "
            "or train a plain LoRA adapter"
        ) from error
    off = float((probe(merged, model.vocabulary_size, context=model.context) - before).abs().max())
    if not off <= _TOLERANCE:
        raise MitigateError(
            f"{model.name}: merged into its base it says something else (log-probabilities of random tokens are off by "
            f"{off:.2g} nats); use the adapter unmerged, or upgrade PEFT and merge again"
        )
    return cast(PreTrainedModel, merged.to(dtype))


def probe(module: PreTrainedModel | PeftModel, vocabulary: int, *, context: int) -> torch.Tensor:
    """Log-probabilities of the next token after each of some random tokens: (B, T, V) nats, float32, on the CPU."""
    length = min(_LENGTH, context)
    ids = torch.randint(vocabulary, (_SEQUENCES, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = module(input_ids=ids.to(module.device), use_cache=False).logits
    return logits.float().log_softmax(-1).cpu()
