"""Where things run: processes, device, number format and progress."""

from __future__ import annotations

import logging
import os
import random
import re
import resource
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, gather_object, parse_flag_from_env, reduce
from tqdm import tqdm

from mitigate.errors import MitigateError

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
LINE_EVERY = 60.0  # seconds between two lines of progress where there is no terminal
_PATIENCE = timedelta(days=7)  # a process whose share of models is fitted waits for those that still fit theirs
_OTHER_ENGINES = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
_NOT_TAKEN = {  # of `accelerate config` -> what they are called there, and what it is here
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision", "number formats are models.dtype's business"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", "models are run as they are"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", "steps are cut to fit by themselves"),
}


def process_state(device: str = "auto") -> PartialState:
    """The processes of this run: one, or those that torchrun or `accelerate launch` started.

    Args:
        device (`str`, *optional*, defaults to `auto`): `auto` takes an accelerator where there is one.

    Raises:
        MitigateError: launched with an engine that would train something else.
    """
    if not PartialState._shared_state:
        _check_launch()
    on_cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not _has_accelerator()
    if on_cpu:  # without the flag, processes on CPUs would each believe to be alone
        return PartialState(cpu=True, timeout=_PATIENCE)
    return PartialState(timeout=_PATIENCE)


def _has_accelerator() -> bool:
    """Whether there is one that knows float64, in which sums are taken: Apple's does not."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found is not None and found.type != "mps"


def _check_launch() -> None:
    for variable, name in _OTHER_ENGINES.items():
        if parse_flag_from_env(variable):
            raise MitigateError(
                f"launched with {name}, which would end a step at the first of its losses: launch with "
                "recipes/accelerate/ddp.yaml, or with fsdp2.yaml to spread the weights"
            )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise MitigateError(
            "launched with FSDP 1, which cannot hold an adapter beside frozen weights: set fsdp_version: 2, as "
            "recipes/accelerate/fsdp2.yaml does"
        )


def make_accelerator(device: torch.device) -> Accelerator:
    """Processes and shards as they were launched; of `accelerate config`, what would train something else is not taken.

    Raises:
        MitigateError: the process has an accelerator already that is not such a one.
    """
    for variable, (key, instead) in _NOT_TAKEN.items():
        if (value := os.environ.get(variable, "no").lower()) not in ("no", "1"):
            logger.warning("%s: %s of the launch is not taken; %s", key, value, instead)
    try:
        made = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",
            dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    except ValueError as error:
        raise MitigateError(
            f"accelerate was set up before, otherwise: unlearn in a process of its own ({error})"
        ) from None
    if made.device.type != device.type:
        raise MitigateError(
            f"device: the model is on {device.type}, and this process was set up for {made.device.type}: unlearn "
            "there, or in a process of its own"
        )
    return made


def resolve_device(device: str = "auto") -> torch.device:
    """The device of this process.

    Raises:
        MitigateError: the name is not a device, or there is none such.
    """
    if device == "auto":
        return torch.device(process_state(device).device)
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise MitigateError(f"device: {device!r} cannot be used ({error}); use auto, cpu or cuda:N") from None
    state = process_state(resolved.type)
    if resolved.type == "cpu":
        return resolved
    if state.num_processes > 1:
        if resolved.index not in (None, state.device.index):
            raise MitigateError(f"device: {device}, but each of the processes has a device of its own; give auto")
        return torch.device(state.device)
    if resolved.index is not None:
        torch.accelerator.set_device_index(resolved.index)  # what names no index means this one
    return resolved


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    if not PartialState._shared_state:
        return os.environ.get("RANK", "0") == "0"
    return PartialState().is_main_process


class _Lines(tqdm):
    """Progress where there is no terminal: a line of the log at least every minute, none of work that takes less."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:
            logger.info("%s", self)


