"""The one scoring forward: per-token signals of a target and its OUT references, streamed batch by batch.

Row t of a document is about token x_t given x_<t. A document's first token, special tokens and tokens outside the
audited region have no signals (NaN). Notation: p_θ target, p_k reference k, p̄ the mean of the OUT references'
*probabilities*, L(v) = log p_θ(v) − log p̄(v).

A *pairing* is one document, one model in the target's place and the references that it is compared with. An audit pairs
the target with every document's OUT references; calibration and benchmarks put each reference in its place as well: all
pairings of a batch share one forward pass of each model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from mitigate.errors import MitigateError, summarize
from mitigate.models.model import Model, kept_logits
from mitigate.runtime import progress, share_of
from mitigate.tokens.batches import Batch, cut_pieces, default_batch_tokens, make_batches
from mitigate.tokens.tokenization import TokenizedDocument

TARGET_SIGNALS = ("log_prob", "rank", "top_log_prob", "entropy", "log_prob_std")
REFERENCE_SIGNALS = ("log_prob_out", "entropy_out", "log_ratio", "kl", "log_ratio_variance")


@dataclass(frozen=True)
class Pairing:
    """Document number `document`: `models[target]`, in the target's place, compared with `models[k]` for k in `out`."""

    document: int
    target: int
    out: tuple[int, ...] = ()


def compute_signals(
    models: Sequence[Model],
    pairings: Sequence[Pairing],
    *,
    documents: Sequence[TokenizedDocument],
    temperature: float = 1.0,
    offline_a: float = 1.0,
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int | None = None,
    description: str = "Scoring",
) -> dict[str, np.ndarray]:
    """Signals of every audited token in every pairing, each model running once over the documents that need it.

    Under several processes each scores a share of the batches and all get the whole result.

    Args:
        models: with one vocabulary.
        pairings: in any order; several of one document share its forward passes.
        documents: tokenized documents.
        temperature (`float`, *optional*, defaults to 1.0): divides the logits of both models in `log_ratio`, `kl` and
            `log_ratio_variance`; every other signal is at temperature 1.
        offline_a (`float`, *optional*, defaults to 1.0): offline correction of p̄ in the same three; see
            `offline_mixture`.
        context (`int`, *optional*, defaults to the shortest of the models' contexts): window length in tokens.
        stride (`int`, *optional*, defaults to half the context): tokens that a next window adds.
        batch_tokens (`int`, *optional*): padded tokens in a batch; see `default_batch_tokens`.

    Returns:
        columns over the tokens of the pairings' documents, concatenated in the pairings' order (N rows in all):
        `TARGET_SIGNALS` (N,) and, where any pairing has references, `REFERENCE_SIGNALS` (N,) and
        `log_prob_references` (N, K) in the order of `out`, K the longest `out`, NaN beyond. Nats; rank 1 is the most
        likely token.

    Raises:
        MitigateError: a model gives NaN logits.
    """
    longest = min(model.context for model in models)
    context = min(context or longest, longest)
    used = {number for pairing in pairings for number in (pairing.target, *pairing.out)}
    batch_tokens = batch_tokens or default_batch_tokens(
        models[0].vocabulary_size, device=models[0].device, models=len(used)
    )
    wanted: dict[int, list[int]] = {}
    for number, pairing in enumerate(pairings):
        wanted.setdefault(pairing.document, []).append(number)
    pieces = [piece for piece in cut_pieces(documents, context=context, stride=stride) if piece.document in wanted]
    batches = make_batches(pieces, batch_tokens=batch_tokens)

    first_row = np.cumsum([0, *(len(documents[pairing.document].ids) for pairing in pairings)])
    state = PartialState()
    parts: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
    mine = share_of(batches, state)
    with progress(sum(len(batch.targets) for batch in mine), description, unit="tok") as bar:
        for batch in mine:
            batch = batch.to(models[0].device)
            asked = [[(number, pairings[number]) for number in wanted[piece.document]] for piece in batch.pieces]
            with torch.inference_mode():
                parts += _batch_signals(models, batch, asked, first_row, temperature=temperature, offline_a=offline_a)
            bar.update(len(batch.targets))
    widest = max((len(pairing.out) for pairing in pairings), default=0)
    return _assemble(gather_object(parts) if state.num_processes > 1 else parts, int(first_row[-1]), widest)


