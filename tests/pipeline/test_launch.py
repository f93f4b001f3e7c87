"""What `accelerate config` may say, and what of it would train something else."""

from __future__ import annotations

import logging

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from mitigate.errors import MitigateError
from mitigate.runtime import make_accelerator, process_state

CPU = torch.device("cpu")


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not asked for its state yet."""
    for state in (PartialState, AcceleratorState):
        monkeypatch.setattr(state, "_shared_state", {})


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "launched with DeepSpeed, .*fsdp2.yaml"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "launched with Megatron-LM"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP 1.*fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP 1"),
    ],
)
def test_engines_that_would_train_something_else_are_refused(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MitigateError, match=said):
        process_state("cpu")


@pytest.mark.usefixtures("anew")
def test_of_the_launch_only_processes_and_shards_are_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with caplog.at_level(logging.WARNING, logger="mitigate"):
        made = make_accelerator(CPU)
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "mixed_precision",
        "dynamo_backend",
        "gradient_accumulation_steps",
    ]
    assert made.mixed_precision == "no"
    weight = torch.nn.Parameter(torch.ones(1))
    made.backward(3 * weight.sum())
    assert weight.grad is not None
    assert weight.grad.item() == 3, "not divided by the steps of the launch"
    module = torch.nn.Linear(2, 2)
    assert made.prepare(module) is module, "neither compiled nor cast"


@pytest.mark.usefixtures("anew")
def test_an_ordinary_launch_says_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name, value in (("MIXED_PRECISION", "no"), ("DYNAMO_BACKEND", "NO"), ("GRADIENT_ACCUMULATION_STEPS", "1")):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    with caplog.at_level(logging.WARNING, logger="mitigate"):
        process_state("cpu")
        make_accelerator(CPU)
    assert not caplog.messages


@pytest.mark.usefixtures("anew")
def test_an_accelerator_that_was_set_up_otherwise_is_refused() -> None:
    Accelerator(cpu=True, mixed_precision="bf16")
    with pytest.raises(MitigateError, match="accelerate was set up before, otherwise"):
        make_accelerator(CPU)
