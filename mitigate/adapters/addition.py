"""LoRA adapters added: one adapter that does what several do that lie over each other, or their weighted sum.

    W x + Σ_k s_k B_k A_k x  =  W x + [s_1 B_1 … s_K B_K] [A_1; …; A_K] x

Exact but for rounding, at the sum of the ranks, and written so that its own scale is 1 in every module. Whoever loads
the result needs none of the parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from peft.utils.save_and_load import load_peft_weights

from mitigate.errors import MitigateError, summarize

_PREFIX = "base_model.model."
_A = re.compile(r"(?P<module>.+)\.(?P<kind>lora_(embedding_)?)A(?P<end>(\.weight)?)")
_KEPT_INITS = (True, False, "gaussian", "orthogonal", "eva")  # others change the base's weights when they attach
_WHICH_MODULES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_TOLERANCE = 1e-4  # of an update, relative: far above float32's rounding, far below any wrong scale


@dataclass(frozen=True)
class Part:
    """An adapter as it counts in a sum.

    Attributes:
        config: its configuration.
        tensors: its weights, named as PEFT saves them.
        weight: factor of its update.
    """

    config: PeftConfig
    tensors: dict[str, torch.Tensor]
    weight: float = 1.0


def read_part(directory: str, *, weight: float = 1.0) -> Part:
    """An adapter from where PEFT saved it."""
    return Part(PeftConfig.from_pretrained(directory), load_peft_weights(directory, device="cpu"), weight)


def obstacle(parts: Sequence[Part]) -> str | None:
    """Why adapters cannot be added to one LoRA adapter, in words; None where they can."""
    for part in parts:
        if reason := _kind(part.config) or _contents(part):
            return reason
    if sum(_holds_modules(part.config) for part in parts) > 1:
        return "more than one of the adapters holds whole modules (modules_to_save, trainable_token_indices)"
    return None


def add(parts: Sequence[Part]) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """The sum of adapters as one: its configuration and its weights in float32.

    Weights of another kind (whole modules, biases, embeddings) are taken over as they are.

    Args:
        parts: lowest first.

    Raises:
        MitigateError: they cannot be added.
    """
    if reason := obstacle(parts):
        raise MitigateError(f"these adapters cannot be added: {reason}")
    updates = [_updates(part) for part in parts]
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    names = dict.fromkeys(name for one in updates for name in one)
    for name in names:
        pairs = [one[name] for one in updates if name in one]
        tensors[name] = torch.cat([down for down, _ in pairs], dim=0).contiguous()
        tensors[_partner(name)] = torch.cat([up for _, up in pairs], dim=1).contiguous()
        ranks[_module(name)] = tensors[name].shape[0]
    for part in parts:
        kept = {name: tensor for name, tensor in part.tensors.items() if "lora_" not in name}
        tensors |= {_inside(name, ranks): tensor.contiguous() for name, tensor in kept.items()}
    most, alike = max(ranks.values()), len(set(ranks.values())) == 1
    # all of them, the longest first: a pattern also fits whatever ends with it
    pattern = {} if alike else {re.escape(name): ranks[name] for name in sorted(ranks, key=lambda n: (-len(n), n))}
    first, last = parts[0].config, parts[-1].config
    assert isinstance(first, LoraConfig)
    assert isinstance(last, LoraConfig)
    same = all(one.keys() == updates[0].keys() for one in updates)
    which = {name: getattr(first, name) for name in _WHICH_MODULES} if same else {"target_modules": sorted(ranks)}
    holder = next((part.config for part in parts if _holds_modules(part.config)), last)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=first.base_model_name_or_path,
        inference_mode=True,
        r=most,
        lora_alpha=most,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        fan_in_fan_out=last.fan_in_fan_out,
        bias=max((_config(part).bias for part in parts), key=["none", "lora_only", "all"].index),
        modules_to_save=getattr(holder, "modules_to_save", None),
        trainable_token_indices=getattr(holder, "trainable_token_indices", None),
        **which,
    )
    return config, tensors


def check_sum(model: PeftModel, parts: Sequence[str], *, total: str) -> None:
    """Make sure, module by module, that one attached adapter does what others do together.

    Args:
        model: with all of them attached.
        parts: names of the adapters.
        total: name of the adapter that is to be their sum.

    Raises:
        MitigateError: it is not, with the largest deviation.
    """
    worst, where = 0.0, ""
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        expected = _update(module, parts)
        given = _update(module, [total])
        if expected is None and given is None:
            continue
        zero = torch.zeros(())
        difference = (given if given is not None else zero) - (expected if expected is not None else zero)
        size = max(float(one.norm()) for one in (given, expected) if one is not None)
        if (deviation := float(difference.norm()) / (size or 1.0)) > worst or not math.isfinite(deviation):
            worst, where = deviation, name
    if not worst <= _TOLERANCE:
        raise MitigateError(
            f"the sum of the adapters is off by {worst:.2g} of the update of {where}; upgrade PEFT, or give "
            "unlearn.give: difference"
        )


def _update(module: LoraLayer, adapters: Sequence[str]) -> torch.Tensor | None:
    held = [name for name in adapters if name in module.lora_A or name in module.lora_embedding_A]
    with torch.no_grad():
        deltas = [cast(Any, module).get_delta_weight(name).float() for name in held]
    return sum(deltas[1:], deltas[0]) if deltas else None


def _kind(config: PeftConfig) -> str | None:
    """What keeps an adapter of this configuration out of a sum."""
    if config.peft_type != PeftType.LORA or not isinstance(config, LoraConfig):
        return f"one is of the kind {getattr(config.peft_type, 'value', config.peft_type)}, not LoRA"
    variants = [field.name for field in fields(config) if field.metadata.get("is_lora_variant")]
    others = ("use_dora", "lora_bias", "target_parameters", "layer_replication", "ensure_weight_tying")
    if used := [name for name in dict.fromkeys((*others, *variants)) if getattr(config, name, None)]:
        return "one is DoRA (use_dora)" if "use_dora" in used else f"one uses {summarize(used)}"
    if config.init_lora_weights not in _KEPT_INITS:
        return f"one changes the base's weights when it is loaded (init_lora_weights: {config.init_lora_weights!r})"
    return None


def _contents(part: Part) -> str | None:
    """What keeps these weights out of a sum: matrices that are no pair A and B."""
    low = {name for name in part.tensors if _A.fullmatch(name)}
    pairs = low | {_partner(name) for name in low}
    if strange := [name.removeprefix(_PREFIX) for name in part.tensors if "lora_" in name and name not in pairs]:
        return f"one holds more than pairs of LoRA matrices ({summarize(strange)})"
    if missing := [name.removeprefix(_PREFIX) for name in pairs if name not in part.tensors]:
        return f"one lacks {summarize(missing)}"
    return None


def _updates(part: Part) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The name of each A, with A (r, in) and the scaled B (out, r)."""
    found = {}
    for name, tensor in part.tensors.items():
        if _A.fullmatch(name):
            scale = part.weight * _scaling(_config(part), _module(name), rank=tensor.shape[0])
            found[name] = (tensor.float(), scale * part.tensors[_partner(name)].float())
    return found


