"""From documents to token ids with character offsets, and from long documents to windows.

Row t of anything per token is about token x_t given x_<t: the first token of a document is never scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mitigate.documents import Document
from mitigate.errors import MitigateError, summarize
from mitigate.text.encoding import Encoded, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class TokenizedDocument:
    """The tokens of one document.

    Attributes:
        id: of the document.
        ids: (T,) int64 token ids, special tokens included.
        offsets: (T, 2) int32 characters [start, end) of each token, without the white space at its edges; (0, 0) for
            tokens that the tokenizer added. Tokens that make up one character (an emoji) share its range.
        audited: (T,) bool, whether the token is scored: it overlaps an audited range, was not added by the tokenizer
            and is not the first. A token's place decides, not its id: "!" is judged where that is the padding token.
    """

    id: str
    ids: np.ndarray
    offsets: np.ndarray
    audited: np.ndarray


@dataclass(frozen=True)
class Window:
    """Tokens [start, end) go through the model, and [score_from, end) of them are scored."""

    start: int
    end: int
    score_from: int


def tokenize_documents(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedDocument]:
    """Tokenize documents, whole and in order.

    Args:
        documents: their text; special tokens are added where `special_tokens` says so.
        tokenizer: of the model that will see the tokens; a fast one, since only these know characters.

    Raises:
        MitigateError: a slow tokenizer, or documents without a token to score (all named).
    """
    tokenized: dict[int, TokenizedDocument] = {}
    for special_tokens in (True, False):
        numbers = [number for number, document in enumerate(documents) if document.special_tokens is special_tokens]
        texts = [documents[number].text for number in numbers]
        for number, encoded in zip(numbers, encode(texts, tokenizer, special_tokens=special_tokens), strict=True):
            tokenized[number] = _tokenized(documents[number], encoded)
    if silent := [document.id for _, document in sorted(tokenized.items()) if not document.audited.any()]:
        raise MitigateError(
            f"documents without a token to score: {summarize(map(repr, silent))}; a text that yields one token has "
            "nothing to be predicted from: leave them out, or set min_characters"
        )
    return [tokenized[number] for number in range(len(documents))]


def windows(length: int, *, context: int, stride: int | None = None) -> list[Window]:
    """Overlapping windows over a document, such that each token but the first is scored exactly once.

    A token is scored in the first window that holds it, and windows reach as far back as the context allows: every
    scored token sees all tokens before it, or at least context − stride of them.

    Args:
        length: tokens of the document.
        context: most tokens that a window holds.
        stride (`int`, *optional*, defaults to half of `context`): tokens that a next window scores.

    Raises:
        MitigateError: a context under 2 tokens, or a stride that leaves a token without context.
    """
    if context < 2:
        raise MitigateError(f"context: {context} tokens; a token is scored from those before it, so give 2 at least")
    stride = context // 2 if stride is None else stride
    if not 1 <= stride < context:
        raise MitigateError(f"stride: {stride} is not between 1 and {context - 1}, one less than the context")
    found = [Window(0, min(context, length), 1)] if length > 1 else []
    while found and found[-1].end < length:
        end = min(found[-1].end + stride, length)
        found.append(Window(end - context, end, found[-1].end))
    return found


def span_tokens(offsets: np.ndarray, start: int, end: int) -> np.ndarray:
    """Indices of the tokens that share a character with [start, end), from (T, 2) offsets."""
    return np.flatnonzero(_overlap(offsets, start, end))


def word_numbers(offsets: np.ndarray, text: str) -> np.ndarray:
    """(T,) which word (characters without white space between them) each token begins in; −1 for added tokens.

    Args:
        offsets: (T, 2) as of `TokenizedDocument`.
        text: of the document.
    """
    space = np.fromiter(map(str.isspace, text), dtype=bool, count=len(text))
    number = np.cumsum(~space & np.append(True, space[:-1])) - 1
    words = np.full(len(offsets), -1)
    solid = offsets[:, 0] < offsets[:, 1]
    words[solid] = number[offsets[solid, 0]]
    return words


def _tokenized(document: Document, encoded: Encoded) -> TokenizedDocument:
    offsets = np.where(encoded.added[:, None], 0, _trimmed(encoded.offsets, document.text)).astype(np.int32)
    audited = np.zeros(len(encoded.ids), dtype=bool)
    for start, end in document.audited:
        audited |= _overlap(offsets, start, end)
    audited[:1] = False
    return TokenizedDocument(document.id, encoded.ids, offsets, audited)


def _overlap(offsets: np.ndarray, start: int, end: int) -> np.ndarray:
    first, last = offsets[:, 0], offsets[:, 1]
    return (first < end) & (last > start) & (first < last)


def _trimmed(offsets: np.ndarray, text: str) -> np.ndarray:
    """Offsets without white space at the edges of a token; of white space alone, the space itself.

    Some tokenizers trim already, to nothing where a token is all space: those get the space before them back.
    """
    space = np.fromiter(map(str.isspace, text), dtype=bool, count=len(text))
    characters = np.arange(len(text))
    next_solid = np.append(np.minimum.accumulate(np.where(space, len(text), characters)[::-1])[::-1], len(text))
    last_solid = np.append(0, np.maximum.accumulate(np.where(space, 0, characters + 1)))
    start, end = next_solid[offsets[:, 0]], last_solid[offsets[:, 1]]
    solid = (start < end)[:, None]
    bare = (offsets[:, 0] == offsets[:, 1]) & np.append(False, space)[offsets[:, 0]]
    return np.where(solid, np.stack([start, end], axis=1), offsets - np.stack([bare, np.zeros_like(bare)], axis=1))
