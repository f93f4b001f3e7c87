"""Kill a run again and again; the same command must then end in the bytes of a run that nobody killed, and no residue.

    make soak                      # 100 kills at random moments and one at every rename
    make soak KILLS=10 RENAMES=8   # fewer; JOBS=1 for one at a time, SEED=1 for other moments

The run is that of a tiny recipe with every stage of the lab's, forked from a process that has imported everything.
Kills are SIGKILL: nothing is cleaned up by the killed process. Exits with status 1 if anything differs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {
    "name": "soak",
    "out": "run",
    "lab": {
        "people": {"copies": {0: 1, 1: 1, 2: 1}, "forget_share": 0.5},
        "base": {
            "vocabulary": 400,
            "hidden_size": 16,
            "layers": 1,
            "heads": 2,
            "schedule": {"epochs": 0.5, "batch_size": 16},
        },
        "base_documents": 30,
        "target": {"schedule": {"epochs": 1, "learning_rate": 3e-3}},
    },
    "references": {"count": 2, "schedule": {"epochs": 1, "learning_rate": 3e-3}},
    "detect": {"select": "known"},
    "unlearn": {"max_steps": 5, "check_every": 2, "checkpoint_every": 1, "stop_at_control": False},
}
TIMED = (
    "created",
    "seconds",
    "tokens_per_second",
)  # keys of report.json and run.json that name times, and nothing else may differ


def run_tiny() -> None:
    """The whole recipe, in the working directory."""
    import torch

    from mitigate.pipeline.run import run
    from mitigate.recipe.loading import check_recipe
    from mitigate.runtime import quiet_libraries

    torch.set_num_threads(1)
    quiet_libraries()
    run(check_recipe(TINY))


def without_times(folder: Path) -> dict[str, bytes]:
    """The bytes of all files under a directory by name; of the run's record and the report, all but times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        if path.name == "report.json":
            data = _json({key: value for key, value in json.loads(data).items() if key not in TIMED})
        elif path.name == "report.html":
            page = re.sub(r"<h3>Time</h3>\s*<dl.*?</dl>", "", data.decode(), flags=re.DOTALL)
            data = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "", page).encode()
        elif path.name == "run.json":  # its own digest, and those of the report, go with the times
            record = {key: value for key, value in json.loads(data).items() if key not in ("digest", "results")}
            for stage in record["stages"].values():
                del stage["seconds"]
            data = _json(record)
        found[name] = data
    return found


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


class Renames:
    """Counts the renames of this process, and kills it just before or just after one of them."""

    def __init__(self, *, kill_at: int | None = None, after: bool = False) -> None:
        self.count, self.kill_at, self.after = 0, kill_at, after
        os.rename, os.replace = self._counted(os.rename), self._counted(os.replace)

    def _counted(self, real: Callable[..., None]) -> Callable[..., None]:
        def rename(*arguments: Any, **options: Any) -> None:
            now = self.count == self.kill_at
            self.count += 1
            if now and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*arguments, **options)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)

        return rename


