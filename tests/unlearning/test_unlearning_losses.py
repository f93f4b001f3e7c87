"""The loss of a step equals a dense computation with a second copy of the model; gradients come from where they may.

The dense computation knows nothing of tasks and batches: whole documents, one at a time, full logits, float64, plain
loops over tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgetting import QUICK, THOROUGH, changed, loop_of, shared

from mitigate.detection.audit import load_audited
from mitigate.detection.record import Audit
from mitigate.documents import Document
from mitigate.secrets.redaction import replaced
from mitigate.tokens.tokenization import TokenizedDocument, span_tokens, tokenize_documents
from mitigate.unlearning.material.control import token_levels
from mitigate.unlearning.material.forgetting import scope_tokens
from mitigate.unlearning.material.tasks import Task, facts, micro_batches, units
from mitigate.unlearning.objectives.catalogue import OBJECTIVES
from mitigate.unlearning.objectives.names import SUBSTITUTES
from mitigate.unlearning.training.loop import Loop
from mitigate.unlearning.training.losses import step_totals

EXACT = changed(QUICK, kept_entries=10**4, batch_size=99, retain_batch_size=99)
CPU = torch.device("cpu")


# The dense computation


@dataclass(frozen=True)
class Said:
    """What a model says about a document. Row t predicts token t + 1.

    (T, V) log-probabilities, (T, D) first states, and the log-probabilities that the head makes of middle layers.
    """

    log_probs: torch.Tensor
    hidden: torch.Tensor
    lens: list[torch.Tensor]

    @classmethod
    def by(cls, module: Any, tokens: TokenizedDocument) -> Said:
        with torch.no_grad():
            output = module(torch.from_numpy(tokens.ids)[None], output_hidden_states=True)
        layers = len(output.hidden_states) - 1
        head, norm = module.get_output_embeddings(), module.get_decoder().norm
        lens = []
        for share in (0.5, 0.75):
            state = output.hidden_states[round(share * layers)]  # the last one is past the norm already
            with torch.no_grad():
                logits = head(state if round(share * layers) == layers else norm(state))[0]
            lens.append(torch.log_softmax(logits.double(), -1))
        return cls(torch.log_softmax(output.logits[0].double(), -1), output.hidden_states[1][0].double(), lens)


@dataclass(frozen=True)
class Place:
    """A token: its row in the audit, itself, and what the models say where it is predicted."""

    row: int
    token: int
    log_p: torch.Tensor
    log_p_0: torch.Tensor
    log_out: torch.Tensor
    log_typical: torch.Tensor
    hidden: torch.Tensor
    hidden_0: torch.Tensor
    lens: list[float]  # how far above the references' mean, for each layer that is read

    @property
    def own(self) -> float:
        return self.log_p[self.token].item()

    @property
    def change(self) -> float:
        return (self.log_p - self.log_p_0)[self.token].item()

    @property
    def gap(self) -> float:
        return (self.log_p - self.log_out)[self.token].item()


@dataclass
class Dense:
    """Losses of an audit's documents, one by one; `kind` says what stands in the secrets' place."""

    audit: Audit
    loop: Loop
    kind: str | None
    forgotten: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    weights: list[float] = field(default_factory=list)
    chosen_places: list[Place] = field(default_factory=list)
    held: list[tuple[float, float]] = field(default_factory=list)  # weight, loss

    def __post_init__(self) -> None:
        [self.lower] = load_audited([self.audit.metadata.target], store=shared("reading"))
        references = load_audited(self.audit.metadata.references, store=shared("reading"))
        self.chosen = self.audit.columns["selected"].astype(bool)
        settings = self.loop.settings
        chosen = scope_tokens(self.audit, settings.scope)
        self.levels = token_levels(self.audit, chosen, margin=settings.margin)
        documents = zip(
            self.audit.document_list(), self.audit.tokenized(), self.audit.documents.to_pylist(), strict=True
        )
        for document, tokens, row in documents:
            if document.set == "holdout":
                continue
            judges = [references[number] for number in row["out_references"]]
            places = self.places(tokens, judges, first=self.audit.rows[document.id].start)
            if document.set == "retain":
                self.held += [self.anchor(place) for place in places.values()]
            else:
                self.forget(document, tokens, places)

    def places(self, tokens: TokenizedDocument, judges: Sequence[Any], *, first: int) -> dict[int, Place]:
        """The audited tokens of a document, by position."""
        now = Said.by(self.loop.trainable.module, tokens)
        with self.lower.active() as module:
            before = Said.by(module, tokens)
        out, typical = torch.zeros_like(now.log_probs), torch.zeros_like(now.log_probs)
        above = list(now.lens)
        for judge in judges:
            with judge.active() as module:
                said = Said.by(module, tokens)
            out += said.log_probs.exp() / len(judges)
            typical += said.log_probs / len(judges)
            above = [own - theirs / len(judges) for own, theirs in zip(above, said.lens, strict=True)]
        return {
            at: Place(
                first + at,
                int(tokens.ids[at]),
                now.log_probs[at - 1],
                before.log_probs[at - 1],
                out[at - 1].log(),
                typical[at - 1],
                now.hidden[at - 1],
                before.hidden[at - 1],
                [own[at - 1, tokens.ids[at]].item() for own in above],
            )
            for at in np.flatnonzero(tokens.audited).tolist()
        }

    def forget(self, document: Document, tokens: TokenizedDocument, places: dict[int, Place]) -> None:
        settings = self.loop.settings
        sequence = settings.scope == "sequence"
        whole = [range(len(tokens.ids))]
        spans = whole if sequence else [span_tokens(tokens.offsets, span.start, span.end) for span in document.spans]
        inside = [[places.pop(at) for at in span if at in places] for span in spans]
        self.held += [self.anchor(place) for place in places.values()]
        for place in (place for span in inside for place in span):
            self.chosen_places.append(place)
            weight = 1.0
            if settings.weighting == "entropy":
                entropy = self.audit.columns["entropy_out"]
                weight = entropy[place.row] / entropy[self.chosen].mean()
            self.weights.append(weight)
            for name in self.loop.losses.weights:
                rests = settings.stop_at_control and OBJECTIVES[name].one_sided and self.above(place) <= 0
                if OBJECTIVES[name].over == "selected":
                    self.forgotten[name].append(0.0 if rests else weight * self.objective(name, place))
        for span in inside:
            rests = settings.stop_at_control and np.mean([self.above(place) for place in span]) <= 0
            likelier, mean = sum(one.change for one in span), np.mean([one.own for one in span])
            self.forgotten["npo"].append(0.0 if rests else 20 * math.log(1 + math.exp(0.1 * likelier)))
            self.forgotten["simnpo"].append(0.0 if rests else 0.8 * math.log(1 + math.exp(2.5 * mean)))
        if self.kind is None:
            return
        text, pairs = replaced(document, document.spans, redact=self.kind, key=f"{self.audit.fingerprint}/0")
        [made] = tokenize_documents([text], self.lower.tokenizer)
        learned = self.places(made, (), first=0)
        spans = [range(len(made.ids))] if sequence else [span_tokens(made.offsets, n.start, n.end) for _, n in pairs]
        for old, new in zip(inside, ([learned[at] for at in span if at in learned] for span in spans), strict=True):
            self.forgotten["idk"] += [-place.log_p[place.token].item() for place in new]
            rests = settings.stop_at_control and np.mean([self.above(place) for place in old]) <= 0
            for name, of_tokens, beta in (("dpo", sum, 0.1), ("dpo_token", np.mean, 1.0)):
                apart = of_tokens([place.change for place in new]) - of_tokens([place.change for place in old])
                self.forgotten[name].append(0.0 if rests else 2 / beta * math.log(1 + math.exp(-beta * apart)))

    def above(self, place: Place) -> float:
        """How far a token is above where never-seen ones of its kind lie."""
        return place.gap - float(self.levels.margin[place.row])

    def objective(self, name: str, place: Place) -> float:
        p, own = self.loop.losses.parameters, place.own
        if name == "hinge":
            return max(0.0, self.above(place))
        if name == "distill":
            return (place.log_out.exp() * (place.log_out - place.log_p)).sum().item()
        if name == "match":
            assert self.levels.typical[place.row] != 0, "never-seen text lies there"
            apart = abs((place.log_p - place.log_typical)[place.token].item() - self.levels.typical[place.row])
            return apart - 0.5 if apart > 1 else apart**2 / 2
        if name == "consensus":
            share = math.exp(min(place.log_typical[place.token].item() + self.levels.typical[place.row], -1e-3))
            others = torch.softmax(place.log_typical, -1)
            others[place.token] = 0.0
            consensus = others / others.sum() * (1 - share)
            consensus[place.token] = share
            consensus = consensus.log()
            return (consensus.exp() * (consensus - place.log_p)).sum().item()
        if name == "lens":
            return sum(abs(gap) - 0.5 if abs(gap) > 1 else gap**2 / 2 for gap in place.lens) / len(place.lens)
        if name == "npo_token":
            return 2 * math.log(1 + math.exp(place.change))
        if name == "wga":
            return math.exp(own) * own
        if name == "undial":
            lowered = place.log_p_0.clone()
            lowered[place.token] -= 10.0
            lowered = torch.log_softmax(lowered, -1)
            return (lowered.exp() * (lowered - place.log_p)).sum().item()
        assert name == "rmu"
        assert p.direction is not None
        false = p.steering * place.hidden_0.norm() * p.direction.double()
        return (place.hidden - false).square().mean().item()

    def anchor(self, place: Place) -> tuple[float, float]:
        focus = self.loop.settings.retain.focus if self.audit.columns["memorized"][place.row] else 1.0
        return focus, self.drift(place)

    def drift(self, place: Place) -> float:
        if self.loop.losses.anchor == "kl":
            return (place.log_p_0.exp() * (place.log_p_0 - place.log_p)).sum().item()
        if self.loop.losses.anchor == "nll":
            return -place.log_p[place.token].item()
        return (place.hidden - place.hidden_0).square().mean().item()

    def means(self) -> tuple[float, float]:
        """The mean objective, and the mean anchor."""
        total = 0.0
        for name, weight in self.loop.losses.weights.items():
            count = sum(self.weights) if OBJECTIVES[name].over == "selected" else len(self.forgotten[name])
            total += weight * sum(self.forgotten[name]) / count
        return total, sum(weight * loss for weight, loss in self.held) / sum(weight for weight, _ in self.held)


def moved(loop: Loop) -> None:
    """Change what is trained, so that the model is no longer the one before."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in loop.parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))


