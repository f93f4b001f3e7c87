"""The one scoring forward: per-token signals of a target and its OUT references, streamed batch by batch.

Row t of a document is about token x_t given x_<t. A document's first token, special tokens and tokens outside the
audited region have no signals (NaN). Notation: p_θ target, p_k reference k, p̄ the mean of the OUT references'
*probabilities*, L(v) = log p_θ(v) − log p̄(v).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from mitigate.errors import MitigateError, summarize
from mitigate.models import Model, kept_logits
from mitigate.runtime import progress, share_of
from mitigate.tokenization import TokenizedDocument, windows

TARGET_SIGNALS = ("log_prob", "rank", "top_log_prob", "entropy", "log_prob_std")
REFERENCE_SIGNALS = ("log_prob_out", "entropy_out", "log_ratio", "kl", "log_ratio_variance")
_LOGIT_BYTES = 1 << 28  # default bound for one batch of float32 logits


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


_TENSORS = ("input_ids", "attention_mask", "keep", "targets", "row_piece")


def token_signals(
    target: Model,
    references: Sequence[Model],
    *,
    documents: Sequence[TokenizedDocument],
    out_references: Sequence[Sequence[int]] | None = None,
    temperature: float = 1.0,
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int | None = None,
    description: str = "Scoring",
) -> dict[str, np.ndarray]:
    """Signals of every audited token of every document, in one pass per model.

    Under several processes each scores a share of the batches and all get the whole result.

    Args:
        target: the model under audit.
        references: reference models with the target's vocabulary; may be empty (only the target's signals then).
        documents: tokenized documents.
        out_references (*optional*, defaults to all for every document): for each document, the indices of the
            references that never saw it.
        temperature (`float`, *optional*, defaults to 1.0): divides the logits of both models in `log_ratio`, `kl` and
            `log_ratio_variance`; every other signal is at temperature 1.
        context (`int`, *optional*, defaults to the shortest of the models' contexts): window length in tokens.
        stride (`int`, *optional*, defaults to half the context): tokens that a next window adds.
        batch_tokens (`int`, *optional*): padded tokens in a batch; by default the logits fit in 256 MiB.

    Returns:
        columns over all tokens of all documents, concatenated in order: `TARGET_SIGNALS` (N,), with references also
        `REFERENCE_SIGNALS` (N,) and `log_prob_references` (N, K), NaN where a reference was not used. Nats; rank 1 is
        the most likely token.

    Raises:
        MitigateError: a model gives NaN logits.
    """
    longest = min([target.context, *(reference.context for reference in references)])
    context = min(context or longest, longest)
    out_references = out_references or [tuple(range(len(references)))] * len(documents)
    batch_tokens = batch_tokens or max(64, _LOGIT_BYTES // (4 * target.vocabulary_size))
    batches = make_batches(cut_pieces(documents, context=context, stride=stride), batch_tokens=batch_tokens)

    first_row = np.cumsum([0, *(len(document.ids) for document in documents)])
    state = PartialState()
    parts: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
    mine = share_of(batches, state)
    with progress(sum(len(batch.targets) for batch in mine), description, unit="tok") as bar:
        for batch in mine:
            rows = np.concatenate([first_row[piece.document] + piece.start + piece.scored for piece in batch.pieces])
            used = [out_references[piece.document] for piece in batch.pieces]
            parts.append((rows, _batch_signals(target, references, batch.to(target.device), used, temperature)))
            bar.update(len(rows))
    return _assemble(gather_object(parts) if state.num_processes > 1 else parts, int(first_row[-1]), len(references))


def token_log_probs(
    model: Model, documents: Sequence[TokenizedDocument], *, batch_tokens: int | None = None
) -> np.ndarray:
    """log p(x_t | x_<t) of every audited token under one model: (N,) nats, as in `token_signals`."""
    return token_signals(model, [], documents=documents, batch_tokens=batch_tokens)["log_prob"]


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


def make_batches(pieces: Sequence[Piece], *, batch_tokens: int) -> list[Batch]:
    """Group pieces of like length, longest first, so that padding is small and memory shows at once if it is short."""
    ordered = sorted(pieces, key=lambda piece: -len(piece.ids))
    groups: list[list[Piece]] = []
    for piece in ordered:
        if not groups or len(groups[-1][0].ids) * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
        groups[-1].append(piece)
    return [collate(group) for group in groups]


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


@torch.inference_mode()
def out_log_probs(
    references: Sequence[Model], batch: Batch, *, used: Sequence[Sequence[int]], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p̄ over the vocabulary, and each reference's log-probability of the token itself.

    The references are streamed: one (N, V) accumulator, however many there are.

    Args:
        references: K models.
        batch: on the references' device.
        used: for each piece of the batch, the indices of its OUT references.
        temperature (`float`, *optional*, defaults to 1.0): of `log p̄`; the second result is at temperature 1.

    Returns:
        (N, V) log p̄ = logsumexp_k log p_k − log K, and (N, K) log p_k(x_t), NaN where k was not used.
    """
    rows = len(batch.targets)
    total: torch.Tensor | None = None
    token = torch.full((rows, len(references)), math.nan, device=batch.targets.device)
    for number, reference in enumerate(references):
        using = torch.tensor([number in indices for indices in used], device=batch.targets.device)
        if not using.any():
            continue
        selected = using[batch.row_piece]  # (N,)
        logits = _checked_logits(reference, batch, using)
        token[selected, number] = _token_log_prob(logits, batch.targets[selected])
        log_probs = torch.log_softmax(logits / temperature, dim=-1)
        if total is None:
            total = torch.full((rows, logits.shape[1]), -math.inf, device=logits.device)
        total[selected] = torch.logaddexp(total[selected], log_probs)
    assert total is not None, "every document has an OUT reference"
    counts = torch.tensor([len(indices) for indices in used], device=total.device)[batch.row_piece]
    return total - counts.log().unsqueeze(1), token


def _batch_signals(
    target: Model,
    references: Sequence[Model],
    batch: Batch,
    used: Sequence[Sequence[int]],
    temperature: float,
) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        everything = torch.ones(len(batch.pieces), dtype=torch.bool, device=batch.targets.device)
        logits = _checked_logits(target, batch, everything)
        columns = _target_signals(torch.log_softmax(logits, dim=-1), batch.targets)
        if references:
            log_mean, token = out_log_probs(references, batch, used=used, temperature=temperature)
            columns |= _joint_signals(torch.log_softmax(logits / temperature, dim=-1), log_mean, batch.targets)
            counts = (~token.isnan()).sum(1)
            columns["log_prob_out"] = torch.logsumexp(token.nan_to_num(nan=-math.inf), dim=1) - counts.log()
            columns["log_prob_references"] = token
    return {name: column.cpu().numpy() for name, column in columns.items()}


def _target_signals(log_probs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Signals of p_θ alone, from (N, V) log-probabilities and (N,) tokens."""
    log_prob = log_probs.gather(1, targets.unsqueeze(1)).squeeze(1)
    probs = log_probs.exp()
    finite = torch.where(probs > 0, log_probs, 0.0)
    mean = (probs * finite).sum(1)
    return {
        "log_prob": log_prob,
        "rank": (log_probs > log_prob.unsqueeze(1)).sum(1) + 1,
        "top_log_prob": log_probs.max(1).values,
        "entropy": -mean,
        "log_prob_std": (probs * (finite - mean.unsqueeze(1)) ** 2).sum(1).sqrt(),
    }


def _joint_signals(log_probs: torch.Tensor, log_mean: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Signals of p_θ against p̄, from two (N, V) tables of log-probabilities."""
    mean_probs = log_mean.exp()
    supported = mean_probs > 0
    ratio = torch.where(supported, log_probs - log_mean, 0.0)
    expected = (mean_probs * ratio).sum(1)
    return {
        "entropy_out": -(mean_probs * torch.where(supported, log_mean, 0.0)).sum(1),
        "log_ratio": (log_probs - log_mean).gather(1, targets.unsqueeze(1)).squeeze(1),
        "kl": -expected,
        "log_ratio_variance": (mean_probs * (ratio - expected.unsqueeze(1)) ** 2).sum(1),
    }


def _checked_logits(model: Model, batch: Batch, using: torch.Tensor) -> torch.Tensor:
    """Float32 logits (N', V) of the pieces in `using`, refused if any is NaN."""
    with model.active() as module:
        logits = kept_logits(module, batch.input_ids[using], batch.attention_mask[using], batch.keep[using]).float()
    if torch.isnan(logits).any():
        raise MitigateError(
            f"{model.name}: its logits are NaN; its weights are damaged or overflow {model.base.model.dtype}: "
            "try models.dtype: float32"
        )
    return logits


def _token_log_prob(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)


def _assemble(
    parts: Sequence[tuple[np.ndarray, dict[str, np.ndarray]]], length: int, references: int
) -> dict[str, np.ndarray]:
    """Put the batches' rows in document order; every row must come once."""
    rows = np.concatenate([rows for rows, _ in parts]) if parts else np.zeros(0, dtype=int)
    if len(np.unique(rows)) != len(rows):
        raise RuntimeError(f"tokens scored twice: {summarize(rows[:5])}")
    names = TARGET_SIGNALS + (REFERENCE_SIGNALS if references else ())
    signals = {name: np.full(length, np.nan, dtype=np.float32) for name in names}
    if references:
        signals["log_prob_references"] = np.full((length, references), np.nan, dtype=np.float32)
    for at, columns in parts:
        for name, column in columns.items():
            signals[name][at] = column
    return signals
