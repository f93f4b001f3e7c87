"""What a loaded model does with a few tokens: whether it reads from left to right, and whether its numbers are numbers.

One short forward pass tells what no configuration does.
"""

from __future__ import annotations

import re
from typing import Any, cast

import torch

from mitigate.errors import MitigateError

_LENGTH = 8
_UNLIMITED = 2048  # tokens at a time where a model has no limit of its own
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "max_seq_length")
_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?|pos_emb|positions_embed)$")


def probe_logits(module: torch.nn.Module, *, alone: bool = False) -> torch.Tensor:
    """Logits of two texts of eight tokens that differ in the last one only: (2, 8, V), float32.

    Args:
        module: the model.
        alone (`bool`, *optional*, defaults to `False`): of the first five tokens of one of them: (1, 5, V).
    """
    size = int(cast(Any, module).config.get_text_config().vocab_size)
    ids = torch.arange(_LENGTH).mul(7).add(size // 2).remainder(size).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % size
    ids = ids[:1, :5] if alone else ids
    ids = ids.to(device_of(module))
    with torch.inference_mode():
        logits: torch.Tensor = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits.float()


def device_of(module: torch.nn.Module) -> torch.device:
    """Where a model takes its inputs; of one whose weights are over several devices, one of these."""
    return next((weight.device for weight in module.parameters() if weight.device.type != "meta"), torch.device("cpu"))


def reads_ahead(logits: torch.Tensor, *, exact: bool) -> bool:
    """Whether what comes later in a text changes what a model says about earlier tokens.

    Args:
        logits: (2, 8, V) of `probe_logits`.
        exact: they were computed in float32.
    """
    first, second = logits[:, :-1]
    return not torch.allclose(first, second, rtol=0, atol=(1e-4 if exact else 2e-2) * float(first.abs().max()))


def depends_on_company(module: torch.nn.Module, logits: torch.Tensor) -> bool:
    """Whether a text's logits, in float32, depend on the other texts of its batch.

    Args:
        module: the model.
        logits: (2, 8, V), what `probe_logits` says of it.
    """
    alone = probe_logits(module, alone=True)[0]
    return not torch.allclose(alone, logits[0, : len(alone)], rtol=0, atol=1e-4 * float(logits.abs().max() + 1))


def check_probe(source: str, logits: torch.Tensor, *, vocabulary: int, architecture: str, exact: bool) -> None:
    """Refuse what no causal language model gives.

    Args:
        source: what was loaded, for the message.
        logits: (2, 8, V) of `probe_logits`.
        vocabulary: V by the configuration.
        architecture: name of the model's class, for the message.
        exact: it computes in float32.

    Raises:
        MitigateError: NaN, logits that depend on tokens still to come, or another number of them.
    """
    if not torch.isfinite(logits).all():
        raise MitigateError(
            f"{source}: its logits are not finite on plain text; its weights are damaged (NaN or infinite), or "
            "overflow the number format: save it again, or try models.dtype: float32"
        )
    if logits.shape[-1] != vocabulary:
        raise MitigateError(
            f"{source}: predicts {logits.shape[-1]} tokens but its config.json says vocab_size = {vocabulary}; give "
            "the config.json of these weights"
        )
    if reads_ahead(logits, exact=exact):
        raise MitigateError(
            f"{source}: {architecture} does not read from left to right: a later token changes what it says about "
            "earlier ones (an encoder, such as BERT); give a causal language model"
        )


def stated_limits(config: Any) -> list[int]:
    """What a model's configuration says of the longest text that it takes, in tokens; nothing, or several numbers."""
    text = config.get_text_config()
    return [value for name in _LIMITS if isinstance(value := getattr(text, name, None), int) and value > 0]


def longest_text(module: torch.nn.Module) -> int:
    """Longest text that a model takes, in tokens; 2,048 where it has no limit.

    A table of learned positions may be longer than what it is asked for: RoBERTa's begins after the padding index,
    OPT's after an offset.
    """
    said = stated_limits(cast(Any, module).config)
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Embedding) and _POSITIONS.search(name):
            skipped = part.padding_idx + 1 if part.padding_idx is not None else 0
            said.append(part.num_embeddings - max(skipped, int(getattr(part, "offset", 0))))
    return min(said, default=_UNLIMITED)
