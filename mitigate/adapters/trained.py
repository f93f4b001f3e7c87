"""The new adapter over a model: put on, switched, checked, saved. The base under it is never touched."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from mitigate.adapters.addition import Part, add, check_sum
from mitigate.artifacts.files import write_json
from mitigate.models.adapters import OVERLAY_FILE, is_adapter
from mitigate.models.fitting.training import NEW_ADAPTER, sort_sets
from mitigate.models.model import Model
from mitigate.models.shared_base import SharedBase

DIFFERENCE = "difference"  # directory of an adapter that is of no use without those that it lies over
_TOTAL = "total"


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
    model.base.activate((*model.adapters, NEW_ADAPTER) if on else model.adapters)
    for name, parameter in model.base.model.named_parameters():
        parameter.requires_grad_(f".{NEW_ADAPTER}." in name)


def adapter_state(base: SharedBase) -> dict[str, torch.Tensor]:
    """The new adapter's weights on the CPU, gathered where they are sharded; every process must call it."""
    assert base.peft is not None
    return _state(base.peft, NEW_ADAPTER)


def restore_adapter(base: SharedBase, state: Mapping[str, torch.Tensor]) -> None:
    """Give the new adapter the weights that `adapter_state` gave."""
    assert base.peft is not None
    for name, tensor in _tensors(base.peft, NEW_ADAPTER).items():
        fill(tensor, state[name])


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP holds the weights in shards."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def lower_parts(model: Model) -> list[Part]:
    """The adapters that the model consists of, lowest first, with copies of their weights on the CPU.

    To be read before the weights are sharded.
    """
    peft = model.base.peft
    return [Part(peft.peft_config[name], _state(peft, name)) for name in model.adapters] if peft is not None else []


def save_adapter(
    model: Model,
    adapter: dict[str, torch.Tensor],
    directory: Path,
    *,
    below: Sequence[Part] = (),
    difference: bool = False,
) -> None:
    """Write the new adapter, and the tokenizer beside it.

    Over a plain model it is written as it is. Over adapters it is written as their sum with the new one, which is to be
    loaded in their place; or, if only the difference is wanted, into a directory below, with a file beside that that
    tells `ModelStore` what lies under it: PEFT finds no adapter where it must not be loaded alone.

    Args:
        model: what the new adapter lies over.
        adapter: its weights, named as PEFT saves them.
        directory: an existing one.
        below: the model's own adapters, from `lower_parts`.
        difference (`bool`, *optional*, defaults to `False`): write the new adapter alone in every case.

    Raises:
        MitigateError: the adapters cannot be added, or their sum is not what they do together.
    """
    base = model.base
    assert base.peft is not None
    config = cast(LoraConfig, base.peft.peft_config[NEW_ADAPTER])
    config.base_model_name_or_path = base.source
    config.inference_mode = True
    model.tokenizer.save_pretrained(directory)
    named = {name: path for path, name in base.names.items()}
    over = [named[name] for name in model.adapters]
    if not over and is_adapter(base.source):  # merged into the weights
        over = [base.source]
    if not over:
        write_adapter(config, adapter, directory)
    elif difference:
        (directory / DIFFERENCE).mkdir()
        alone = copy.copy(config)
        alone.base_model_name_or_path = f"none: lies over {over[-1]}, see README.md"
        write_adapter(alone, adapter, directory / DIFFERENCE)
        write_json(directory / OVERLAY_FILE, {"over": over, "adapter": DIFFERENCE})
    else:
        added, tensors = add([*below, Part(config, adapter)])
        added.base_model_name_or_path = base.source
        if not is_sharded(base.model):  # else no process holds a whole weight
            _check_added(model, added, tensors)
        write_adapter(added, tensors, directory)


def _check_added(model: Model, config: LoraConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Let PEFT load a sum beside its parts, and compare their updates."""
    peft = model.base.peft
    assert peft is not None
    config = copy.deepcopy(config)  # and nothing that touches what lies under the adapters, which is as it must be
    config.bias, config.modules_to_save, config.trainable_token_indices = "none", None, None
    try:
        peft.add_adapter(_TOTAL, config)
        matrices = {name: tensor for name, tensor in tensors.items() if "lora_" in name}
        set_peft_model_state_dict(peft, matrices, adapter_name=_TOTAL)
        check_sum(peft, [*model.adapters, NEW_ADAPTER], total=_TOTAL)
    finally:
        if _TOTAL in peft.peft_config:
            peft.delete_adapter(_TOTAL)
        model.base.rewired()
        _switch(model, on=True)


def write_adapter(config: PeftConfig, tensors: dict[str, torch.Tensor], directory: Path) -> None:
    """Write a PEFT adapter into an existing directory; equal ones give equal bytes."""
    sort_sets(config)
    config.save_pretrained(str(directory))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "adapter_model.safetensors")


def _state(peft: PeftModel, name: str) -> dict[str, torch.Tensor]:
    return {key: whole_of(tensor).cpu().clone() for key, tensor in _tensors(peft, name).items()}


def _tensors(peft: PeftModel, name: str) -> dict[str, torch.Tensor]:
    """The adapter's weights themselves, named as PEFT saves them."""
    only_shards(peft)
    embeddings: Any = "auto" if name != NEW_ADAPTER else False  # ours never change
    found = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=embeddings)
    return cast(dict[str, torch.Tensor], found)


def only_shards(module: torch.nn.Module) -> None:
    """Have FSDP give up the whole weights that it keeps after a forward pass, in whose place the shards are then."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    """A weight's values; where it is sharded every process must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def in_shards(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values where a weight has its own, and in shards where that is; every process must call it."""
    there = whole.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements) if isinstance(like, DTensor) else there


@torch.no_grad()
def fill(tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Give a weight other values; where it is sharded every process must call it."""
    tensor.copy_(in_shards(whole, tensor))


def base_checksum(base: SharedBase) -> str:
    """Fingerprint of every weight that unlearning must not touch."""
    digest = hashlib.sha256()
    only_shards(base.model)
    for name, parameter in sorted(base.model.named_parameters(), key=lambda item: item[0].replace(".base_layer", "")):
        if "lora_" not in name:
            digest.update(bytes_of(parameter))
    return digest.hexdigest()


def bytes_of(parameter: torch.Tensor) -> bytes:
    """Of a whole weight; where it is sharded every process must call it."""
    return whole_of(parameter).cpu().contiguous().view(torch.uint8).numpy().tobytes()
