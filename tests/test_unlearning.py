"""Unlearning: objectives are their formulas, only selected tokens are unlearned, the base never changes."""

from __future__ import annotations

import json
import math
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from world import LORA, World, sentences

from mitigate.batches import Piece, make_batches
from mitigate.detection.audit import Audit, Detect, audit, load_audited, reaudit
from mitigate.detection.signals import token_log_probs
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.models import OVERLAY_FILE, ModelStore
from mitigate.tokenization import tokenize_documents
from mitigate.unlearning import objectives
from mitigate.unlearning.adapter import add_adapter
from mitigate.unlearning.data import UnlearningData, control_level
from mitigate.unlearning.objectives import Selected, objective_loss, parse_objective
from mitigate.unlearning.trainer import (
    ADAPTER,
    Unlearn,
    Unlearned,
    _Run,
    _take,
    unlearn,
)

QUICK = Unlearn(
    max_steps=6, check_every=3, checkpoint_every=2, batch_size=3, retain_batch_size=3, lora=LORA, stop_at_control=False
)
THOROUGH = QUICK.model_copy(update={"max_steps": 60, "learning_rate": 5e-3, "batch_size": 5, "retain_batch_size": 5})


def cpu() -> ModelStore:
    return ModelStore(device="cpu")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter_model.safetensors")


def mean_log_ratio(audited: Audit) -> float:
    """Of the selected tokens, each clipped to 3 nats."""
    ratio = (audited.columns["log_prob"] - audited.columns["log_prob_out"])[audited.columns["selected"].astype(bool)]
    return float(np.clip(ratio, -3, 3).mean())


@pytest.fixture(scope="module")
def whole(world: World) -> Audit:
    """Audit of the target that is a whole model."""
    return world.audit(world.target)


@pytest.fixture(scope="module")
def layered(world: World) -> Audit:
    """Audit of the target that is an adapter."""
    return world.audit(world.adapter)


@pytest.fixture(params=["whole", "layered"])
def audited(request: pytest.FixtureRequest) -> Audit:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def thorough(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Audit, Unlearned, Audit]]:
    """For both targets: the audit, what unlearning made, and the re-audit."""
    made = {}
    for name, target in (("whole", world.target), ("layered", world.adapter)):
        before = world.audit(target)
        result = unlearn(before, out=tmp_path_factory.mktemp(name) / "adapter", settings=THOROUGH, store=cpu())
        made[name] = before, result, reaudit(before, result.directory, store=cpu())
    return made


# Objectives


