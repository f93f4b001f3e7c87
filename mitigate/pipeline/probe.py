"""What a token costs on this device: a model scores, learns and completes some of the documents for some 20 seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mitigate.detection.signals.compute import compute_signals
from mitigate.detection.signals.pairings import Pairing
from mitigate.generation.decoding import continuations
from mitigate.models.fitting.training import add_lora, fit
from mitigate.models.model import Model
from mitigate.models.settings import Lora, Method, Schedule
from mitigate.runtime import peak_memory
from mitigate.tokens.tokenization import TokenizedDocument

SECONDS = 6.0  # about, for each of the three
_COMPLETED, _NEW = 16, 8  # prefixes, and tokens after each


@dataclass(frozen=True)
class Probe:
    """What one model costs.

    Attributes:
        parameters: of the model; `weights`: their bytes as it is loaded.
        trained: parameters of an adapter of the references' shape.
        context: in tokens.
        scoring, training: seconds a token: of an audit's pass, of a training step.
        completing: seconds a value that extraction tries.
        scoring_peak, training_peak: bytes: of a GPU what was allocated, else of the whole process.
    """

    parameters: int
    weights: int
    trained: int
    context: int
    scoring: float
    training: float
    completing: float
    scoring_peak: int
    training_peak: int


def probe(
    model: Model,
    documents: Sequence[TokenizedDocument],
    *,
    method: Method,
    lora: Lora,
    batch_size: int,
    batch_tokens: int | None = None,
) -> Probe:
    """Time a model on some of the documents. Its weights are trained on, so it is of no use afterwards.

    Args:
        model: the base of the references, or the target.
        documents: tokenized; as many are read as there is time for.
        method, lora, batch_size: of the training.
        batch_tokens (*optional*): of the scoring.
    """
    order = np.random.default_rng(0).permutation(len(documents))
    shuffled = [documents[number] for number in order]
    parameters = list(model.base.model.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)

    def score(some: Sequence[TokenizedDocument]) -> None:
        pairings = [Pairing(number, 0, (1,)) for number in range(len(some))]
        compute_signals([model, model], pairings, documents=some, batch_tokens=batch_tokens, description="Probe")

    scoring = _seconds_a_token(score, shuffled, at_least=1) / 2  # the model, and itself in a reference's place
    prefixes = [own.ids[: max(1, len(own.ids) // 2)][-(model.context - _NEW) :] for own in shuffled[:_COMPLETED]]
    with model.active() as active:
        continuations(active, prefixes[:1], new_tokens=1)
        started = time.perf_counter()
        continuations(active, prefixes, new_tokens=_NEW)
        completing = (time.perf_counter() - started) / len(prefixes)
    scoring_peak = peak_memory(model.device)
    module: torch.nn.Module = model.base.model.requires_grad_(True)
    if method == "lora":
        module = add_lora(model, lora, seed=0)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

    def train(some: Sequence[TokenizedDocument]) -> None:
        once = Schedule(epochs=1, batch_size=batch_size, learning_rate=1e-6)
        fit(module, some, schedule=once, context=model.context, seed=0, description="Probe")

    training = _seconds_a_token(train, shuffled, at_least=batch_size)
    return Probe(
        parameters=sum(parameter.numel() for parameter in parameters),
        weights=weights,
        trained=trained,
        context=model.context,
        scoring=scoring,
        training=training,
        completing=completing,
        scoring_peak=scoring_peak,
        training_peak=peak_memory(model.device),
    )


def _seconds_a_token(
    work: Callable[[Sequence[TokenizedDocument]], Any], documents: Sequence[TokenizedDocument], *, at_least: int
) -> float:
    """Work on more and more documents, until one go takes a third of the time or has them all; what that one took."""
    count = min(at_least, len(documents))
    work(documents[:count])  # the first go also loads and compiles
    while True:
        some = documents[:count]
        started = time.perf_counter()
        work(some)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        if seconds > SECONDS / 3 or count == len(documents):
            return seconds / sum(len(own.ids) for own in some)
        count = min(len(documents), max(2 * count, int(count * SECONDS / 2 / seconds)))
