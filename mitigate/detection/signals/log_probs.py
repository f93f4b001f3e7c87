"""Signals where a model is behind a server, which says the tokens' log-probabilities and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from accelerate import PartialState

from mitigate.detection.scores.token import WHOLE_SCORES
from mitigate.detection.settings import Detect
from mitigate.detection.signals.pairings import Pairing, empty_columns
from mitigate.errors import MitigateError
from mitigate.models.model import Model
from mitigate.models.served import Served
from mitigate.runtime import gathered, share_of
from mitigate.tokens.batches import cut_pieces
from mitigate.tokens.tokenization import TokenizedDocument

Local = Callable[[Model, Sequence[TokenizedDocument]], dict[str, np.ndarray]]


def check_log_probs(target: Model, references: Sequence[Model], detect: Detect) -> None:
    """Refuse, before anything is asked, what log-probabilities alone do not say, where there is no more.

    Raises:
        MitigateError: the score compares whole distributions, or calibration does, and a model is behind a server or
            `detect.signals` says that they are left out.
    """
    alone = detect.signals == "log_probs"
    if not alone and not any(isinstance(model, Served) for model in (target, *references)):
        return
    why = "detect.signals: log_probs leaves them out" if alone else "a server gives the tokens' log-probabilities alone"
    whole = WHOLE_SCORES | ({"min_k_pp"} if alone or isinstance(target, Served) else set())
    if detect.score in whole:
        raise MitigateError(
            f"detect.score: {detect.score} needs whole distributions, and {why}; take log_ratio_clipped, log_ratio or "
            "loss"
        )
    if detect.fdr is not None or detect.calibrate:
        raise MitigateError(
            f"detect.fdr, detect.calibrate: the calibrated detector reads whole distributions, and {why}; leave them "
            "out"
        )
    if detect.kept_entries:
        raise MitigateError(f"detect.kept_entries: keeps whole distributions, and {why}; leave it out")
    if (detect.temperature, detect.offline_a) != (1.0, 1.0):
        raise MitigateError(f"detect.temperature, detect.offline_a: leave them at 1, for {why}")


def signals_of_log_probs(
    models: Sequence[Model],
    pairings: Sequence[Pairing],
    documents: Sequence[TokenizedDocument],
    *,
    local: Local,
    context: int,
    stride: int | None,
    description: str,
) -> dict[str, np.ndarray]:
    """Columns as of `compute_signals`: what follows from log-probabilities, NaN elsewhere.

    Args:
        models: some of them served.
        pairings: in any order.
        documents: tokenized documents.
        local: `TARGET_SIGNALS` of a model that is here, over some documents' tokens, one document after the other.
        context, stride: windows.
        description: of the progress.

    Raises:
        MitigateError: a server fails.
    """
    said: dict[tuple[int, int], dict[str, np.ndarray]] = {}  # model, document -> columns (T,)
    for model in sorted({number for pairing in pairings for number in (pairing.target, *pairing.out)}):
        own = sorted({pairing.document for pairing in pairings if model in (pairing.target, *pairing.out)})
        texts = [documents[number] for number in own]
        one = models[model]
        if isinstance(one, Served):
            columns = {"log_prob": _served(one, texts, context=context, stride=stride, description=description)}
        else:
            columns = local(one, texts)
        starts = np.cumsum([0, *(len(text.ids) for text in texts)])
        for place, number in enumerate(own):
            rows = slice(starts[place], starts[place + 1])
            said[model, number] = {name: column[rows] for name, column in columns.items()}
    signals, starts = empty_columns(pairings, documents)
    for number, pairing in enumerate(pairings):
        rows = slice(starts[number], starts[number + 1])
        for name, column in said[pairing.target, pairing.document].items():
            signals[name][rows] = column
        if pairing.out:
            each = np.stack([said[k, pairing.document]["log_prob"] for k in pairing.out], axis=1).astype(np.float64)
            signals["log_prob_references"][rows, : each.shape[1]] = each
            with np.errstate(invalid="ignore"):  # of tokens that have none
                mean = np.logaddexp.reduce(each, axis=1) - np.log(each.shape[1])
            signals["log_prob_out"][rows] = mean
            signals["log_ratio"][rows] = said[pairing.target, pairing.document]["log_prob"] - mean
    return signals


def _served(
    model: Served, texts: Sequence[TokenizedDocument], *, context: int, stride: int | None, description: str
) -> np.ndarray:
    """(N,) log-probabilities of the audited tokens of all texts, NaN elsewhere; processes share the windows."""
    pieces = cut_pieces(texts, context=min(context, model.context), stride=stride)
    state = PartialState()
    mine = share_of(list(enumerate(pieces)), state)
    answers = model.log_probs([piece.ids for _, piece in mine], description=f"{description}: {model.name}")
    everyones = gathered([(number, one) for (number, _), one in zip(mine, answers, strict=True)], state)
    starts = np.cumsum([0, *(len(text.ids) for text in texts)])
    found = np.full(int(starts[-1]), np.nan)
    for piece, answer in zip(pieces, everyones, strict=True):
        found[starts[piece.document] + piece.start + piece.scored] = answer[piece.scored]
    return found
