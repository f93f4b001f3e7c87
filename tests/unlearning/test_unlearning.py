"""Whole runs of unlearning: secrets fall and the rest stays, interruptions leave no trace, refusals name the remedy."""

from __future__ import annotations

import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forgetting import QUICK, THOROUGH, changed, cpu, log_ratio, loop_of, selected_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from world import World

from mitigate.detection.audit import audit, reaudit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.documents import Documents
from mitigate.errors import MitigateError, NothingToUnlearnError
from mitigate.unlearning.trainer import Unlearned, unlearn
from mitigate.unlearning.training.loop import Loop


@pytest.fixture(scope="module")
def thorough(
    whole: Audit, layered: Audit, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Audit, Unlearned, Audit]]:
    """For both targets: the audit, what unlearning made, and the re-audit."""
    made = {}
    for name, before in (("whole", whole), ("layered", layered)):
        result = unlearn(before, out=tmp_path_factory.mktemp(name) / "adapter", settings=THOROUGH, store=cpu())
        made[name] = before, result, reaudit(before, result.directory, store=cpu())
    return made


# Whole runs


@pytest.mark.parametrize("kind", ["whole", "layered"])
def test_the_planted_secrets_fall_to_the_control_and_the_rest_stays(
    thorough: dict[str, tuple[Audit, Unlearned, Audit]], kind: str
) -> None:
    before, _, after = thorough[kind]
    selected, sets = selected_of(before), before.sets

    def ratio(table: Audit) -> float:
        return float((table.columns["log_prob"] - table.columns["log_prob_out"])[selected].mean())

    assert ratio(before) > 1.5
    assert -1.5 < ratio(after) < 0.5, "the level of models that never saw them, no hole below it"
    others = ~selected & before.columns["audited"].astype(bool)
    holdout = np.concatenate([np.full(r.stop - r.start, sets[d] == "holdout") for d, r in before.rows.items()])
    change = np.abs(after.columns["log_prob"] - before.columns["log_prob"])
    assert change[selected].mean() > 1.5
    assert change[others & ~holdout].mean() < 0.25


@pytest.mark.parametrize("kind", ["whole", "layered"])
def test_the_saved_adapter_gives_what_training_last_saw(
    thorough: dict[str, tuple[Audit, Unlearned, Audit]], kind: str
) -> None:
    before, result, after = thorough[kind]
    last = result.summary["history"][-1]
    assert last["step"] == 30
    assert log_ratio(after)[selected_of(before)].mean() == pytest.approx(last["selected_log_ratio"], abs=2e-4)


def test_the_summary_says_what_was_done_and_holds_no_text(
    world: World, thorough: dict[str, tuple[Audit, Unlearned, Audit]]
) -> None:
    before, result, _ = thorough["whole"]
    assert Unlearned.load(result.directory) == result
    summary = result.summary
    assert summary["objective"] == {"hinge": 1.0, "distill": 0.5}
    assert (summary["scope"], summary["method"], summary["anchor"]) == ("token", "lora", "kl")
    assert (summary["steps"], summary["stopped"], summary["processes"]) == (30, "step limit", 1)
    assert (summary["audit"], summary["seed"], summary["retain"]) == (before.fingerprint, 0, None)
    settled = {"anchor": "kl", "weight": 10.0, "focus": 4.0}  # what was left open, as our objectives have it
    given = THOROUGH.model_dump()
    assert summary["settings"] == {**given, "retain": {**given["retain"], **settled}}
    tensors = load_file(result.directory / "adapter_model.safetensors").values()
    assert summary["adapter_parameters"] == sum(tensor.numel() for tensor in tensors)
    assert summary["model_parameters"] == AutoModelForCausalLM.from_pretrained(world.target).num_parameters()
    assert summary["over_forgotten"] is summary["exposed"] is None, "five unseen spans tell no limits"
    assert [entry["step"] for entry in summary["history"]] == [0, 10, 20, 30]
    keys = [
        "round",
        "step",
        "selected_log_ratio",
        "selected_distance",
        "over_forgotten",
        "exposed",
        "span_auc",
        "never_seen_moved",
        "held",
        "anchor_weight",
        "rate_share",
        "tilt",
    ]
    assert all(list(entry) == keys for entry in summary["history"])
    written = (result.directory / "unlearn.json").read_text()
    assert all(d.text[s.start : s.end] not in written for d in world.documents for s in d.spans)
    assert {stat.S_IMODE(path.stat().st_mode) for path in result.directory.iterdir()} == {0o600}


