"""The new adapter over a model: put on, switched, checked, saved. The base under it is never touched."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from mitigate.artifacts import new_directory, write_json
from mitigate.errors import MitigateError
from mitigate.models import Model, ModelStore, SharedBase
from mitigate.sources import OVERLAY_FILE
from mitigate.training import Lora, sort_sets

ADAPTER = "default"  # PEFT saves an adapter of this name into the directory itself


def add_adapter(model: Model, lora: Lora, *, seed: int, dora: bool = False) -> None:
    """Put a fresh LoRA (or DoRA, Liu et al., arXiv 2402.09353) adapter over the model's own; only it gets gradients."""
    base, config = model.base, lora.config()
    config.use_dora = dora
    if base.peft is not None and ADAPTER in base.peft.peft_config:
        base.peft.delete_adapter(ADAPTER)  # of an earlier run with this store
    torch.manual_seed(seed)
    try:
        if base.peft is None:
            base.peft = get_peft_model(base.model, config, adapter_name=ADAPTER)
        else:
            base.peft.add_adapter(ADAPTER, config)
    except ValueError as error:
        raise MitigateError(f"unlearn.lora: does not fit this model ({error})") from error
    _switch(model, on=True)


@contextlib.contextmanager
def as_before(model: Model) -> Iterator[None]:
    """The model as it was before unlearning, inside the block."""
    _switch(model, on=False)
    try:
        yield
    finally:
        _switch(model, on=True)


def _switch(model: Model, *, on: bool) -> None:
    """Turn the new adapter on or off over the target's own adapters, and keep only it trainable."""
    model.base.activate((*model.adapters, ADAPTER) if on else model.adapters)
    for name, parameter in model.base.model.named_parameters():
        parameter.requires_grad_(f".{ADAPTER}." in name)


def adapter_state(base: SharedBase, accelerator: Accelerator, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The new adapter's weights on the CPU, gathered where they are sharded; every process must call it."""
    assert base.peft is not None
    whole = accelerator.get_state_dict(module) if is_sharded(base.model) else None
    if whole is not None:
        whole = {f"base_model.model.{name}": tensor for name, tensor in whole.items()}
    state = get_peft_model_state_dict(base.peft, state_dict=whole, adapter_name=ADAPTER)
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP holds the weights in shards."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def save_adapter(model: Model, adapter: dict[str, torch.Tensor], directory: Path) -> None:
    """Write a PEFT adapter directory, and beside it which adapters lie under it."""
    assert model.base.peft is not None
    config = cast(LoraConfig, model.base.peft.peft_config[ADAPTER])
    config.base_model_name_or_path = model.base.source
    config.inference_mode = True
    sort_sets(config)
    config.save_pretrained(str(directory))
    save_file({name: tensor.contiguous() for name, tensor in adapter.items()}, directory / "adapter_model.safetensors")
    if model.adapters:
        over = {name: path for path, name in model.base.names.items()}
        write_json(directory / OVERLAY_FILE, {"over": [over[name] for name in model.adapters]})


def merge_adapters(directory: Path, *, out: Path, store: ModelStore) -> None:
    """Merge a model's adapters into its base and write the plain model with its tokenizer.

    The base is loaded anew on the CPU: the store's own stays as it is.

    Args:
        directory: PEFT adapter directory.
        out: a new directory.
        store: settles number format, permissions and base.
    """
    model = store.fresh(device="cpu").load(directory)
    model.base.activate(model.adapters)
    merged = cast(Any, model.base.peft).merge_and_unload(adapter_names=list(model.adapters), safe_merge=True)
    with new_directory(out) as made:
        merged.save_pretrained(made)
        model.tokenizer.save_pretrained(made)


def base_checksum(base: SharedBase) -> str:
    """Fingerprint of every weight that unlearning must not touch."""
    digest = hashlib.sha256()
    for name, parameter in sorted(base.model.named_parameters(), key=lambda item: item[0].replace(".base_layer", "")):
        if "lora_" not in name:
            local = getattr(parameter, "_local_tensor", parameter)
            digest.update(local.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
