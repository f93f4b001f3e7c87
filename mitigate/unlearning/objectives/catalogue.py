"""The objectives by name: what each reads of a batch, what it was published with, and mixtures of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from mitigate.unlearning.objectives.distributions import Kept, placed, tilted_log_prob
from mitigate.unlearning.objectives.formulas import (
    ascent,
    consensus,
    distill,
    dpo,
    hinge,
    lens,
    match,
    npo,
    rmu,
    satimp,
    simnpo,
    span_means,
    span_sums,
    substitute,
    undial,
    wga,
)
from mitigate.unlearning.settings import Retain


@dataclass(frozen=True)
class Selected:
    """What an objective may use about the N selected tokens of a batch, and the M tokens of their substitutes.

    Attributes:
        tokens: (N,) x_t.
        log_prob: (N,) ℓ, with gradient.
        log_prob_before: (N,) ℓ⁰.
        log_prob_out: (N,) ℓ̄.
        log_prob_typical: (N,) ℓ̃, the mean of the OUT references' log-probabilities, and the control level above it.
        margin: (N,) the control level above ℓ̄.
        log_probs: (N, V) log p_θ over the vocabulary, with gradient.
        spans: (N,) number of each token's span, from 0 to S − 1.
        span_count: S.
        before: p_0 at these positions, for objectives that need it.
        out: p̄ likewise.
        typical: p̃ likewise.
        hidden, hidden_before: (N, D) likewise.
        lens, lens_typical: (N, depths) log-probabilities from middle layers, of the model with gradient, and the mean
            of the OUT references'.
        substitute_log_prob, substitute_log_prob_before: (M,) likewise.
        substitute_spans: (M,) the span that each stands for.
    """

    tokens: torch.Tensor
    log_prob: torch.Tensor
    log_prob_before: torch.Tensor
    log_prob_out: torch.Tensor
    log_prob_typical: torch.Tensor
    margin: torch.Tensor
    log_probs: torch.Tensor
    spans: torch.Tensor
    span_count: int
    before: Kept | None = None
    out: Kept | None = None
    typical: Kept | None = None
    hidden: torch.Tensor | None = None
    hidden_before: torch.Tensor | None = None
    lens: torch.Tensor | None = None
    lens_typical: torch.Tensor | None = None
    substitute_log_prob: torch.Tensor | None = None
    substitute_log_prob_before: torch.Tensor | None = None
    substitute_spans: torch.Tensor | None = None


@dataclass(frozen=True)
class Parameters:
    """Hyper-parameters of the objectives.

    `beta` None is the objective's own default, `tilt` what is added to the logit of a token to forget where `match`
    and `consensus` end, `direction` rmu's u, (D,).
    """

    beta: float | None = None
    beta_2: float = 1.0
    delta: float = 0.0
    tilt: float = 0.0
    steering: float = 2.0
    direction: torch.Tensor | None = None


Loss = Callable[[Selected, Parameters], torch.Tensor]


@dataclass(frozen=True)
class Retention:
    """How an objective holds the rest, where the user does not say: by default as ours does.

    Attributes:
        anchor: `kl`, `nll`, `hidden` or `none`.
        weight: of the anchors' mean, the objective's mean counting 1.
        focus: weight of kept tokens that the audit found memorized.
    """

    anchor: str = "kl"
    weight: float = 10.0
    focus: float = 4.0


def _published(anchor: str, weight: float = 1.0) -> Retention:
    """As the authors do, or their code: no kept token counts more than another."""
    return Retention(anchor, weight, focus=1.0)


@dataclass(frozen=True)
class Objective:
    """An entry of `OBJECTIVES`.

    Attributes:
        loss: of a batch; (N,), (M,) or (S,) as `over` says.
        beta: default of `Parameters.beta`.
        over: what the losses are of: `selected` tokens, `substitutes`' tokens, or `spans`.
        needs: which optional parts of `Selected` it reads: `before`, `out`, `typical`, `lens`, `hidden`, `substitutes`.
        one_sided: pushes a token down without end, so tokens that have arrived must be taken out.
        retention: what it was published with to hold the rest.
    """

    loss: Loss
    beta: float = 1.0
    over: str = "selected"
    needs: frozenset[str] = frozenset()
    one_sided: bool = True
    retention: Retention = field(default_factory=Retention)


def needs_of(weights: Mapping[str, float]) -> frozenset[str]:
    """Which optional parts of `Selected` some objectives read."""
    return frozenset().union(*(OBJECTIVES[name].needs for name in weights))


def retain_of(retain: Retain, weights: Mapping[str, float]) -> Retain:
    """The settings with all that they leave open: as published with the objective of the largest weight.

    With anchors of another kind than that, what is left open is as with our own objectives.
    """
    own = OBJECTIVES[max(weights, key=lambda name: weights[name])].retention
    if retain.anchor not in ("auto", own.anchor):
        own = Retention(retain.anchor)
    open_ones = {"weight": own.weight, "focus": own.focus}
    settled = {name: value for name, value in open_ones.items() if getattr(retain, name) is None}
    return retain.model_copy(update={"anchor": own.anchor, **settled})


def arrived(selected: Selected, objective: Objective) -> torch.Tensor:
    """Which of an objective's losses are of tokens (or spans) at the control level or below it: ℓ − ℓ̄ ≤ margin.

    Returns:
        bool, shaped as the objective's losses; all False for objectives that end by themselves.
    """
    ratio = (selected.log_prob - selected.log_prob_out - selected.margin).detach()
    if objective.over == "spans":
        ratio = span_means(ratio, selected.spans, selected.span_count)
    elif objective.over == "substitutes":
        assert selected.substitute_log_prob is not None
        return torch.zeros_like(selected.substitute_log_prob, dtype=torch.bool)
    return (ratio <= 0) if objective.one_sided else torch.zeros_like(ratio, dtype=torch.bool)


def _undial(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.before is not None
    return undial(s.log_probs, s.before, s.tokens, beta=_beta(p, "undial"))


def _distill(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.out is not None
    return distill(s.log_probs, s.out)


def _consensus(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.typical is not None
    return consensus(s.log_probs, placed(s.typical, s.tokens, _aim(s, p)))


def _lens(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.lens is not None
    assert s.lens_typical is not None
    return lens(s.lens, s.lens_typical)


def _match(s: Selected, p: Parameters) -> torch.Tensor:
    return match(s.log_prob, _aim(s, p))


def _aim(s: Selected, p: Parameters) -> torch.Tensor:
    """(N,) the log-probability at which a token to forget is to end, nats."""
    return tilted_log_prob(s.log_prob_typical, by=p.tilt)


def _rmu(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.hidden is not None
    assert s.hidden_before is not None
    assert p.direction is not None
    return rmu(s.hidden, s.hidden_before, p.direction, steering=p.steering)


def _substitute(s: Selected, p: Parameters) -> torch.Tensor:
    assert s.substitute_log_prob is not None
    return substitute(s.substitute_log_prob)


def _npo(s: Selected, p: Parameters) -> torch.Tensor:
    ratio = span_sums(s.log_prob - s.log_prob_before, s.spans, s.span_count)
    return _of_present(npo(ratio, beta=_beta(p, "npo")), s)


def _simnpo(s: Selected, p: Parameters) -> torch.Tensor:
    means = span_means(s.log_prob, s.spans, s.span_count)
    return _of_present(simnpo(means, beta=_beta(p, "simnpo"), delta=p.delta), s)


def _dpo(name: str, of_spans: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]) -> Loss:
    """DPO whose ratios are sums, as published, or means over the tokens of spans and substitutes."""

    def loss(s: Selected, p: Parameters) -> torch.Tensor:
        assert s.substitute_log_prob is not None
        assert s.substitute_log_prob_before is not None
        assert s.substitute_spans is not None
        old = of_spans(s.log_prob - s.log_prob_before, s.spans, s.span_count)
        new = of_spans(s.substitute_log_prob - s.substitute_log_prob_before, s.substitute_spans, s.span_count)
        return _of_present(dpo(old, new, beta=_beta(p, name)), s)

    return loss


def _of_present(losses: torch.Tensor, s: Selected) -> torch.Tensor:
    """The spans' losses; 0 for one none of whose tokens is there: its substitute alone is no preference."""
    return losses.masked_fill(torch.bincount(s.spans, minlength=s.span_count) == 0, 0.0)