@pytest.fixture
def selected() -> Selected:
    """Four tokens of a vocabulary of 5: below and above the control, before and after."""
    generator = torch.Generator().manual_seed(0)
    logits, out_logits = (2 * torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    log_probs, out = torch.log_softmax(logits, -1).requires_grad_(), torch.log_softmax(out_logits, -1)
    token = torch.tensor([[0], [1], [4], [2]])
    return Selected(
        log_prob=log_probs.gather(1, token).squeeze(1),
        log_prob_before=torch.tensor([-0.1, -0.2, -3.0, -1.0], dtype=torch.float64),
        log_prob_out=out.gather(1, token).squeeze(1),
        log_probs=log_probs,
        out_log_probs=out,
    )


def test_objectives_equal_their_formulas(selected: Selected) -> None:
    beta, margin = 0.7, 0.25
    assert selected.out_log_probs is not None
    for name in objectives.OBJECTIVES:
        got = objective_loss(selected, {name: 1.0}, beta=beta, margin=margin)
        for row in range(4):
            now, before, out = (
                float(column[row]) for column in (selected.log_prob, selected.log_prob_before, selected.log_prob_out)
            )
            p, p_out = selected.log_probs[row].exp().tolist(), selected.out_log_probs[row].exp().tolist()
            expected = {
                "npo": 2 / beta * math.log(1 + (math.exp(now) / math.exp(before)) ** beta),
                "hinge": max(0.0, now - out - margin),
                "distill": sum(q * math.log(q / r) for q, r in zip(p_out, p, strict=True)),
                "grad_diff": now,
            }
            assert got[row].item() == pytest.approx(expected[name], rel=1e-9), name
    assert (objective_loss(selected, {"hinge": 1.0}, margin=margin) == 0).any(), "a token below the control is there"


def test_the_anchor_is_the_divergence_from_the_model_before(selected: Selected) -> None:
    assert selected.out_log_probs is not None
    got = objectives.anchor(selected.log_probs, selected.out_log_probs)
    before = selected.out_log_probs.exp()
    torch.testing.assert_close(got, (before * (selected.out_log_probs - selected.log_probs)).sum(-1))
    assert objectives.anchor(selected.log_probs, selected.log_probs).abs().max() < 1e-12


def test_several_objectives_add_up_by_their_weights(selected: Selected) -> None:
    total = objective_loss(selected, {"hinge": 1.5, "distill": 0.5})
    alone = {name: objective_loss(selected, {name: 1.0}) for name in ("hinge", "distill")}
    torch.testing.assert_close(total, 1.5 * alone["hinge"] + 0.5 * alone["distill"])


def test_a_token_at_the_control_gets_no_gradient_from_the_hinge() -> None:
    log_prob = torch.tensor([-2.0, -0.5], requires_grad=True)
    objectives.hinge(log_prob, torch.tensor([-1.0, -1.0])).sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == [0.0, 1.0]


def test_npo_with_a_small_beta_pushes_as_gradient_ascent_does() -> None:
    log_prob = torch.tensor([-0.3, -4.0], dtype=torch.float64, requires_grad=True)
    objectives.npo(log_prob, torch.tensor([-0.1, -3.0]), beta=1e-6).sum().backward()
    torch.testing.assert_close(log_prob.grad, torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_objectives_are_written_by_name_with_weights() -> None:
    assert parse_objective("npo") == {"npo": 1.0}
    assert parse_objective("hinge=1, distill=0.5") == {"hinge": 1.0, "distill": 0.5}
    assert parse_objective({"hinge": 2}) == {"hinge": 2.0}


@pytest.mark.parametrize("written", ["ascend", "", "hinge,npoo=1"])
def test_an_unknown_objective_is_refused_with_the_known_ones(written: str) -> None:
    with pytest.raises(MitigateError, match="is not one of npo, hinge, distill, grad_diff"):
        parse_objective(written)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much"])
def test_a_weight_that_is_not_a_positive_number_is_refused(weight: str) -> None:
    with pytest.raises(MitigateError, match=r"the weight of hinge is .*; give a positive number"):
        parse_objective(f"hinge={weight}")


# One step


def make_run(audited: Audit, settings: Unlearn, partial: Path) -> _Run:
    store, chosen = cpu(), parse_objective(settings.objective)
    [model] = load_audited([audited.metadata["target"]], store=store)
    data = UnlearningData(audited, model, None, store=store, with_distribution="distill" in chosen)
    add_adapter(model, settings.lora, seed=0)
    return _Run(Accelerator(cpu=True), model, settings, chosen, data, seed=0, plan="", partial=partial)


@pytest.mark.parametrize("objective", [*objectives.OBJECTIVES, "hinge=1,distill=0.5"])
def test_the_loss_has_no_gradient_from_tokens_that_are_not_selected(
    whole: Audit, tmp_path: Path, objective: str
) -> None:
    run = make_run(whole, QUICK.model_copy(update={"objective": objective}), tmp_path / "out")
    pieces: list[tuple[Piece, bool]] = [(p, True) for p in run.data.forget] + [(p, False) for p in run.data.hold[:2]]
    kinds = {id(piece): is_forget for piece, is_forget in pieces}
    [batch] = make_batches([piece for piece, _ in pieces], batch_tokens=10_000)
    labels = [kinds[id(piece)] for piece in batch.pieces]
    leaves: list[torch.Tensor] = []

    def perturbed(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        if torch.is_grad_enabled():  # not the pass of the model before
            noise = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(1))
            leaves.append((output.logits + noise).detach().requires_grad_())
            output.logits = leaves[-1]
        return output

    run.model.base.model.register_forward_hook(perturbed)
    objective_sum, anchor_sum = run._sums(batch, labels)
    chosen = run.data.facts(batch, labels).selected
    assert chosen.sum() == 5 * 6, "six digits of five forget documents"
    [by_objective] = torch.autograd.grad(objective_sum, leaves[0], retain_graph=True)
    assert (by_objective[~chosen] == 0).all()
    assert (by_objective[chosen] != 0).any()
    [by_anchor] = torch.autograd.grad(anchor_sum, leaves[0])
    assert (by_anchor[chosen] == 0).all()
    assert (by_anchor[~chosen] != 0).any(dim=1).all(), "every other token is held"


def test_before_the_first_step_the_anchor_is_zero(audited: Audit, tmp_path: Path) -> None:
    run = make_run(audited, QUICK, tmp_path / "out")
    [batch] = make_batches(run.data.forget, batch_tokens=10_000)
    with torch.no_grad():
        _, anchor_sum = run._sums(batch, [True] * len(batch.pieces))
    assert abs(float(anchor_sum)) < 1e-3, "p_0 is the leaky model, its own adapter included"


def test_the_watch_starts_at_the_audits_mean_log_ratio(audited: Audit, tmp_path: Path) -> None:
    ratio = mean_log_ratio(audited)
    for batch_tokens in (None, 1):
        run = make_run(audited, QUICK.model_copy(update={"batch_tokens": batch_tokens}), tmp_path / "out")
        assert run._watch(step=0)["selected_log_ratio"] == pytest.approx(ratio, abs=2e-4)


def test_every_piece_is_taken_once_in_a_pass() -> None:
    pieces = [Piece(number, np.arange(3), np.array([1, 2]), 0) for number in range(7)]
    taken = [piece.document for step in range(7) for piece in _take(pieces, 3, step, seed=0)]
    assert len(taken) == 21
    for start in range(0, 21, 7):
        assert sorted(taken[start : start + 7]) == list(range(7))
    assert [p.document for p in _take(pieces, 3, 5, seed=0)] == taken[15:18], "a function of the step alone"
    assert len(_take(pieces, 99, 0, seed=0)) == 7
    assert _take([], 3, 0, seed=0) == []


# Whole runs


@pytest.mark.parametrize("kind", ["whole", "layered"])
def test_the_planted_secrets_fall_to_the_control_and_the_rest_stays(
    thorough: dict[str, tuple[Audit, Unlearned, Audit]], kind: str
) -> None:
    before, _, after = thorough[kind]
    selected, sets = before.columns["selected"].astype(bool), before.sets()

    def ratio(table: Audit, rows: np.ndarray) -> float:
        return float((table.columns["log_prob"] - table.columns["log_prob_out"])[rows].mean())

    assert ratio(before, selected) > 1.5
    assert -1.5 < ratio(after, selected) < 0.5, "the level of models that never saw them, no hole below it"
    others = ~selected & before.columns["audited"].astype(bool)
    holdout = np.concatenate([np.full(r.stop - r.start, sets[d] == "holdout") for d, r in before.rows.items()])
    change = np.abs(after.columns["log_prob"] - before.columns["log_prob"])
    assert change[selected].mean() > 1.5
    assert change[others & ~holdout].mean() < 0.25


@pytest.mark.parametrize("kind", ["whole", "layered"])
def test_the_saved_adapter_gives_what_training_last_saw(
    thorough: dict[str, tuple[Audit, Unlearned, Audit]], kind: str
) -> None:
    _, result, after = thorough[kind]
    assert result.summary["history"][-1]["step"] == 60
    assert mean_log_ratio(after) == pytest.approx(result.summary["history"][-1]["selected_log_ratio"], abs=2e-4)


def test_an_adapter_over_an_adapter_loads_with_both_and_equals_the_trained_model(
    world: World, layered: Audit, tmp_path: Path
) -> None:
    store = cpu()
    result = unlearn(layered, out=tmp_path / "out", settings=QUICK, store=store)
    target = store.load(world.adapter)  # still holds the adapter that was trained
    tokenized = tokenize_documents(world.documents, target.tokenizer)
    trained = token_log_probs(replace(target, adapters=(*target.adapters, ADAPTER)), tokenized)
    loaded = cpu().load(result.directory)
    assert len(loaded.adapters) == 2
    assert json.loads((result.directory / OVERLAY_FILE).read_text()) == {"over": [str(world.adapter)]}
    np.testing.assert_allclose(token_log_probs(loaded, tokenized), trained, rtol=0, atol=1e-6)
    audited = ~np.isnan(trained)
    lower = token_log_probs(cpu().load(world.adapter), tokenized)
    assert np.abs(trained - lower)[audited].max() > 1e-3
    np.testing.assert_allclose(token_log_probs(target, tokenized), lower, rtol=0, atol=1e-6)


def test_the_adapter_of_a_whole_model_loads_with_peft_alone(
    world: World, thorough: dict[str, tuple[Audit, Unlearned, Audit]]
) -> None:
    _, result, after = thorough["whole"]
    assert not (result.directory / OVERLAY_FILE).exists()
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.target), result.directory).eval()
    first = after.tokenized()[0]
    with torch.no_grad():
        logits = plain(torch.from_numpy(first.ids)[None]).logits[0].double()
    expected = torch.log_softmax(logits, -1)[torch.arange(len(first.ids) - 1), torch.from_numpy(first.ids[1:])]
    got = after.columns["log_prob"][after.rows[first.id]][1:]
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-5)


