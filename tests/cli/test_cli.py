"""The command line: every verb, its help, and what it says of bad input."""

from __future__ import annotations

import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from commands import Mitigate, Outcome
from on_disk import edit_json
from safetensors.torch import load_file, save_file
from world import World

import mitigate.cli.app
from mitigate.artifacts.files import new_directory, read_json, read_record, write_record
from mitigate.detection.record import Audit
from mitigate.documents.written import write_jsonl

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "detect_then_unlearn.py"
VERBS = ("run", "audit", "references", "unlearn", "compare", "report")
BAD_ROWS = {
    "empty.jsonl": b"",
    "malformed.jsonl": b'{"text": "a fine first line"}\n{"text": "MARKER',
    "no-field.jsonl": b'{"body": "MARKER"}\n',
    "blank.jsonl": b'{"text": "  "}\n',
    "latin.jsonl": b'{"text": "MARKER caf\xe9"}\n',
    "doubled.jsonl": b'{"id": "a", "text": "MARKER one"}\n{"id": "a", "text": "MARKER two"}\n',
}


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: models, documents, and a chain of results that each verb adds to."""
    folder = tmp_path_factory.mktemp("cli")
    for name, source in {"base": world.base, "target": world.target, "references": world.references}.items():
        (folder / name).symlink_to(source)
    write_jsonl(world.documents, folder / "train.jsonl")
    return folder


@pytest.fixture(autouse=True)
def _working_in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def audited(folder: Path, world: World) -> Path:
    """An audit directory, for tests of the verbs that read one."""
    world.audit().save(folder / "audited")
    return folder / "audited"


# --- every verb -------------------------------------------------------------------------------------------------------


def test_the_verbs_lead_from_a_leaky_model_to_a_report(mitigate_: Mitigate, folder: Path, world: World) -> None:
    made = mitigate_(
        *("references", "--base", "base", "--documents", "train.jsonl", "--count", 2, "--out", "own-references"),
        *("--set", "schedule.epochs=20", "--set", "schedule.learning_rate=1e-2", "--set", "lora.rank=4"),
    )
    assert made == Outcome(0, "2 references -> own-references\n", made.err)

    found = mitigate_(
        *("audit", "--target", "target", "--reference", "own-references", "--documents", "train.jsonl"),
        *("--out", "audit", "--set", "spans.threshold=1.0"),
    )
    assert found.status == 0
    assert "15 documents" in found.out
    assert Audit.load("audit").metadata.detect.spans.threshold == 1.0

    forgetting = (
        *("unlearn", "--audit", "audit", "--retain", "train.jsonl", "--objective", "hinge", "--out", "adapter"),
        *("--set", "max_steps=30", "--set", "learning_rate=5e-3", "--set", "batch_size=5"),
    )
    doubtful = mitigate_(*forgetting)
    assert doubtful.status == 2
    assert "the references fit less closely than the target" in doubtful.err, "they had one epoch"
    assert not Path("adapter").exists()
    done = mitigate_(*forgetting, "--yes")
    assert done.status == 0
    assert " steps, " in done.out
    assert read_json(Path("adapter/unlearn.json"))["objective"] == {"hinge": 1.0}

    again = mitigate_("audit", "--target", "adapter", "--again", "audit", "--out", "reaudit")
    assert again.status == 0
    before, after = Audit.load("audit"), Audit.load("reaudit")
    assert before.spans["span_id"] == after.spans["span_id"]
    assert before.metadata.references == after.metadata.references

    compared = mitigate_("compare", "--before", "audit", "--after", "reaudit", "--out", "report", "--oracle", "base")
    assert compared.status == 0
    assert "span AUC" in compared.out
    report = read_json(Path("report/report.json"))
    assert report["leakage"]["after"]["span_score_mean"] < report["leakage"]["before"]["span_score_mean"]
    assert report["oracle_distance"]["before"] is not None
    assert (folder / "report/report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_run_is_reported_without_the_secrets_until_all_text_is_asked_for(mitigate_: Mitigate, world: World) -> None:
    ran = mitigate_(
        *("run", ROOT / "recipes/pretrained.yaml", "models.target=target", "references.given=[base]"),
        *("data.documents.0.path=train.jsonl", "out=run", "report.extraction=false"),
    )
    assert ran.status == 0, ran.err
    assert "span AUC" in ran.out
    assert "report: run/report.html" in ran.out
    assert "to load it" not in ran.out, "an audit makes no model"
    secrets = [document.text[span.start : span.end] for document in world.documents for span in document.spans]
    page = Path("run/report.html")
    assert not any(secret in page.read_text(encoding="utf-8") for secret in secrets)
    assert mitigate_("report", "run", "--text", "all") == Outcome(0, "run/report.html\n", "")
    assert any(secret in page.read_text(encoding="utf-8") for secret in secrets)
    assert mitigate_("report", "run").status == 0
    assert not any(secret in page.read_text(encoding="utf-8") for secret in secrets)
    edit_json(Path("run/report.json"), schema=7)
    refused = mitigate_("report", "run")
    assert refused.status == 2
    assert "run/report.json: is of version 7, and this code reads version 1; give the command again" in refused.err


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(mitigate_: Mitigate, verb: str) -> None:
    shown = mitigate_(verb, "--help")
    assert shown.status == 0
    assert f"mitigate {verb} [OPTIONS]" in shown.out.splitlines()[0]
    assert "Example: mitigate" in shown.out or verb == "report"
    command = typer.main.get_command(mitigate.cli.app.app).commands[verb]  # type: ignore[attr-defined]
    assert [option.name for option in command.params if not option.help] == []


def test_help_lists_every_verb_and_the_list_of_keys_is_one_a_line(mitigate_: Mitigate) -> None:
    shown = mitigate_("--help")
    assert [verb for verb in VERBS if f"\n  {verb} " not in shown.out] == []
    keys = mitigate_("run", "--keys").out.split()
    assert "unlearn.objective" in keys
    assert "data.documents.path" in keys
    assert all(" " not in key for key in keys)


def test_python_m_mitigate_is_the_same_and_an_error_has_status_2_and_no_traceback() -> None:
    command = [sys.executable, "-m", "mitigate", "audit", "--target", "x/y/z", "--documents", "none.jsonl"]
    done = subprocess.run(
        [*command, "--reference", "base", "--out", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("mitigate: x/y/z: no such directory")
    assert not Path("nowhere").exists()


# --- bad input --------------------------------------------------------------------------------------------------------

AUDIT = ("audit", "--target", "target", "--reference", "references", "--documents", "train.jsonl", "--out", "new")
UNLEARN = ("unlearn", "--audit", "old", "--out", "new")
REFERENCES = ("references", "--base", "base", "--target", "target", "--documents", "train.jsonl", "--out", "new")
RUN = ("run", str(ROOT / "recipes/finetuned.yaml"))


def replaced(option: str, value: str) -> tuple[str, ...]:
    place = AUDIT.index(option) + 1
    return (*AUDIT[:place], value, *AUDIT[place + 1 :])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train.json", "train.json: no such file; in that folder: train.jsonl"),
        ("nowhere/train.jsonl", "nor is there a folder nowhere"),
        ("empty.jsonl", "empty.jsonl: the file is empty"),
        ("malformed.jsonl", "malformed.jsonl:2: malformed JSON"),
        ("no-field.jsonl", "no-field.jsonl:1: no field text"),
        ("blank.jsonl", "blank.jsonl:1: document 'blank-1': the text is empty"),
        ("latin.jsonl", "latin.jsonl:1: not UTF-8 at byte 20"),
        ("doubled.jsonl", "doubled.jsonl:2: id 'a' was given before"),
        ("base", "base: a folder, not a file"),
    ],
)
def test_documents_that_cannot_be_read_are_named(mitigate_: Mitigate, folder: Path, name: str, message: str) -> None:
    for bad, content in BAD_ROWS.items():
        (folder / bad).write_bytes(content)
    try:
        told = mitigate_(*replaced("--documents", name))
    finally:
        for bad in BAD_ROWS:
            (folder / bad).unlink()
    assert told.status == 2
    assert message in told.err
    assert "MARKER" not in told.err, "text of documents is secret"
    assert not Path("new").exists()


@pytest.fixture(scope="module")
def broken_models(folder: Path, world: World) -> Path:
    """Model directories that cannot be used."""
    broken = folder / "broken"
    (broken / "no-config").mkdir(parents=True)
    shutil.copytree(world.base, broken / "no-weights", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(world.base, broken / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, broken / "pickled/pytorch_model.bin")
    shutil.copytree(world.adapter, broken / "orphan")
    config = read_json(broken / "orphan/adapter_config.json")
    (broken / "orphan/adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "/gone/base"}), encoding="utf-8"
    )
    shutil.copytree(world.base, broken / "nan")
    weights = load_file(broken / "nan/model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, broken / "nan/model.safetensors", metadata={"format": "pt"})
    shutil.copytree(world.base, broken / "other-tokenizer")
    tokenizer = (broken / "other-tokenizer/tokenizer.json").read_text(encoding="utf-8")
    (broken / "other-tokenizer/tokenizer.json").write_text(tokenizer.replace('"0":', '"zero":', 1), encoding="utf-8")
    return broken


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such/model", "no such directory, and no such model on the hub"),
        ("train.jsonl", "train.jsonl: a file; give the directory"),
        ("broken/no-config", "has no config.json; give a directory made by save_pretrained"),
        ("broken/no-weights", "has no weights"),
        ("broken/pickled", "its weights are pickled"),
        ("broken/orphan", "its base model '/gone/base' (base_model_name_or_path in adapter_config.json) is not there"),
        ("broken/nan", "NaN"),
    ],
)
@pytest.mark.usefixtures("broken_models")
def test_models_that_cannot_be_used_are_named(mitigate_: Mitigate, model: str, message: str) -> None:
    told = mitigate_(*replaced("--target", model))
    assert told.status == 2
    assert model in told.err
    assert message in told.err
    assert not Path("new").exists()


@pytest.mark.usefixtures("broken_models")
def test_a_reference_with_another_tokenizer_is_refused_with_both_names(mitigate_: Mitigate) -> None:
    told = mitigate_(*replaced("--reference", "broken/other-tokenizer"))
    assert told.status == 2
    assert "the tokenizer of broken/other-tokenizer differs from that of target" in told.err


@pytest.mark.usefixtures("broken_models")
def test_the_base_of_an_adapter_that_moved_can_be_given(mitigate_: Mitigate) -> None:
    assert mitigate_(*replaced("--target", "broken/orphan"), "--base", "base").status == 0
    shutil.rmtree("new")
    ran = mitigate_(
        *("run", ROOT / "recipes/finetuned.yaml", "models.target=broken/orphan", "models.base=base", "out=moved"),
        *("data.documents.0.path=train.jsonl", "references.count=2", "references.schedule.epochs=1"),
        *("unlearn.max_steps=2", "unlearn.stop_at_control=false", "detect.select=known", "report.extraction=false"),
        "--yes",
    )
    assert ran.status == 0, ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (AUDIT[:3] + AUDIT[5:], "no reference: memorization is measured against models that never saw the text"),
        (AUDIT[:5] + AUDIT[7:], "--documents: missing; give the text to judge, --again DIR"),
        ((*AUDIT, "--references-again"), "--references-again: goes with --again DIR"),
        ((*AUDIT, "--again", "old"), "--again takes documents, references and settings from that audit"),
        (("audit", "--target", "target", "--again", "old", "--out", "new"), "old: holds no audit"),
        ((*AUDIT, "--set", "spans.treshold=1"), "spans.treshold: unknown key; did you mean spans.threshold?"),
        ((*AUDIT, "--set", "score=best"), "score: is not one of informia, informia_no_kl, "),
        ((*AUDIT, "--set", "threshold"), "key=value"),
        ((*AUDIT, "--device", "tpu9"), "device: 'tpu9' cannot be used"),
        ((*AUDIT, "--dtype", "float8"), "dtype: 'float8' is not one of auto, float32"),
        (UNLEARN, "old: holds no audit"),
        ((*UNLEARN, "--objective", "erase"), "'erase' is not one of default, hinge, distill"),
        ((*REFERENCES, "--count", "3"), "3 is not an even number"),
        ((*REFERENCES[:3], *REFERENCES[5:]), "--target: missing; references are trained until"),
        ((*REFERENCES, "--method", "full-ish"), "'full-ish' is not one of lora, full"),
        (("compare", "--before", "old", "--after", "old", "--out", "new"), "old: holds no audit"),
        (("report", "old"), "old/report.json: no such file"),
        (("run",), "no recipe given"),
        (("run", "none.yaml"), "none.yaml: cannot be read"),
        ((*RUN, "unlern.max_steps=3"), "unlern: unknown key; did you mean unlearn?"),
        ((*RUN, "out=new"), "my-model: no such directory, and no such model"),
    ],
)
def test_commands_that_cannot_be_followed_say_why(
    mitigate_: Mitigate, arguments: tuple[str, ...], message: str
) -> None:
    told = mitigate_(*arguments)
    assert told.status == 2
    assert told.err.startswith("mitigate: ")
    assert message in told.err
    assert not Path("new").exists()


def test_an_audit_that_selects_nothing_cannot_be_unlearned(mitigate_: Mitigate) -> None:
    assert mitigate_(*AUDIT, "--set", "select=found", "--set", "spans.threshold=1000").status == 0
    told = mitigate_("unlearn", "--audit", "new", "--out", "nothing")
    shutil.rmtree("new")
    assert told.status == 2
    assert "no token is selected" in told.err
    assert "detect.spans.threshold" in told.err


def test_documents_that_every_reference_saw_are_refused(mitigate_: Mitigate, folder: Path) -> None:
    shutil.copytree("references", "saw-all", dirs_exist_ok=True)
    index = read_record(Path("saw-all/references.json"))
    every = sorted({group for entry in index["references"] for group in entry["groups"]})
    index["references"] = [{**entry, "groups": every} for entry in index["references"]]
    write_record(Path("saw-all/references.json"), index)
    told = mitigate_(*replaced("--reference", "saw-all"))
    assert told.status == 2
    assert "no OUT reference for 15 documents" in told.err


@pytest.mark.parametrize(
    "command",
    [
        AUDIT[:-1],
        ("unlearn", "--audit", "audited", "--out"),
        ("compare", "--before", "audited", "--after", "audited", "--out"),
        REFERENCES[:-1],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.usefixtures("audited")
def test_a_directory_that_holds_something_is_left_alone(
    mitigate_: Mitigate, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    told = mitigate_(*command, tmp_path)
    assert told.status == 2
    assert f"{tmp_path}: already holds something" in told.err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_refused_for_its_input_can_be_given_again_corrected(mitigate_: Mitigate) -> None:
    command = (
        *("run", ROOT / "recipes/pretrained.yaml", "models.target=target", "references.given=[base]"),
        *("out=corrected", "report.extraction=false"),
    )
    assert mitigate_(*command).status == 2
    assert not Path("corrected").exists()
    assert mitigate_(*command, "data.documents.0.path=train.jsonl").status == 0
    told = mitigate_(*command, "data.documents.0.path=train.jsonl", "seed=1")
    assert told.status == 2
    assert "corrected: holds another run" in told.err
    assert mitigate_(*command, "data.documents.0.path=train.jsonl", "seed=1", "--replace").status == 0


def test_a_command_that_succeeds_closes_the_process_group_and_one_that_fails_does_not(mitigate_: Mitigate) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert mitigate_("documents", "missing.yaml").status == 2
        assert torch.distributed.is_initialized()
        assert mitigate_("run", "--keys").status == 0
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_ctrl_c_ends_with_status_130_and_can_be_gone_on_with(
    mitigate_: Mitigate, monkeypatch: pytest.MonkeyPatch, audited: Path
) -> None:
    from mitigate.unlearning.training.loop import Loop

    command = (
        *("unlearn", "--audit", audited, "--out", "stopped", "--set", "max_steps=4"),
        *("--set", "checkpoint_every=2", "--set", "stop_at_control=false"),
    )
    step: Callable[..., float] = Loop.step

    def interrupted(self: Any, number: int) -> float:
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", interrupted)
        told = mitigate_(*command)
    assert told.status == 130
    assert "interrupted; finished stages are kept, give the same command again to go on" in told.err
    assert not Path("stopped").exists()
    resumed = []

    def counted(self: Any, number: int) -> float:
        resumed.append(number)
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", counted)
        assert mitigate_(*command).status == 0
    assert resumed == [2, 3], "goes on from the checkpoint of step 2"
    assert not Path("stopped.partial").exists()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_what_a_scheduler_sends_ends_a_command_as_ctrl_c_does(
    mitigate_: Mitigate, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, folder: Path
) -> None:
    def stopped(*_: object) -> None:
        with new_directory(folder / "stopped-by-signal") as made:
            (made / "private").write_text("text")
            os.kill(os.getpid(), sent)

    signal.signal(sent, signal.SIG_DFL)  # of nohup, which has SIGHUP ignored, the command leaves it so
    handlers = signal.getsignal(sent)
    before = set(folder.iterdir())
    monkeypatch.setattr("mitigate.documents.written.write_jsonl", stopped)
    path = ROOT / "recipes/finetuned.yaml"
    told = mitigate_("documents", path, "data.documents.0.path=train.jsonl", "models.target=target", "models.base=base")
    assert told.status == 128 + sent
    assert f"interrupted by {sent.name}; finished stages are kept" in told.err
    assert set(folder.iterdir()) == before, "nothing is left"
    assert signal.getsignal(sent) == handlers


def test_no_output_holds_text_of_documents(
    mitigate_: Mitigate, folder: Path, caplog: pytest.LogCaptureFixture, world: World
) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["text"] += " XYLOPHONE-4711"
    (folder / "marked.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"text": "XYLOPHONE-4711', encoding="utf-8"
    )
    command = (
        *("run", ROOT / "recipes/finetuned.yaml", "models.target=target", "models.base=base", "out=marked"),
        *("data.documents.0.path=marked.jsonl", "references.count=2", "references.schedule.epochs=1"),
        *("unlearn.max_steps=2", "unlearn.stop_at_control=false", "detect.select=known", "--yes"),
    )
    with caplog.at_level(logging.DEBUG):
        refused = mitigate_(*command)
        ran = mitigate_(*command, "data.documents.0.on_error=skip")
    assert refused.status == 2
    assert "marked.jsonl:16: malformed JSON" in refused.err
    assert ran.status == 0, ran.err
    assert read_json(Path("marked/report.json"))["skipped"] == [
        "marked.jsonl:16: malformed JSON: Unterminated string starting at at column 10"
    ]
    shown = refused.out + refused.err + ran.out + ran.err + caplog.text
    assert "unlearn" in shown
    codes = [document.text[span.start : span.end] for document in world.documents for span in document.spans]
    assert [text for text in ("XYLOPHONE", "The door code", *codes) if text in shown] == []


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Mitigate:
    """`script("--target", ...)`: recipes/detect_then_unlearn.py in this process."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["detect_then_unlearn.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            status: Any = 0
        except SystemExit as stop:
            status = stop.code or 0
        written = capsys.readouterr()
        return Outcome(status, written.out, written.err)

    return call