def _beta(parameters: Parameters, name: str) -> float:
    return OBJECTIVES[name].beta if parameters.beta is None else parameters.beta


OBJECTIVES: dict[str, Objective] = {
    "hinge": Objective(lambda s, p: hinge(s.log_prob, s.log_prob_out, margin=s.margin), one_sided=False),
    "distill": Objective(_distill, needs=frozenset({"out"}), one_sided=False),
    "match": Objective(_match, one_sided=False),
    "consensus": Objective(_consensus, needs=frozenset({"typical"}), one_sided=False),
    "lens": Objective(_lens, needs=frozenset({"lens"}), one_sided=False),
    "ascent": Objective(lambda s, p: ascent(s.log_prob), retention=_published("none", 0.0)),
    "grad_diff": Objective(lambda s, p: ascent(s.log_prob), retention=_published("nll")),
    "npo": Objective(_npo, beta=0.1, over="spans", retention=_published("nll")),
    "npo_token": Objective(lambda s, p: npo(s.log_prob - s.log_prob_before, beta=_beta(p, "npo_token"))),
    "simnpo": Objective(_simnpo, beta=2.5, over="spans", retention=_published("nll", 1 / 0.1375)),
    "simnpo_token": Objective(lambda s, p: simnpo(s.log_prob, beta=_beta(p, "simnpo_token"), delta=p.delta), beta=2.5),
    "wga": Objective(lambda s, p: wga(s.log_prob, beta=_beta(p, "wga")), retention=_published("nll")),
    "satimp": Objective(
        lambda s, p: satimp(s.log_prob, beta_1=_beta(p, "satimp"), beta_2=p.beta_2),
        beta=5.0,
        retention=_published("nll", 10.0),
    ),
    "undial": Objective(_undial, beta=10.0, needs=frozenset({"before"}), retention=_published("none", 0.0)),
    "dpo": Objective(
        _dpo("dpo", span_sums),
        beta=0.1,
        over="spans",
        needs=frozenset({"substitutes"}),
        retention=_published("nll"),
    ),
    "dpo_token": Objective(_dpo("dpo_token", span_means), over="spans", needs=frozenset({"substitutes"})),
    "idk": Objective(
        _substitute,
        over="substitutes",
        needs=frozenset({"substitutes"}),
        one_sided=False,
        retention=_published("nll"),
    ),
    "substitute": Objective(_substitute, over="substitutes", needs=frozenset({"substitutes"}), one_sided=False),
    "rmu": Objective(_rmu, needs=frozenset({"hidden"}), retention=_published("hidden", 1200.0)),
}
"""Weights of published objectives are those of their authors' code or, of `wga`, `satimp` and `undial`, of
OpenUnlearning's, the objective's own taken as 1. Those whose names end in `_token`, `substitute` and the first five are
ours."""