def step_losses(loop: Loop, tasks: list[Task], *, batch_tokens: int = 10**6) -> tuple[float, float]:
    """The step's mean objective and anchor, over as many forwards as it takes."""
    totals = step_totals(tasks)
    sums = torch.zeros(2)
    for batch in micro_batches(tasks, batch_tokens=batch_tokens, device=CPU):
        with torch.no_grad():
            sums += torch.stack(loop.losses.of(batch, totals)[:2])
    return sums[0].item(), sums[1].item()


DENSE: dict[str, dict[str, Any]] = {
    "hinge and distill": {},
    "match and consensus": {"objective": "match=1,consensus=0.5"},
    "hinge and distill, all weights": {"method": "full"},
    "match and lens": {"objective": "match=1,lens=0.5"},
    "lens, all weights": {"objective": "lens", "method": "full"},
    "npo": {"objective": "npo"},
    "npo, sequence": {"objective": "npo", "scope": "sequence"},
    "npo_token, sequence": {"objective": "npo_token", "scope": "sequence", "stop_at_control": True},
    "simnpo": {"objective": "simnpo"},
    "wga, entropy": {"objective": "wga", "weighting": "entropy", "stop_at_control": True},
    "undial, hidden": {"objective": "undial", "retain": {"anchor": "hidden"}, "layer": 0},
    "dpo": {"objective": "dpo"},
    "dpo and npo at the control": {"objective": "dpo=1,npo_token=0.5", "stop_at_control": True},
    "dpo_token": {"objective": "dpo_token"},
    "dpo, sequence": {"objective": "dpo", "scope": "sequence"},
    "idk": {"objective": "idk"},
    "rmu, all weights": {"objective": "rmu", "method": "full"},
}


