"""`bench speed`: the savings change nothing but time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from mitigate.detection.audit import Audit
from mitigate.lab.bench.speed import (
    SpeedSettings,
    dense_steps,
    make_speed_world,
    measure_variant,
    speed_loop,
    speed_table,
)
from mitigate.lab.tiny import TinyModel
from mitigate.training import Lora

SETTINGS = SpeedSettings(
    model=TinyModel(vocabulary=600, hidden_size=16, layers=1, heads=2, context=256),
    forget=3,
    retain=3,
    batch_size=2,
    kept_entries=600,
    lora=Lora(rank=2, alpha=4),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("speed")
    make_speed_world(root, SETTINGS, device="cpu")
    return root


def test_sparse_steps_have_the_losses_of_dense_ones(out: Path) -> None:
    found = Audit.load(out / "audit")
    sparse = speed_loop(found, SETTINGS, device="cpu", checkpointed=False, out=out)
    dense = dense_steps(found, SETTINGS, device="cpu")
    for number in range(3):
        assert sparse.step(number) == pytest.approx(dense(number), rel=1e-4)


def test_checkpointed_steps_have_the_losses_of_others(out: Path) -> None:
    found = Audit.load(out / "audit")
    loops = [
        speed_loop(found, SETTINGS, device="cpu", checkpointed=checkpointed, out=out) for checkpointed in (False, True)
    ]
    for number in range(2):
        assert loops[0].step(number) == pytest.approx(loops[1].step(number), rel=1e-4)


def test_a_variant_is_measured_and_shown(out: Path) -> None:
    variants = {name: measure_variant(out, name, SETTINGS, 2, "cpu") for name in ("sparse", "dense")}
    for found in variants.values():
        assert len(found["seconds"]) == 2
        assert min(found["seconds"]) <= found["seconds_per_step"] <= max(found["seconds"])
        assert found["peak_bytes"] > 1 << 20
    keys = ("seconds_per_step", "peak_bytes")
    ratios = {name: {key: found[key] / variants["dense"][key] for key in keys} for name, found in variants.items()}
    table = speed_table({"variants": variants, "ratios": ratios, "loss_difference": 1e-4})
    assert "sparse" in table
    assert "1.00 time 1.00 memory" in table
