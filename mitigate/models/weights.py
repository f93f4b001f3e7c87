"""Whether stored weights are those of the model that a configuration describes.

transformers fills weights that a file lacks with random numbers and leaves out those that it does not know, with a log
line at most: the model that comes out is then not the one that was saved. Everything here refuses that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mitigate.errors import MitigateError, one_line, summarize

Shapes = dict[str, tuple[int, ...]]

_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LAYER = re.compile(r"\.(?:h|layers?|blocks?)\.(\d+)\.")
# Buffers of older checkpoints: causal masks and rotary frequencies, which the model computes anew.
_RECOMPUTED = re.compile(r"(^|\.)(?:(?:attn|attention|self_attention|self_attn)\.(?:bias|masked_bias)|[\w.]*inv_freq)$")
_WRAPPERS = {
    "_orig_mod.": "saved from a model that torch.compile had wrapped: save model._orig_mod",
    "_fsdp_wrapped_module.": "saved from inside FSDP: gather the state with accelerator.get_state_dict",
    "module.": "saved from inside DataParallel or FSDP: save model.module",
    "base_model.model.": "a PEFT model that was saved without merging: give its adapter directory, or save what "
    "merge_and_unload returns",
    "pretrained_model.": "a model with a value head around it: save its pretrained_model",
}
_OTHER_TASKS = ("score.", "classifier.", "qa_outputs.", "v_head.", "cls.", "pooler.")


def weight_files(directory: Path, *, stem: str = "model", pickled: str = "pytorch_model") -> list[Path]:
    """The files that hold a directory's weights, as transformers and PEFT choose them; safetensors before pickles.

    Args:
        directory: of a model or an adapter.
        stem, pickled: `adapter_model` for an adapter.

    Returns:
        an existing `stem.safetensors`, else the shards of its index, else the same of pickles; empty if there are none.

    Raises:
        MitigateError: an index that is no index, or a shard that is missing.
    """
    for name in (f"{stem}.safetensors", f"{pickled}.bin"):
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            try:
                names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise MitigateError(f"{index}: not an index of weights ({error!r}); save the model again") from None
            shards = sorted({str(name) for name in names})
            if missing := [shard for shard in shards if not (directory / shard).is_file()]:
                raise MitigateError(
                    f"{directory}: {summarize(missing)} named in {index.name} is missing; copy it there"
                )
            return [directory / shard for shard in shards]
    return []


def stored_shapes(files: Iterable[Path]) -> Shapes:
    """Names and shapes of the tensors in safetensors files, without reading them.

    Raises:
        MitigateError: a file is empty, cut short, or something else.
    """
    shapes: Shapes = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise MitigateError(
                f"{file}: cannot be read as safetensors ({one_line(error, most=160)}); it is empty, cut short "
                "or damaged: copy or save it again"
            ) from None
    return shapes


def check_size(source: str, config: Mapping[str, Any], tensors: int) -> None:
    """Refuse a configuration of more layers than there are tensors, before anything of that size is built.

    Args:
        source: the model's directory, for the message.
        config: of its config.json.
        tensors: number of stored tensors.

    Raises:
        MitigateError: a number of layers that the weights cannot fill.
    """
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        for name in _LAYER_COUNTS:
            value = part.get(name)
            if isinstance(value, int) and value > tensors:
                raise MitigateError(
                    f"{source}: config.json says {name} = {value}, but there are only {tensors} tensors of weights; "
                    "give the config.json that belongs to these weights"
                )


def check_loaded(source: str, info: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse a model some of whose weights are not from the file, or some of whose file is not in it.

    Args:
        source: what was loaded, for the message.
        info: what `from_pretrained(output_loading_info=True)` says; a tied head is not among the missing.
        shapes: of the stored tensors; empty where unknown.

    Raises:
        MitigateError: with the keys and the likely cause.
    """
    missing = sorted(info["missing_keys"])
    unexpected = sorted(key for key in info["unexpected_keys"] if not _is_recomputed(key, shapes.get(key)))
    mismatched = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in info["mismatched_keys"])
    found = [
        f"{len(keys)} {what} ({summarize(keys)})"
        for what, keys in (
            ("that the model needs are not there", missing),
            ("that the model does not have", unexpected),
            ("of another shape", mismatched),
        )
        if keys
    ]
    if found or info["error_msgs"]:
        found = found or [" ".join(map(str, info["error_msgs"]))[:300]]
        cause = likely_cause(missing, unexpected, shapes)
        raise MitigateError(f"{source}: its weights do not fit its config.json: {', '.join(found)}; {cause}")


def likely_cause(missing: Collection[str], unexpected: Collection[str], shapes: Collection[str]) -> str:
    """Why weights may not fit, with the remedy."""
    for prefix, cause in _WRAPPERS.items():
        if any(key.startswith(prefix) or f".{prefix}" in key for key in unexpected):
            return cause
    if any(".base_layer." in key or "lora_" in key for key in unexpected):
        return _WRAPPERS["base_model.model."]
    if any(key.startswith(_OTHER_TASKS) for key in unexpected):
        return (
            "a model for another task than writing text (a classifier, an encoder, a reward model): give a causal one"
        )
    layers = {name: _layers(keys) for name, keys in (("missing", missing), ("extra", unexpected), ("all", shapes))}
    if layers["missing"] - layers["all"]:
        return f"the file has {len(layers['all'])} layers and config.json more: give the config.json of these weights"
    if layers["extra"] - layers["missing"]:
        return f"the file has {len(layers['all'])} layers and config.json fewer: give the config.json of these weights"
    if any("lm_head" in key or "embed_out" in key for key in missing):
        return "its head was not saved, and is not tied to the embeddings: save the model with save_pretrained"
    return "config.json belongs to another model, or the file is not whole: save both with save_pretrained"


def _layers(keys: Iterable[str]) -> set[int]:
    return {int(found.group(1)) for key in keys if (found := _LAYER.search(f".{key}"))}


def _is_recomputed(key: str, shape: tuple[int, ...] | None) -> bool:
    if not _RECOMPUTED.search(key):
        return False
    is_mask = shape is not None and (len(shape) == 0 or (len(shape) == 4 and shape[-1] == shape[-2]))
    return key.endswith("inv_freq") or is_mask