@pytest.mark.parametrize("name", DENSE)
def test_the_loss_equals_the_dense_computation(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    audited = request.getfixturevalue("whole" if "all weights" in name or "npo" in name else "layered")
    loop = loop_of(audited, changed(EXACT, **DENSE[name]), tmp_path / "out")
    tasks = loop.tasks(0)
    loop.losses.before.fill(tasks)
    moved(loop)
    kinds = [SUBSTITUTES[one] for one in loop.losses.weights if one in SUBSTITUTES]
    dense = Dense(audited, loop, next(iter(kinds), None))
    assert step_losses(loop, tasks) == pytest.approx(dense.means(), rel=2e-4)
    if loop.settings.stop_at_control:
        losses = [value for one in loop.losses.weights for value in dense.forgotten[one]]
        assert 0 < losses.count(0.0) < len(losses), "some have arrived and some have not"


# In parts


@pytest.mark.parametrize(
    ("objective", "scope"),
    [("hinge=1,distill=0.5", "token"), ("dpo", "token"), ("dpo", "sequence"), ("idk", "sequence")],
)
def test_small_forwards_add_up_to_the_loss_of_one(long: Audit, tmp_path: Path, objective: str, scope: str) -> None:
    loop = loop_of(long, changed(QUICK, objective=objective, scope=scope, batch_size=99), tmp_path / "out")
    tasks = loop.tasks(0)
    loop.losses.before.fill(tasks)
    moved(loop)
    together = step_losses(loop, tasks)
    assert len(micro_batches(tasks, batch_tokens=1, device=CPU)) == len(units(tasks)) > 2
    assert step_losses(loop, tasks, batch_tokens=1) == pytest.approx(together, rel=1e-5)


def test_totals_count_each_token_span_and_substitute_of_a_step_once(long: Audit, tmp_path: Path) -> None:
    settings = changed(QUICK, objective="dpo", weighting="entropy", batch_size=99, retain_batch_size=1)
    tasks = loop_of(long, settings, tmp_path / "out").tasks(0)
    selected, held, learned, spans, tokens = 0.0, 0.0, set(), set(), 0
    for task in tasks:
        for n in range(len(task.scored)):
            selected += float(task.weight[n]) * bool(task.selected[n])
            held += float(task.weight[n]) * (not task.selected[n])
            tokens += bool(task.selected[n])
        spans |= {int(number) for number, chosen in zip(task.span, task.selected, strict=True) if chosen}
        learned |= {(partner.start, partner.doc_id, at) for partner in task.partners for at in partner.scored.tolist()}
    assert step_totals(tasks) == {
        "selected": pytest.approx(selected),
        "held": pytest.approx(held),
        "tokens": tokens,
        "spans": len(spans),
        "substitutes": len(learned),
    }
    assert len(spans) == 6
    nothing = {"selected": 1, "tokens": 1, "spans": 1, "substitutes": 1}
    assert step_totals(tasks[-1:]) == {**nothing, "held": tasks[-1].weight.sum()}


# Where gradients come from


def gradients(loop: Loop, tasks: list[Task]) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """(N, V) gradients of the objective and of the anchor by the logits, which some noise has moved; and the facts."""
    leaves: list[torch.Tensor] = []

    def perturbed(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        noise = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(1))
        leaves.append((output.logits + noise).detach().requires_grad_())
        output.logits = leaves[-1]
        return output

    loop.losses.before.fill(tasks)
    [batch] = micro_batches(tasks, batch_tokens=10**6, device=CPU)
    hook = loop.trainable.module.register_forward_hook(perturbed)
    losses = loop.losses.of(batch, step_totals(tasks))[:2]
    hook.remove()
    by_logits = [torch.autograd.grad(loss, leaves[0], retain_graph=True)[0] for loss in losses]
    if leaves[0].dim() == 3:  # (B, P, V): older transformers give the positions that any row keeps, for every row
        rows = batch.keep[:, batch.keep.any(dim=0)]
        assert all((gradient[~rows] == 0).all() for gradient in by_logits)
        by_logits = [gradient[rows] for gradient in by_logits]
    by_objective, by_anchor = by_logits
    return by_objective, by_anchor, facts(batch)


LOGIT_OBJECTIVES = [name for name in OBJECTIVES if name not in ("rmu", "lens")]


@pytest.mark.parametrize("objective", [*LOGIT_OBJECTIVES, "hinge=1,distill=0.5"])
def test_gradients_come_from_the_tokens_that_they_are_about(whole: Audit, tmp_path: Path, objective: str) -> None:
    settings = changed(EXACT, objective=objective, retain={"anchor": "kl"})
    loop = loop_of(whole, settings, tmp_path / "out")
    by_objective, by_anchor, known = gradients(loop, loop.tasks(0))
    held = ~known.selected & ~known.substitute
    about = known.substitute if OBJECTIVES.get(objective, OBJECTIVES["hinge"]).over == "substitutes" else known.selected
    about = known.selected | known.substitute if "dpo" in objective else about
    assert known.selected.sum() == 5 * 6, "six digits of five forget documents"
    assert (by_objective[~about] == 0).all()
    assert (by_objective[about] != 0).any(dim=1).sum() >= (1 if "hinge" in objective else about.sum())
    assert (by_anchor[~held] == 0).all()
    assert (by_anchor[held] != 0).any(dim=1).all(), "every other token is held"


def test_rmu_moves_hidden_states_of_selected_tokens_and_holds_those_of_others(whole: Audit, tmp_path: Path) -> None:
    loop = loop_of(whole, changed(EXACT, objective="rmu", layer=1), tmp_path / "out")
    states: list[torch.Tensor] = []

    def watched(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        states.append(output[0] if isinstance(output, tuple) else output)
        states[-1] += torch.randn(states[-1].shape, generator=torch.Generator().manual_seed(1))
        states[-1].retain_grad()

    tasks = loop.tasks(0)
    loop.losses.before.fill(tasks)
    assert loop.losses.layer is not None
    [batch] = micro_batches(tasks, batch_tokens=10**6, device=CPU)
    hook = loop.losses.layer.register_forward_hook(watched)
    forgetting, anchors, _ = loop.losses.of(batch, step_totals(tasks))
    hook.remove()
    chosen = torch.zeros_like(batch.keep)
    chosen[batch.keep] = facts(batch).selected
    for loss, mine in ((forgetting, chosen), (anchors, batch.keep & ~chosen)):
        [gradient] = torch.autograd.grad(loss, states[0], retain_graph=True)
        assert torch.equal((gradient != 0).any(dim=2), mine)


def test_the_lens_moves_middle_layers_of_selected_tokens_alone(whole: Audit, tmp_path: Path) -> None:
    loop = loop_of(whole, changed(EXACT, objective="lens"), tmp_path / "out")
    tasks = loop.tasks(0)
    loop.losses.before.fill(tasks)
    assert loop.losses.lens is not None
    states: list[torch.Tensor] = []

    def watched(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)
        states[-1].retain_grad()

    hooks = [layer.register_forward_hook(watched) for layer in loop.losses.lens.layers]
    [batch] = micro_batches(tasks, batch_tokens=10**6, device=CPU)
    forgetting, _, _ = loop.losses.of(batch, step_totals(tasks))
    for hook in hooks:
        hook.remove()
    mine = torch.zeros_like(batch.keep)
    mine[batch.keep] = facts(batch).selected
    [gradient] = torch.autograd.grad(forgetting, states[-1], retain_graph=True)
    assert torch.equal((gradient != 0).any(dim=2), mine)


@pytest.mark.parametrize("objective", ["npo", "simnpo", "npo_token", "grad_diff", "undial", "dpo"])
def test_what_has_arrived_gets_no_gradient(whole: Audit, tmp_path: Path, objective: str) -> None:
    ratio = (whole.columns["log_prob"] - whole.columns["log_prob_out"])[whole.columns["selected"].astype(bool)]
    median = float(np.median(ratio.reshape(5, 6).mean(axis=1)))  # of the spans' means
    settings = changed(EXACT, objective=objective, stop_at_control=True, margin=median)
    loop = loop_of(whole, settings, tmp_path / "out")
    tasks = loop.tasks(0)
    resting = loop.losses.rest_on_arrival
    by_objective, _, known = gradients(loop, tasks)
    loop.losses.rest_on_arrival = False
    by_all, _, _ = gradients(loop, tasks)
    assert resting
    mine = known.selected
    moves, could = ((gradient[mine] != 0).any(dim=1) for gradient in (by_objective, by_all))
    assert could.all()
    assert 0 < moves.sum() < mine.sum(), "some have arrived and some have not"
    torch.testing.assert_close(by_objective[mine][moves], by_all[mine][moves], rtol=0, atol=0)


@pytest.mark.parametrize("target", ["whole", "layered"])
@pytest.mark.parametrize("anchor", ["kl", "hidden"])
def test_before_the_first_step_the_anchor_is_zero(
    request: pytest.FixtureRequest, tmp_path: Path, target: str, anchor: str
) -> None:
    settings = changed(QUICK, retain={"anchor": anchor})
    loop = loop_of(request.getfixturevalue(target), settings, tmp_path / "out")
    tasks = loop.tasks(0)
    loop.losses.before.fill(tasks)
    assert abs(step_losses(loop, tasks)[1]) < 1e-6, "p_0 is the leaky model, its own adapter included"


def test_with_the_lens_middle_layers_end_nearer_to_what_references_layers_say(whole: Audit, tmp_path: Path) -> None:
    apart = {}
    for objective in ("match", "match=1,lens=1"):
        settings = changed(THOROUGH, objective=objective)
        loop = loop_of(whole, settings, tmp_path / objective)
        loop.train(resume=False)
        dense = Dense(whole, loop, None)
        apart[objective] = np.abs([place.lens[0] for place in dense.chosen_places]).mean()
    assert apart["match=1,lens=1"] < 0.3 * apart["match"]
