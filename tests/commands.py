"""Runs of the command line and of tiny recipes, in this process and in two."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitigate.recipe.loading import check_recipe
from mitigate.recipe.schema import Recipe

FIRST = {"epochs": 1, "learning_rate": 3e-3}


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


def tiny_recipe(**changes: Any) -> Recipe:
    """The lab's people, a base of a few thousand parameters, and nothing that takes more than a second."""
    values: dict[str, Any] = {
        "name": "tiny",
        "out": "run",
        "lab": {
            "people": {"copies": {0: 2, 1: 2, 2: 2}, "forget_share": 0.5},
            "base": {
                "vocabulary": 400,
                "hidden_size": 16,
                "layers": 1,
                "heads": 2,
                "schedule": {"epochs": 1, "batch_size": 16},
            },
            "base_documents": 40,
            "target": {"schedule": FIRST},
        },
        "references": {"count": 2, "schedule": FIRST},
        "detect": {"select": "known"},
        "unlearn": {"max_steps": 4, "check_every": 2, "checkpoint_every": 2, "stop_at_control": False},
    }
    return check_recipe({**values, **changes})


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Relative paths, which end up in artifacts, then are the same in every folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def contents(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob(pattern) if file.is_file()}


def modified(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


Mitigate = Callable[..., Outcome]


def launch_two(script: Path, *arguments: Path, processes: int = 2) -> None:
    """Run a script in two processes (or so many) of one thread each on CPUs."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *launch, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr  # the process that failed first wrote first