INTERRUPTED: dict[str, tuple[int, int, dict[str, Any]]] = {  # at which step, after which checkpoint, settings
    "lora": (3, 2, {}),
    "substitutes and budget": (4, 4, {"objective": "dpo", "retain": {"budget": 0.001}, "checkpoint_every": 4}),
    "all weights and budget": (5, 4, {"method": "full", "retain": {"budget": 0.001}}),
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_run_goes_on_to_equal_bytes(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stop, checkpoint, values = INTERRUPTED[name]
    audited = request.getfixturevalue("layered" if name == "lora" else "whole")
    settings = changed(QUICK, **values)
    straight = unlearn(audited, out=tmp_path / "straight", settings=settings, store=cpu())
    step = Loop.step
    steps: list[int] = []

    def interrupted(loop: Loop, number: int) -> float:
        steps.append(number)
        if number == stop:
            raise KeyboardInterrupt
        return step(loop, number)

    monkeypatch.setattr(Loop, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unlearn(audited, out=tmp_path / "out", settings=settings, store=cpu())
    assert not (tmp_path / "out").exists(), "nothing half-written"
    partial = tmp_path / "out.partial"
    kept = [path for path in partial.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    assert {path.suffix for path in kept} == {".json", ".safetensors"}, "no pickle"
    stop = -1
    del steps[:]
    resumed = unlearn(audited, out=tmp_path / "out", settings=settings, store=cpu())
    assert steps == list(range(checkpoint, 6)), "from the last checkpoint on"
    names = sorted(path.name for path in straight.directory.iterdir())
    assert sorted(path.name for path in resumed.directory.iterdir()) == names
    for file in names:
        assert (resumed.directory / file).read_bytes() == (straight.directory / file).read_bytes(), file
    assert not partial.exists()


def test_a_checkpoint_of_other_settings_is_refused(whole: Audit, tmp_path: Path) -> None:
    loop = loop_of(whole, changed(QUICK, max_steps=5), tmp_path / "out")
    loop._save(2, [loop._watch(step=0)])
    with pytest.raises(MitigateError, match=r"out\.partial: an interrupted run of another audit, other settings"):
        unlearn(whole, out=tmp_path / "out", settings=QUICK, store=cpu())
    assert unlearn(whole, out=tmp_path / "out", settings=QUICK, store=cpu(), resume=False).summary["steps"] == 6


@pytest.mark.parametrize("values", [{}, {"objective": "dpo", "method": "full", "retain": {"budget": 0.01}}])
def test_equal_runs_give_equal_bytes_and_other_seeds_do_not(
    whole: Audit, tmp_path: Path, values: dict[str, Any]
) -> None:
    settings = changed(QUICK, **values)
    first, again, other = (
        unlearn(whole, out=tmp_path / name, settings=settings, store=cpu(), seed=seed).directory
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    [name] = [path.name for path in first.iterdir() if path.suffix == ".safetensors"]
    read = [(directory / name).read_bytes() for directory in (first, again, other)]
    assert read[0] == read[1]
    assert read[0] != read[2]


# Refusals


def test_an_audit_without_selected_tokens_is_refused_with_the_remedy(world: World, tmp_path: Path) -> None:
    renamed = tuple(replace(document, set="retain") for document in world.documents)
    nothing = replace(world, documents=Documents(renamed)).audit()
    with pytest.raises(NothingToUnlearnError, match=r"no token is selected: .*detect.spans.threshold"):
        unlearn(nothing, out=tmp_path / "out", store=cpu())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "forget"}, "'forget' is not one of default, hinge"),
        (
            {"objective": "ascent", "retain": {"budget": 0.1}},
            r"budget: there are no anchors; set unlearn.retain.anchor",
        ),
        ({"objective": "rmu", "layer": 2}, "unlearn.layer: 2, but what is trained can move .* layers 0 to 1 only"),
        ({"objective": "rmu", "layer": 0, "method": "last_layers", "layers": 1}, "layer: 0, but .* layers 1 to 1 only"),
        ({"method": "last_layers", "layers": 3}, "unlearn.layers: 3, but this model has 2"),
        ({"lora": {"target_modules": ["c_attn"]}}, r"lora.target_modules: \['c_attn'\] does not fit this model"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_step(
    whole: Audit, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(MitigateError, match=message):
        unlearn(whole, out=tmp_path / "out", settings=changed(QUICK, **values), store=cpu())
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_loss_is_refused_with_the_remedy(whole: Audit, tmp_path: Path) -> None:
    settings = changed(THOROUGH, objective="grad_diff", learning_rate=1e9)
    with pytest.raises(MitigateError, match=r"the loss became (nan|-?inf) at step \d+; lower unlearn.learning_rate"):
        unlearn(whole, out=tmp_path / "out", settings=settings, store=cpu())
    assert not (tmp_path / "out").exists()


def test_a_model_already_at_the_control_is_refused_with_its_levels(world: World, tmp_path: Path) -> None:
    # as if the base were under audit, and the leaky model were one that never saw the documents
    leaky, detect = [world.target], Detect(select="known")
    harmless = audit(world.base, leaky, documents=world.documents, detect=detect, store=cpu())
    settings = changed(THOROUGH, stop_at_control=True)
    with pytest.raises(NothingToUnlearnError, match=r"already at the control level.*unlearn.stop_at_control: false"):
        unlearn(harmless, out=tmp_path / "out", settings=settings, store=cpu())
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_directory_is_refused_before_training(whole: Audit, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(MitigateError, match="already holds something"):
        unlearn(whole, out=tmp_path, settings=changed(QUICK, max_steps=10**6), store=cpu())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_model_that_changed_since_the_audit_is_refused(world: World, tmp_path: Path) -> None:
    target = Path(shutil.copytree(world.target, tmp_path / "target"))
    earlier = world.audit(target)
    shutil.copy(world.base / "model.safetensors", target / "model.safetensors")
    with pytest.raises(MitigateError, match="target: not the model that the audit used"):
        unlearn(earlier, out=tmp_path / "out", settings=QUICK, store=cpu())
    unlearn(earlier, out=tmp_path / "moved", settings=QUICK, target=world.target, store=cpu())


def test_without_retain_documents_a_warning_names_the_remedies(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forget_only = replace(world, documents=world.documents.subset(["forget", "holdout"])).audit()
    loop_of(forget_only, QUICK, tmp_path / "out")
    assert "no retain documents" in caplog.text
    assert "retain.generated" in caplog.text
    caplog.clear()
    loop_of(forget_only, changed(QUICK, objective="ascent"), tmp_path / "out")
    loop_of(forget_only, QUICK, tmp_path / "out", retain=world.documents.subset("retain"))
    assert "no retain documents" not in caplog.text


def test_an_unfinished_directory_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match=r"unlearn\.json: no such file"):
        Unlearned.load(tmp_path)
