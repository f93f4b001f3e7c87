"""A whole recipe on tiny models: artifacts, resuming, and directories that cannot be used."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import contents, modified, tiny_recipe, working_in
from on_disk import flip_a_bit
from soak import ended, forked, without_times
from world import LORA, World

from mitigate.artifacts.locks import sole_worker
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError
from mitigate.models.store import ModelStore
from mitigate.pipeline.lab import make_documents
from mitigate.pipeline.run import Pipeline, run
from mitigate.recipe.loading import check_recipe, load_recipe
from mitigate.runtime import process_state
from mitigate.unlearning.objectives.names import DEFAULT
from mitigate.verification.compare import Comparison

RECIPES = Path(__file__).parents[2] / "recipes"
STAGES = (
    "lab.documents",
    "lab.base",
    "lab.target",
    "lab.oracle",
    "references",
    "audit",
    "unlearn",
    "reaudit",
    "measured",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """A finished run; its directory is not to be changed by a test."""
    folder = tmp_path_factory.mktemp("finished")
    with working_in(folder):
        comparison = run(tiny_recipe())
    return folder / "run", comparison


@pytest.fixture
def copied(finished: tuple[Path, Comparison], tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished run to change, with the working directory beside it."""
    shutil.copytree(finished[0], tmp_path / "run")
    with working_in(tmp_path):
        yield tmp_path / "run"


def stages_run(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message in STAGES]


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_a_run_leaves_every_artifact(finished: tuple[Path, Comparison]) -> None:
    out, comparison = finished
    for name in (
        "lab/data/documents.jsonl",
        "lab/base/model.safetensors",
        "lab/target/model.safetensors",
        "lab/oracle/model.safetensors",
        "references/references.json",
        "references/reference-0/adapter_model.safetensors",
        "references/reference-1/adapter_model.safetensors",
        "audit/tokens.parquet",
        "audit/spans.parquet",
        "adapter/adapter_model.safetensors",
        "adapter/unlearn.json",
        "reaudit/tokens.parquet",
        "measured/extraction.json",
        "report.json",
        "report.html",
        "run.json",
    ):
        assert (out / name).is_file(), name
    assert not (out / "adapter.partial").exists()
    assert set(json.loads((out / "run.json").read_text())["stages"]) == set(STAGES)
    written = json.loads((out / "report.json").read_text())
    assert written == json.loads(json.dumps(comparison.report))


def test_only_the_owner_can_read_a_run(finished: tuple[Path, Comparison]) -> None:
    out, _ = finished
    for path in (out, *out.rglob("*")):
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == allowed, path


