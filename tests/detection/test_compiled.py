"""Compiled signals: what the plain computation says, or the plain computation."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mitigate.detection.signals.compiled import CompiledRows
from mitigate.detection.signals.vocabulary import Columns, row_log_probs, row_signals

SIZE = 300
COMPARED = [(7, (2, 5)), (7, (5, 9)), (2, ())]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler, without which a CPU has none")


def given(rows: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[dict[int, Any], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = {number: (3 * torch.randn(rows, SIZE, generator=generator)).to(dtype) for number in (2, 5, 7, 9)}
    return logits, torch.randint(SIZE, (rows,), generator=generator)


def assert_equal(found: list[Columns], expected: list[Columns]) -> None:
    for own, columns in zip(found, expected, strict=True):
        assert own.keys() == columns.keys()
        for name in columns:
            torch.testing.assert_close(own[name], columns[name], rtol=1e-4, atol=1e-4, equal_nan=True, msg=name)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_signals_are_those_of_the_plain_computation(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mitigate.detection.signals.vocabulary._CPU_CHUNK", 4 * SIZE * 8)  # 8 rows a chunk
    compiled = CompiledRows(row_signals, after=0, devices=["cpu"])
    with torch.inference_mode():
        for seed, rows in enumerate((19, 17, 1, 8, 30)):
            logits, targets = given(rows, seed=seed, dtype=dtype)
            logits[5][0, 3] = -torch.inf
            logits[9][rows // 2] = torch.nan
            assert_equal(compiled(logits, targets, COMPARED), row_signals(logits, targets, COMPARED))
            other = [(9, (7, 2)), (9, (2, 5)), (7, ())]  # of the same kind: the same kernel
            assert_equal(compiled(logits, targets, other), row_signals(logits, targets, other))
    assert not compiled.failed
    assert list(compiled._compared.values()) == [True]


@needs_compiler
def test_settings_are_compiled_too() -> None:
    compiled, log_probs = (CompiledRows(each, after=0, devices=["cpu"]) for each in (row_signals, row_log_probs))
    logits, targets = given(6)
    for settings in ({"temperature": 2.0, "offline_a": 1.0}, {"temperature": 1.0, "offline_a": 0.3}):
        for _ in range(2):
            found = compiled(logits, targets, COMPARED[:1], **settings)
            assert_equal(found, row_signals(logits, targets, COMPARED[:1], **settings))
    for _ in range(2):
        assert_equal(log_probs(logits, targets, COMPARED), row_log_probs(logits, targets, COMPARED))
    assert not any(each.failed for each in (compiled, log_probs))
    assert len(compiled._compared) == 2


def test_nothing_is_compiled_before_it_pays_nor_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        asked.append(function)
        return function

    monkeypatch.setattr(torch, "compile", counted)
    logits, targets = given(5)
    read = 4 * 5 * SIZE
    late = CompiledRows(row_signals, after=2 * read, devices=["cpu"])
    for call in range(4):
        assert_equal(late(logits, targets, COMPARED), row_signals(logits, targets, COMPARED))
        assert len(asked) == (call >= 2)
    CompiledRows(row_signals, after=0)(logits, targets, COMPARED)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda rows: [{name: column + 0.01 for name, column in own.items()} for own in rows], "says something else"),
        (lambda _: 1 / 0, "division by zero"),
    ],
)
def test_what_cannot_be_compiled_or_says_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Callable[..., Any], said: str
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *rows, **own: fault(function(*rows, **own)))
    compiled = CompiledRows(row_signals, after=0, devices=["cpu"])
    logits, targets = given(5)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert_equal(compiled(logits, targets, COMPARED), row_signals(logits, targets, COMPARED))
    assert compiled.failed
    [line] = caplog.messages
    assert "goes on without them, slower" in line
    assert said in line


def test_of_many_kinds_the_first_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[int] = []

    def counted(logits: Any, targets: Any, compared: Any, *, whole: bool) -> list[Columns]:
        kinds.append(len(compared))
        return row_signals(logits, targets, compared)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: counted)
    compiled = CompiledRows(row_signals, after=0, devices=["cpu"])
    logits, targets = given(5)
    for _ in range(2):
        for count in range(1, 10):
            assert_equal(
                compiled(logits, targets, COMPARED[:1] * count), row_signals(logits, targets, COMPARED[:1] * count)
            )
    assert kinds == [1, 2, 3, 4, 5, 6] * 2
    assert not compiled.failed


def test_too_little_memory_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: full)
    compiled = CompiledRows(row_signals, after=0, devices=["cpu"])
    with pytest.raises(torch.OutOfMemoryError):
        compiled(*given(5), COMPARED)
    assert not compiled.failed
