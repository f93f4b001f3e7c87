"""Files that last: whole or not at all, known by their digests, and nothing left over by whoever was killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from on_disk import flip_a_bit
from soak import Renames, ended, forked
from world import World

from mitigate.artifacts.checkpoints import Checkpoints, optimizer_parts, optimizer_state
from mitigate.artifacts.digests import file_digest
from mitigate.artifacts.files import (
    check_digests,
    damage,
    new_directory,
    new_file,
    read_record,
    write_json,
    write_record,
)
from mitigate.artifacts.locks import sole_worker
from mitigate.artifacts.temporaries import is_temporary, sweep, temporary_for
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import INDEX, crossfit_references, load_references
from mitigate.errors import MitigateError
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit": flip_a_bit,
    "truncated": halve,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "missing": lambda path: path.unlink(),
}


# --- killed while writing ---------------------------------------------------------------------------------------------


def write_folder(folder: Path, text: str) -> None:
    with new_directory(folder, replace=True) as made:
        (made / "inner").mkdir()
        (made / "inner/text").write_text(text)


def write_text(path: Path, text: str) -> None:
    with new_file(path) as made:
        made.write_text(text)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", [write_folder, write_text])
def test_what_a_kill_leaves_is_the_old_the_new_or_nothing_and_the_next_start_removes_its_rest(
    tmp_path: Path, write: Callable[[Path, str], None], *, after: bool
) -> None:
    def read() -> str | None:
        file = tmp_path / "it" if write is write_text else tmp_path / "it/inner/text"
        return file.read_text() if file.exists() else None

    kills = 0
    while True:
        write(tmp_path / "it", "old")

        def work(kill_at: int = kills) -> None:
            Renames(kill_at=kill_at, after=after)
            write(tmp_path / "it", "new")

        if ended(forked(tmp_path, work)) != -signal.SIGKILL:
            break
        kills += 1
        assert read() in ("old", "new", None)
        assert write is write_folder or read() is not None, "a file is replaced at once"
        sweep(tmp_path)
        assert [path for path in tmp_path.rglob("*") if is_temporary(path)] == []
    assert kills == (3 if write is write_folder else 1), "digests, the old one aside, the new one in its place"
    assert read() == "new"


def test_a_sweep_removes_what_the_dead_left_and_nothing_of_the_living(tmp_path: Path) -> None:
    def die() -> None:
        with temporary_for(tmp_path / "audit", directory=True) as made:
            (made / "documents.parquet").write_text("private")
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(forked(tmp_path, die)) == -signal.SIGKILL
    for name in (".audit.mitigate", ".audit.mitigate-1", "audit.mitigate-abcdefgh", ".DS_Store", ".audit.x1b2c3d4"):
        (tmp_path / name).write_text("not ours")
    kept = set(names(tmp_path))
    with temporary_for(tmp_path / "audit", directory=True) as alive:
        assert sweep(tmp_path) == 1
        left = set(names(tmp_path))
        assert alive.name in left
        assert left - {alive.name} == {name for name in kept if "/" not in name and not is_temporary(Path(name))}


@pytest.mark.parametrize("directory", [True, False])
def test_a_temporary_that_a_sweep_took_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: bool
) -> None:
    name = "mkdtemp" if directory else "mkstemp"
    make, swept = getattr(tempfile, name), []

    def make_and_sweep(**options: Any) -> Any:
        made = make(**options)
        if not swept:
            swept.append(sweep(tmp_path))
        return made

    monkeypatch.setattr(tempfile, name, make_and_sweep)
    with temporary_for(tmp_path / "audit", directory=directory) as made:
        assert made.is_dir() == directory
        assert made.exists()
    assert swept == [1]


def test_a_result_that_another_process_finished_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def both() -> None:
        with new_directory(tmp_path / "out") as mine:
            (mine / "by").write_text("me")
            with new_directory(tmp_path / "out") as theirs:
                (theirs / "by").write_text("them")

    with pytest.raises(MitigateError, match="out: already holds something"):
        both()
    assert (tmp_path / "out/by").read_text() == "them"
    assert [path for path in tmp_path.iterdir() if is_temporary(path)] == []


# --- one job at a time ------------------------------------------------------------------------------------------------


def test_a_second_job_is_told_who_works_there_until_that_is_gone(tmp_path: Path) -> None:
    state, (said, saying) = process_state("cpu"), os.pipe()

    def work() -> None:
        with sole_worker(tmp_path / "run", state):
            os.write(saying, b"!")
            signal.pause()

    holder = forked(tmp_path, work)
    assert os.read(said, 1) == b"!"
    try:
        message = rf"run: process {holder} on .* \(since \d{{4}}-.*\) works there now; .*choose another out="
        with pytest.raises(MitigateError, match=message), sole_worker(tmp_path / "run", state, option="out="):
            pass
    finally:
        os.kill(holder, signal.SIGKILL)
        ended(holder)
    with sole_worker(tmp_path / "run", state):
        assert names(tmp_path / "run") == [".mitigate.lock"]
    assert not (tmp_path / "run").exists(), "nothing came of it"


# --- digests ----------------------------------------------------------------------------------------------------------


def test_a_digest_is_that_of_the_content_whatever_the_times_say(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    assert file_digest(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert file_digest(path) == hashlib.sha256(b"two").hexdigest(), "of equal length and time"


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_of_any_kind_in_any_file_is_found(tmp_path: Path, kind: str) -> None:
    for name in ("a.parquet", "inner/b.json", "digests.json"):
        with new_directory(tmp_path / "it", replace=True) as made:
            (made / "inner").mkdir()
            (made / "a.parquet").write_bytes(b"0123456789")
            write_json(made / "inner/b.json", {"number": 1.5})
        assert damage(tmp_path / "it") == []
        DAMAGES[kind](tmp_path / "it" / name)
        if (name, kind) == ("digests.json", "missing"):
            continue  # then it is no directory of ours
        assert len(damage(tmp_path / "it")) >= 1
        with pytest.raises(MitigateError, match=r"it: .*(damaged|missing).*; make it again, or restore it"):
            check_digests(tmp_path / "it")


def test_a_model_card_may_be_edited_and_files_may_be_added(tmp_path: Path) -> None:
    with new_directory(tmp_path / "it") as made:
        (made / "README.md").write_text("card")
        (made / "weights").write_text("0")
    (tmp_path / "it/README.md").write_text("a better card")
    (tmp_path / "it/notes").write_text("mine")
    assert damage(tmp_path / "it") == []
    (tmp_path / "it/weights").write_text("1")
    assert damage(tmp_path / "it") == ["weights is not what was written (damaged?)"]


def test_a_record_comes_back_as_it_was_and_not_at_all_if_one_value_changed(tmp_path: Path) -> None:
    path, record = tmp_path / "record.json", {"copies": {10: 1, 9: "nine"}, "share": 0.1, "text": "naïve"}
    write_record(path, record)
    assert read_record(path) == {"copies": {"10": 1, "9": "nine"}, "share": 0.1, "text": "naïve"}
    path.write_text(path.read_text().replace("0.1", "0.3"))
    with pytest.raises(MitigateError, match=r"record.json: is not what was written .*; make it anew"):
        read_record(path, remedy="make it anew")
    write_json(path, {"share": 0.3})
    assert read_record(path) == {"share": 0.3}, "of an earlier version"


@pytest.mark.parametrize("kind", ["one bit", "truncated", "missing"])
@pytest.mark.parametrize("name", ["tokens.parquet", "documents.parquet", "spans.parquet", "audit.json"])
def test_a_damaged_audit_is_not_loaded(whole: Audit, tmp_path: Path, name: str, kind: str) -> None:
    whole.save(tmp_path / "audit")
    assert Audit.load(tmp_path / "audit").tokens.equals(whole.tokens)
    DAMAGES[kind](tmp_path / "audit" / name)
    with pytest.raises(MitigateError, match=rf"audit: (holds no audit|{name} is (not what was written|missing))"):
        Audit.load(tmp_path / "audit")


def test_an_audit_without_half_of_its_rows_is_not_loaded(whole: Audit, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    whole.save(tmp_path / "audit")
    pq.write_table(whole.tokens.slice(0, len(whole.tokens) // 2), tmp_path / "audit/tokens.parquet")
    with pytest.raises(MitigateError, match=r"tokens\.parquet is not what was written"):
        Audit.load(tmp_path / "audit")


def test_damaged_references_are_not_loaded_and_only_they_are_trained_again(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, schedule = tmp_path / "references", Schedule(epochs=0.4)
    out.mkdir()
    (out / f".{INDEX}.mitigate-abcdefgh").write_text('{"plan": ')  # of a process killed at its first write

    def make() -> None:
        store = lambda: ModelStore(device="cpu")  # noqa: E731
        crossfit_references(world.base, world.documents, out=out, count=2, schedule=schedule, new_store=store)

    make()
    assert not any(is_temporary(path) for path in out.rglob("*"))
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    untouched = (out / "reference-0/adapter_model.safetensors").stat().st_mtime_ns
    flip_a_bit(out / "reference-1/adapter_model.safetensors")
    for refused in (lambda: load_references([out]), lambda: ModelStore(device="cpu").check(f"{out}/reference-1")):
        with pytest.raises(MitigateError, match=r"reference-1: adapter_model\.safetensors is not what was written"):
            refused()
    make()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    assert (out / "reference-0/adapter_model.safetensors").stat().st_mtime_ns == untouched
    assert re.search(r"reference-1: .* is not what was written .*; trained again", caplog.text)

    index = json.loads((out / INDEX).read_text())
    moved = index["references"][0]["groups"].pop()
    index["references"][1]["groups"].append(moved)
    (out / INDEX).write_text(json.dumps(index))
    with pytest.raises(MitigateError, match=r"references\.json: is not what was written"):
        load_references([out])


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_an_optimizers_state_comes_back_from_json_and_tensors() -> None:
    parameters = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3 / 3, betas=(0.9, 0.95))
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.1)
    optimizer.step()
    state = optimizer.state_dict()
    parts, tensors = optimizer_parts(state)
    again = optimizer_state(json.loads(json.dumps(parts)), tensors)
    assert again["param_groups"] == state["param_groups"]
    assert again["state"].keys() == state["state"].keys()
    for number, entries in state["state"].items():
        assert entries.keys() == again["state"][number].keys()
        assert all(torch.equal(value, again["state"][number][name]) for name, value in entries.items())


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "digests.json"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(
    tmp_path: Path, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path / "out.partial")
    assert checkpoints.newest() is None
    for step in (2, 4, 6):
        checkpoints.save(step, {"dual": step / 7}, {"weights": torch.full((3,), float(step))})
    assert [path.name for path in sorted(checkpoints.directory.iterdir())] == ["step-000004", "step-000006"]
    checkpoints.mend()
    newest = checkpoints.newest()
    assert newest is not None
    assert newest[0] == {"step": 6, "dual": 6 / 7}
    DAMAGES[kind](checkpoints.directory / "step-000006" / name)
    checkpoints.mend()
    assert "step-000006: " in caplog.text
    assert "set aside as step-000006.damaged" in caplog.text
    older = checkpoints.newest()
    assert older is not None
    assert older[0] == {"step": 4, "dual": 4 / 7}
    assert torch.equal(older[1]["weights"], torch.full((3,), 4.0))
    shutil.rmtree(checkpoints.directory / "step-000004")
    assert checkpoints.newest() is None
    checkpoints.forget()
    assert not checkpoints.directory.exists()