def token_signals(
    target: Model,
    references: Sequence[Model],
    *,
    documents: Sequence[TokenizedDocument],
    out_references: Sequence[Sequence[int]] | None = None,
    temperature: float = 1.0,
    offline_a: float = 1.0,
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int | None = None,
    description: str = "Scoring",
) -> dict[str, np.ndarray]:
    """Signals of every audited token of every document under one target.

    Args:
        target: the model under audit.
        references: reference models with the target's vocabulary; may be empty (only the target's signals then).
        documents: tokenized documents.
        out_references (*optional*, defaults to all for every document): for each document, the indices of the
            references that never saw it.
        temperature, offline_a, context, stride, batch_tokens: as for `compute_signals`.

    Returns:
        columns as of `compute_signals`, over all tokens of all documents in order; column k of `log_prob_references` is
        reference k, NaN where it was not used.

    Raises:
        MitigateError: a model gives NaN logits.
    """
    out_references = out_references or [tuple(range(len(references)))] * len(documents)
    pairings = [
        Pairing(number, 0, tuple(index + 1 for index in out)) for number, out in enumerate(map(tuple, out_references))
    ]
    signals = compute_signals(
        [target, *references],
        pairings,
        documents=documents,
        temperature=temperature,
        offline_a=offline_a,
        context=context,
        stride=stride,
        batch_tokens=batch_tokens,
        description=description,
    )
    if references:
        signals["log_prob_references"] = by_model(
            signals["log_prob_references"], pairings, documents=documents, models=len(references) + 1
        )[:, 1:]
    return signals


def by_model(
    log_probs: np.ndarray, pairings: Sequence[Pairing], *, documents: Sequence[TokenizedDocument], models: int
) -> np.ndarray:
    """(N, models) from the (N, K) `log_prob_references` of pairings: column k is model k, NaN where not used."""
    spread = np.full((len(log_probs), models), np.nan, dtype=log_probs.dtype)
    end = 0
    for pairing in pairings:
        start, end = end, end + len(documents[pairing.document].ids)
        spread[start:end, list(pairing.out)] = log_probs[start:end, : len(pairing.out)]
    return spread


def token_log_probs(
    model: Model, documents: Sequence[TokenizedDocument], *, batch_tokens: int | None = None
) -> np.ndarray:
    """log p(x_t | x_<t) of every audited token under one model: (N,) nats, as in `token_signals`."""
    return token_signals(model, [], documents=documents, batch_tokens=batch_tokens)["log_prob"]


def offline_mixture(log_mean: torch.Tensor, a: float) -> torch.Tensor:
    """Offline correction of p̄ over the vocabulary: ½ (1 + a) p̄(v) + ½ (1 − a) / V.

    RMIA (Zarifzadeh et al., arXiv 2312.03262) estimates the mean of IN and OUT models from OUT models alone as
    ½ [(1 + a) p_out + (1 − a)]. Over a vocabulary its 1 is shared out evenly, so that the result is a distribution.

    Args:
        log_mean: (N, V) log p̄.
        a: from 0 (IN models are as good as certain of everything) to 1 (no correction).
    """
    if a == 1.0:
        return log_mean
    floor = math.log((1 - a) / 2 / log_mean.shape[1])
    return torch.logaddexp(log_mean + math.log((1 + a) / 2), torch.full_like(log_mean, floor))


