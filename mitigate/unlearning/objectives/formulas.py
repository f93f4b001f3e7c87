"""Unlearning objectives: pure functions of tensors, one loss per token to forget (or per substitute, or per span).

ℓ = log p_θ(x_t | x_<t) of a token to forget, ℓ⁰ before unlearning, ℓ̄ under the OUT references; p_0 is the model before
unlearning, p̄ the mean of the OUT references' probabilities, p̃ their normalized geometric mean. NPO, SimNPO and DPO are
of units: sequences as published (a selected span, or a whole document), or single tokens. Nats. By name:
`catalogue.OBJECTIVES`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mitigate.unlearning.objectives.distributions import Kept, divergence, tilted


def ascent(log_prob: torch.Tensor) -> torch.Tensor:
    """Gradient ascent on the token's loss: ℓ (Jang et al., arXiv 2210.01504). Unbounded below: a baseline.

    With descent on the retain documents beside it, it is gradient difference (Liu et al., arXiv 2203.12817).

    Args:
        log_prob: (N,).
    """
    return log_prob


def npo(log_ratio: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Negative preference optimization: −(2/β) log σ(−βΔ) (Zhang et al., arXiv 2404.05868).

    Args:
        log_ratio: (U,) Δ = log p_θ(y) − log p_0(y) of each unit y: as published a sequence, so the sum of its tokens'.
        beta: inverse temperature; β → 0 is gradient ascent.
    """
    return -(2 / beta) * F.logsigmoid(-beta * log_ratio)


def simnpo(log_prob: torch.Tensor, *, beta: float, delta: float = 0.0) -> torch.Tensor:
    """NPO without a reference model: −(2/β) log σ(−β log p_θ(y) / |y| − δ) (Fan et al., SimNPO, arXiv 2410.07163).

    Args:
        log_prob: (U,) of each unit y, the mean over its tokens.
        beta: inverse temperature.
        delta (`float`, *optional*, defaults to 0.0): margin, the paper's γ.
    """
    return -(2 / beta) * F.logsigmoid(-beta * log_prob - delta)


def wga(log_prob: torch.Tensor, *, beta: float = 1.0) -> torch.Tensor:
    """Weighted gradient ascent: p^β · ℓ, no gradient through the weight (Wang et al., arXiv 2502.19301).

    Args:
        log_prob: (N,).
        beta (`float`, *optional*, defaults to 1.0): power of the token's probability.
    """
    return (beta * log_prob.detach()).exp() * log_prob


def satimp(log_prob: torch.Tensor, *, beta_1: float = 5.0, beta_2: float = 1.0) -> torch.Tensor:
    """Saturation and importance: p^β1 (1 − p)^β2 · ℓ, no gradient through the weight (Yang et al., arXiv 2505.11953).

    Args:
        log_prob: (N,).
        beta_1 (`float`, *optional*, defaults to 5.0): power of p.
        beta_2 (`float`, *optional*, defaults to 1.0): power of 1 − p.
    """
    prob = log_prob.detach().exp()
    return prob**beta_1 * (1 - prob).clamp_min(0) ** beta_2 * log_prob


def undial(log_probs: torch.Tensor, before: Kept, tokens: torch.Tensor, *, beta: float = 10.0) -> torch.Tensor:
    """Self-distillation to adjusted logits: KL(softmax(z⁰ − β·onehot(x_t)) ‖ p_θ) (Dong et al., arXiv 2402.10052).

    The paper's cross-entropy less the entropy of its target, which has no gradient.

    Args:
        log_probs: (N, V) log p_θ.
        before: p_0 at the N positions.
        tokens: (N,) x_t.
        beta (`float`, *optional*, defaults to 10.0): what the token's logit loses.
    """
    return divergence(tilted(before, tokens, by=-beta), log_probs)


def rmu(hidden: torch.Tensor, hidden_before: torch.Tensor, direction: torch.Tensor, *, steering: float) -> torch.Tensor:
    """Representation misdirection: mean squared distance of a hidden state to c·u (Li et al., WMDP, arXiv 2403.03218).

    c is `steering` times the length that the state had before, as in adaptive RMU (Dang et al., arXiv 2408.06223).

    Args:
        hidden: (N, D) output of one layer where x_t is predicted.
        hidden_before: (N, D) the same of p_0.
        direction: (D,) u, a random unit vector.
        steering: length of the false state in lengths of the true one.
    """
    false = steering * hidden_before.norm(dim=1, keepdim=True) * direction
    return (hidden - false).square().mean(1)


