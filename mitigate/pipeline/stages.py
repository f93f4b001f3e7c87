"""The stages of a run: done once, known by what they were made from, and gone on with after an interruption.

A stage is known by a fingerprint of its settings and inputs; one whose fingerprint is unchanged, and whose output is
what it wrote, is skipped. `out/run.json` holds the recipe, what each stage was made from, and the digests of its files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mitigate import __version__
from mitigate.artifacts.digests import differences, file_digest, tree_digests
from mitigate.artifacts.files import fingerprint, read_record, write_record
from mitigate.artifacts.temporaries import LOCK, discard, holds_something, partial_of, remove, sweep
from mitigate.errors import MitigateError, summarize
from mitigate.runtime import together

logger = logging.getLogger(__name__)
RUN = "run.json"
RESULTS = ("report.json", "report.html")
_IDENTITY = ("name", "seed", "data", "models", "lab")  # of a recipe: with another of these it is another run
_DAMAGED = "start the run anew with --replace, or choose another out="


class Stages:
    """A run's directory and the record of its stages; to be used by one job at a time, see `mitigate.artifacts.locks`.

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
        with together(state):
            if state.is_main_process:
                self.record = self._open(recipe, replace=replace)
        if not state.is_main_process:
            self.record = read_record(out / RUN, remedy=_DAMAGED)

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[], object],
        output: Path,
        *,
        every_process: bool = False,
        resumable: bool = False,
        outlives: bool = False,
    ) -> None:
        """Run a stage unless its output is there, made from the same inputs and as it was written.

        Args:
            name: of the stage.
            inputs: all that decides the output, by names that a message can give. Of a mapping the changed keys are
                named; values are in no message.
            make: makes the output.
            output: file or directory; it is removed before, but for the two cases below.
            every_process: call `make` in all processes, not only in the first.
            resumable: leave an output of the same inputs for `make` to go on with, and to mend the damaged parts of.
            outlives: the same where it was made from other inputs.
        """
        parts = {"version of mitigate": fingerprint(__version__), **_parts(inputs)}
        key = fingerprint(parts)
        done = self.record["stages"].get(name)
        current = done is not None and done["fingerprint"] == key
        wrong: dict[str, str] | None = None
        if current and done["complete"]:
            [wrong] = broadcast_object_list([self._damage(done, output) if self.state.is_main_process else None])
        self.state.wait_for_everyone()  # all decide before anyone writes
        if wrong == {}:
            logger.info("%s: unchanged, skipped", name)
            return
        logger.info("%s", name)
        if wrong:
            logger.warning("%s: %s; made again", name, summarize(wrong.values(), most=3))
        elif done is not None and not current:
            changed = _changed(done.get("parts"), parts)
            logger.info("%s: made again, for these are not what they were: %s", name, changed)
        before = done["seconds"] if current else 0.0
        if self.state.is_main_process:
            if not current:  # a checkpoint made from other inputs
                discard(partial_of(output))
            mendable = all("/" in file for file in wrong or ())  # what lies above the parts is what holds them together
            if not (outlives or (resumable and current and mendable)):
                discard(output)
        self._note(name, {"fingerprint": key, "parts": parts}, before)
        self.state.wait_for_everyone()
        started = time.monotonic()
        if every_process or self.state.is_main_process:
            make()
        self.state.wait_for_everyone()
        seconds = before + time.monotonic() - started
        self._note(name, {"fingerprint": key, "parts": parts, "files": self._digests(output)}, seconds)

    def seconds(self) -> dict[str, float]:
        """What each stage took, over all its interruptions."""
        return {stage: entry["seconds"] for stage, entry in self.record["stages"].items()}

    def _open(self, recipe: Mapping[str, Any], *, replace: bool) -> dict[str, Any]:
        """Make or check the directory."""
        check_run_directory(self.out, replace=replace)
        identity = fingerprint([recipe[key] for key in _IDENTITY])
        record: dict[str, Any] = {"identity": identity, "stages": {}}
        if self.out.is_dir():
            sweep(self.out, deep=True)
        if replace and self.out.is_dir():
            for path in self.out.iterdir():
                if path.name not in (RUN, LOCK):  # cut short, it is a run still
                    remove(path)
        elif (self.out / RUN).is_file():
            record = read_record(self.out / RUN, remedy=_DAMAGED)
            if not {"identity", "stages", "recipe"} <= record.keys():
                raise MitigateError(f"{self.out / RUN}: not the record of a run; {_DAMAGED}")
            if record["identity"] != identity:
                raise MitigateError(
                    f"{self.out}: holds another run ({record['recipe']['name']!r}, other data, models or seed); "
                    "choose another out=, or start it anew with --replace"
                )
        record["recipe"] = dict(recipe)
        write_record(self.out / RUN, record)
        self.out.chmod(0o700)
        return record

    def _damage(self, done: Mapping[str, Any], output: Path) -> dict[str, str]:
        """What of a finished stage's output is not as it was written; see `differences`."""
        if not output.exists():
            return {output.name: f"{output.name} is missing"}
        return differences(output, done["files"])

    def _digests(self, output: Path) -> dict[str, str]:
        return tree_digests(output) if self.state.is_main_process else {}

    def _note(self, name: str, entry: Mapping[str, Any], seconds: float) -> None:
        complete = "files" in entry
        self.record["stages"][name] = {**entry, "seconds": round(seconds, 2), "complete": complete}
        if self.state.is_main_process:
            write_record(self.out / RUN, self.record)


def check_run_directory(out: Path, *, replace: bool) -> None:
    """Refuse a directory that is no run's, before anything is written there.

    A run cut short before its first record left temporaries and its lock at most, which are nobody's work.

    Raises:
        MitigateError: a file, or a directory that holds something and no record of a run.
    """
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise MitigateError(f"{out}: a file, not a directory; choose another out=")
    if holds_something(out) and not (out / RUN).is_file():
        if replace:
            raise MitigateError(f"{out}: not a run (no {RUN}), so --replace leaves it alone; choose another out=")
        raise MitigateError(f"{out}: not empty, and not a run of this tool (no {RUN}); choose another out=")


def damaged_results(out: Path) -> list[str]:
    """What of the report is not as the last run wrote it, a line each; empty where it was not written yet."""
    record = read_record(out / RUN, remedy=_DAMAGED) if (out / RUN).is_file() else {}
    return list(differences(out, record.get("results", {})).values())


def note_results(out: Path, names: Iterable[str]) -> None:
    """Record the digests of the files that every run, and `mitigate report`, write anew."""
    record = read_record(out / RUN, remedy=_DAMAGED) if (out / RUN).is_file() else {}
    write_record(out / RUN, {**record, "results": {name: file_digest(out / name) for name in names}})


def _parts(inputs: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Fingerprints of the inputs by name: of a mapping, of each of its values, to any depth."""
    found: dict[str, str] = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping) and value:
            found |= _parts(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = fingerprint(value)
    return found


def _changed(before: object, now: Mapping[str, str]) -> str:
    """The names of the parts that differ; nothing of what they hold."""
    if not isinstance(before, Mapping):
        return "not known, for another version of mitigate made it"
    names = [*now, *(name for name in before if name not in now)]
    return summarize([name for name in names if before.get(name) != now.get(name)], most=8)
