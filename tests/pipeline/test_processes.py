"""Two processes give what one gives: every document scored once, the same adapter, the same references."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from socket import socket

import numpy as np
import pytest
import torch
import yaml
from commands import launch_two, tiny_recipe, working_in
from safetensors.torch import load_file
from sharded import SETTINGS
from world import World

from mitigate.detection.audit import reaudit
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import load_references
from mitigate.documents.written import write_jsonl
from mitigate.models.store import ModelStore
from mitigate.pipeline.run import run
from mitigate.proof.evidence import Evidence
from mitigate.recipe.loading import load_recipe
from mitigate.unlearning.trainer import Unlearned, unlearn


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process wrote, and what two wrote."""
    root = tmp_path_factory.mktemp("processes")
    rows = [
        {
            "id": document.id,
            "text": document.text,
            "set": document.set,
            "spans": [{"start": span.start, "end": span.end, "label": span.label} for span in document.spans],
        }
        for document in world.documents
    ]
    documents = root / "documents.jsonl"
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = (world.base, world.adapter, world.references, documents)
    script = Path(__file__).parents[1] / "find_and_remove.py"
    launch_two(script, *inputs, root / "two")
    launch_two(script, *inputs, root / "one", processes=1)
    return root / "one", root / "two"


def assert_trained_alike(ours: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """Equal but for rounding, which decides the direction of AdamW's steps where a gradient is nothing but rounding."""
    for part, tensor in ours.items():
        off = (tensor - others[part]).abs()
        assert (off > 1e-4).sum() <= 1 + 1e-3 * off.numel(), part
        assert off.max() <= 2e-3, part


def test_two_processes_took_part(runs: tuple[Path, Path]) -> None:
    assert [Unlearned.load(run / "adapter").summary["processes"] for run in runs] == [1, 2]


def test_weights_in_shards_are_unlearned_as_whole_ones_are_and_go_on_where_they_were_cut_short(
    world: World, tmp_path: Path
) -> None:
    found = world.audit(world.adapter)
    found.save(tmp_path / "audit")
    launch_two(Path(__file__).parents[1] / "sharded.py", tmp_path / "audit", tmp_path)
    for name, settings in SETTINGS.items():
        unlearn(found, out=tmp_path / f"{name} whole", settings=settings, store=ModelStore(device="cpu"))
        [file] = (tmp_path / name).glob("*.safetensors")
        cut, whole = (tmp_path / f"{name} {kind}" / file.name for kind in ("cut", "whole"))
        assert cut.read_bytes() == file.read_bytes(), name
        ours, others = load_file(file), load_file(whole)
        assert ours.keys() == others.keys()
        assert_trained_alike(ours, others)
        of = [Unlearned.load(tmp_path / folder).summary for folder in (name, f"{name} whole")]
        assert [one["processes"] for one in of] == [2, 1]
        assert [len(one["rounds"]) for one in of] == [2 if name == "lora" else 1] * 2
        assert of[0]["history"][-1]["selected_log_ratio"] == pytest.approx(
            of[1]["history"][-1]["selected_log_ratio"], abs=1e-3
        )


def test_two_processes_score_each_document_once_as_one_does(runs: tuple[Path, Path], world: World) -> None:
    one, two = (Audit.load(run / "audit") for run in runs)
    assert list(two.rows) == [document.id for document in world.documents]
    assert one.tokens.schema.equals(two.tokens.schema)
    for name in ("tokens", "spans", "documents", "kept"):
        files = [(run / "audit" / f"{name}.parquet").read_bytes() for run in runs]
        assert files[0] == files[1], f"{name}: equal bytes"


@pytest.mark.parametrize(
    ("name", "file"), [("adapter", "adapter_model.safetensors"), ("substituted", "model.safetensors")]
)
def test_two_processes_forget_as_one_does(runs: tuple[Path, Path], name: str, file: str) -> None:
    one, two = (load_file(run / name / file) for run in runs)
    assert one.keys() == two.keys()
    assert_trained_alike(two, one)
    histories = [Unlearned.load(run / name).summary["history"] for run in runs]
    assert [entry["step"] for entry in histories[1]] == [0, 2, 4, 5]
    for first, second in zip(*histories, strict=True):
        for figure in ("selected_log_ratio", "anchor_weight"):
            assert second[figure] == pytest.approx(first[figure], abs=1e-3)
    assert histories[0][-1]["selected_log_ratio"] < histories[0][0]["selected_log_ratio"] - 0.01
    weights = {entry["anchor_weight"] for entry in histories[1]}
    assert (len(weights) > 1) == (name == "substituted"), "with a budget the weight of the anchors moves"


@pytest.mark.parametrize("name", ["adapter", "substituted"])
def test_the_mitigated_models_of_one_and_of_two_processes_predict_alike(runs: tuple[Path, Path], name: str) -> None:
    before = Audit.load(runs[0] / "audit")
    after = [reaudit(before, run / name, store=ModelStore(device="cpu")) for run in runs]
    one, two = (result.columns["log_prob"] for result in after)
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-3)


