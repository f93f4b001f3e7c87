"""Unlearning objectives: pure functions of tensors, one loss per token to forget (or per substitute, or per span).

ℓ = log p_θ(x_t | x_<t) of a token to forget, ℓ⁰ before unlearning, ℓ̄ under the OUT references; p_0 is the model before
unlearning, p̄ the mean of the OUT references' probabilities, p̃ their normalized geometric mean. Losses are per token,
never sequence sums, so that hyper-parameters carry over span lengths. Nats. `OBJECTIVES`, at the end, lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mitigate.errors import MitigateError
from mitigate.unlearning.distributions import Kept, divergence, without_token

DEFAULT: Mapping[str, float] = {"match": 1.0, "consensus": 0.5}


def ascent(log_prob: torch.Tensor) -> torch.Tensor:
    """Gradient ascent on the token's loss: ℓ (Jang et al., arXiv 2210.01504). Unbounded below: a baseline.

    With descent on the retain documents beside it, it is gradient difference (Liu et al., arXiv 2203.12817).

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


def simnpo(log_prob: torch.Tensor, *, beta: float = 2.5, delta: float = 0.0) -> torch.Tensor:
    """NPO without a reference model: −(2/β) log σ(−βℓ − δ) (Fan et al., SimNPO, arXiv 2410.07163), per token.

    Args:
        log_prob: (N,).
        beta (`float`, *optional*, defaults to 2.5): inverse temperature.
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
    return divergence(without_token(before, tokens, strength=beta), log_probs)


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


def hinge(log_prob: torch.Tensor, log_prob_out: torch.Tensor, *, margin: float = 0.0) -> torch.Tensor:
    """Down to the control and no further: relu(ℓ − ℓ̄ − m). A token that has arrived gets no gradient.

    Args:
        log_prob: (N,).
        log_prob_out: (N,).
        margin (`float`, *optional*, defaults to 0.0): nats above the OUT level that are left standing.
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

    Of all distributions it has the least mean divergence to theirs, mean_k KL(p ‖ p_k); see `match` for why not p̄.

    Args:
        log_probs: (N, V).
        typical: p̃ at the N positions.
    """
    return divergence(typical, log_probs)


def substitute(log_prob: torch.Tensor) -> torch.Tensor:
    """Learn what stands in the secret's place: −ℓ of the substitute's tokens.

    A fake of the secret's format, or a placeholder (then it is the field's "idk": Maini et al., arXiv 2401.06121).

    Args:
        log_prob: (M,) of the substitute's tokens.
    """
    return -log_prob


def dpo(
    log_ratio: torch.Tensor,
    spans: torch.Tensor,
    substitute_log_ratio: torch.Tensor,
    substitute_spans: torch.Tensor,
    *,
    count: int,
    beta: float = 1.0,
) -> torch.Tensor:
    """Prefer the substitute to the secret: −(2/β) log σ(β(Δ' − Δ)) for each span (Rafailov et al., arXiv 2305.18290).

    Δ is the mean of ℓ − ℓ⁰ over the span's tokens, Δ' over its substitute's: means, so that lengths do not matter. The
    factor 2/β is NPO's, whose limit without a substitute it is.

    Args:
        log_ratio: (N,) ℓ − ℓ⁰.
        spans: (N,) number of each token's span, from 0 to S − 1.
        substitute_log_ratio: (M,) the same of the substitutes' tokens.
        substitute_spans: (M,) the span that each stands for.
        count: S.
        beta (`float`, *optional*, defaults to 1.0): inverse temperature.

    Returns:
        (S,) losses; 0 for a span none of whose tokens is there: its substitute alone is no preference.
    """
    advantage = _means(substitute_log_ratio, substitute_spans, count) - _means(log_ratio, spans, count)
    absent = torch.bincount(spans, minlength=count) == 0
    return (-(2 / beta) * F.logsigmoid(beta * advantage)).masked_fill(absent, 0.0)


def hidden_anchor(hidden: torch.Tensor, hidden_before: torch.Tensor) -> torch.Tensor:
    """Hold a hidden state where it was: mean squared distance; the retain loss of RMU (arXiv 2403.03218).

    Args:
        hidden, hidden_before: (N, D).
    """
    return (hidden - hidden_before).square().mean(1)


@dataclass(frozen=True)
class Selected:
    """What an objective may use about the N selected tokens of a batch, and the M tokens of their substitutes.

    Attributes:
        tokens: (N,) x_t.
        log_prob: (N,) ℓ, with gradient.
        log_prob_before: (N,) ℓ⁰.
        log_prob_out: (N,) ℓ̄.
        log_prob_typical: (N,) ℓ̃, the mean of the OUT references' log-probabilities.
        log_probs: (N, V) log p_θ over the vocabulary, with gradient.
        spans: (N,) number of each token's span, from 0 to S − 1.
        span_count: S.
        before: p_0 at these positions, for objectives that need it.
        out: p̄ likewise.
        typical: p̃ likewise.
        hidden, hidden_before: (N, D) likewise.
        substitute_log_prob, substitute_log_prob_before: (M,) likewise.
        substitute_spans: (M,) the span that each stands for.
    """

    tokens: torch.Tensor
    log_prob: torch.Tensor
    log_prob_before: torch.Tensor
    log_prob_out: torch.Tensor
    log_prob_typical: torch.Tensor
    log_probs: torch.Tensor
    spans: torch.Tensor
    span_count: int
    before: Kept | None = None
    out: Kept | None = None
    typical: Kept | None = None
    hidden: torch.Tensor | None = None
    hidden_before: torch.Tensor | None = None
    substitute_log_prob: torch.Tensor | None = None
    substitute_log_prob_before: torch.Tensor | None = None
    substitute_spans: torch.Tensor | None = None


@dataclass(frozen=True)
class Parameters:
    """Hyper-parameters of the objectives; `beta` None is the objective's own default. `direction` is rmu's u, (D,)."""

    beta: float | None = None
    beta_2: float = 1.0
    delta: float = 0.0
    margin: float = 0.0
    steering: float = 2.0
    direction: torch.Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """An entry of `OBJECTIVES`.

    Attributes:
        loss: of a batch; (N,), (M,) or (S,) as `over` says.
        beta: default of `Parameters.beta`.
        over: what the losses are of: `selected` tokens, `substitutes`' tokens, or `spans`.
        needs: which optional parts of `Selected` it reads: `before`, `out`, `typical`, `hidden`, `substitutes`.
        one_sided: pushes a token down without end, so tokens that have arrived must be taken out.
        substitute: what stands in a secret's place: `fake` or `placeholder`; see `redaction`.
        anchor: what it was published with to hold the rest: `kl`, `nll`, `hidden` or `none`.
    """

    loss: Callable[[Selected, Parameters], torch.Tensor]
    beta: float = 1.0
    over: str = "selected"
    needs: frozenset[str] = frozenset()
    one_sided: bool = True
    substitute: str = "fake"
    anchor: str = "kl"


def parse_objective(objective: str | Mapping[str, float]) -> dict[str, float]:
    """Objective names with their weights: `hinge`, `hinge=1,distill=0.5`, a mapping, or `default` for our own mixture.

    Raises:
        MitigateError: an unknown name, a weight that is not a positive number, or objectives that do not go together.
    """
    if objective == "default":
        return dict(DEFAULT)
    if isinstance(objective, str):
        parts = [part.partition("=") for part in objective.split(",")]
        weights: list[tuple[str, object]] = [(name.strip(), weight.strip() or 1.0) for name, _, weight in parts]
    else:
        weights = list(objective.items())
    if not weights:
        raise MitigateError("unlearn.objective: names no objective; give one, or leave it out for the default")
    parsed: dict[str, float] = {}
    for name, weight in weights:
        if name in parsed:
            raise MitigateError(f"unlearn.objective: {name} stands there twice; give it one weight")
        if name == "default":
            own = ",".join(f"{part}={share:g}" for part, share in DEFAULT.items())
            raise MitigateError(f"unlearn.objective: default stands alone; with others, write its parts: {own}")
        if name not in OBJECTIVES:
            raise MitigateError(
                f"unlearn.objective: {name!r} is not one of default, {', '.join(OBJECTIVES)}; "
                "several are written with weights: hinge=1,distill=0.5"
            )
        try:
            parsed[name] = float(weight)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            parsed[name] = float("nan")
        if not 0 < parsed[name] < float("inf"):
            raise MitigateError(f"unlearn.objective: the weight of {name} is {weight!r}; give a positive number")
    kinds = {OBJECTIVES[name].substitute for name in parsed if "substitutes" in OBJECTIVES[name].needs}
    if len(kinds) > 1:
        raise MitigateError(
            f"unlearn.objective: {', '.join(parsed)}: they want different texts in a secret's place "
            f"({', '.join(sorted(kinds))}); idk does not go with dpo or substitute"
        )
    return parsed


def needs_of(weights: Mapping[str, float]) -> frozenset[str]:
    """Which optional parts of `Selected` some objectives read."""
    return frozenset().union(*(OBJECTIVES[name].needs for name in weights))


def anchor_of(weights: Mapping[str, float]) -> str:
    """What holds the rest where the user does not say: as published with the objective of the largest weight."""
    return OBJECTIVES[max(weights, key=lambda name: weights[name])].anchor


def arrived(selected: Selected, objective: Objective, *, margin: float) -> torch.Tensor:
    """Which of an objective's losses are of tokens (or spans) at the control level or below it: ℓ − ℓ̄ ≤ margin.

    Returns:
        bool, shaped as the objective's losses; all False for objectives that end by themselves.
    """
    ratio = (selected.log_prob - selected.log_prob_out).detach()
    if objective.over == "spans":
        ratio = _means(ratio, selected.spans, selected.span_count)
    elif objective.over == "substitutes":
        assert selected.substitute_log_prob is not None
        ratio = torch.zeros_like(selected.substitute_log_prob)
    return (ratio <= margin) if objective.one_sided else torch.zeros_like(ratio, dtype=torch.bool)


def _means(values: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) means of values by group; 0 for a group without values."""
    sums = torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, groups, values)
    sizes = torch.bincount(groups, minlength=count).clamp_min(1)
    return sums / sizes


def _undial(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.before is not None
    return undial(s.log_probs, s.before, s.tokens, beta=_beta(p, "undial"))


def _distill(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.out is not None
    return distill(s.log_probs, s.out)


def _consensus(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.typical is not None
    return consensus(s.log_probs, s.typical)


def _rmu(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.hidden is not None
    assert s.hidden_before is not None
    assert p.direction is not None
    return rmu(s.hidden, s.hidden_before, p.direction, steering=p.steering)


def _substitute(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.substitute_log_prob is not None
    return substitute(s.substitute_log_prob)


def _dpo(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.substitute_log_prob is not None
    assert s.substitute_log_prob_before is not None
    assert s.substitute_spans is not None
    return dpo(
        s.log_prob - s.log_prob_before,
        s.spans,
        s.substitute_log_prob - s.substitute_log_prob_before,
        s.substitute_spans,
        count=s.span_count,
        beta=_beta(p, "dpo"),
    )


def _beta(parameters: Parameters, name: str) -> float:
    return OBJECTIVES[name].beta if parameters.beta is None else parameters.beta


OBJECTIVES: dict[str, Objective] = {
    "hinge": Objective(lambda s, p: hinge(s.log_prob, s.log_prob_out, margin=p.margin), one_sided=False),
    "distill": Objective(_distill, needs=frozenset({"out"}), one_sided=False),
    "match": Objective(lambda s, p: match(s.log_prob, s.log_prob_typical), one_sided=False),
    "consensus": Objective(_consensus, needs=frozenset({"typical"}), one_sided=False),
    "ascent": Objective(lambda s, p: ascent(s.log_prob), anchor="none"),
    "grad_diff": Objective(lambda s, p: ascent(s.log_prob), anchor="nll"),
    "npo": Objective(lambda s, p: npo(s.log_prob, s.log_prob_before, beta=_beta(p, "npo"))),
    "simnpo": Objective(
        lambda s, p: simnpo(s.log_prob, beta=_beta(p, "simnpo"), delta=p.delta), beta=2.5, anchor="nll"
    ),
    "wga": Objective(lambda s, p: wga(s.log_prob, beta=_beta(p, "wga")), anchor="nll"),
    "satimp": Objective(
        lambda s, p: satimp(s.log_prob, beta_1=_beta(p, "satimp"), beta_2=p.beta_2), beta=5.0, anchor="nll"
    ),
    "undial": Objective(_undial, beta=10.0, needs=frozenset({"before"})),
    "dpo": Objective(_dpo, over="spans", needs=frozenset({"substitutes"})),
    "idk": Objective(
        _substitute,
        over="substitutes",
        needs=frozenset({"substitutes"}),
        one_sided=False,
        substitute="placeholder",
        anchor="nll",
    ),
    "substitute": Objective(_substitute, over="substitutes", needs=frozenset({"substitutes"}), one_sided=False),
    "rmu": Objective(_rmu, needs=frozenset({"hidden"}), anchor="hidden"),
}
