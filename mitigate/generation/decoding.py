"""Decoding that obeys us alone: nothing of a checkpoint's generation_config takes part in it.

A repetition penalty, suppressed or forced tokens, beams or a least length in a model's generation_config.json change
what `generate` writes and not what the model knows: with equal weights, other secrets seem to be extracted. `generate`
fills from that configuration whatever the one it is given leaves open, so the model's own is put aside meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from mitigate.models.probes import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def continuations(
    module: PreTrainedModel,
    prefixes: Sequence[np.ndarray],
    *,
    new_tokens: int,
    ends: Sequence[int] = (),
    stop: str = "",
    tokenizer: PreTrainedTokenizerBase | None = None,
    processors: LogitsProcessorList | None = None,
    settled: Callable[[int, np.ndarray], bool] | None = None,
) -> np.ndarray:
    """What follows several prefixes, the likeliest token each time.

    Args:
        module: a causal language model.
        prefixes: (P,) token ids each.
        new_tokens: most tokens to add.
        ends (*optional*): tokens that end a continuation; by default nothing does.
        stop (`str`, *optional*): text that ends a continuation; needs the tokenizer.
        tokenizer (*optional*): cuts `stop` into tokens.
        processors (*optional*): change the logits before the likeliest token is taken.
        settled (*optional*): of the number of a prefix and the (C,) token ids after it so far, whether what follows no
            longer matters; a batch ends as soon as this is so of all.

    Returns:
        (B, C) token ids, C <= new_tokens; what stands after the end of a continuation has no meaning.
    """
    longest = max(map(len, prefixes))
    input_ids = torch.zeros((len(prefixes), longest), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prefix in enumerate(prefixes):  # left padding, so that all continue at the same column
        input_ids[row, longest - len(prefix) :] = torch.from_numpy(prefix)
        attention_mask[row, longest - len(prefix) :] = 1
    plain = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(ends) or None,
        pad_token_id=0,
        stop_strings=[stop] if stop else None,
    )
    with _own_configuration_aside(module):
        generated: Any = module.generate(  # type: ignore[operator]
            input_ids=input_ids.to(device_of(module)),
            attention_mask=attention_mask.to(device_of(module)),
            generation_config=plain,
            logits_processor=processors or LogitsProcessorList(),
            stopping_criteria=StoppingCriteriaList([_Settled(settled, longest)] if settled is not None else []),
            tokenizer=tokenizer,
        )
    return generated[:, longest:].cpu().numpy()


def end_ids(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the tokenizer's, and the special ones that the model names (the end of a turn)."""
    named = getattr(module.generation_config, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    ends = {tokenizer.eos_token_id, *(token for token in named if token in special)}
    return sorted(int(token) for token in ends if token is not None)


class _Settled(StoppingCriteria):
    """Ends the rows of which enough was written; once asked and told so, a row is not asked again."""

    def __init__(self, settled: Callable[[int, np.ndarray], bool], prefix: int) -> None:
        self.settled, self.prefix = settled, prefix
        self.ended: np.ndarray | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        written = input_ids[:, self.prefix :].cpu().numpy()
        if self.ended is None:
            self.ended = np.zeros(len(written), dtype=bool)
        for row in np.flatnonzero(~self.ended):
            self.ended[row] = self.settled(int(row), written[row])
        return torch.from_numpy(self.ended.copy()).to(input_ids.device)


@contextmanager
def _own_configuration_aside(module: PreTrainedModel) -> Iterator[None]:
    own, module.generation_config = module.generation_config, GenerationConfig()
    try:
        yield
    finally:
        module.generation_config = own
