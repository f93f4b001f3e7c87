"""Unlearning objectives are their formulas, and their gradients go where the formulas say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mitigate.errors import MitigateError
from mitigate.unlearning.objectives import formulas as objectives
from mitigate.unlearning.objectives.catalogue import (
    OBJECTIVES,
    Parameters,
    Retention,
    Selected,
    arrived,
    needs_of,
    retain_of,
)
from mitigate.unlearning.objectives.distributions import Kept, keep_likeliest
from mitigate.unlearning.objectives.names import DEFAULT, OBJECTIVE_NAMES, SUBSTITUTES, parse_objective
from mitigate.unlearning.settings import Retain

VOCABULARY, WIDTH = 5, 3
TOKENS = torch.tensor([0, 1, 4, 2])
PARAMETERS = Parameters(
    beta=0.7,
    beta_2=1.3,
    delta=0.4,
    tilt=0.3,
    steering=1.5,
    direction=torch.tensor([0.6, 0.0, 0.8]).double(),
)


def distributions(seed: int) -> torch.Tensor:
    """(4, V) log-probabilities."""
    logits = torch.randn(len(TOKENS), VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.log_softmax(2 * logits, -1)


def whole(log_probs: torch.Tensor) -> Kept:
    return keep_likeliest(log_probs, TOKENS, entries=VOCABULARY)


def at_tokens(log_probs: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(1, TOKENS.unsqueeze(1)).squeeze(1)


@pytest.fixture
def selected() -> Selected:
    """Four tokens in three spans, and three tokens of the first two spans' substitutes; all with gradient."""
    draw = torch.Generator().manual_seed(9)
    now, before, out, typical = distributions(0).requires_grad_(), *map(distributions, (1, 2, 5))
    return Selected(
        tokens=TOKENS,
        log_prob=at_tokens(now),
        log_prob_before=at_tokens(before),
        log_prob_out=at_tokens(out),
        log_prob_typical=at_tokens(typical),
        margin=torch.tensor([0.25, 0.1, -0.2, 0.4]).double(),
        log_probs=now,
        spans=torch.tensor([0, 0, 2, 1]),
        span_count=3,
        before=whole(before),
        out=whole(out),
        typical=whole(typical),
        hidden=torch.randn(4, WIDTH, generator=draw, dtype=torch.float64).requires_grad_(),
        hidden_before=torch.randn(4, WIDTH, generator=draw, dtype=torch.float64),
        lens=-3 * torch.rand(4, 2, generator=draw, dtype=torch.float64).requires_grad_(),
        lens_typical=-3 * torch.rand(4, 2, generator=draw, dtype=torch.float64),
        substitute_log_prob=torch.tensor([-3.0, -0.4, -2.0], dtype=torch.float64).requires_grad_(),
        substitute_log_prob_before=torch.tensor([-3.5, -1.4, -1.0], dtype=torch.float64),
        substitute_spans=torch.tensor([0, 1, 1]),
    )


