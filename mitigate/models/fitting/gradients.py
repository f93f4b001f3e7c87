"""The gradient of a step, in as many parts as the device's memory holds, and losses by document."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import torch

from mitigate.errors import MitigateError
from mitigate.models.model import Model, kept_logits
from mitigate.models.probes import device_of
from mitigate.tokens.batches import TRAINED, Batch, Piece, cut_pieces, default_batch_tokens, half_as_many, make_batches
from mitigate.tokens.tokenization import TokenizedDocument

logger = logging.getLogger(__name__)


class Gradients:
    """Adds up the gradient of a step's mean loss.

    A batch that does not fit in the device's memory goes through the model in smaller parts, which give the same
    gradient; where a single window does not, activations are computed again in the backward pass instead of kept.

    Args:
        module: the model.
        device: of the model.
        batch_tokens (*optional*): padded tokens in one forward; see `default_batch_tokens`.
        mixed (*optional*): number format of the forward pass, where it is not the weights'; see `mixed_format`.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        device: torch.device,
        batch_tokens: int | None = None,
        mixed: torch.dtype | None = None,
    ) -> None:
        self.module, self.device, self.mixed = module, device, mixed
        size = cast(Any, module).config.get_text_config().vocab_size
        tables = TRAINED if device.type == "cuda" else 1
        self.batch_tokens = batch_tokens or default_batch_tokens(size, device=device, tables=tables)
        self._recomputes = False

    def add(self, pieces: Sequence[Piece]) -> float:
        """Add the gradient of the mean negative log-likelihood of the pieces' tokens.

        Returns:
            the loss, nats a token.

        Raises:
            MitigateError: a single window does not fit in the device's memory.
        """
        while True:
            failed, loss = None, 0.0
            count = sum(len(piece.scored) for piece in pieces)
            for batch in make_batches(pieces, batch_tokens=self.batch_tokens):
                try:
                    loss += self._part(batch, count)
                except torch.OutOfMemoryError:
                    failed = batch
                    break
            if failed is None:
                return loss
            self._make_room(failed)  # outside of the handler: the error holds what was computed

    def _part(self, batch: Batch, count: int) -> float:
        with torch.autocast(self.device.type, dtype=self.mixed, enabled=self.mixed is not None):
            part = -batch_log_probs(self.module, batch.to(self.device)).sum() / count
        part.backward()
        return float(part.detach())

    def _make_room(self, batch: Batch) -> None:
        self.module.zero_grad(set_to_none=True)
        fewer, length = half_as_many(batch), batch.input_ids.shape[1]
        if fewer is not None:
            self.batch_tokens = fewer
        elif not self._recomputes:
            logger.warning("a window of %d tokens does not fit in memory: activations are computed twice", length)
            recompute_activations(getattr(self.module, "get_base_model", lambda: self.module)())
            self._recomputes = True
        else:
            raise MitigateError(
                f"training on a window of {length} tokens does not fit in the device's memory: set models.load_in: "
                "8bit, models.dtype: bfloat16, or models.device: cpu"
            )


def mixed_format(formats: Collection[torch.dtype], *, trained: Collection[torch.dtype]) -> torch.dtype | None:
    """Number format of the forward pass while weights are trained; None for the weights' own.

    Where half-precision weights are trained (in float32), and where the model holds float16, in which small gradients
    vanish, it is bfloat16, which has float32's range and needs no scaled loss.

    Args:
        formats: of all weights.
        trained: of those that are trained, before they were float32.
    """
    half = {torch.float16, torch.bfloat16}
    return torch.bfloat16 if torch.float16 in formats or not half.isdisjoint(trained) else None


def recompute_activations(model: Any) -> None:
    """Have a transformers model recompute activations in the backward pass instead of keeping them, while it trains.

    Raises:
        MitigateError: the architecture cannot.
    """
    older = model.gradient_checkpointing_enable  # the name before transformers 5.23
    try:
        getattr(model, "activation_checkpointing_enable", older)({"use_reentrant": False})
    except ValueError as error:
        raise MitigateError(f"activations cannot be recomputed: {error}") from error
    model.enable_input_require_grads()  # a block none of whose inputs needs a gradient may be left out of the backward


def batch_log_probs(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """log p(x_t | x_<t) of a batch's kept tokens, with gradient: (N,) nats."""
    logits = kept_logits(module, batch.input_ids, batch.attention_mask, batch.keep).float()
    return -torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")


def document_losses(module: torch.nn.Module, documents: Sequence[TokenizedDocument], *, model: Model) -> np.ndarray:
    """(D,) mean negative log-likelihood of each document's audited tokens, nats, under a module as it is now."""
    device = device_of(module)
    size = default_batch_tokens(model.vocabulary_size, device=device)
    sums, counts = np.zeros(len(documents)), np.zeros(len(documents))
    training = module.training
    module.eval()
    with torch.no_grad():
        for batch in make_batches(cut_pieces(documents, context=model.context), batch_tokens=size):
            losses = -batch_log_probs(module, batch.to(device)).double().cpu().numpy()
            owner = np.array([piece.document for piece in batch.pieces])[batch.row_piece.numpy()]
            np.add.at(sums, owner, losses)
            np.add.at(counts, owner, 1)
    module.train(training)
    return sums / counts
