"""Directories of work that goes on where it stopped: each says what it is made from, and takes nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from mitigate.artifacts.files import read_record, write_record
from mitigate.artifacts.locks import sole_worker
from mitigate.artifacts.temporaries import holds_something, sweep
from mitigate.errors import MitigateError
from mitigate.runtime import together

PLAN = "plan.json"


@contextmanager
def planned(
    out: Path,
    plan: Mapping[str, Any],
    state: PartialState,
    *,
    others: str,
    record: str = PLAN,
    remedy: str = "remove the directory and make it again",
) -> Iterator[None]:
    """Hold a directory for this job while the block runs; what a killed job left half-written in it is removed.

    All processes of the job call this.

    Args:
        out: the directory.
        plan: what the work is made from; written to `record` in it, or compared with what is written there.
        state: the processes of the job.
        others: of what the directory may hold instead, for the message.
        record (`str`, *optional*, defaults to `plan.json`): name of the file.
        remedy (*optional*): what to do about a damaged one, for the message.

    Raises:
        MitigateError: the directory holds something else, or another job works there.
    """
    if not (out / record).is_file() and holds_something(out):
        raise MitigateError(f"{out}: already holds something else (no {record}); choose another directory")
    state.wait_for_everyone()  # all have looked before one writes
    with sole_worker(out, state):
        there = (out / record).is_file()
        state.wait_for_everyone()
        if there and read_record(out / record, remedy=remedy) != plan:
            raise MitigateError(f"{out}: holds {others}; choose another directory or remove it")
        with together(state):
            if state.is_main_process:
                if not there:
                    write_record(out / record, plan)
                sweep(out, deep=True)
        yield
