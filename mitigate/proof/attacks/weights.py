"""Attacks on the weights: as they are served, rounded, and moved along the way that unlearning took."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from mitigate.detection.scores.aggregations import min_k
from mitigate.proof.case import Case
from mitigate.proof.subject import NotPossibleError, Subject, Texts, plain_model

# The 16 values of NF4, quantiles of a normal distribution (Dettmers et al., arXiv 2305.14314, appendix E).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
NF4_BLOCK, _Q4_BLOCK = 64, 32


def bfloat16(weight: torch.Tensor) -> torch.Tensor:
    """Weights as they are in bfloat16."""
    return weight.to(torch.bfloat16).to(weight.dtype)


def int8(weight: torch.Tensor) -> torch.Tensor:
    """Each row rounded to 255 steps between minus and plus its largest value (LLM.int8 without its outliers)."""
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round().clamp(-127, 127) * scale


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """Blocks of 64 values, each rounded to the nearest of NF4's 16 times the block's largest."""
    levels = torch.tensor(NF4, device=weight.device, dtype=weight.dtype)
    edges = (levels[1:] + levels[:-1]) / 2

    def rounded(blocks: torch.Tensor) -> torch.Tensor:
        largest = blocks.abs().amax(1, keepdim=True).clamp_min(1e-12)
        return levels[torch.bucketize(blocks / largest, edges)] * largest

    return _by_blocks(weight, NF4_BLOCK, rounded)


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """Blocks of 32 values as GGUF's Q4_0: a 16-bit scale, the value of the largest size over −8, and 16 steps."""

    def rounded(blocks: torch.Tensor) -> torch.Tensor:
        place = blocks.abs().argmax(1, keepdim=True)
        scale = (blocks.gather(1, place) / -8).half().to(blocks.dtype)
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        steps = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
        return steps * scale

    return _by_blocks(weight, _Q4_BLOCK, rounded)


ROUNDINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bfloat16": bfloat16,
    "int8": int8,
    "nf4": nf4,
    "q4_0": q4_0,
}


def as_served(case: Case, subject: Subject) -> np.ndarray:
    """(N,) scores of the model as it is."""
    return case.ratio(case.signals(subject)["log_prob"])


def lowest_tokens(case: Case, subject: Subject) -> tuple[Texts, Texts]:
    """Min-K% of each text (Shi et al., arXiv 2310.16789): mean log-probability of its unlikeliest fifth of tokens."""
    log_prob = np.where(subject.seen, np.nan, case.signals(subject)["log_prob"])
    forgotten, never_seen = (
        texts.scored(np.array([min_k(log_prob[first:last]) for first, last in places]))
        for places, texts in (case.texts("forget"), case.texts("holdout"))
    )
    return forgotten, never_seen


def rounded(case: Case, subject: Subject, *, how: str) -> np.ndarray:
    """(N,) scores of the model with its adapters merged and its linear layers rounded.

    Args:
        how: a name of `ROUNDINGS`. Embeddings and the output head are not rounded, but for bfloat16.
    """
    model = subject.plain()
    for weight, by_column in matrices(model.base.model, everything=how == "bfloat16"):
        rows = weight.data.T if by_column else weight.data
        found = ROUNDINGS[how](rows.float()).to(weight.dtype)
        weight.data = found.T.contiguous() if by_column else found
    return case.ratio(case.log_probs(model))


def moved(case: Case, subject: Subject, *, by: float) -> np.ndarray:
    """(N,) scores of W_before + by · (W − W_before): an adapter over the leaky model, scaled.

    Raises:
        NotPossibleError: the two have weights of unlike shapes.
    """
    target = plain_model(case.before.metadata.target.source, case.mitigated.store, rounded=False)
    model = subject.plain(rounded=False)
    own, before = (dict(one.base.model.named_parameters()) for one in (model, target))
    if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in before.items()}:
        raise NotPossibleError(f"{subject.source}: its weights have other shapes than the audited model's")
    for name, weight in own.items():
        weight.data = before[name].data.float() + by * (weight.data.float() - before[name].data.float())
    return case.ratio(case.log_probs(model))


def difference(case: Case, subject: Subject) -> np.ndarray:
    """(N,) how far the model before lies above the model, nats, clipped: what two checkpoints show together."""
    before = case.before.columns["log_prob"].astype(np.float64)
    return np.clip(before - case.signals(subject)["log_prob"], -3, 3)


def matrices(module: torch.nn.Module, *, everything: bool) -> Iterator[tuple[torch.nn.Parameter, bool]]:
    """The weights of linear layers, the output head aside; or all parameters.

    Yields:
        the weight, and whether an output is a column of it (GPT-2's `Conv1D`) and not a row.
    """
    if everything:
        yield from ((parameter, False) for parameter in module.parameters())
        return
    head = getattr(module, "get_output_embeddings", lambda: None)()
    for part in module.modules():
        weight = getattr(part, "weight", None)
        by_column = type(part).__name__ == "Conv1D"
        if (by_column or isinstance(part, torch.nn.Linear)) and part is not head and weight is not None:
            yield weight, by_column


def _by_blocks(weight: torch.Tensor, size: int, rounded_blocks: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Round the values in blocks of `size` in row-major order; the last one may be short."""
    flat = weight.flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % size))
    return rounded_blocks(padded.reshape(-1, size)).flatten()[: len(flat)].reshape(weight.shape)
