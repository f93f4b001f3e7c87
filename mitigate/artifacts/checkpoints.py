"""Checkpoints of a training loop: the newest two, each a directory that appears when it is whole.

    out.partial/step-000200/state.json               step, plan and whatever else is no tensor
    out.partial/step-000200/tensors.safetensors      trained weights, optimizer, random state
    out.partial/step-000200/digests.json

Tensors are never pickled, so reading a checkpoint runs no code. One that is not as it was written is set aside under
the name `step-N.damaged`, and the one before it is taken.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from mitigate.artifacts.files import damage, new_directory, read_json, write_json
from mitigate.artifacts.temporaries import discard, remove, sweep
from mitigate.runtime import process_state, together

logger = logging.getLogger(__name__)
_STATE, _TENSORS = "state.json", "tensors.safetensors"
_KEPT = 2


class Checkpoints:
    """The checkpoints in one directory.

    Args:
        directory: where they lie; made with the first one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, step: int, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Write one, and remove all but the newest two.

        Args:
            step: how many steps were done.
            state: what JSON can hold.
            tensors: by name; on any device.
        """
        with new_directory(self.directory / f"step-{step:06}", replace=True) as made:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, made / _TENSORS)
            write_json(made / _STATE, {"step": step, **state})
        for older in self._found()[:-_KEPT]:
            discard(older)

    def mend(self) -> None:
        """Set damaged ones aside, and remove what a killed process left; one process calls this before `newest`."""
        sweep(self.directory)
        for path in self._found():
            wrong = damage(path) if (path / "digests.json").is_file() else ["digests.json is missing"]
            if wrong:
                aside = path.with_name(f"{path.name}.damaged")
                remove(aside)
                path.rename(aside)
                logger.warning("%s: %s; set aside as %s", path, wrong[0], aside.name)

    def newest(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """State and tensors (on the CPU) of the newest checkpoint, None if there is none."""
        found = self._found()
        if not found:
            return None
        return read_json(found[-1] / _STATE), load_file(found[-1] / _TENSORS)

    def forget(self) -> None:
        """Remove all of them, the damaged ones too."""
        if self.directory.is_dir():
            sweep(self.directory)
            for path in self.directory.glob("step-*"):
                shutil.rmtree(path)
            if not any(self.directory.iterdir()):
                self.directory.rmdir()

    def _found(self) -> list[Path]:
        numbered = [path for path in self.directory.glob("step-*") if path.name.removeprefix("step-").isdigit()]
        return sorted(numbered, key=lambda path: int(path.name.removeprefix("step-")))


def open_checkpoints(
    directory: Path, accelerator: Accelerator, *, resume: bool
) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """The newest undamaged checkpoint, if there is any; every process must call it.

    Args:
        directory: of the checkpoints.
        accelerator: the processes.
        resume: False removes those that are there.
    """
    state, checkpoints = process_state(accelerator.device.type), Checkpoints(directory)
    with together(state):
        if accelerator.is_main_process:
            if resume:
                checkpoints.mend()
            else:
                checkpoints.forget()
    state.wait_for_everyone()
    return checkpoints.newest()


def parts_named(tensors: Mapping[str, torch.Tensor], of: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with a word and a point, without these."""
    return {name.removeprefix(f"{of}."): tensor for name, tensor in tensors.items() if name.startswith(f"{of}.")}


def optimizer_parts(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """An optimizer's `state_dict` as what JSON can hold and the tensors."""
    tensors, rest = {}, {}
    for number, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
            else:
                rest[f"{number}.{name}"] = value
    return {"groups": state["param_groups"], "rest": rest}, tensors


def optimizer_state(parts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The `state_dict` that `optimizer_parts` took apart."""
    named = parts_named(tensors, "optimizer")
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**named, **parts["rest"]}.items():
        number, _, entry = name.partition(".")
        state.setdefault(int(number), {})[entry] = value
    groups = [{name: tuple(v) if name == "betas" else v for name, v in group.items()} for group in parts["groups"]]
    return {"state": state, "param_groups": groups}
