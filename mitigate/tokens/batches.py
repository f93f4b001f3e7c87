"""Documents cut into windows that fit a model, and windows padded into batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mitigate.tokens.tokenization import TokenizedDocument, windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """A window of a document: `ids` are fed, the tokens at `scored` (indices into `ids`, never 0) are scored."""

    document: int
    ids: np.ndarray
    scored: np.ndarray
    start: int  # position of ids[0] in the document


@dataclass(frozen=True)
class Batch:
    """Right-padded pieces. Row n of any (N, ...) tensor belongs to the n-th kept position, row-major."""

    pieces: tuple[Piece, ...]
    input_ids: torch.Tensor  # (B, T)
    attention_mask: torch.Tensor  # (B, T)
    keep: torch.Tensor  # (B, T) bool; position t - 1 predicts token t
    targets: torch.Tensor  # (N,) token ids
    row_piece: torch.Tensor  # (N,) index of the piece

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = (getattr(self, name).to(device) for name in _TENSORS)
        return Batch(self.pieces, *moved)


_LOGIT_BYTES = 1 << 28  # of the float32 logits of one batch, where the device does not say how much it holds
_LOGIT_SHARE = 0.15  # ... of its memory, where it does
_MOST_TOKENS = {"cpu": 2048, "cuda": 16_384}  # a CPU is a fifth faster where a batch's activations stay in its caches
TRAINED = 8  # tables of a batch's logits that a step of training holds: logits, their softmax, and gradients
_TENSORS = ("input_ids", "attention_mask", "keep", "targets", "row_piece")


def default_batch_tokens(vocabulary_size: int, *, device: torch.device, tables: int = 1) -> int:
    """Padded tokens in a batch: its logits fit in 15 % of a GPU's memory, elsewhere in 256 MiB.

    No more than 16,384 on a GPU, and 2,048 on a CPU. Of the whole memory and not of what is free, so that all processes
    cut the same batches.

    Args:
        vocabulary_size: V.
        device: of the model.
        tables (`int`, *optional*, defaults to 1): of logits that are held at once, such as one of each model.
    """
    held = _LOGIT_BYTES
    if device.type == "cuda":
        held = int(_LOGIT_SHARE * torch.cuda.get_device_properties(device).total_memory)
    fitting = max(64, held // (4 * vocabulary_size * max(1, tables)))
    return min(fitting, _MOST_TOKENS.get(device.type, fitting))


def half_as_many(batch: Batch) -> int | None:
    """Padded tokens of half a batch that did not fit in the device's memory, or None if it was a single window.

    It is said that it goes on so, and what torch holds unused is given back.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch.pieces) == 1:
        return None
    tokens = batch.input_ids.shape[1] * len(batch.pieces) // 2
    logger.warning("a batch of %d windows does not fit in memory: going on with %d tokens", len(batch.pieces), tokens)
    return tokens


def cut_pieces(documents: Sequence[TokenizedDocument], *, context: int, stride: int | None = None) -> list[Piece]:
    """Windows of the documents that hold audited tokens, cut after the last of them."""
    pieces = []
    for number, document in enumerate(documents):
        for window in windows(len(document.ids), context=context, stride=stride):
            scored = np.flatnonzero(document.audited[window.score_from : window.end]) + window.score_from
            if scored.size:
                ids = document.ids[window.start : scored[-1] + 1]
                pieces.append(Piece(number, ids, scored - window.start, window.start))
    return pieces


def make_batches(
    pieces: Sequence[Piece], *, batch_tokens: int, together: Callable[[Piece], Any] | None = None
) -> list[Batch]:
    """The batches of `grouped`, all at once."""
    return [collate(group) for group in grouped(pieces, batch_tokens=batch_tokens, together=together)]


def grouped(
    pieces: Sequence[Piece], *, batch_tokens: int, together: Callable[[Piece], Any] | None = None
) -> list[list[Piece]]:
    """Group pieces of like length, longest first, so that padding is small and memory shows at once if it is short.

    Args:
        pieces: in any order.
        batch_tokens: padded tokens in a batch; a longer piece is one alone.
        together (*optional*): pieces of a batch that are alike in this are neighbours.
    """
    ordered = sorted(pieces, key=lambda piece: -len(piece.ids))
    groups: list[list[Piece]] = []
    for piece in ordered:
        if not groups or len(groups[-1][0].ids) * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
        groups[-1].append(piece)
    return [sorted(group, key=together) for group in groups] if together else groups


def collate(pieces: Sequence[Piece]) -> Batch:
    """Right-pad pieces into one batch. Padding is the attention mask, never a token id."""
    shape = (len(pieces), max(len(piece.ids) for piece in pieces))
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    keep = torch.zeros(shape, dtype=torch.bool)
    for row, piece in enumerate(pieces):
        input_ids[row, : len(piece.ids)] = torch.from_numpy(piece.ids)
        attention_mask[row, : len(piece.ids)] = 1
        keep[row, torch.from_numpy(piece.scored - 1)] = True
    targets = torch.from_numpy(np.concatenate([piece.ids[piece.scored] for piece in pieces]))
    row_piece = keep.nonzero()[:, 0]
    return Batch(tuple(pieces), input_ids, attention_mask, keep, targets, row_piece)
