"""Text as token ids, with the characters that each token covers and which tokens the tokenizer put in by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mitigate.errors import MitigateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 256  # texts tokenized at once


@dataclass(frozen=True, eq=False)
class Encoded:
    """The tokens of one text.

    Attributes:
        ids: (T,) int64 token ids.
        offsets: (T, 2) int32 characters [start, end) as the tokenizer gives them.
        added: (T,) bool, whether the tokenizer put the token in by itself. The text's own tokens are ordinary, whatever
            their id: an end-of-text token that stands in the text, "!" where that is the padding token, unknown words.
    """

    ids: np.ndarray
    offsets: np.ndarray
    added: np.ndarray


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special_tokens: bool) -> Iterator[Encoded]:
    """Tokenize texts, whole and in order.

    A text that begins with the start token already gets no second one.

    Args:
        texts: what to tokenize.
        tokenizer: a fast one, since only these know characters.
        special_tokens: add the tokenizer's own (False for rendered chat, which has them).

    Raises:
        MitigateError: a slow tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise MitigateError(
            f"tokenizer: {type(tokenizer).__name__} does not tell which characters a token covers; use the model's "
            "fast tokenizer (a tokenizer.json beside the model)"
        )
    for first in range(0, len(texts), _BATCH):
        batch = list(texts[first : first + _BATCH])
        encoded = tokenizer(
            batch,
            add_special_tokens=special_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
        for place in range(len(batch)):
            ids = np.array(encoded["input_ids"][place], dtype=np.int64)
            offsets = np.array(encoded["offset_mapping"][place], dtype=np.int32).reshape(-1, 2)
            added = np.array(encoded["special_tokens_mask"][place], dtype=bool)
            own = int(doubled_start(ids, added))
            yield Encoded(ids[own:], offsets[own:], added[own:])


def doubled_start(ids: Sequence[int] | np.ndarray, added: Sequence[int] | np.ndarray) -> bool:
    """Whether the tokenizer put a start token before a text that begins with one.

    Args:
        ids: (T,) token ids.
        added: (T,) whether the tokenizer put the token in by itself.
    """
    return len(ids) > 1 and bool(added[0]) and not added[1] and ids[0] == ids[1]
