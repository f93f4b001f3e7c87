"""`bench speed`: the savings change nothing but time and memory."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Mitigate

from mitigate.bench.settings import SpeedSettings
from mitigate.bench.speed.audits import (
    audited,
    audited_again,
    bare,
    calibrated,
    measure_audits,
    one_by_one,
    random_adapters,
    random_documents,
    random_model,
)
from mitigate.bench.speed.memory import measure_memory
from mitigate.bench.speed.processes import measure_processes
from mitigate.bench.speed.run import speed_table
from mitigate.bench.speed.steps import (
    dense_steps,
    document_order,
    make_speed_world,
    measure_variant,
    speed_loop,
)
from mitigate.detection.record import Audit
from mitigate.detection.signals.compiled import signals_of_rows
from mitigate.errors import MitigateError
from mitigate.lab.settings import TinyModel
from mitigate.models.model import Model, kept_logits
from mitigate.models.settings import Lora
from mitigate.runtime import peak_resident_bytes

SETTINGS = SpeedSettings(
    model=TinyModel(vocabulary=600, hidden_size=16, layers=1, heads=2, context=256),
    forget=3,
    retain=3,
    batch_size=2,
    kept_entries=600,
    lora=Lora(rank=2, alpha=4),
    tokens=600,
    turns=1,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def order(out: Path) -> list[list[str]]:
    """The documents of three steps."""
    return document_order(out, SETTINGS, 2, device="cpu")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("speed")
    make_speed_world(root, SETTINGS, device="cpu")
    return root


def test_sparse_steps_have_the_losses_of_dense_ones(out: Path, order: list[list[str]]) -> None:
    found = Audit.load(out / "audit")
    sparse = speed_loop(found, SETTINGS, device="cpu", checkpointed=False, out=out)
    dense = dense_steps(found, SETTINGS, order, device="cpu")
    for number in range(3):
        assert sparse.step(number) == pytest.approx(dense(number), rel=1e-4)


def test_checkpointed_steps_have_the_losses_of_others(out: Path) -> None:
    found = Audit.load(out / "audit")
    loops = [
        speed_loop(found, SETTINGS, device="cpu", checkpointed=checkpointed, out=out) for checkpointed in (False, True)
    ]
    for number in range(2):
        assert loops[0].step(number) == pytest.approx(loops[1].step(number), rel=1e-4)


def test_a_variant_is_measured_and_shown(out: Path, order: list[list[str]]) -> None:
    variants = {name: measure_variant(out, name, SETTINGS, order, "cpu") for name in ("sparse", "dense")}
    for found in variants.values():
        assert len(found["seconds"]) == 2
        assert min(found["seconds"]) <= found["seconds_per_step"] <= max(found["seconds"])
        assert found["peak_bytes"] > 1 << 20
    keys = ("seconds_per_step", "peak_bytes")
    ratios = {name: {key: found[key] / variants["dense"][key] for key in keys} for name, found in variants.items()}
    table = speed_table({"variants": variants, "ratios": ratios, "loss_difference": 1e-4})
    assert "sparse" in table
    assert "1.00 time 1.00 memory" in table


def test_documents_that_the_dense_computation_cannot_take_whole_are_refused(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "context", 16)
    with pytest.raises(MitigateError, match=r"model\.context: 16 is less than the longest document's"):
        document_order(out, SETTINGS, 1, device="cpu")


def test_peak_memory_is_this_processes_own() -> None:
    before = peak_resident_bytes()
    block = bytearray(1 << 26)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    assert peak_resident_bytes() >= before
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(len, (b"abc",)) == 3
        assert pool.apply(peak_resident_bytes) < peak_resident_bytes()


@pytest.mark.parametrize("kind", ["models", "adapters"])
def test_what_is_timed_computes_the_same_log_ratios(kind: str) -> None:
    models = random_adapters(SETTINGS, count=3, device=CPU)
    if kind == "models":
        models = [random_model(SETTINGS, seed=seed, device=CPU) for seed in range(2)]
    for lengths in ((16, 200), (8, 32)):
        documents = random_documents(SETTINGS, lengths, tokens=600, seed=1)
        assert {lengths[0] <= len(one.ids) <= lengths[1] for one in documents} == {True}
        assert sum(len(one.ids) for one in documents) >= 600
        ours, theirs = audited(models, documents), one_by_one(models, documents)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
        assert np.nanstd(ours) > 1e-3, "the models differ"


def test_the_bare_forwards_are_those_of_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [random_model(SETTINGS, seed=seed, device=CPU) for seed in range(2)]
    documents = random_documents(SETTINGS, (8, 32), tokens=600, seed=1)
    seen: dict[str, list[tuple[int, ...]]] = {}
    for place in ("mitigate.detection.signals.compute", "mitigate.bench.speed.audits"):
        shapes = seen.setdefault(place, [])

        def watched(
            module: torch.nn.Module, ids: torch.Tensor, *rest: torch.Tensor, shapes: list[tuple[int, ...]] = shapes
        ) -> torch.Tensor:
            shapes.append(tuple(ids.shape))
            return kept_logits(module, ids, *rest)

        monkeypatch.setattr(f"{place}.kept_logits", watched)
    bare(models, documents)
    audited(models, documents)
    first, second = seen.values()
    assert len(first) >= 2
    assert sorted(first) == sorted(second)


def test_a_calibrated_audit_has_every_reference_in_the_targets_place() -> None:
    models = random_adapters(SETTINGS, count=9, device=CPU)
    documents = random_documents(SETTINGS, (8, 32), tokens=600, seed=1)
    tokens = sum(len(one.ids) for one in documents)
    signals = calibrated(models, documents)
    whole = audited(models, documents)
    assert signals["log_prob"][1:tokens].shape == whole[1:].shape
    times = len(signals["log_prob"]) / tokens
    assert times >= 1 + 1 + 8, "the target twice, by four and by three, and each of eight references"
    np.testing.assert_allclose(audited_again(models, documents), signals["log_prob"][:tokens], atol=1e-4)


def test_memory_and_processes_are_measured_and_shown() -> None:
    memory = measure_memory([4, 40])
    assert memory["tokens"][1] > 5 * memory["tokens"][0]
    for found in (memory["whole"], memory["parts"]):
        assert found["ratio"] == found["peak_bytes"][1] / found["peak_bytes"][0]
        assert all(peak >= before for peak, before in zip(found["peak_bytes"], found["before_bytes"], strict=True))
    processes = measure_processes(SETTINGS, device="cpu")
    assert processes["speedup"] == processes["seconds"]["1"] / processes["seconds"]["2"] > 0
    table = speed_table({"memory": memory, "processes": processes})
    assert "an audit of 40 documents" in table
    assert "times as fast as by one" in table


def test_compiled_audits_are_timed_where_compiling_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals_of_rows, "devices", ("cpu",))
    monkeypatch.setattr(torch, "compile", lambda rows_of, **_: rows_of)
    found = measure_audits(SETTINGS, device="cpu")
    case = found["cases"]["1 reference"]
    assert case["ratios"]["compiled_of_bare"] == case["seconds"]["compiled"][0] / case["seconds"]["bare"][0]
    assert "compiled" not in found["cases"]["8 references, calibrated"]["seconds"]
    assert speed_table({"audit": found}).count("compiled") == 3
    assert signals_of_rows.after > 0
    monkeypatch.setattr(signals_of_rows, "failed", True)
    assert "compiled" not in speed_table({"audit": measure_audits(SETTINGS, device="cpu")})


def test_processes_that_fail_are_told_with_what_they_said() -> None:
    uneven = SETTINGS.model_copy(update={"model": SETTINGS.model.model_copy(update={"heads": 3})})
    with pytest.raises(MitigateError, match=r"1 processes failed .*hidden size.*multiple of the number of.*heads"):
        measure_processes(uneven, device="cpu")


def test_audits_are_timed_in_turns_and_shown() -> None:
    found = measure_audits(SETTINGS, device="cpu")
    *plain, whole = found["cases"]
    assert (plain, whole) == (["1 reference", "1 reference, short", "4 adapters"], "8 references, calibrated")
    for name, case in found["cases"].items():
        turns = {way: len(seconds) for way, seconds in case["seconds"].items()}
        ways = ("bare", "audit") if name == whole else ("bare", "audit", "one_by_one", "again")
        assert turns == dict.fromkeys(ways, SETTINGS.turns)
        assert case["ratios"]["audit_of_bare"] == case["seconds"]["audit"][0] / case["seconds"]["bare"][0]
    assert found["switching"]["milliseconds"] > 0
    table = speed_table({"audit": found})
    assert "of bare forwards" in table
    assert "re-audit / audit" in table
    assert "switching among 9 adapters of one base" in table
    assert "dense" not in table


@pytest.mark.parametrize(
    ("given", "measured"),
    [
        ((), ["audit", "step"]),
        (("--parts", "step,memory"), ["step", "memory"]),
        (("--parts", "step", "--parts", "memory"), ["step", "memory"]),
    ],
)
def test_no_part_that_was_asked_for_is_dropped(
    mitigate_: Mitigate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: tuple[str, ...], measured: list[str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("mitigate.bench.speed.run.bench_speed", lambda *_, parts, **__: asked.append(parts) or {})
    assert mitigate_("bench", "speed", *given, "--out", tmp_path / "out").status == 0
    assert asked == [measured]
    assert mitigate_("bench", "speed", "--parts", "step,stop").status == 2
