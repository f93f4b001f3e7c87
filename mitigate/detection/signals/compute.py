"""The one scoring forward: per-token signals of a target and its OUT references, streamed batch by batch.

Row t of a document is about token x_t given x_<t. A document's first token, special tokens and tokens outside the
audited region have no signals (NaN). Notation: p_θ target, p_k reference k, p̄ the mean of the OUT references'
*probabilities*, L(v) = log p_θ(v) − log p̄(v).

All pairings of a batch (`mitigate.detection.signals.pairings`) share one forward pass of each model.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from mitigate.detection.signals.compiled import log_probs_of_rows, signals_of_rows
from mitigate.detection.signals.kept import Beside, LogitRows
from mitigate.detection.signals.log_probs import signals_of_log_probs
from mitigate.detection.signals.pairings import Pairing, by_model, empty_columns
from mitigate.detection.signals.vocabulary import Columns
from mitigate.errors import MitigateError, summarize
from mitigate.models.model import Model, kept_logits
from mitigate.models.served import Served
from mitigate.runtime import merge_rows, progress, share_of
from mitigate.tokens.batches import Batch, Piece, collate, cut_pieces, default_batch_tokens, grouped, half_as_many
from mitigate.tokens.tokenization import TokenizedDocument

logger = logging.getLogger(__name__)


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
    log_probs_only: bool = False,
    beside: Beside | None = None,
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
            `vocabulary.offline_mixture`.
        context (`int`, *optional*, defaults to the shortest of the models' contexts): window length in tokens.
        stride (`int`, *optional*, defaults to half the context): tokens that a next window adds.
        batch_tokens (`int`, *optional*): padded tokens in a batch; see `default_batch_tokens`. Where the device's
            memory does not hold them, half as many.
        log_probs_only (`bool`, *optional*, defaults to `False`): only what follows from the tokens' log-probabilities,
            see `row_log_probs`; all else is NaN.
        beside (*optional*): gives more columns.

    Returns:
        columns over the tokens of the pairings' documents, concatenated in the pairings' order (N rows in all):
        `TARGET_SIGNALS` (N,) and, where any pairing has references, `REFERENCE_SIGNALS` (N,) and
        `log_prob_references` (N, K) in the order of `out`, K the longest `out`, NaN beyond. Nats; rank 1 is the most
        likely token.

    Raises:
        MitigateError: a model gives NaN logits, or a single window does not fit in the device's memory.
    """
    longest = min(model.context for model in models)
    context = min(context or longest, longest)
    if any(isinstance(model, Served) for model in models):
        windows: dict[str, Any] = {"context": context, "stride": stride, "description": description}

        def local(model: Model, texts: Sequence[TokenizedDocument]) -> dict[str, np.ndarray]:
            alone = [Pairing(number, 0) for number in range(len(texts))]
            return compute_signals([model], alone, documents=texts, batch_tokens=batch_tokens, **windows)

        return signals_of_log_probs(models, pairings, documents, local=local, **windows)
    used = {number for pairing in pairings for number in (pairing.target, *pairing.out)}
    batch_tokens = batch_tokens or default_batch_tokens(
        models[0].vocabulary_size, device=models[0].device, tables=len(used)
    )
    wanted: dict[int, list[int]] = {}
    for number, pairing in enumerate(pairings):
        wanted.setdefault(pairing.document, []).append(number)
    pieces = [piece for piece in cut_pieces(documents, context=context, stride=stride) if piece.document in wanted]

    def alike(piece: Piece) -> list[tuple[int, tuple[int, ...]]]:
        return [(pairings[number].target, pairings[number].out) for number in wanted[piece.document]]

    groups = grouped(pieces, batch_tokens=batch_tokens, together=alike)
    signals, first_row = empty_columns(pairings, documents)
    signals |= beside.empty(pairings, first_row) if beside else {}
    signals_of: Callable[..., list[Columns]] = log_probs_of_rows
    if not log_probs_only:
        signals_of = partial(signals_of_rows, temperature=temperature, offline_a=offline_a)
    state = PartialState()
    scored = np.zeros(int(first_row[-1]), dtype=bool)
    mine = deque(share_of(groups, state))
    with progress(sum(len(piece.scored) for group in mine for piece in group), description, unit="tok") as bar:
        while mine:
            batch = collate(mine.popleft())
            asked = [[(number, pairings[number]) for number in wanted[piece.document]] for piece in batch.pieces]
            try:
                with torch.inference_mode():
                    found = _batch_signals(
                        models, batch.to(models[0].device), asked, signals_of=signals_of, beside=beside
                    )
            except torch.OutOfMemoryError:
                found = None  # the error holds what was computed; it goes first
            if found is None:
                if (fewer := half_as_many(batch)) is None:
                    raise MitigateError(
                        f"a window of {batch.input_ids.shape[1]} tokens does not fit in the device's memory: set "
                        "detect.context lower, models.dtype: bfloat16, or models.device: cpu"
                    )
                rest = [piece for group in (batch.pieces, *mine) for piece in group]
                mine = deque(grouped(rest, batch_tokens=fewer, together=alike))
                continue
            for place, number, columns in found:
                _check(models, pairings[number], columns)
                rows = first_row[number] + batch.pieces[place].start + batch.pieces[place].scored
                _put(signals, scored, rows, columns)
            bar.update(len(batch.targets))
    if state.num_processes > 1:
        for size in sorted({len(column) for column in signals.values()}):
            merge_rows({n: one for n, one in signals.items() if len(one) == size}, scored[:size].copy(), state)
    return signals


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
    log_probs_only: bool = False,
    description: str = "Scoring",
) -> dict[str, np.ndarray]:
    """Signals of every audited token of every document under one target.

    Args:
        target: the model under audit.
        references: reference models with the target's vocabulary; may be empty (only the target's signals then).
        documents: tokenized documents.
        out_references (*optional*, defaults to all for every document): for each document, the indices of the
            references that never saw it.
        temperature, offline_a, context, stride, batch_tokens, log_probs_only: as for `compute_signals`.

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
        log_probs_only=log_probs_only,
        description=description,
    )
    if references:
        signals["log_prob_references"] = by_model(
            signals["log_prob_references"], pairings, documents=documents, models=len(references) + 1
        )[:, 1:]
    return signals


def token_log_probs(
    model: Model, documents: Sequence[TokenizedDocument], *, batch_tokens: int | None = None
) -> np.ndarray:
    """log p(x_t | x_<t) of every audited token under one model: (N,) nats, as in `token_signals`."""
    return token_signals(model, [], documents=documents, batch_tokens=batch_tokens, log_probs_only=True)["log_prob"]


def _batch_signals(
    models: Sequence[Model],
    batch: Batch,
    asked: Sequence[Sequence[tuple[int, Pairing]]],
    *,
    signals_of: Callable[..., list[Columns]],
    beside: Beside | None,
) -> list[tuple[int, int, dict[str, np.ndarray]]]:
    """(place of the piece, number of the pairing, its signals) of all that is asked of a batch's pieces.

    Neighbours of which the same is asked go through the vocabulary together, and all comes to the host at once.
    """
    compared = [tuple((pairing.target, pairing.out) for _, pairing in of_piece) for of_piece in asked]
    needed = [{n for target, out in of_piece for n in (target, *out)} for of_piece in compared]
    tables = {number: _piece_logits(models[number], batch, number, needed) for number in set().union(*needed)}
    sizes = [len(piece.scored) for piece in batch.pieces]
    starts = np.cumsum([0, *sizes])
    found: list[tuple[int, int, dict[str, torch.Tensor]]] = []
    for wanted, run in groupby(range(len(sizes)), key=compared.__getitem__):
        places = list(run)
        first, last = places[0], places[-1]
        logits = {number: tables[number].of(first, last) for number in needed[first]}
        rows = batch.targets[starts[first] : starts[last + 1]]
        signals = signals_of(logits, rows, wanted)
        for one, (pair, columns) in enumerate(zip(wanted, signals, strict=True)):
            if beside:
                where = [(asked[n][one][0], batch.pieces[n].start + batch.pieces[n].scored) for n in places]
                columns |= beside.columns(LogitRows(logits, rows, *pair, where))
        for place in places:
            own = slice(starts[place] - starts[first], starts[place + 1] - starts[first])
            for (number, _), columns in zip(asked[place], signals, strict=True):
                found.append((place, number, {name: column[own] for name, column in columns.items()}))
    flat = torch.cat([column.flatten().float() for _, _, columns in found for column in columns.values()]).cpu().numpy()
    taken = 0
    parts = []
    for place, number, columns in found:
        copied = {}
        for name, column in columns.items():
            copied[name] = flat[taken : taken + column.numel()].reshape(tuple(column.shape))
            taken += column.numel()
        parts.append((place, number, copied))
    return parts


@dataclass(frozen=True)
class _Logits:
    """A model's logits (n, V) at the kept tokens of the pieces that need it.

    Attributes:
        rows: of all of them, in the batch's order.
        first: place of a piece -> its first row.
        end: place -> the row after its last.
    """

    rows: torch.Tensor
    first: Mapping[int, int]
    end: Mapping[int, int]

    def of(self, first: int, last: int) -> torch.Tensor:
        """Of neighbouring pieces, all of which need the model."""
        return self.rows[self.first[first] : self.end[last]]


def _piece_logits(model: Model, batch: Batch, number: int, needed: Sequence[set[int]]) -> _Logits:
    places = [place for place, models in enumerate(needed) if number in models]
    ids, attended, keep = batch.input_ids, batch.attention_mask, batch.keep
    if len(places) < len(needed):
        using = torch.tensor(places, device=ids.device)
        ids, attended, keep = (table.index_select(0, using) for table in (ids, attended, keep))
    ends = np.cumsum([len(batch.pieces[place].scored) for place in places]).tolist()
    with model.active() as module:
        rows = kept_logits(module, ids, attended, keep)
    return _Logits(rows, dict(zip(places, [0, *ends[:-1]], strict=True)), dict(zip(places, ends, strict=True)))


def _check(models: Sequence[Model], pairing: Pairing, columns: Mapping[str, np.ndarray]) -> None:
    """Refuse NaN.

    Raises:
        MitigateError: with the model that said it.
    """
    said = {pairing.target: columns["log_prob"]}
    if pairing.out:
        said |= dict(zip(pairing.out, columns["log_prob_references"].T, strict=True))
    for number, log_prob in said.items():
        if np.isnan(log_prob).any():
            model = models[number]
            raise MitigateError(
                f"{model.name}: its logits are NaN; its weights are damaged or overflow {model.base.model.dtype}: "
                "try models.dtype: float32"
            )


def _put(
    signals: Mapping[str, np.ndarray], scored: np.ndarray, rows: np.ndarray, columns: Mapping[str, np.ndarray]
) -> None:
    """Put some rows in their place; each must come once."""
    if scored[rows].any():
        raise RuntimeError(f"tokens scored twice: {summarize(rows[:5])}")
    scored[rows] = True
    for name, column in columns.items():
        if name == "log_prob_references":
            signals[name][rows, : column.shape[1]] = column
        else:
            signals[name][rows] = column