def naive(name: str, s: Selected) -> list[float]:
    """The losses by plain loops over numbers."""
    beta, p = PARAMETERS.beta or math.nan, PARAMETERS
    now, before, out = (column.tolist() for column in (s.log_prob, s.log_prob_before, s.log_prob_out))
    rows = range(4)
    if name in ("ascent", "grad_diff"):
        return now
    if name == "hinge":
        return [max(0.0, now[n] - out[n] - s.margin.tolist()[n]) for n in rows]
    spans = ((0, 1), (3,), (2,))
    if name == "npo_token":
        return [2 / beta * math.log(1 + (math.exp(now[n]) / math.exp(before[n])) ** beta) for n in rows]
    if name == "npo":
        likelier = [math.prod(math.exp(now[n]) / math.exp(before[n]) for n in span) for span in spans]
        return [2 / beta * math.log(1 + ratio**beta) for ratio in likelier]
    if name == "simnpo_token":
        return [2 / beta * math.log(1 + math.exp(beta * now[n] + p.delta)) for n in rows]
    if name == "simnpo":
        means = [sum(now[n] for n in span) / len(span) for span in spans]
        return [2 / beta * math.log(1 + math.exp(beta * mean + p.delta)) for mean in means]
    if name == "wga":
        return [math.exp(now[n]) ** beta * now[n] for n in rows]
    if name == "satimp":
        return [math.exp(now[n]) ** beta * (1 - math.exp(now[n])) ** p.beta_2 * now[n] for n in rows]
    if name == "match":
        typical = s.log_prob_typical.tolist()
        odds = [math.exp(typical[n] + p.tilt) / (1 - math.exp(typical[n])) for n in rows]
        apart = [abs(now[n] - math.log(odds[n] / (1 + odds[n]))) for n in rows]
        return [gap - 0.5 if gap > 1 else gap**2 / 2 for gap in apart]
    if name == "lens":
        assert s.lens is not None
        assert s.lens_typical is not None
        losses = []
        for own, typical in zip(s.lens.tolist(), s.lens_typical.tolist(), strict=True):
            apart = [abs(one - other) for one, other in zip(own, typical, strict=True)]
            losses.append(sum(gap - 0.5 if gap > 1 else gap**2 / 2 for gap in apart) / 2)
        return losses
    if name in ("distill", "consensus"):
        q = distributions(2 if name == "distill" else 5).exp().tolist()
        if name == "consensus":  # with more of the token
            more = [
                [value * math.exp(p.tilt * (v == TOKENS.tolist()[n])) for v, value in enumerate(q[n])] for n in rows
            ]
            q = [[value / sum(of_row) for value in of_row] for of_row in more]
        return [sum(q[n][v] * (math.log(q[n][v]) - s.log_probs[n, v].item()) for v in range(VOCABULARY)) for n in rows]
    if name == "undial":
        losses = []
        for n, logits in enumerate(distributions(1).tolist()):  # log-probabilities are logits too
            raised = [math.exp(z - beta * (v == TOKENS.tolist()[n])) for v, z in enumerate(logits)]
            q = [value / sum(raised) for value in raised]
            losses.append(sum(q[v] * (math.log(q[v]) - s.log_probs[n, v].item()) for v in range(VOCABULARY)))
        return losses
    if name == "rmu":
        assert s.hidden is not None
        assert s.hidden_before is not None
        assert p.direction is not None
        losses = []
        for state, earlier in zip(s.hidden.tolist(), s.hidden_before.tolist(), strict=True):
            length = p.steering * math.sqrt(sum(value**2 for value in earlier))
            false = [length * part for part in p.direction.tolist()]
            losses.append(sum((one - other) ** 2 for one, other in zip(state, false, strict=True)) / WIDTH)
        return losses
    assert s.substitute_log_prob is not None
    assert s.substitute_log_prob_before is not None
    if name in ("idk", "substitute"):
        return [-value for value in s.substitute_log_prob.tolist()]
    assert name in ("dpo", "dpo_token")
    new = [a - b for a, b in zip(s.substitute_log_prob.tolist(), s.substitute_log_prob_before.tolist(), strict=True)]
    old = [now[n] - before[n] for n in rows]
    two = 2 if name == "dpo_token" else 1  # means, or sums as published
    advantages = [
        new[0] - (old[0] + old[1]) / two,
        (new[1] + new[2]) / two - old[3],
        0 - old[2],  # this span has no substitute
    ]
    return [2 / beta * math.log(1 + math.exp(-beta * advantage)) for advantage in advantages]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_equals_its_formula(selected: Selected, name: str) -> None:
    losses = OBJECTIVES[name].loss(selected, PARAMETERS)
    assert losses.tolist() == pytest.approx(naive(name, selected), rel=1e-9, abs=1e-12)
    assert losses.requires_grad


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_reads_only_what_it_says(selected: Selected, name: str) -> None:
    objective = OBJECTIVES[name]
    optional = {
        "before": ("before",),
        "out": ("out",),
        "typical": ("typical",),
        "hidden": ("hidden", "hidden_before"),
        "lens": ("lens", "lens_typical"),
        "substitutes": ("substitute_log_prob", "substitute_log_prob_before", "substitute_spans"),
    }
    assert objective.needs <= optional.keys()
    withheld = {field: None for need, fields in optional.items() if need not in objective.needs for field in fields}
    bare = replace(selected, **withheld)
    assert (
        objective.loss(bare, PARAMETERS).shape == {"selected": (4,), "substitutes": (3,), "spans": (3,)}[objective.over]
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_a_beta_an_objective_uses_its_own(selected: Selected, name: str) -> None:
    own = OBJECTIVES[name].loss(selected, replace(PARAMETERS, beta=None))
    given = OBJECTIVES[name].loss(selected, replace(PARAMETERS, beta=OBJECTIVES[name].beta))
    torch.testing.assert_close(own, given, rtol=0, atol=0)


# Gradients


@pytest.mark.parametrize(
    ("loss", "weight"),
    [
        (lambda x: objectives.wga(x, beta=0.7), lambda p: p**0.7),
        (lambda x: objectives.satimp(x, beta_1=0.7, beta_2=1.3), lambda p: p**0.7 * (1 - p) ** 1.3),
    ],
    ids=["wga", "satimp"],
)
def test_weights_by_probability_have_no_gradient_themselves(loss, weight) -> None:  # type: ignore[no-untyped-def]
    log_prob = torch.tensor([-0.1, -2.0, -9.0, 0.0], dtype=torch.float64, requires_grad=True)
    loss(log_prob).sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == pytest.approx([weight(math.exp(x)) for x in log_prob.tolist()], rel=1e-12)


def test_undial_pulls_as_the_cross_entropy_to_the_adjusted_logits_does() -> None:
    logits = (3 * distributions(3)).requires_grad_()
    before = distributions(4)
    loss = objectives.undial(torch.log_softmax(logits, -1), whole(before), TOKENS, beta=2.0)
    [got] = torch.autograd.grad(loss.sum(), logits)
    adjusted = before.clone()
    for row, token in enumerate(TOKENS.tolist()):
        adjusted[row, token] -= 2.0
    cross_entropy = torch.nn.functional.cross_entropy(logits, torch.softmax(adjusted, -1), reduction="sum")
    [expected] = torch.autograd.grad(cross_entropy, logits)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_token_at_the_control_gets_no_gradient_from_the_hinge() -> None:
    log_prob = torch.tensor([-2.0, -0.5, -0.7], requires_grad=True)
    objectives.hinge(log_prob, torch.tensor([-1.0, -1.0, -1.0]), margin=0.4).sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == [0.0, 1.0, 0.0]


def test_matching_pulls_from_both_sides_and_no_harder_from_afar() -> None:
    log_prob = torch.tensor([-9.0, -1.5, -1.0, -0.5, 4.0], dtype=torch.float64, requires_grad=True)
    objectives.match(log_prob, torch.full((5,), -1.0, dtype=torch.float64)).sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == pytest.approx([-1.0, -0.5, 0.0, 0.5, 1.0])


def test_npo_with_a_small_beta_pushes_as_gradient_ascent_does() -> None:
    log_prob = torch.tensor([-0.3, -4.0], dtype=torch.float64, requires_grad=True)
    [npo] = torch.autograd.grad(objectives.npo(log_prob - torch.tensor([-0.1, -3.0]), beta=1e-6).sum(), log_prob)
    [ascent] = torch.autograd.grad(objectives.ascent(log_prob).sum(), log_prob)
    torch.testing.assert_close(npo, ascent, atol=1e-5, rtol=0)


def test_dpo_without_substitutes_is_npo(selected: Selected) -> None:
    nothing = torch.zeros(0, dtype=torch.float64)
    alone = replace(
        selected,
        substitute_log_prob=nothing,
        substitute_log_prob_before=nothing,
        substitute_spans=torch.zeros(0, dtype=torch.long),
    )
    got = OBJECTIVES["dpo"].loss(alone, PARAMETERS)
    torch.testing.assert_close(got, OBJECTIVES["npo"].loss(selected, PARAMETERS))


@pytest.mark.parametrize("name", ["dpo", "dpo_token", "npo", "simnpo"])
def test_a_span_of_which_no_token_is_there_counts_nothing(selected: Selected, name: str) -> None:
    more = replace(selected, span_count=4, substitute_spans=torch.tensor([0, 1, 3]))
    losses = OBJECTIVES[name].loss(more, PARAMETERS)
    assert losses[3] == 0
    [gradient] = torch.autograd.grad(losses.sum(), more.substitute_log_prob, allow_unused=True)
    if "dpo" in name:
        assert [value != 0 for value in gradient.tolist()] == [True, True, False]


def test_token_forms_do_not_depend_on_how_long_spans_are_and_published_ones_do(selected: Selected) -> None:
    def twice(values: torch.Tensor | None) -> torch.Tensor:
        assert values is not None
        return values.repeat(2)

    names = ("log_prob", "log_prob_before", "spans")
    of_substitutes = ("substitute_log_prob", "substitute_log_prob_before", "substitute_spans")
    long = replace(selected, **{name: twice(getattr(selected, name)) for name in names + of_substitutes})
    for name, same in (("dpo_token", True), ("simnpo", True), ("dpo", False), ("npo", False)):
        losses, longer = (OBJECTIVES[name].loss(one, PARAMETERS) for one in (selected, long))
        assert torch.allclose(losses, longer) == same, name


def test_the_anchor_of_hidden_states_is_their_mean_squared_distance(selected: Selected) -> None:
    assert selected.hidden is not None
    assert selected.hidden_before is not None
    pairs = zip(selected.hidden.tolist(), selected.hidden_before.tolist(), strict=True)
    expected = [sum((a - b) ** 2 for a, b in zip(now, before, strict=True)) / WIDTH for now, before in pairs]
    assert objectives.hidden_anchor(selected.hidden, selected.hidden_before).tolist() == pytest.approx(expected)


# Arrival


def tokens_at(ratios: list[float], spans: list[int], *, margin: float = 0.0) -> Selected:
    """Tokens that lie so far above the OUT level, with a substitute's token."""
    ratio = torch.tensor(ratios)
    zero = torch.zeros_like(ratio)
    return Selected(
        tokens=zero.long(),
        log_prob=ratio - 5,
        log_prob_before=zero,
        log_prob_out=zero - 5,
        log_prob_typical=zero - 6,
        margin=zero + margin,
        log_probs=zero.unsqueeze(1),
        spans=torch.tensor(spans),
        span_count=max(spans) + 1,
        substitute_log_prob=torch.zeros(2),
    )


def test_a_token_has_arrived_at_the_margin_and_below_it() -> None:
    for margin, rests in ((0.5, [False, True, True, True]), (-1.0, [False, False, False, True])):
        at = tokens_at([1.0, 0.5, 0.25, -4.0], [0, 0, 1, 1], margin=margin)
        assert arrived(at, OBJECTIVES["npo_token"]).tolist() == rests


def test_a_span_has_arrived_when_the_mean_of_its_tokens_has() -> None:
    at = tokens_at([1.0, -0.5, 3.0, -1.0], [0, 0, 1, 1], margin=0.5)
    assert arrived(at, OBJECTIVES["dpo"]).tolist() == [True, False]


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if not objective.one_sided])
def test_what_ends_by_itself_never_counts_as_arrived(name: str) -> None:
    at = tokens_at([-9.0, -9.0, -9.0], [0, 1, 2])
    shape = 2 if OBJECTIVES[name].over == "substitutes" else 3
    assert arrived(at, OBJECTIVES[name]).tolist() == [False] * shape


