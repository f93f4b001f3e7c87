"""A model's decoder layers."""

from __future__ import annotations

from typing import Any, cast

import torch

from mitigate.errors import MitigateError


def decoder_layers(module: torch.nn.Module) -> torch.nn.ModuleList:
    """The model's decoder layers, lowest first.

    Raises:
        MitigateError: it has no list of as many layers as its configuration says.
    """
    config = cast(Any, module).config.get_text_config()
    text = cast(Any, module).get_decoder() if hasattr(module, "get_decoder") else None  # not a tower for images
    for part in (text if isinstance(text, torch.nn.Module) else module).modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == config.num_hidden_layers:
            return part
    raise MitigateError(
        f"{type(module).__name__}: no list of {config.num_hidden_layers} layers in it; unlearn.method: last_layers, "
        "rmu and hidden anchors need one"
    )