def hinge(log_prob: torch.Tensor, log_prob_out: torch.Tensor, *, margin: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Down to the control and no further: relu(ℓ − ℓ̄ − m). A token that has arrived gets no gradient.

    Args:
        log_prob: (N,).
        log_prob_out: (N,).
        margin (*optional*, defaults to 0.0): (N,) or one number, nats above the OUT level that are left standing.
    """
    return F.relu(log_prob - log_prob_out - margin)


def distill(log_probs: torch.Tensor, out: Kept) -> torch.Tensor:
    """To what the OUT references say: KL(p̄ ‖ p_θ).

    Args:
        log_probs: (N, V).
        out: p̄ at the N positions.
    """
    return divergence(out, log_probs)


def match(log_prob: torch.Tensor, log_prob_typical: torch.Tensor) -> torch.Tensor:
    """To what one OUT reference says on average, from above and from below: Huber(ℓ − ℓ̃), its bend at 1 nat.

    ℓ̄ is the log of a mean and so above the mean of logs (Jensen), the more the references differ: at ℓ̄ a secret is
    likelier than a model that never saw it says.

    Args:
        log_prob: (N,).
        log_prob_typical: (N,) ℓ̃, the mean of the OUT references' log-probabilities.
    """
    return F.smooth_l1_loss(log_prob, log_prob_typical, reduction="none")


def consensus(log_probs: torch.Tensor, typical: Kept) -> torch.Tensor:
    """To the consensus of the OUT references: KL(p̃ ‖ p_θ), p̃ their normalized geometric mean.

    Of all distributions it has the least mean divergence to theirs, mean_k KL(p ‖ p_k); see `match` for why not p̄. Its
    token's own entry is put where `match` aims (`placed`): p̃ has more of it than one reference says on average, by what
    normalizing adds, and the two would hold against each other.

    Args:
        log_probs: (N, V).
        typical: p̃ at the N positions.
    """
    return divergence(typical, log_probs)


def lens(log_probs: torch.Tensor, typical: torch.Tensor) -> torch.Tensor:
    """As `match`, of what the output head makes of middle layers (`models.inside.lens`): Huber, the mean over depths.

    Where the last layers alone learn to hide a token, the middle ones go on saying it.

    Args:
        log_probs: (N, depths).
        typical: (N, depths) the mean of what the OUT references say there.
    """
    return F.smooth_l1_loss(log_probs, typical, reduction="none").mean(1)


def substitute(log_prob: torch.Tensor) -> torch.Tensor:
    """Learn what stands in the secret's place: −ℓ of the substitute's tokens.

    A fake of the secret's format, or a placeholder (then it is the field's "idk": Maini et al., arXiv 2401.06121).

    Args:
        log_prob: (M,) of the substitute's tokens.
    """
    return -log_prob


def dpo(log_ratio: torch.Tensor, substitute_log_ratio: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Prefer the substitute to the secret: −(2/β) log σ(β(Δ' − Δ)) (Rafailov et al., arXiv 2305.18290).

    The factor 2/β is NPO's, whose limit without a substitute it is.

    Args:
        log_ratio: (S,) Δ = log p_θ(y) − log p_0(y) of each span y: as published the sum over its tokens.
        substitute_log_ratio: (S,) Δ', the same of what stands in its place.
        beta: inverse temperature.
    """
    return -(2 / beta) * F.logsigmoid(beta * (substitute_log_ratio - log_ratio))


def hidden_anchor(hidden: torch.Tensor, hidden_before: torch.Tensor) -> torch.Tensor:
    """Hold a hidden state where it was: mean squared distance; the retain loss of RMU (arXiv 2403.03218).

    Args:
        hidden, hidden_before: (N, D).
    """
    return (hidden - hidden_before).square().mean(1)


def span_sums(values: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) sums of values by group, for instance of tokens by span."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, groups, values)


def span_means(values: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) means of values by group; 0 for a group without values."""
    return span_sums(values, groups, count) / torch.bincount(groups, minlength=count).clamp_min(1)