def _scaling(config: LoraConfig, module: str, *, rank: int) -> float:
    """The factor of B A x in a module: α / r, or α / √r (rsLoRA, Kalajdzievski, arXiv 2312.03732)."""
    pattern = config.alpha_pattern or {}
    alpha = pattern.get(get_pattern_key(list(pattern), module), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _module(name: str) -> str:
    """The module that a matrix named as PEFT saves it belongs to."""
    match = _A.fullmatch(name)
    assert match is not None
    return match["module"].removeprefix(_PREFIX)


def _partner(name: str) -> str:
    """The name of B, given that of A."""
    return re.sub(r"\.(lora_(?:embedding_)?)A(?=$|\.weight$)", r".\g<1>B", name)


def _inside(name: str, adapted: Mapping[str, int]) -> str:
    """A weight's or bias's name in a model where exactly these modules are adapted, and so wrapped."""
    module, _, kind = name.rpartition(".")
    module = module.removesuffix(".base_layer")
    return f"{module}.base_layer.{kind}" if module.removeprefix(_PREFIX) in adapted else f"{module}.{kind}"


def _holds_modules(config: PeftConfig) -> bool:
    return any(getattr(config, name, None) for name in ("modules_to_save", "trainable_token_indices"))


def _config(part: Part) -> Any:
    return part.config