def test_arrival_has_no_gradient(selected: Selected) -> None:
    for objective in OBJECTIVES.values():
        assert not arrived(selected, objective).requires_grad


# Names and weights


def test_objectives_are_written_by_name_with_weights() -> None:
    assert parse_objective("npo") == {"npo": 1.0}
    assert parse_objective("hinge=1, distill=0.5") == {"hinge": 1.0, "distill": 0.5}
    assert parse_objective({"hinge": 2}) == {"hinge": 2.0}


def test_the_names_that_recipes_may_use_are_those_of_the_catalogue() -> None:
    assert tuple(OBJECTIVES) == OBJECTIVE_NAMES
    assert {name for name in OBJECTIVES if "substitutes" in OBJECTIVES[name].needs} == set(SUBSTITUTES)


def test_the_default_is_a_mixture_of_listed_objectives() -> None:
    assert parse_objective("default") == dict(DEFAULT)
    assert parse_objective(dict(DEFAULT)) == dict(DEFAULT)
    assert parse_objective(",".join(f"{name}={weight}" for name, weight in DEFAULT.items())) == dict(DEFAULT)


@pytest.mark.parametrize("written", ["ascend", "", "hinge,npoo=1"])
def test_an_unknown_objective_is_refused_with_the_known_ones(written: str) -> None:
    with pytest.raises(MitigateError, match=r"is not one of default, .*hinge") as told:
        parse_objective(written)
    assert all(name in str(told.value) for name in OBJECTIVES)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much"])
