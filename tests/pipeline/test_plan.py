"""A plan counts what the run then does, and says what would not fit; nothing is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from commands import Mitigate, tiny_recipe, working_in
from world import World

from mitigate.detection.record import Audit
from mitigate.models.settings import Lora
from mitigate.models.store import ModelStore
from mitigate.pipeline import plan as planning
from mitigate.pipeline.plan import UNLEARNING, plan
from mitigate.pipeline.probe import Probe, probe
from mitigate.pipeline.run import run
from mitigate.tokens.tokenization import tokenize_documents

FOUND = Probe(
    parameters=1000,
    weights=4000,
    trained=100,
    context=256,
    scoring=1e-3,
    training=1e-2,
    completing=0.5,
    scoring_peak=10**6,
    training_peak=2 * 10**6,
)


def test_a_plan_counts_what_the_run_then_does(tmp_path: Path) -> None:
    with working_in(tmp_path):
        planned = plan(tiny_recipe())
        assert not list(tmp_path.iterdir()), "nothing is written"
        run(tiny_recipe())
        audited = Audit.load("run/audit")
        done = [path.name for path in Path("run").iterdir() if path.is_dir()]
    assert planned.tokens == len(audited.tokens)
    assert planned.documents == len(audited.documents)
    assert planned.spans == sum(row.source == "known" for row in audited.span_rows)
    stages = {stage.name: stage for stage in planned.stages}
    names = {"references", "audit", "unlearn", "reaudit", "measured"}
    assert stages.keys() == {"lab.base", "lab.target", "lab.oracle", *names}
    assert {"references", "audit", "reaudit", "measured"} <= set(done)
    assert stages["references"].tokens == planned.tokens, "two of them, each on half, once"
    judged = sum(len(out) for out in audited.documents["out_references"].to_pylist()) / planned.documents
    assert stages["audit"].tokens == planned.tokens * (1 + judged + judged / 2), "how well they fit is read besides"
    assert stages["reaudit"].tokens == planned.tokens, "of the new model alone"
    assert all(stage.seconds > 0 and stage.memory > 0 for stage in planned.stages)
    assert not planned.problems


def test_time_and_memory_follow_from_the_models_pace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(planning, "probe", lambda *_, **__: FOUND)
    with working_in(tmp_path):
        planned = plan(tiny_recipe())
        calibrated = plan(tiny_recipe(references={"count": 4}, detect={"fdr": 0.05}))
        keeping = plan(tiny_recipe(references={"count": 4}, detect={"fdr": 0.05, "kept_entries": 64}))
    stages = {stage.name: stage for stage in planned.stages}
    assert stages["references"].seconds == pytest.approx(planned.tokens * FOUND.training)
    assert stages["audit"].seconds == pytest.approx(2.5 * planned.tokens * FOUND.scoring)
    assert stages["reaudit"].seconds == pytest.approx(planned.tokens * FOUND.scoring)
    unlearning, looked = stages["unlearn"], 2  # of four steps
    most = 4 * 24 * planned.tokens / planned.documents * UNLEARNING * FOUND.training
    assert most < unlearning.seconds <= most + looked * planned.tokens * FOUND.scoring
    assert stages["audit"].memory == FOUND.scoring_peak + FOUND.weights + 2 * 4 * FOUND.trained
    assert stages["reaudit"].memory == FOUND.scoring_peak
    again, with_kept = ({one.name: one for one in of.stages} for of in (calibrated, keeping))
    assert again["reaudit"].tokens == 5 * calibrated.tokens, "every reference reads all, in the target's place"
    assert with_kept["reaudit"].tokens == calibrated.tokens
    assert with_kept["audit"].disk > again["audit"].disk + calibrated.tokens * 2 * 6 * 64
    text = str(planned)
    assert all(stage.name in text for stage in planned.stages)


def test_what_does_not_fit_is_said_and_ends_with_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, mitigate_: Mitigate, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "probe", lambda *_, **__: replace(FOUND, weights=10**15))
    small = ["lab.people.copies={0: 2, 1: 2}", "lab.base_documents=20", f"out={tmp_path / 'run'}"]
    recipe = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
    done = mitigate_("plan", recipe, *small)
    assert done.status == 1
    assert "does not fit: audit: needs about 4,000.0 TB of memory" in done.out
    assert "does not fit: the run writes about" in done.out
    assert f"mitigate run {recipe} 'lab.people.copies={{0: 2, 1: 2}}'" in done.out
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(planning, "probe", lambda *_, **__: FOUND)
    assert mitigate_("plan", recipe, *small).status == 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_probe_counts_parameters_and_times_a_model(world: World, method: str) -> None:
    model = ModelStore(device="cpu").load(world.base)
    total = sum(parameter.numel() for parameter in model.base.model.parameters())
    found = probe(
        model,
        tokenize_documents(world.documents, model.tokenizer),
        method=method,  # type: ignore[arg-type]
        lora=Lora(rank=2, alpha=4),
        batch_size=4,
    )
    assert found.parameters == total
    assert found.weights == 4 * total
    assert found.trained == total if method == "full" else 0 < found.trained < total
    assert found.training_peak >= found.scoring_peak > 0
    assert min(found.scoring, found.training, found.completing) > 0
