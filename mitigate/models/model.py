"""A loaded model: base weights with its adapters over them, its tokenizer, and its logits where they are needed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers.modeling_utils
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mitigate.errors import MitigateError
from mitigate.models.probes import device_of, longest_text
from mitigate.models.shared_base import SharedBase
from mitigate.tokens.rules import rule_differences, tokenizer_rules

_MASKED_HEAD = hasattr(transformers.modeling_utils, "slice_logits_to_keep")  # logits_to_keep takes a (B, T) bool mask


@dataclass(frozen=True)
class Model:
    """A language model: base weights, and the adapters that are active over them (none for the base itself)."""

    name: str
    source: str
    fingerprint: str
    base: SharedBase
    adapters: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase

    @contextmanager
    def active(self) -> Iterator[PreTrainedModel]:
        """The module with exactly this model's adapters switched on, in evaluation mode."""
        self.base.activate(self.adapters)
        self.base.evaluate()
        yield self.base.model

    @property
    def device(self) -> torch.device:
        """Where the weights are, or some of them."""
        return device_of(self.base.model)

    @property
    def vocabulary_size(self) -> int:
        """Number of logits at a position."""
        return int(self.base.model.config.get_text_config().vocab_size)

    @property
    def context(self) -> int:
        """Longest sequence the model takes, in tokens."""
        return self.base.context or longest_text(self.base.model)


def check_same_tokenizer(target: Model, reference: Model) -> None:
    """Refuse a reference whose token ids mean something else than the target's.

    Raises:
        MitigateError: the tokenizers' rules, or the numbers of logits, differ.
    """
    if target.vocabulary_size != reference.vocabulary_size:
        raise MitigateError(
            f"{reference.name} predicts {reference.vocabulary_size} tokens but {target.name} predicts "
            f"{target.vocabulary_size}; a reference needs the target's vocabulary"
        )
    if differing := rule_differences(tokenizer_rules(target.tokenizer), tokenizer_rules(reference.tokenizer)):
        raise MitigateError(
            f"the tokenizer of {reference.name} differs from that of {target.name} (the first): "
            f"{'; '.join(differing)}; a reference must share the target's tokenizer: take one of its family"
        )


def kept_logits(
    module: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: torch.Tensor
) -> torch.Tensor:
    """Logits at the kept positions only; the output head sees nothing else.

    Position t of `keep` asks for the prediction of token t + 1.

    Args:
        module: a causal language model, or a wrapper whose `.module` is one.
        input_ids: (B, T).
        attention_mask: (B, T).
        keep: (B, T) bool.

    Returns:
        (N, V) in the model's own number format, N = number of kept positions, row-major.
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if not _has_sparse_head(module):
        return module(**inputs).logits[keep]
    if _MASKED_HEAD:
        return module(**inputs, logits_to_keep=keep).logits
    positions = keep.any(0).nonzero().squeeze(1)
    return module(**inputs, logits_to_keep=positions).logits[keep[:, positions]]


def _has_sparse_head(module: torch.nn.Module) -> bool:
    inner = getattr(module, "module", module)
    inner = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    return "logits_to_keep" in inspect.signature(type(inner).forward).parameters