def test_a_weight_that_is_not_a_positive_number_is_refused(weight: str) -> None:
    with pytest.raises(MitigateError, match=r"the weight of hinge is .*; give a positive number"):
        parse_objective(f"hinge={weight}")


def test_objectives_that_want_different_substitutes_are_refused_together() -> None:
    with pytest.raises(MitigateError, match=r"dpo, idk: they want different texts .*\(fake, placeholder\)"):
        parse_objective("dpo=1,idk=1")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, "names no objective"),
        ("hinge,hinge=2", "hinge stands there twice"),
        ("default=1,hinge=1", "default stands alone; with others, write its parts: match=1,consensus=0.5"),
    ],
)
def test_objectives_that_cannot_be_meant_are_refused(written: str | dict[str, float], message: str) -> None:
    with pytest.raises(MitigateError, match=message):
        parse_objective(written)
    assert parse_objective("dpo=1,substitute=0.5,npo=1")


def test_a_mixture_needs_what_its_parts_need_and_holds_as_its_heaviest_part() -> None:
    assert needs_of({"undial": 1.0, "dpo": 0.1}) == {"before", "substitutes"}
    assert needs_of({"npo": 1.0}) == frozenset()
    assert retain_of(Retain(), {"npo": 0.3, "rmu": 0.7}).anchor == "hidden"
    assert retain_of(Retain(), {"idk": 2.0, "ascent": 1.0}).anchor == "nll"