def test_two_processes_train_the_references_that_one_trains(runs: tuple[Path, Path]) -> None:
    one, two = (load_references([run / "references"]) for run in runs)
    assert one.trained_on == two.trained_on
    for paths in zip(one.paths, two.paths, strict=True):
        first, second = ((Path(path) / "adapter_model.safetensors").read_bytes() for path in paths)
        assert first == second, "equal bytes"


ONE_FAILS = """
import sys
from pathlib import Path
from mitigate.errors import MitigateError
from mitigate.runtime import process_state, together

state = process_state("cpu")
for number in range(2):
    try:
        with together(state):
            if state.process_index == number:
                raise MitigateError(f"process {number}: the disk is full")
    except MitigateError as error:
        Path(sys.argv[1], f"{number}-{state.process_index}").write_text(str(error))
state.destroy_process_group()  # at once after a collective, a process may abort while it ends
"""


def test_what_fails_in_one_process_fails_in_both_and_they_stay_in_step(tmp_path: Path) -> None:
    script, out = tmp_path / "one_fails.py", tmp_path / "said"
    script.write_text(ONE_FAILS)
    out.mkdir()
    launch_two(script, out)
    said = {path.name: path.read_text() for path in out.iterdir()}
    assert said == {f"{n}-{rank}": f"process {n}: the disk is full" for n in (0, 1) for rank in (0, 1)}


MERGED = """
import sys
from pathlib import Path

import numpy as np

from mitigate import runtime
from mitigate.runtime import merge_rows, process_state

state = process_state("cpu")
rank, rows = state.process_index, np.arange(10)
runtime._chunks.__defaults__ = (4,)
bits = np.arange(40, dtype=np.uint32).reshape(10, 4) * np.uint32(107_374_183)
bits[:4, 0] = 0x80000000, 0x7FC00001, 0xFF800000, 1  # -0, a NaN with a mark of its own, -inf, the least of all
whole = bits.view(np.float32)
written = rows % 3 == rank  # and every third by none
matrix, vector = (np.where(written.reshape(-1, *[1] * (one.ndim - 1)), one.view(np.uint32), 77)
    .astype(np.uint32).view(np.float32) for one in (whole, whole[:, 0].copy()))
merge_rows({"matrix": matrix, "vector": vector}, written, state)
kept = rows % 3 < 2
wanted = np.where(kept[:, None], bits, 77)
right = (matrix.view(np.uint32) == wanted).all() and (vector.view(np.uint32) == wanted[:, 0]).all()
try:
    merge_rows({}, rows == 7, state)
except RuntimeError as error:
    Path(sys.argv[1], str(rank)).write_text(f"{right} {(written == kept).all()} {error}")
state.destroy_process_group()
"""


def test_rows_of_two_processes_come_together_bit_for_bit(tmp_path: Path) -> None:
    script, out = tmp_path / "merged.py", tmp_path / "said"
    script.write_text(MERGED)
    out.mkdir()
    launch_two(script, out)
    said = {path.name: path.read_text() for path in out.iterdir()}
    assert said == dict.fromkeys("01", "True True row 7 was written by two processes")


ENDS = """
import sys, time
from pathlib import Path
from types import SimpleNamespace

import typer

from mitigate.cli.results import fail_unless_clean
from mitigate.runtime import process_state

report, state = Path(sys.argv[1], "report"), process_state("cpu")
rank = state.process_index
if state.is_main_process:
    time.sleep(2)
    report.write_text("written")
try:
    fail_unless_clean(SimpleNamespace(report={"verdict": {"leaks": None}}))
except typer.Exit as end:
    Path(sys.argv[1], str(rank)).write_text(f"{end.exit_code} {report.is_file()}")
"""


