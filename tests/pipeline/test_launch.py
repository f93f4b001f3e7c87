"""What `accelerate config` may say, and what of it would train something else."""

from __future__ import annotations

import logging

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from mitigate.errors import MitigateError
from mitigate.runtime import make_accelerator, process_state, resolve_device

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


class Elsewhere:
    """A process whose state is that of a GPU."""

    def __init__(self, device: str, processes: int = 1) -> None:
        self.device, self.num_processes = torch.device(device), processes


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if there were GPUs: returns what is made the current one."""
    current: list[int] = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    return current


def state_of(monkeypatch: pytest.MonkeyPatch, state: Elsewhere) -> None:
    monkeypatch.setattr("mitigate.runtime.process_state", lambda device="auto": state)


def test_the_cpu_is_the_cpu_where_the_process_is_on_a_gpu(monkeypatch: pytest.MonkeyPatch, on_gpus: list[int]) -> None:
    state_of(monkeypatch, Elsewhere("cuda:0"))
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto") == torch.device("cuda:0")
    assert not on_gpus


def test_a_gpu_that_is_named_is_the_current_one(monkeypatch: pytest.MonkeyPatch, on_gpus: list[int]) -> None:
    state_of(monkeypatch, Elsewhere("cuda"))
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert on_gpus == [1]


def test_each_of_several_processes_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch, on_gpus: list[int]) -> None:
    state_of(monkeypatch, Elsewhere("cuda:1", processes=2))
    assert resolve_device("cuda") == resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(MitigateError, match="device: cuda:0, but each of the processes has a device of its own"):
        resolve_device("cuda:0")
    assert not on_gpus


@pytest.mark.usefixtures("anew")
def test_a_model_elsewhere_than_the_process_is_not_trained() -> None:
    process_state("cpu")
    with pytest.raises(MitigateError, match="the model is on cuda, and this process was set up for cpu"):
        make_accelerator(torch.device("cuda:0"))