def test_base_weights_are_bit_identical_afterwards(world: World, audited: Audit, tmp_path: Path) -> None:
    store = cpu()
    source = audited.metadata["target"]["source"]
    module = store.load(source).base.model
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    files = {path: path.read_bytes() for path in Path(source).iterdir()}
    unlearn(audited, out=tmp_path / "out", settings=QUICK, store=store)
    after = dict(module.named_parameters())
    assert len(before) > 10
    for name, parameter in before.items():
        [now] = [p for n, p in after.items() if n.replace(".base_layer", "") == name.replace(".base_layer", "")]
        assert torch.equal(now, parameter), name
    assert files == {path: path.read_bytes() for path in Path(source).iterdir()}


@pytest.mark.parametrize(("stop", "checkpoint"), [(3, 2), (4, 4)])
def test_an_interrupted_run_goes_on_to_equal_bytes(
    audited: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, checkpoint: int
) -> None:
    straight = unlearn(audited, out=tmp_path / "straight", settings=QUICK, store=cpu())
    step = _Run._step
    steps: list[int] = []

    def interrupted(run: _Run, number: int) -> float:
        steps.append(number)
        if number == stop:
            raise KeyboardInterrupt
        return step(run, number)

    monkeypatch.setattr(_Run, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unlearn(audited, out=tmp_path / "out", settings=QUICK, store=cpu())
    assert not (tmp_path / "out").exists(), "nothing half-written"
    partial = tmp_path / "out.partial"
    assert stat.S_IMODE((partial / "checkpoint.pt").stat().st_mode) == 0o600
    stop = -1
    del steps[:]
    resumed = unlearn(audited, out=tmp_path / "out", settings=QUICK, store=cpu())
    assert steps == list(range(checkpoint, 6)), "from the last checkpoint on"
    names = sorted(path.name for path in straight.directory.iterdir())
    assert sorted(path.name for path in resumed.directory.iterdir()) == names
    for name in names:
        assert (resumed.directory / name).read_bytes() == (straight.directory / name).read_bytes(), name
    assert not partial.exists()


def test_a_checkpoint_of_other_settings_is_refused(whole: Audit, tmp_path: Path) -> None:
    run = make_run(whole, QUICK, tmp_path / "out")
    run._save(2, [{"step": 0, "selected_log_ratio": 1.0}])
    with pytest.raises(MitigateError, match=r"out\.partial: an interrupted run of another audit or other settings"):
        unlearn(whole, out=tmp_path / "out", settings=QUICK, store=cpu())
    assert unlearn(whole, out=tmp_path / "out", settings=QUICK, store=cpu(), resume=False).summary["steps"] == 6


def test_equal_runs_give_equal_bytes_and_other_seeds_do_not(whole: Audit, tmp_path: Path) -> None:
    first, again, other = (
        unlearn(whole, out=tmp_path / name, settings=QUICK, store=cpu(), seed=seed).directory
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    read = [(directory / "adapter_model.safetensors").read_bytes() for directory in (first, again, other)]
    assert read[0] == read[1]
    assert read[0] != read[2]


@pytest.mark.parametrize("objective", ["hinge=1,distill=0.5", "npo"])
def test_small_forwards_accumulate_to_the_same_adapter_as_one(audited: Audit, tmp_path: Path, objective: str) -> None:
    adapters, losses = [], []
    for batch_tokens in (None, 40):
        update = {"objective": objective, "batch_tokens": batch_tokens, "learning_rate": 0.3}
        run = make_run(audited, QUICK.model_copy(update=update), tmp_path / "out")
        # Adam divides by the gradient's size and so blows rounding up where that is nothing
        run.optimizer = run.accelerator.prepare(torch.optim.SGD(run.parameters))
        losses.append([run._step(step) for step in range(4)])
        adapters.append([parameter.detach().clone() for parameter in run.parameters])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert any(parameter.abs().max() > 1e-3 for parameter in adapters[0][1::2]), "lora_B left zero"
    for one, many in zip(*adapters, strict=True):
        torch.testing.assert_close(many, one, rtol=0, atol=1e-5)


def test_training_stops_at_the_control_level(layered: Audit, tmp_path: Path) -> None:
    settings = THOROUGH.model_copy(update={"stop_at_control": True, "max_steps": 400, "check_every": 5})
    summary = unlearn(layered, out=tmp_path / "out", settings=settings, store=cpu()).summary
    assert summary["steps"] < 100
    assert summary["stopped"] == f"control level reached at step {summary['steps']}"
    assert summary["history"][-1]["selected_log_ratio"] <= summary["control"] == control_level(layered)
    assert all(entry["selected_log_ratio"] > summary["control"] for entry in summary["history"][:-1])


def test_without_holdout_the_control_is_the_references_own_level(world: World) -> None:
    members = world.documents.subset(["forget", "retain"])
    assert control_level(replace(world, documents=members).audit()) == 0.0


def test_the_summary_says_what_was_done_and_holds_no_text(
    world: World, thorough: dict[str, tuple[Audit, Unlearned, Audit]]
) -> None:
    before, result, _ = thorough["whole"]
    assert Unlearned.load(result.directory) == result
    summary = result.summary
    assert summary["objective"] == {"hinge": 1.0, "distill": 0.5}
    assert (summary["steps"], summary["stopped"]) == (60, "step limit")
    assert summary["adapter_parameters"] == sum(tensor.numel() for tensor in weights(result.directory).values())
    module = AutoModelForCausalLM.from_pretrained(world.target)
    assert summary["model_parameters"] == module.num_parameters()
    assert summary["audit"] == before.fingerprint
    written = (result.directory / "unlearn.json").read_text()
    assert all(d.text[s.start : s.end] not in written for d in world.documents for s in d.spans)
    assert {stat.S_IMODE(path.stat().st_mode) for path in result.directory.iterdir()} == {0o600}


def test_retain_documents_are_held_beside_the_audits_own(world: World, whole: Audit) -> None:
    [model] = load_audited([whole.metadata["target"]], store=cpu())
    extra = Documents(tuple(Document(f"extra-{n}", text) for n, text in enumerate(sentences(4, seed=8))))
    alone, with_extra = (
        UnlearningData(whole, model, retain, store=cpu(), with_distribution=False) for retain in (None, extra)
    )
    assert [piece.ids.tolist() for piece in with_extra.hold[: len(alone.hold)]] == [p.ids.tolist() for p in alone.hold]
    assert len(with_extra.hold) - len(alone.hold) == 4
    assert len(alone.hold) == 5, "the retain set; the holdout is never trained on"
    assert len(alone.forget) == 5


@pytest.mark.parametrize("objective", ["npo", "grad_diff", "hinge"])
def test_every_objective_lowers_the_selected_tokens(whole: Audit, tmp_path: Path, objective: str) -> None:
    settings = THOROUGH.model_copy(update={"objective": objective, "max_steps": 6})
    history = unlearn(whole, out=tmp_path / "out", settings=settings, store=cpu()).summary["history"]
    assert history[-1]["selected_log_ratio"] < history[0]["selected_log_ratio"] - 0.5


# Refusals


def test_an_audit_without_selected_tokens_is_refused_with_the_remedy(world: World, tmp_path: Path) -> None:
    renamed = tuple(replace(document, set="retain") for document in world.documents)
    nothing = replace(world, documents=Documents(renamed)).audit()
    with pytest.raises(MitigateError, match=r"no token is selected: .*detect.spans.threshold"):
        unlearn(nothing, out=tmp_path / "out", store=cpu())


def test_an_unknown_objective_is_refused_before_any_work(whole: Audit, tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match="'forget' is not one of npo"):
        unlearn(whole, out=tmp_path / "out", settings=Unlearn(objective="forget"), store=cpu())
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_loss_is_refused_with_the_remedy(whole: Audit, tmp_path: Path) -> None:
    settings = THOROUGH.model_copy(update={"objective": "grad_diff", "learning_rate": 1e9})
    with pytest.raises(MitigateError, match=r"the loss became (nan|-?inf) at step \d+; lower unlearn.learning_rate"):
        unlearn(whole, out=tmp_path / "out", settings=settings, store=cpu())
    assert not (tmp_path / "out").exists()


def test_a_model_already_at_the_control_is_refused_with_its_levels(world: World, tmp_path: Path) -> None:
    # as if the base were under audit, and the leaky model were one that never saw the documents
    leaky, detect = [world.target], Detect(select="known")
    harmless = audit(world.base, leaky, documents=world.documents, detect=detect, store=cpu())
    stopping = THOROUGH.model_copy(update={"stop_at_control": True})
    with pytest.raises(MitigateError, match=r"already at the control level.*unlearn.stop_at_control: false"):
        unlearn(harmless, out=tmp_path / "out", settings=stopping, store=cpu())
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_directory_is_refused_before_training(whole: Audit, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(MitigateError, match="already holds something"):
        unlearn(whole, out=tmp_path, settings=QUICK.model_copy(update={"max_steps": 10**6}), store=cpu())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_model_that_changed_since_the_audit_is_refused(world: World, tmp_path: Path) -> None:
    target = Path(shutil.copytree(world.target, tmp_path / "target"))
    earlier = world.audit(target)
    shutil.copy(world.base / "model.safetensors", target / "model.safetensors")
    with pytest.raises(MitigateError, match="target: not the model that the audit used"):
        unlearn(earlier, out=tmp_path / "out", settings=QUICK, store=cpu())
    unlearn(earlier, out=tmp_path / "moved", settings=QUICK, target=world.target, store=cpu())


def test_modules_that_are_not_there_are_refused(whole: Audit, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"lora": LORA.model_copy(update={"target_modules": ["c_attn"]})})
    with pytest.raises(MitigateError, match="lora"):
        unlearn(whole, out=tmp_path / "out", settings=settings, store=cpu())


def test_an_unfinished_directory_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match=r"unlearn\.json: no such file"):
        Unlearned.load(tmp_path)
