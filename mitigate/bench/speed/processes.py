"""How much faster two processes audit than one, on the clock: the same documents, a thread each on a CPU.

torchrun --nproc_per_node 2 -m mitigate.bench.speed.processes SETTINGS DEVICE SECONDS
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

from mitigate.bench.settings import SpeedSettings
from mitigate.bench.speed.audits import LENGTHS, audited, random_documents, random_model
from mitigate.errors import MitigateError
from mitigate.runtime import process_state


def measure_processes(settings: SpeedSettings, *, device: str) -> dict[str, Any]:
    """Audit with one and with two processes.

    Returns:
        `seconds` of the clock for `1` and `2`, and `speedup`.

    Raises:
        MitigateError: a launch failed.
    """
    seconds = {str(count): _launched(count, settings, device) for count in (1, 2)}
    return {"seconds": seconds, "speedup": seconds["1"] / seconds["2"]}


def _launched(count: int, settings: SpeedSettings, device: str) -> float:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    own = {"OMP_NUM_THREADS": "1"} | ({"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {})
    with tempfile.TemporaryDirectory() as directory:
        written = Path(directory) / "seconds"
        done = subprocess.run(
            [*launch, "-m", __name__, settings.model_dump_json(), device, str(written)],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not written.is_file():
            raise MitigateError(f"bench speed: {count} processes failed ({_failure(done.stderr)})")
        return float(json.loads(written.read_text(encoding="utf-8")))


def _failure(written: str) -> str:
    """What the process that failed wrote last, which stands before all that the launcher writes of it."""
    own = list(takewhile(lambda line: "torch/distributed/elastic" not in line, filter(str.strip, written.splitlines())))
    return own[-1].strip()[:200] if own else "without a word"


def _work(settings: SpeedSettings, device: str, written: Path) -> None:
    """The share of this process, timed from when all are ready."""
    state = process_state(device)
    models = [random_model(settings, seed=seed, device=state.device) for seed in range(2)]
    documents = random_documents(settings, LENGTHS["long"], tokens=settings.tokens, seed=0)
    audited(models, documents[:2])  # the first one also compiles
    state.wait_for_everyone()
    started = time.perf_counter()
    audited(models, documents)
    state.wait_for_everyone()
    if state.is_main_process:
        written.write_text(json.dumps(time.perf_counter() - started), encoding="utf-8")
    state.destroy_process_group()  # without it a process may abort while it ends


if __name__ == "__main__":
    _work(SpeedSettings.model_validate_json(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
