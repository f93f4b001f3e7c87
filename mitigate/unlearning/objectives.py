"""Unlearning objectives: pure functions of tensors, one loss per selected token, to be averaged over tokens.

ℓ = log p_θ(x_t | x_<t) of a token to forget, ℓ⁰ before unlearning, ℓ̄ under the OUT references; p_0 is the model before
unlearning, p̄ the mean of the OUT references' probabilities. Losses are per token, never sequence sums, so that
hyper-parameters carry over span lengths. Nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mitigate.errors import MitigateError


@dataclass(frozen=True)
class Selected:
    """What an objective may use about the N selected tokens of a batch.

    Attributes:
        log_prob: (N,) ℓ, with gradient.
        log_prob_before: (N,) ℓ⁰.
        log_prob_out: (N,) ℓ̄.
        log_probs: (N, V) log p_θ over the vocabulary, with gradient.
        out_log_probs: (N, V) log p̄, or None if no objective in use needs it.
    """

    log_prob: torch.Tensor
    log_prob_before: torch.Tensor
    log_prob_out: torch.Tensor
    log_probs: torch.Tensor
    out_log_probs: torch.Tensor | None


def grad_diff(log_prob: torch.Tensor) -> torch.Tensor:
    """Gradient ascent on the selected tokens: ℓ (Liu et al., Gradient Difference, arXiv 2203.12817).

    Unbounded below: a baseline. "Difference" because the anchors' descent runs beside it.

    Args:
        log_prob: (N,).
    """
    return log_prob


def npo(log_prob: torch.Tensor, log_prob_before: torch.Tensor, *, beta: float = 1.0) -> torch.Tensor:
    """Negative preference optimization: −(2/β) log σ(−β(ℓ − ℓ⁰)) (Zhang et al., arXiv 2404.05868), per token.

    Args:
        log_prob: (N,).
        log_prob_before: (N,).
        beta (`float`, *optional*, defaults to 1.0): inverse temperature; β → 0 is gradient ascent.
    """
    return -(2 / beta) * F.logsigmoid(-beta * (log_prob - log_prob_before))


def hinge(log_prob: torch.Tensor, log_prob_out: torch.Tensor, *, margin: float = 0.0) -> torch.Tensor:
    """Down to the control and no further: relu(ℓ − ℓ̄ − m). A token that has arrived gets no gradient.

    Args:
        log_prob: (N,).
        log_prob_out: (N,).
        margin (`float`, *optional*, defaults to 0.0): nats above the OUT level that are left standing.
    """
    return F.relu(log_prob - log_prob_out - margin)


def distill(log_probs: torch.Tensor, out_log_probs: torch.Tensor) -> torch.Tensor:
    """To what the OUT references say: KL(p̄ ‖ p_θ).

    Args:
        log_probs: (N, V).
        out_log_probs: (N, V).
    """
    return F.kl_div(log_probs, out_log_probs, reduction="none", log_target=True).sum(-1)


def anchor(log_probs: torch.Tensor, log_probs_before: torch.Tensor) -> torch.Tensor:
    """Hold a token where it was: KL(p_0 ‖ p_θ).

    Args:
        log_probs: (N, V).
        log_probs_before: (N, V).
    """
    return F.kl_div(log_probs, log_probs_before, reduction="none", log_target=True).sum(-1)


def parse_objective(objective: str | Mapping[str, float]) -> dict[str, float]:
    """Objective names with their weights: `hinge`, `hinge=1,distill=0.5` or a mapping.

    Raises:
        MitigateError: an unknown name, or a weight that is not a positive number.
    """
    if isinstance(objective, str):
        parts = [part.partition("=") for part in objective.split(",")]
        weights: dict[str, object] = {name.strip(): weight.strip() or 1.0 for name, _, weight in parts}
    else:
        weights = dict(objective)
    parsed: dict[str, float] = {}
    for name, weight in weights.items():
        if name not in OBJECTIVES:
            raise MitigateError(
                f"unlearn.objective: {name!r} is not one of {', '.join(OBJECTIVES)}; "
                "several are written with weights: hinge=1,distill=0.5"
            )
        try:
            parsed[name] = float(weight)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            parsed[name] = float("nan")
        if not 0 < parsed[name] < float("inf"):
            raise MitigateError(f"unlearn.objective: the weight of {name} is {weight!r}; give a positive number")
    return parsed


def objective_loss(
    selected: Selected, weights: Mapping[str, float], *, beta: float = 1.0, margin: float = 0.0
) -> torch.Tensor:
    """The weighted sum of objectives for each selected token: (N,)."""
    total = torch.zeros_like(selected.log_prob)
    for name, weight in weights.items():
        total = total + weight * OBJECTIVES[name](selected, beta, margin)
    return total


def _distill(selected: Selected, beta: float, margin: float) -> torch.Tensor:
    assert selected.out_log_probs is not None, "the trainer computes log p̄ for objectives in NEEDS_OUT_DISTRIBUTION"
    return distill(selected.log_probs, selected.out_log_probs)


OBJECTIVES: dict[str, Callable[[Selected, float, float], torch.Tensor]] = {
    "npo": lambda s, beta, margin: npo(s.log_prob, s.log_prob_before, beta=beta),
    "hinge": lambda s, beta, margin: hinge(s.log_prob, s.log_prob_out, margin=margin),
    "distill": _distill,
    "grad_diff": lambda s, beta, margin: grad_diff(s.log_prob),
}
NEEDS_OUT_DISTRIBUTION = frozenset({"distill"})