def test_report_json_has_the_documented_keys_and_types(finished: tuple[Path, Comparison]) -> None:
    report = json.loads((finished[0] / "report.json").read_text())
    assert set(report) == {
        *("schema", "name", "created", "leakage", "oracle_distance", "out_distance", "utility", "extraction"),
        *(
            "selected_token_share",
            "selected",
            "over_forgotten_share",
            "over_forgotten_share_interval",
            "never_seen",
            "asked",
            "judges_kept_out",
            "coverage",
            "verdict",
            "tofu",
            "questions",
            "erasure",
            "calibration",
            "counts",
            "skipped",
            "unlearn",
            "retrain",
            "seconds",
            "tokens_per_second",
        ),
        *("fingerprints", "versions", "recipe", "notes", "text"),
    }
    assert report["schema"] == 1
    assert report["text"] == "masked"
    for moment in ("before", "after"):
        leakage = report["leakage"][moment]
        figures = with_intervals("span_auc", "document_auc", "tpr_at_1pct_fpr", "span_score_mean", "as_high_share")
        assert set(leakage) == figures | {"people", "rank_p_value"}
        assert 0 <= leakage["span_auc"] <= 1
        assert leakage["span_auc_interval"][0] <= leakage["span_auc"] <= leakage["span_auc_interval"][1]
        assert leakage["tpr_at_1pct_fpr"] is None, "too few non-members to resolve 1 %"
    assert set(report["oracle_distance"]) == with_intervals("before", "after") | {"ratio"}
    assert set(report["out_distance"]) == with_intervals("before", "after")
    assert set(report["utility"]) == {"retain_nll", "holdout_nll"}
    for figures in report["utility"].values():
        assert set(figures) == with_intervals("before", "after", "oracle")
        assert all(figures[key] > 0 for key in ("before", "after", "oracle"))
    assert set(report["extraction"]) == with_intervals("before", "after", "oracle") | {
        *("secrets", "secrets_total", "groups", "least_characters", "untried", "all", "names", "kinds", "never_seen"),
        "stretches",
    }
    assert report["extraction"]["secrets"] > 0
    assert report["extraction"]["oracle"] is not None
    assert report["extraction"]["never_seen"]["secrets"] > 0
    assert set(report["extraction"]["stretches"]) == {"before", "after"}
    assert 0 < report["selected_token_share"] < 1
    assert set(report["selected"]) == {"spans", "found", "tokens", "documents", "known_recall", "rule"}
    assert report["selected"]["known_recall"] == 1.0
    assert set(report["counts"]) == {"documents", "forget", "retain", "holdout", "tokens", "skipped"}
    assert report["counts"]["documents"] == sum(report["counts"][name] for name in ("forget", "retain", "holdout"))
    assert report["unlearn"]["objective"] == dict(DEFAULT)
    assert report["unlearn"]["steps"] == 4
    assert report["unlearn"]["stopped"] == "step limit"
    assert set(report["seconds"]) == {*STAGES, "report"}
    assert set(report["tokens_per_second"]) == {"audit", "reaudit"}
    assert min(report["tokens_per_second"].values()) > 0
    assert set(report["fingerprints"]) == {"target", "mitigated", "references", "tokenizer", "documents"}
    assert len(report["fingerprints"]["references"]) == 2
    assert {"python", "mitigate", "torch", "transformers"} <= set(report["versions"])
    assert check_recipe({**report["recipe"]}) == tiny_recipe()
    assert all(isinstance(note, str) for note in report["notes"])


def with_intervals(*keys: str) -> set[str]:
    return {*keys, *(f"{key}_interval" for key in keys)}


def test_no_secret_is_in_the_report_unless_asked_for(finished: tuple[Path, Comparison]) -> None:
    out, comparison = finished
    documents = comparison.before.document_list()
    secrets = {document.text[span.start : span.end] for document in documents for span in document.spans}
    assert len(secrets) > 5
    for name in ("report.html", "report.json", "run.json"):
        text = (out / name).read_text(encoding="utf-8")
        assert [secret for secret in secrets if secret in text] == [], name


def test_logs_hold_stages_and_losses_but_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with working_in(tmp_path), caplog.at_level(logging.DEBUG):
        comparison = run(tiny_recipe(unlearn=None))
    assert stages_run(caplog) == [stage for stage in STAGES if stage not in ("unlearn", "reaudit")]
    documents = comparison.before.document_list()
    words = {document.text[span.start : span.end] for document in documents for span in document.spans}
    words |= {document.text[:25] for document in documents}
    assert [word for word in words if word in caplog.text] == []


def test_without_unlearning_the_figures_after_are_null(finished: tuple[Path, Comparison], tmp_path: Path) -> None:
    target, reference = finished[0] / "lab/target", finished[0] / "lab/oracle"
    recipe = check_recipe(
        {
            "out": str(tmp_path / "audit-only"),
            "models": {"target": str(target)},
            "references": {"count": 0, "given": [str(reference)]},
            "data": {"documents": [{"path": str(finished[0] / "lab/data/documents.jsonl")}]},
            "unlearn": None,
        }
    )
    report = run(recipe).report
    assert report["leakage"]["after"] is None
    assert report["unlearn"] is None
    assert report["utility"]["retain_nll"]["after"] is None
    assert report["oracle_distance"]["before"] is None
    assert any("One given reference" in note for note in report["notes"])
    assert any("No oracle" in note for note in report["notes"])


# --- running again ----------------------------------------------------------------------------------------------------