def test_the_table_gives_every_objective_what_it_was_published_with() -> None:
    held = {name: objective.retention for name, objective in OBJECTIVES.items()}
    ours = ("hinge", "distill", "match", "consensus", "lens", "npo_token", "simnpo_token", "dpo_token", "substitute")
    assert held == {
        **dict.fromkeys(ours, Retention("kl", 10.0, 4.0)),
        **dict.fromkeys(("grad_diff", "npo", "wga", "dpo", "idk"), Retention("nll", 1.0, 1.0)),
        **dict.fromkeys(("ascent", "undial"), Retention("none", 0.0, 1.0)),
        "simnpo": Retention("nll", 1 / 0.1375, 1.0),
        "satimp": Retention("nll", 10.0, 1.0),
        "rmu": Retention("hidden", 1200.0, 1.0),
    }
    assert (OBJECTIVES["npo"].beta, OBJECTIVES["dpo"].beta, OBJECTIVES["simnpo"].beta) == (0.1, 0.1, 2.5)


def test_what_the_user_says_of_anchors_holds_and_the_rest_is_as_published() -> None:
    def settled(objective: str, **given: object) -> tuple[object, ...]:
        retain = retain_of(Retain.model_validate(given), {objective: 1.0})
        return retain.anchor, retain.weight, retain.focus

    assert settled("match") == ("kl", 10.0, 4.0)
    assert settled("npo") == ("nll", 1.0, 1.0)
    assert settled("npo", weight=0.0) == ("nll", 0.0, 1.0)
    assert settled("npo", anchor="nll", focus=2.0) == ("nll", 1.0, 2.0)
    assert settled("npo", anchor="kl") == ("kl", 10.0, 4.0), "published weights are of published anchors"
    assert settled("undial", anchor="kl", weight=3.0) == ("kl", 3.0, 4.0)
