"""The stages of a run: done once, known by what they were made from, and gone on with after an interruption.

A stage is known by a fingerprint of its settings and inputs; one whose fingerprint is unchanged, and whose output is
there, is skipped. `out/run.json` holds the recipe and what each stage was made from.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from mitigate import __version__
from mitigate.artifacts import fingerprint, read_json, write_json
from mitigate.errors import MitigateError

logger = logging.getLogger(__name__)
RUN = "run.json"
_IDENTITY = ("name", "seed", "data", "models", "lab")  # of a recipe: with another of these it is another run


class Stages:
    """A run's directory and the record of its stages.

    Args:
        out: the directory.
        recipe: as JSON.
        state: the processes; all of them make the same calls.
        replace: empty the directory first, if it holds a run.

    Raises:
        MitigateError: it holds another run, or something that is no run.
    """

    def __init__(self, out: Path, recipe: Mapping[str, Any], *, state: PartialState, replace: bool) -> None:
        self.out, self.state = out, state
        if state.is_main_process:
            self.record = self._open(recipe, replace=replace)
        state.wait_for_everyone()
        if not state.is_main_process:
            self.record = read_json(out / RUN)

    def run(
        self,
        name: str,
        inputs: list[Any],
        make: Callable[[], object],
        output: Path,
        *,
        every_process: bool = False,
        resumable: bool = False,
    ) -> None:
        """Run a stage unless its output is there, made from the same inputs.

        Args:
            name: of the stage.
            inputs: all that decides the output.
            make: makes the output.
            output: file or directory; of other inputs, it is removed before.
            every_process: call `make` in all processes, not only in the first.
            resumable: leave an unfinished output of the same inputs for `make` to go on with.
        """
        key = fingerprint([__version__, *inputs])
        done = self.record["stages"].get(name)
        current = done is not None and done["fingerprint"] == key
        self.state.wait_for_everyone()  # all decide before anyone writes
        if current and done["complete"] and output.exists():
            logger.info("%s: unchanged, skipped", name)
            return
        logger.info("%s", name)
        before = done["seconds"] if current else 0.0
        if not (resumable and current) and self.state.is_main_process and output.is_dir():
            shutil.rmtree(output)
        if not current and self.state.is_main_process:  # a checkpoint made from other inputs
            shutil.rmtree(output.with_name(f"{output.name}.partial"), ignore_errors=True)
        self._note(name, key, before, complete=False)
        self.state.wait_for_everyone()
        started = time.monotonic()
        if every_process or self.state.is_main_process:
            make()
        self.state.wait_for_everyone()
        self._note(name, key, before + time.monotonic() - started, complete=True)

    def seconds(self) -> dict[str, float]:
        """What each stage took, over all its interruptions."""
        return {stage: entry["seconds"] for stage, entry in self.record["stages"].items()}

    def _open(self, recipe: Mapping[str, Any], *, replace: bool) -> dict[str, Any]:
        """Make or check the directory."""
        identity = fingerprint([recipe[key] for key in _IDENTITY])
        if self.out.exists() and not self.out.is_dir():
            raise MitigateError(f"{self.out}: a file, not a directory; choose another out=")
        if replace and self.out.exists():
            if not (self.out / RUN).is_file() and any(self.out.iterdir()):
                raise MitigateError(
                    f"{self.out}: not a run (no {RUN}), so --replace leaves it alone; choose another out="
                )
            shutil.rmtree(self.out)
        record: dict[str, Any] = {"identity": identity, "stages": {}}
        if (self.out / RUN).is_file():
            record = read_json(self.out / RUN)
            if record["identity"] != identity:
                raise MitigateError(
                    f"{self.out}: holds another run ({record['recipe']['name']!r}, other data, models or seed); "
                    "choose another out=, or start it anew with --replace"
                )
        elif self.out.exists() and any(self.out.iterdir()):
            raise MitigateError(f"{self.out}: not empty, and not a run of this tool (no {RUN}); choose another out=")
        record["recipe"] = dict(recipe)
        write_json(self.out / RUN, record)
        self.out.chmod(0o700)
        return record

    def _note(self, name: str, key: str, seconds: float, *, complete: bool) -> None:
        self.record["stages"][name] = {"fingerprint": key, "seconds": round(seconds, 2), "complete": complete}
        if self.state.is_main_process:
            write_json(self.out / RUN, self.record)
