"""What an adapter directory says about itself: its kind, whether it leaves the base as it is, what lies in its file.

Only configurations and the headers of weight files are read here; `models.ModelStore` loads weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers.utils.peft_utils import find_adapter_config_file

from mitigate.errors import MitigateError, one_line, summarize
from mitigate.models.weights import Shapes, stored_shapes, weight_files

ADAPTER_CONFIG = "adapter_config.json"
OVERLAY_FILE = "mitigate.json"  # beside an adapter trained by `unlearn`: the adapters that lie under it
MERGE_FIRST = (
    "merge it first: PeftModel.from_pretrained(BASE_MODEL, ADAPTER).merge_and_unload().save_pretrained(DIR), "
    "save the tokenizer there too, and give DIR"
)
# Fields of adapter_config.json that change nothing in what a trained adapter computes.
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",  # the base has a fingerprint of its own
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}
_NOT_IN_WEIGHTS = {  # kinds that compute beside the weights, or differently from text to text
    "ADAPTION_PROMPT": "puts vectors before each layer's text",
    "LILY": "weighs its parts anew for every batch of texts",
    "POLY": "weighs its parts by the number of a task",
    "SHADOW": "runs a second network beside the model",
    "XLORA": "weighs other adapters anew for every text",
}
_PLAIN_LORA = {  # fields that leave the base as it is; any other that is set gets the adapter a base of its own
    "alpha_pattern",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "megatron_core",  # where Megatron lies, without megatron_config nothing
    "peft_type",
    "qalora_group_size",  # of use_qalora
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
}
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # others subtract what they start from, see PEFT


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object that the user gives, such as a configuration.

    Raises:
        MitigateError: it is missing, damaged, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MitigateError(f"{path}: cannot be read ({error.strerror}); save the model again") from None
    except (ValueError, RecursionError) as error:
        raise MitigateError(f"{path}: not JSON ({error}); copy or save it again") from None
    if not isinstance(value, dict):
        raise MitigateError(f"{path}: a JSON {type(value).__name__}, not an object; copy or save it again")
    return value


def adapter_settings(source: str) -> dict[str, Any]:
    """The adapter_config.json of an adapter, local or on the hub.

    Raises:
        MitigateError: damaged, of a kind that this PEFT does not know, or made for something else than writing text.
    """
    path = Path(source) / ADAPTER_CONFIG
    if not path.is_file():
        path = Path(_hub_config(source) or path)
    settings = read_object(path)
    kind = settings.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise MitigateError(
            f"{path}: peft_type {kind!r} is not a kind of adapter that the installed PEFT knows; upgrade peft, or "
            f"{MERGE_FIRST}"
        )
    named = settings.get("base_model_name_or_path")
    if named is not None and not isinstance(named, str):
        raise MitigateError(
            f"{path}: base_model_name_or_path is {named!r}, not a path or a hub id; write the base there"
        )
    return settings


def base_of(adapter: str) -> str:
    """What an adapter's configuration names as its base; a relative path counts from the working directory, then from
    the adapter."""
    base: str = adapter_settings(adapter).get("base_model_name_or_path") or ""
    if base and not os.path.exists(base) and os.path.exists(Path(adapter) / base):
        return str(Path(adapter) / base)
    return base


def adapter_config(source: str) -> PeftConfig:
    """The configuration of an adapter, as PEFT reads it.

    Raises:
        MitigateError: settings that PEFT does not take or would leave out, or an adapter that is no language model's.
    """
    settings = adapter_settings(source)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]]
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := [name for name, value in settings.items() if name not in known and value]:
        raise MitigateError(
            f"{source}: {ADAPTER_CONFIG} has settings that the installed PEFT does not know and would leave out "
            f"({summarize(unknown)}); upgrade peft, or {MERGE_FIRST}"
        )
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise MitigateError(
            f"{source}: an adapter for {settings['task_type']}; give one that was trained to write text "
            "(task_type CAUSAL_LM)"
        )
    if reason := _NOT_IN_WEIGHTS.get(settings["peft_type"]):
        raise _unfit(source, settings["peft_type"], reason)
    try:
        config: PeftConfig = PeftConfig.from_pretrained(source)
    except Exception as error:  # PEFT checks values as it goes, with exceptions of every kind
        raise MitigateError(
            f"{source}: {ADAPTER_CONFIG} holds settings that PEFT refuses ({type(error).__name__}: "
            f"{one_line(error, most=200)}); save the adapter again"
        ) from error
    config.inference_mode = True
    if config.is_prompt_learning:
        raise _unfit(source, settings["peft_type"], "puts vectors before the text")
    if settings.get("alora_invocation_tokens"):
        raise _unfit(source, "activated LoRA (alora_invocation_tokens)", "works on the end of a text only")
    return config


def _unfit(source: str, kind: str, reason: str) -> MitigateError:
    return MitigateError(
        f"{source}: an adapter of kind {kind} {reason}; it cannot be merged into the weights, and mitigate cannot "
        "judge or change it: train a LoRA adapter instead"
    )


def adapter_shapes(source: str) -> Shapes:
    """Names and shapes of the tensors of an adapter; empty where they are pickled.

    Raises:
        MitigateError: the file cannot be read.
    """
    if Path(source).is_dir():
        files = weight_files(Path(source), stem="adapter_model", pickled="adapter_model")
    else:
        files = [Path(file)] if (file := hub_weights(source)) else []
    return stored_shapes(file for file in files if file.suffix == ".safetensors")


def leaves_base(source: str, *, shapes: Shapes) -> bool:
    """Whether an adapter can lie over a base that other models use: a LoRA adapter that is nothing besides.

    PiSSA and its kin, trained biases, replicated layers and saved or trained embeddings change the base itself when
    they attach; adapters of other kinds cannot be switched beside LoRA adapters.
    """
    settings = adapter_settings(source)
    special = {name for name, value in settings.items() if value and name not in _PLAIN_LORA | _WITHOUT_EFFECT}
    return (
        settings["peft_type"] == "LORA"
        and settings.get("init_lora_weights", True) in _PLAIN_INITS
        and special <= ({"bias"} if settings.get("bias") == "none" else set())
        and bool(shapes)
        and all("lora_" in name for name in shapes)
    )


def takes_lora_over_it(source: str) -> bool:
    """Whether a LoRA adapter can be on beside an adapter: one of the same kind, and none that PEFT cannot add to."""
    settings = adapter_settings(source)
    return bool(settings["peft_type"] == "LORA" and not settings.get("trainable_token_indices"))


def is_dora(source: str) -> bool:
    """Whether an adapter divides by the norm of the weights under it, so that it must know all that lies there."""
    return bool(adapter_settings(source).get("use_dora"))


def is_overlay(source: str) -> bool:
    """Whether an adapter was trained by us with those under it switched on, not merged."""
    path = Path(source)
    if (path / OVERLAY_FILE).is_file():
        return True
    above = path.parent / OVERLAY_FILE
    return above.is_file() and read_object(above).get("adapter") == path.name


def settings_that_matter(source: str) -> dict[str, Any]:
    """Of adapter_config.json, what changes the model: no default that another PEFT writes out, no order of a set."""
    return {
        name: sorted(value, key=str)
        if name in ("target_modules", "exclude_modules", "modules_to_save") and isinstance(value, list)
        else value
        for name, value in adapter_settings(source).items()
        if value and name not in _WITHOUT_EFFECT
    }


def vocabulary_of(shapes: Shapes) -> tuple[int | None, int | None]:
    """Rows of the embeddings and of the head that an adapter file brings along, None where it has none."""
    embeddings = _rows(shapes, ("embed_tokens", "wte", "embed_in", "word_embeddings", "embed"))
    return embeddings, _rows(shapes, ("lm_head", "embed_out", "output"))


def _rows(shapes: Shapes, names: Iterable[str]) -> int | None:
    for key, shape in shapes.items():
        parts = [part for part in key.split(".") if part not in ("base_layer", "modules_to_save")]
        if len(shape) == 2 and parts[-1] == "weight" and parts[-2:-1] and parts[-2] in names:
            return shape[0]
    return None


def is_adapter(source: str) -> bool:
    """Whether there is an adapter of this name, in a directory or on the hub."""
    directory = Path(source)
    return (directory / ADAPTER_CONFIG).is_file() if directory.exists() else _hub_config(source) is not None


@lru_cache
def hub_weights(source: str) -> str | None:
    """Where the safetensors of a hub adapter were put; None if it has none."""
    try:
        return hf_hub_download(source, "adapter_model.safetensors")
    except (OSError, ValueError):
        return None


@lru_cache
def _hub_config(source: str) -> str | None:
    """Where the configuration of a hub adapter was put; asked once, for without a network the answer takes long."""
    try:
        return find_adapter_config_file(source)
    except (OSError, ValueError):
        return None


def own_base(stack: Sequence[str]) -> int:
    """How many of a stack's adapters, counted from below, need a base that no other model uses."""
    needing = [
        number + 1
        for number, directory in enumerate(stack)
        if not leaves_base(directory, shapes=adapter_shapes(directory)) or (number and to_be_merged(stack, number))
    ]
    return max(needing, default=0)


def to_be_merged(stack: Sequence[str], number: int) -> bool:
    """Whether what lies under an adapter must be part of the weights before it is attached.

    It was when the adapter was trained, unless that was done here. For LoRA over LoRA the sum is the same; not for an
    adapter that looks at the weights under it, nor where the kinds differ.
    """
    directory, below = stack[number], stack[:number]
    if is_overlay(directory):
        return False
    plain = leaves_base(directory, shapes=adapter_shapes(directory)) and not is_dora(directory)
    return not (plain and all(map(takes_lora_over_it, below)))