def test_an_audit_that_selects_nothing_is_reported_without_unlearning(copied: Path) -> None:
    comparison = run(tiny_recipe(detect={"select": "found", "spans": {"threshold": 1000}}))
    assert comparison.after is None
    assert comparison.report["unlearn"] is None
    assert comparison.report["leakage"]["after"] is None
    assert any("no token is selected" in note for note in comparison.report["notes"])
    assert not (copied / "adapter").exists()
    assert not (copied / "reaudit").exists()


def test_a_second_run_skips_every_stage(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = modified(copied)
    with caplog.at_level(logging.INFO):
        run(tiny_recipe())
    assert stages_run(caplog) == []
    after = modified(copied)
    written = {name for name in after if after[name] != before.get(name)}
    assert written == {"run.json", "report.json", "report.html"}
    assert set(before) == set(after)


def test_other_unlearning_settings_rerun_only_what_comes_after(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier = contents(copied, "adapter/*")
    with caplog.at_level(logging.INFO):
        run(tiny_recipe(unlearn={"max_steps": 2, "stop_at_control": False, "objective": "npo"}))
    assert stages_run(caplog) == ["unlearn", "reaudit", "measured"]
    changed = "unlearn.objective, unlearn.max_steps, unlearn.check_every, unlearn.checkpoint_every"
    for stage, parts in {"unlearn": changed, "reaudit": "mitigated model", "measured": "re-audit"}.items():
        assert f"{stage}: made again, for these are not what they were: {parts}" in caplog.messages
    assert json.loads((copied / "adapter/unlearn.json").read_text())["steps"] == 2
    assert contents(copied, "adapter/*.safetensors") != {k: v for k, v in earlier.items() if k.endswith("safetensors")}


def test_other_detection_settings_rerun_the_audit_but_train_no_reference(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(tiny_recipe(detect={"select": "known", "score": "informia"}, unlearn=None))
    assert stages_run(caplog) == ["audit", "measured"]


def test_an_artifact_that_was_removed_is_made_again(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier = contents(copied, "reaudit/*")
    shutil.rmtree(copied / "reaudit")
    with caplog.at_level(logging.INFO):
        run(tiny_recipe())
    assert stages_run(caplog) == ["reaudit"]
    assert contents(copied, "reaudit/*") == earlier


FLIPPED = (  # a file of each stage but the references
    "lab/data/documents.jsonl",
    "lab/base/model.safetensors",
    "lab/target/config.json",
    "lab/oracle/model.safetensors",
    "audit/tokens.parquet",
    "adapter/adapter_model.safetensors",
    "reaudit/spans.parquet",
    "measured/extraction.json",
    "report.json",
    "report.html",
)


def test_what_was_damaged_in_any_stage_is_made_again_and_said(
    finished: tuple[Path, Comparison], copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in FLIPPED:
        flip_a_bit(copied / name)
    (copied / "references/references.json").write_text("garbage")
    with caplog.at_level(logging.INFO):
        run(tiny_recipe())
    assert stages_run(caplog) == list(STAGES)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for name in (*FLIPPED, "references/references.json"):
        what = re.escape(Path(name).name) + r" is not what was written \(damaged\?\)"
        assert [line for line in told if re.fullmatch(rf"[a-z.]+: {what}; made again", line)], name
    assert without_times(copied) == without_times(finished[0])


def test_of_the_references_only_a_damaged_one_is_made_again(
    finished: tuple[Path, Comparison], copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    untouched = modified(copied / "references/reference-0")
    flip_a_bit(copied / "references/reference-1/adapter_model.safetensors")
    with caplog.at_level(logging.INFO):
        Pipeline(tiny_recipe()).make_references()
    assert modified(copied / "references/reference-0") == untouched
    assert contents(copied, "references/**/*") == contents(finished[0], "references/**/*")
    assert "1 of 2 references are already there" in caplog.text


# --- interruption -----------------------------------------------------------------------------------------------------


def test_a_run_interrupted_in_every_stage_ends_in_the_same_bytes(
    finished: tuple[Path, Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mitigate.detection.record
    import mitigate.models.fitting.training
    import mitigate.pipeline.run
    import mitigate.unlearning.trainer
    import mitigate.unlearning.training.loop
    import mitigate.verification.compare

    def interrupt(place: Any, name: str, *, call: int) -> None:
        """Give one more try to the run; Ctrl-C comes at the n-th call of a function."""
        calls = 0
        real: Callable[..., Any] = getattr(place, name)

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(tiny_recipe())
        assert calls == call
        record = json.loads((tmp_path / "run/run.json").read_text())
        assert sum(not stage["complete"] for stage in record["stages"].values()) == 1
        for path in (tmp_path / "run").rglob("*"):
            assert not path.name.startswith("."), f"half-written: {path}"

    with working_in(tmp_path):
        interrupt(
            mitigate.models.fitting.training, "write_json", call=1
        )  # the target is trained but not yet in its place
        assert not (tmp_path / "run/lab/target").exists()
        interrupt(mitigate.models.fitting.training, "write_json", call=3)  # target, oracle, first reference
        interrupt(mitigate.models.fitting.training, "write_json", call=2)
        assert not (tmp_path / "run/references/reference-1").exists()
        interrupt(mitigate.detection.record, "write_json", call=1)  # the audit's last file
        assert not (tmp_path / "run/audit").exists()
        interrupt(mitigate.unlearning.training.loop.Loop, "step", call=4)  # after the checkpoint of step 2
        assert (tmp_path / "run/adapter.partial/step-000002/tensors.safetensors").is_file()
        interrupt(mitigate.unlearning.result, "write_json", call=1)
        assert not (tmp_path / "run/adapter").exists()
        interrupt(mitigate.pipeline.run, "reaudit", call=1)
        interrupt(mitigate.verification.compare, "extract", call=2)
        run(tiny_recipe())

    for pattern in ("lab/**/*", "references/**/*", "audit/*", "adapter/*", "reaudit/*", "measured/*"):
        assert contents(tmp_path / "run", pattern) == contents(finished[0], pattern), pattern
    assert not (tmp_path / "run/adapter.partial").exists()


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mitigate.unlearning.trainable

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mitigate.unlearning.trainable, "save_adapter", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_recipe(unlearn={"max_steps": 3, "checkpoint_every": 2, "stop_at_control": False}))
    assert (copied / "adapter.partial/step-000002/tensors.safetensors").is_file()
    report = run(tiny_recipe(unlearn={"max_steps": 2, "checkpoint_every": 5, "stop_at_control": False})).report
    assert report["unlearn"]["steps"] == 2
    assert not (copied / "adapter.partial").exists()


def test_a_directory_that_holds_only_what_a_kill_left_is_a_new_run(copied: Path) -> None:
    whole = contents(copied)
    shutil.rmtree(copied)
    copied.mkdir()
    (copied / ".run.json.mitigate-abcdefgh").write_text("{")
    (copied / ".mitigate.lock").write_text("")
    pipeline = Pipeline(tiny_recipe())
    make_documents(pipeline.inputs, pipeline.stages)
    assert sorted(contents(copied)) == [
        ".mitigate.lock",
        *sorted(name for name in whole if "lab/data" in name),
        "run.json",
    ]


def test_a_second_run_into_the_same_directory_is_refused(copied: Path) -> None:
    before = modified(copied)

    def other() -> None:
        with pytest.raises(MitigateError, match=rf"run: process {os.getppid()} on .* works there now; .*another out="):
            run(tiny_recipe(unlearn={"max_steps": 2}))

    with sole_worker(copied, process_state("cpu")):
        assert ended(forked(copied.parent, other)) == 0
    assert modified(copied) == before


def test_equal_runs_give_equal_bytes_whatever_the_hash_seed(finished: tuple[Path, Comparison], tmp_path: Path) -> None:
    """Another process with another hash seed than this one's."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    code = "from commands import tiny_recipe; from mitigate import run; run(tiny_recipe())"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=600)
    one, two = (without_times(out) for out in (finished[0], tmp_path / "run"))
    assert len(one) > 40
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


# --- directories that cannot be used ----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "other"}])
def test_a_directory_with_another_run_is_refused(copied: Path, change: dict[str, Any]) -> None:
    before = modified(copied)
    with pytest.raises(MitigateError, match=r"run: holds another run \('tiny'.*--replace"):
        run(tiny_recipe(**change))
    assert modified(copied) == before


def test_replace_empties_a_run_s_directory(copied: Path) -> None:
    _ = Pipeline(tiny_recipe(seed=1), replace=True).stages
    assert [path.name for path in copied.iterdir()] == ["run.json"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_foreign_directory_is_left_alone(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(MitigateError, match=r"no run\.json"):
        run(tiny_recipe(out=str(tmp_path)), replace=replace)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_in_place_of_the_directory_is_left_alone(tmp_path: Path, replace: bool) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(MitigateError, match="a file, not a directory"):
        run(tiny_recipe(out=str(file)), replace=replace)
    with pytest.raises(MitigateError, match=r"cannot be written \(.*choose another directory"):
        run(tiny_recipe(out=str(file / "run")), replace=replace)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("room", [1_000, 12_000, 30_000])
def test_a_full_disk_is_said_so_and_leaves_nothing_half_written(
    tmp_path: Path, room: int, finished: tuple[Path, Comparison]
) -> None:
    sizes = {name: len(data) for name, data in contents(finished[0]).items()}
    assert any(size > room for size in sizes.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with working_in(tmp_path):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            with pytest.raises(MitigateError, match=r"(?s)cannot be written \(.*free some space"):
                run(tiny_recipe())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        left = list((tmp_path / "run").rglob("*"))
        assert [path for path in left if path.name.startswith(".")] == []
        if room == 30_000:
            run(tiny_recipe())
            assert contents(tmp_path / "run", "audit/*") == contents(finished[0], "audit/*")


# --- the recipes for a user's own model -------------------------------------------------------------------------------


@pytest.fixture
def training_text(world: World, tmp_path: Path) -> Path:
    write_jsonl(world.documents, tmp_path / "train.jsonl")
    return tmp_path / "train.jsonl"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_finetuned_yaml_runs_on_a_user_s_model(world: World, training_text: Path, tmp_path: Path, method: str) -> None:
    target = world.target if method == "full" else world.adapter
    recipe = load_recipe(
        RECIPES / "finetuned.yaml",
        [
            f"models.target={target}",
            f"models.base={world.base}",
            f"data.documents.0.path={training_text}",
            f"out={tmp_path / 'run'}",
            "references.count=2",
            "references.schedule={epochs: 30, learning_rate: 1e-2, batch_size: 5}",
            "unlearn.learning_rate=5e-3",
            "unlearn.max_steps=60",
        ],
    )
    weights = contents(target, "*.safetensors"), contents(world.base, "*.safetensors")
    report = run(recipe, yes=True).report
    before, after = report["leakage"]["before"], report["leakage"]["after"]
    assert before["span_auc"] > 0.9, "the codes were learned by heart"
    assert after["span_score_mean"] < before["span_score_mean"] / 2
    assert report["out_distance"]["after"] < report["out_distance"]["before"]
    assert report["extraction"]["after"] < report["extraction"]["before"]
    assert (contents(target, "*.safetensors"), contents(world.base, "*.safetensors")) == weights
    adapter = ModelStore(device="cpu").load(tmp_path / "run/adapter")
    assert len(adapter.adapters) == 1
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert config["r"] == (16 if method == "full" else 16 + LORA.rank), "over an adapter it holds that one too"
    assert config["base_model_name_or_path"] == str(target if method == "full" else world.base)


def test_pretrained_yaml_audits_a_released_model(world: World, training_text: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        RECIPES / "pretrained.yaml",
        [
            f"models.target={world.target}",
            f"references.given=[{world.base}]",
            f"data.documents.0.path={training_text}",
            f"out={tmp_path / 'run'}",
        ],
    )
    report = run(recipe).report
    assert report["leakage"]["before"]["span_auc"] > 0.9
    assert report["leakage"]["after"] is None
    assert (tmp_path / "run/report.html").is_file()
    assert not (tmp_path / "run/adapter").exists()