def test_the_script_is_short_and_explains_itself(script: Mitigate) -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 60
    shown = script("--help")
    assert shown.status == 0
    for option in ("--target", "--base", "--documents", "--retain", "--out", "--references", "--objective"):
        assert option in shown.out


def test_the_script_goes_from_model_to_report(script: Mitigate, world: World, tmp_path: Path) -> None:
    command = ("--target", world.adapter, "--base", world.base, "--documents", "train.jsonl", "--out", tmp_path / "out")
    done = script(*command, *("--references", 2, "--epochs", 10, "--learning-rate", 1e-2, "--max-steps", 10))
    assert done.status == 0, done.err
    assert f"memorized spans -> {tmp_path / 'out/report/report.html'}" in done.out
    assert Audit.load(tmp_path / "out/reaudit").metadata.references
    refused = script(*command)
    assert refused.status == 2
    assert "already holds something" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "erase"), "'erase' is not one of default, hinge, distill"),
        (("--references", "3"), "3 is not an even number"),
        (("--documents", "none.jsonl"), "none.jsonl: no such file"),
    ],
)
def test_the_script_says_what_is_wrong_before_it_trains(
    script: Mitigate, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    command = ("--target", "target", "--base", "base", "--documents", "train.jsonl", "--out", tmp_path / "out")
    told = script(*command, *arguments)
    assert told.status == 2
    assert message in told.err
    assert not (tmp_path / "out").exists()