def forked(folder: Path, work: Callable[[], None]) -> int:
    """Fork a process that works in a directory; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.chdir(folder)
        work()
        status = 0
    except BaseException as error:
        print(f"{folder.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Wait for a process: its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole_run(folder: Path) -> tuple[int, float]:
    """Run without a kill: how many renames, and how many seconds. What it imports is imported here, for later forks."""

    def work() -> None:
        renames = Renames()
        run_tiny()
        Path("seen.json").write_text(json.dumps([renames.count, sorted(sys.modules)]))

    for _ in range(2):  # the second one's time is that of all later ones
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        started = time.monotonic()
        if ended(forked(folder, work)) != 0:
            raise SystemExit("soak: the run fails without being killed")
        seconds = time.monotonic() - started
        count, modules = json.loads((folder / "seen.json").read_text())
        for module in modules:
            with contextlib.suppress(Exception):  # one that cannot be imported by itself is imported with another
                importlib.import_module(module)
    (folder / "seen.json").unlink()
    return count, seconds


def killed_run(folder: Path, kill: dict[str, Any]) -> bool:
    """Start a run and kill it; whether it was killed (or had ended before)."""
    if "rename" in kill:

        def work() -> None:
            Renames(kill_at=kill["rename"], after=kill["after"])
            run_tiny()

        return ended(forked(folder, work)) == -signal.SIGKILL
    child = forked(folder, run_tiny)
    time.sleep(kill["seconds"])
    os.kill(child, signal.SIGKILL)
    return ended(child) == -signal.SIGKILL


def faults_after(root: Path, kill: dict[str, Any], expected: dict[str, bytes]) -> tuple[bool, list[str]]:
    """Kill a run, give the command again, and compare: whether it was killed, and what is wrong then."""
    folder = Path(tempfile.mkdtemp(dir=root))
    killed = killed_run(folder, kill)
    if ended(forked(folder, run_tiny)) != 0:
        return killed, [f"{kill}: the command that was given again fails, see {folder}"]
    got = without_times(folder)
    faults = [f"{kill}: {name} is left over" for name in sorted(got.keys() - expected.keys())]
    faults += [f"{kill}: {name} is missing" for name in sorted(expected.keys() - got.keys())]
    faults += [
        f"{kill}: {name} differs" for name in sorted(got.keys() & expected.keys()) if got[name] != expected[name]
    ]
    if not faults:
        shutil.rmtree(folder)
    return killed, faults


def soak(root: Path, *, kills: int, renames: int | None, jobs: int, seed: int) -> int:
    """Do it all and print the count.

    Args:
        root: an empty directory.
        kills: at random moments.
        renames: at so many renames, evenly spread; None for every one.
        jobs: how many runs at a time.
        seed: of the moments.

    Returns:
        the exit status.
    """
    count, seconds = whole_run(root / "whole")
    expected = without_times(root / "whole")
    draw = random.Random(seed)
    at = range(count) if renames is None else [number * count // renames for number in range(min(renames, count))]
    plan: list[dict[str, Any]] = [{"rename": number, "after": draw.random() < 0.5} for number in at]
    plan += [{"seconds": round(draw.uniform(0, seconds), 3)} for _ in range(kills)]
    print(f"{len(expected)} files, {count} renames, {seconds:.1f} s a run; {len(plan)} kills", flush=True)
    workers = []
    for job in range(jobs):
        (root / f"job-{job}").mkdir()

        def work(job: int = job) -> None:
            results = []
            for kill in plan[job::jobs]:
                results.append(faults_after(Path.cwd(), kill, expected))
                Path("results.json").write_text(json.dumps(results))

        workers.append(forked(root / f"job-{job}", work))
    statuses = [ended(worker) for worker in workers]
    results = [result for job in range(jobs) for result in json.loads((root / f"job-{job}/results.json").read_text())]
    faults = [fault for _, found in results for fault in found]
    for fault in faults:
        print(fault)
    killed = sum(was_killed for was_killed, _ in results)
    good = sum(not found for _, found in results)
    residues = sum("left over" in fault for fault in faults)
    print(
        f"{len(plan)} kills ({killed} before the run had ended): {good} resumed to equal bytes, {residues} residues",
        flush=True,
    )
    return 0 if good == len(plan) and not any(statuses) else 1


def main() -> None:
    """Read the options from the environment."""
    logging.disable(logging.WARNING)
    import mitigate.pipeline.run
    import mitigate.recipe.loading  # noqa: F401 - both before the forks, which then import nothing

    renames = os.environ.get("RENAMES", "all")
    with tempfile.TemporaryDirectory() as root:
        sys.exit(
            soak(
                Path(root),
                kills=int(os.environ.get("KILLS", "100")),
                renames=None if renames == "all" else int(renames),
                jobs=int(os.environ.get("JOBS", "2")),
                seed=int(os.environ.get("SEED", "0")),
            )
        )


if __name__ == "__main__":
    main()