@contextmanager
def progress(total: int | None, description: str, *, unit: str = "it") -> Iterator[tqdm]:
    """A progress bar with ETA on the main process's terminal; without one, a line every minute; silent elsewhere.

    Without a total, what is done and for how long.
    """
    if sys.stderr.isatty() or not is_main():
        bar = tqdm(total=total, desc=description, unit=unit, disable=not is_main(), leave=False)
    else:
        bar = _Lines(
            total=total,
            desc=description,
            unit=unit,
            leave=False,
            delay=LINE_EVERY,
            mininterval=LINE_EVERY,
            miniters=1,
            bar_format="{desc}: {n_fmt} {unit}, {elapsed} so far"
            if total is None
            else "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} so far, about {remaining} to go",
        )
    with bar:
        yield bar


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, so that a stage gives the same result in every run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def share_of(items: Iterable[Item], state: PartialState) -> list[Item]:
    """This process's share of `items`: every n-th, so that neighbours of like length spread evenly."""
    return [item for number, item in enumerate(items) if number % state.num_processes == state.process_index]


def gathered(found: Sequence[tuple[int, Item]], state: PartialState) -> list[Item]:
    """What all processes found, in the order of its numbers; the same in each of them."""
    everyones = gather_object(list(found)) if state.num_processes > 1 else found
    return [item for _, item in sorted(everyones, key=lambda one: one[0])]


def merge_rows(columns: Mapping[str, np.ndarray], written: np.ndarray, state: PartialState) -> None:
    """Give every process the rows that others wrote, bit for bit; what none wrote stays as it is.

    Args:
        columns: (N, ...) float32 arrays, of equal N and in equal order in all processes.
        written: (N,) bool, the rows that this process wrote; afterwards, those that any did.

    Raises:
        RuntimeError: two processes wrote the same row.
    """
    mine = written.copy()
    for rows in _chunks(len(mine)):
        count = _summed(mine[rows].astype(np.int32), state)
        if (count > 1).any():
            raise RuntimeError(f"row {rows.start + int((count > 1).argmax())} was written by two processes")
        written[rows] = count > 0
    for column in columns.values():
        for rows in _chunks(len(mine)):
            bits = column[rows].view(np.int32)
            own = mine[rows].reshape(-1, *[1] * (column.ndim - 1))
            kept = written[rows].reshape(own.shape)
            bits[...] = np.where(kept, _summed(np.where(own, bits, 0), state), bits)


def _summed(values: np.ndarray, state: PartialState) -> np.ndarray:
    """The sum over all processes, of integers and so exact."""
    total: torch.Tensor = reduce(torch.from_numpy(values).to(state.device), reduction="sum")
    return total.cpu().numpy()


def _chunks(rows: int, size: int = 1 << 20) -> Iterator[slice]:
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


@contextmanager
def together(state: PartialState) -> Iterator[None]:
    """What fails in one process fails in all, where the others would wait for it without end.

    The block is one process's own work, without anything that processes do in common; all wait at its end.

    Raises:
        MitigateError: the block failed in another process.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must hear of it; it is raised again below
        failure = error
    if state.num_processes > 1:
        said = gather_object([None if failure is None else str(failure) or type(failure).__name__])
        others = [message for message in said if message is not None]
        if failure is None and others:
            raise MitigateError(others[0])
    if failure is not None:
        raise failure


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: of a GPU those that torch allocated, else those that this process had resident."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else peak_resident_bytes()


def memory_of(device: torch.device) -> int:
    """Bytes that a GPU has in all, or that are to be had on this machine's host."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    memory = Path("/proc/meminfo")
    if memory.is_file() and (found := re.search(r"MemAvailable:\s*(\d+) kB", memory.read_text(encoding="ascii"))):
        return 1024 * int(found[1]) + peak_resident_bytes()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_resident_bytes() -> int:
    """The most memory that this process had resident; `ru_maxrss`, where Linux says nothing, may be its parent's."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"))):
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a figure."""
    from importlib.metadata import PackageNotFoundError, version

    def known(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    names = ("mitigate", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")
    return {"python": ".".join(map(str, sys.version_info[:3])), **{name: known(name) for name in names}}


def quiet_libraries() -> None:
    """Keep the libraries' own bars and advice out of the output; warnings of ours go through logging."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT's business
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for each matrix product in 8 bits
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    disable: Any = getattr(transformers.logging, "disable_progress_bar", None)
    if disable is not None:
        disable()