def test_no_process_ends_for_a_leak_before_the_report_is_written(tmp_path: Path) -> None:
    """A launcher kills the others as soon as one ends with a status of its own."""
    script, out = tmp_path / "ends.py", tmp_path / "said"
    script.write_text(ENDS)
    out.mkdir()
    launch_two(script, out)
    assert {rank: (out / rank).read_text() for rank in "01"} == {"0": "3 True", "1": "3 True"}


def test_two_machines_run_a_recipe_as_one_does(tmp_path: Path) -> None:
    """Two launches of the recipe for several machines, beside each other on this one."""
    script = Path(__file__).parents[2] / "recipes" / "accelerate" / "multi_node.sh"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(out="run").model_dump(mode="json")))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    own |= {"PYTHON": sys.executable, "NODES": "2", "FIRST": "127.0.0.1", "GPUS": "1", "PORT": str(port)}
    launch = ["bash", str(script), "run", str(recipe)]
    both = [
        subprocess.Popen(
            launch, cwd=tmp_path / "two", env={**own, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=500) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended[0][1].decode()[-2000:]
    with working_in(tmp_path / "one"):
        run(load_recipe(recipe))
    one, two = (Audit.load(tmp_path / name / "run" / "reaudit") for name in ("one", "two"))
    np.testing.assert_allclose(two.columns["log_prob"], one.columns["log_prob"], rtol=0, atol=1e-3)
    assert Unlearned.load(tmp_path / "two" / "run" / "adapter").summary["processes"] == 2


MORE = """
import sys
from pathlib import Path

from mitigate import Audit, Detect, ModelStore, audit_parts, prove, read_documents
from mitigate.detection.references.crossfit import crossfit_references
from mitigate.models.settings import Schedule
from mitigate.proof.settings import Proof
from mitigate.runtime import process_state

base, target, adapter, references, documents, audit, out = sys.argv[1:]
audit_parts(
    target,
    [references],
    documents=documents,
    out=Path(out, "by-parts"),
    part_tokens=200,
    detect=Detect(select="known"),
    store=ModelStore(device="cpu"),
)
crossfit_references(
    base,
    read_documents(documents),
    out=Path(out, "whole-references"),
    count=2,
    method="full",
    schedule=Schedule(epochs=1),
    new_store=lambda: ModelStore(device="cpu"),
)
attacks = ["judges", "layers", "relearn_forgotten", "true_prefix", "sampled"]
prove(
    audit, adapter, oracle=base, out=Path(out, "proof"), settings=Proof(attacks=attacks), store=ModelStore(device="cpu")
)
process_state().destroy_process_group()
"""


@pytest.fixture(scope="module")
def more(world: World, whole: Audit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process wrote, and what two wrote, of audits by parts, whole references and evidence."""
    root = tmp_path_factory.mktemp("more")
    script, documents = root / "more.py", root / "documents.jsonl"
    script.write_text(MORE)
    write_jsonl(world.documents, documents)
    whole.save(root / "audit")
    inputs = (world.base, world.target, world.adapter, world.references, documents, root / "audit")
    for processes, name in ((1, "one"), (2, "two")):
        launch_two(script, *inputs, root / name, processes=processes)
    return root / "one", root / "two"


def test_two_processes_audit_by_parts_as_one_does(more: tuple[Path, Path]) -> None:
    one, two = more
    files = sorted((one / "by-parts").rglob("*.*"))
    assert len({file.parent for file in files}) > 3
    for file in files:
        assert (two / file.relative_to(one)).read_bytes() == file.read_bytes(), file


def test_two_processes_save_the_weights_of_whole_references(more: tuple[Path, Path], world: World) -> None:
    store = ModelStore(device="cpu")
    before = store.load(world.base).base.model.state_dict()
    found = [load_references([run / "whole-references"]).paths for run in more]
    for paths in zip(*found, strict=True):
        one, two = (store.load(path).base.model.state_dict() for path in paths)
        assert any(not torch.equal(tensor, before[name]) for name, tensor in two.items())
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6)


def test_two_processes_prove_as_one_does(more: tuple[Path, Path]) -> None:
    one, two = (Evidence.load(run / "proof") for run in more)
    assert list(one.readings) == ["judges", "layers", "relearn_forgotten", "true_prefix", "sampled"]
    for name, table in one.readings.items():
        for column in ("role", "part", "side", "item", "group"):
            assert two.readings[name][column].equals(table[column]), (name, column)
        scores = (each.readings[name]["score"].to_numpy() for each in (two, one))
        np.testing.assert_allclose(*scores, rtol=0, atol=1e-4, err_msg=name)
    assert one.record["verdict"] == two.record["verdict"]
