"""Unlearn with the weights in shards over two processes, cut it short and go on; for test_processes.

torchrun --nproc_per_node 2 sharded.py AUDIT OUT

On CPUs accelerate shards nothing, so that its `prepare` is done here by what it calls on GPUs: `fully_shard` of each
layer and of the whole, and the optimizer over the parameters that come of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from world import LORA

from mitigate.artifacts.temporaries import partial_of
from mitigate.detection.record import Audit
from mitigate.models.inside.layers import decoder_layers
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state, quiet_libraries
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainer import unlearn
from mitigate.unlearning.training.loop import Loop

SHARED: dict[str, Any] = {"check_every": 2, "checkpoint_every": 2, "batch_size": 3, "retain_batch_size": 4}
SETTINGS = {
    "lora": Unlearn(**SHARED, max_steps=5, rounds=2, lora=LORA, learning_rate=1e-3),
    "full": Unlearn(**SHARED, max_steps=5, method="full", learning_rate=1e-3),
}
CUT_AT = 4  # step of the last round


def in_shards(accelerator: Accelerator, module: Any, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """As `Accelerator.prepare` under FSDP 2."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    for layer in decoder_layers(module):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    new = dict(module.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [new[names[parameter]] for parameter in group["params"]]
    return module, AcceleratedOptimizer(optimizer, device_placement=False)


def cut_short(audit: Audit, out: Path, settings: Unlearn) -> None:
    """Unlearn until a step of the last round is reached, and end there as an interruption does."""
    step = Loop.step

    def until(loop: Loop, number: int) -> float:
        if number == CUT_AT and len(loop.rounds) + 1 == (settings.rounds if settings.method == "lora" else 1):
            raise KeyboardInterrupt
        return step(loop, number)

    Loop.step = until  # type: ignore[method-assign]
    try:
        unlearn(audit, out=out, settings=settings, store=ModelStore(device="cpu"))
    except KeyboardInterrupt:
        assert any(partial_of(out).glob("step-*"))
    finally:
        Loop.step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    quiet_libraries()
    Accelerator.prepare = in_shards  # type: ignore[assignment,method-assign]
    audit, out = Audit.load(sys.argv[1]), Path(sys.argv[2])
    for name, settings in SETTINGS.items():
        unlearn(audit, out=out / name, settings=settings, store=ModelStore(device="cpu"))
        cut_short(audit, out / f"{name} cut", settings)
        unlearn(audit, out=out / f"{name} cut", settings=settings, store=ModelStore(device="cpu"))
    process_state().destroy_process_group()