def _batch_signals(
    models: Sequence[Model],
    batch: Batch,
    asked: Sequence[Sequence[tuple[int, Pairing]]],
    first_row: np.ndarray,
    *,
    temperature: float,
    offline_a: float,
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Rows and signals of each pairing of each piece."""
    needed = [{n for _, pairing in of_piece for n in (pairing.target, *pairing.out)} for of_piece in asked]
    plain = {number: _piece_log_probs(models[number], batch, number, needed) for number in set().union(*needed)}
    tempered = plain
    if temperature != 1.0:
        tempered = {
            number: {place: torch.log_softmax(table / temperature, dim=-1) for place, table in tables.items()}
            for number, tables in plain.items()
        }
    parts = []
    for place, (piece, targets) in enumerate(zip(batch.pieces, _by_piece(batch.targets, batch.pieces), strict=True)):
        own: dict[int, dict[str, torch.Tensor]] = {}
        for number, pairing in asked[place]:
            if pairing.target not in own:
                own[pairing.target] = _target_signals(plain[pairing.target][place], targets)
            columns = dict(own[pairing.target])
            if pairing.out:
                token = torch.stack([_of_token(plain[k][place], targets) for k in pairing.out], dim=1)
                log_mean = _log_mean(torch.stack([tempered[k][place] for k in pairing.out]))
                log_mean = offline_mixture(log_mean, offline_a)
                columns |= _joint_signals(tempered[pairing.target][place], log_mean, targets)
                columns["log_prob_out"] = _log_mean(token.T)
                columns["log_prob_references"] = token
            rows = first_row[number] + piece.start + piece.scored
            parts.append((rows, {name: column.cpu().numpy() for name, column in columns.items()}))
    return parts


def _piece_log_probs(model: Model, batch: Batch, number: int, needed: Sequence[set[int]]) -> dict[int, torch.Tensor]:
    """log p over the vocabulary, (n, V) for each place in the batch whose pairings need the model."""
    places = [place for place, models in enumerate(needed) if number in models]
    using = torch.zeros(len(needed), dtype=torch.bool, device=batch.targets.device)
    using[places] = True
    log_probs = torch.log_softmax(checked_logits(model, batch, using), dim=-1)
    return dict(zip(places, _by_piece(log_probs, [batch.pieces[place] for place in places]), strict=True))


def _by_piece(rows: torch.Tensor, pieces: Sequence[object]) -> Iterable[torch.Tensor]:
    return rows.split([len(piece.scored) for piece in pieces])  # type: ignore[attr-defined]


def _log_mean(log_probs: torch.Tensor) -> torch.Tensor:
    """log of the mean probability over the first dimension: logsumexp − log K."""
    return torch.logsumexp(log_probs, dim=0) - math.log(len(log_probs))


def _of_token(log_probs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(1, targets.unsqueeze(1)).squeeze(1)


def _target_signals(log_probs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Signals of p_θ alone, from (N, V) log-probabilities and (N,) tokens."""
    log_prob = _of_token(log_probs, targets)
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
        "log_ratio": _of_token(log_probs, targets) - _of_token(log_mean, targets),
        "kl": -expected,
        "log_ratio_variance": (mean_probs * (ratio - expected.unsqueeze(1)) ** 2).sum(1),
    }


def checked_logits(model: Model, batch: Batch, using: torch.Tensor) -> torch.Tensor:
    """Float32 logits (N', V) of a model at the kept tokens of the pieces in `using`, a (B,) mask.

    Raises:
        MitigateError: any is NaN.
    """
    with model.active() as module:
        logits = kept_logits(module, batch.input_ids[using], batch.attention_mask[using], batch.keep[using]).float()
    if torch.isnan(logits).any():
        raise MitigateError(
            f"{model.name}: its logits are NaN; its weights are damaged or overflow {model.base.model.dtype}: "
            "try models.dtype: float32"
        )
    return logits


def _assemble(
    parts: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]], length: int, widest: int
) -> dict[str, np.ndarray]:
    """Put the batches' rows in the pairings' order; every row must come once."""
    rows = np.concatenate([rows for rows, _ in parts]) if parts else np.zeros(0, dtype=int)
    if len(np.unique(rows)) != len(rows):
        raise RuntimeError(f"tokens scored twice: {summarize(rows[:5])}")
    names = TARGET_SIGNALS + (REFERENCE_SIGNALS if widest else ())
    signals = {name: np.full(length, np.nan, dtype=np.float32) for name in names}
    if widest:
        signals["log_prob_references"] = np.full((length, widest), np.nan, dtype=np.float32)
    for at, columns in parts:
        for name, column in columns.items():
            if name == "log_prob_references":
                signals[name][at, : column.shape[1]] = column
            else:
                signals[name][at] = column
    return signals
