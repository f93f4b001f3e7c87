"""A run's costs as they were counted: stages, what there is to be had, what does not fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedStage:
    """One stage.

    Attributes:
        name: as `mitigate run` calls it.
        work: what is done, in words.
        tokens: that go through a model, each pass counted.
        seconds, memory, disk: about; memory and disk in bytes.
    """

    name: str
    work: str
    tokens: float
    seconds: float
    memory: int
    disk: int


@dataclass(frozen=True)
class Plan:
    """All of a run.

    Attributes:
        documents, tokens, spans: how many are audited; the known ones.
        device: what the models are on.
        processes: that share the work.
        parameters: of the model.
        stages: in order.
        memory_there, disk_there: bytes to be had.
    """

    documents: int
    tokens: int
    spans: int
    device: str
    processes: int
    parameters: int
    stages: tuple[PlannedStage, ...]
    memory_there: int
    disk_there: int

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def problems(self) -> list[str]:
        """What does not fit, a line each."""
        found = [
            f"{stage.name}: needs about {_bytes(stage.memory)} of memory, and {_bytes(self.memory_there)} are there: "
            "set models.dtype: bfloat16, references.method: lora, or detect.batch_tokens and unlearn.batch_tokens lower"
            for stage in self.stages
            if stage.memory > self.memory_there
        ]
        disk = sum(stage.disk for stage in self.stages)
        if disk > self.disk_there:
            found.append(
                f"the run writes about {_bytes(disk)}, and {_bytes(self.disk_there)} are free: make room, or choose "
                "another out="
            )
        return found

    def __str__(self) -> str:
        lines = [
            f"{self.documents:,} documents, {self.tokens:,} tokens, {self.spans:,} known spans; "
            f"a model of {self.parameters / 1e6:,.1f} M parameters on {self.device}, {self.processes} "
            f"process{'es' if self.processes > 1 else ''}",
            "",
            f"{'stage':<14}{'tokens':>13}{'memory':>10}{'disk':>10}{'time':>12}  what is done",
        ]
        for stage in self.stages:
            lines.append(
                f"{stage.name:<14}{stage.tokens:>13,.0f}{_bytes(stage.memory):>10}{_bytes(stage.disk):>10}"
                f"{_time(stage.seconds):>12}  {stage.work}"
            )
        memory, disk = max(stage.memory for stage in self.stages), sum(stage.disk for stage in self.stages)
        tokens = sum(stage.tokens for stage in self.stages)
        lines.append(f"{'in all':<14}{tokens:>13,.0f}{_bytes(memory):>10}{_bytes(disk):>10}{_time(self.seconds):>12}")
        lines.append(f"{'to be had':<27}{_bytes(self.memory_there):>10}{_bytes(self.disk_there):>10}")
        lines += ["", *(f"does not fit: {problem}" for problem in self.problems)]
        return "\n".join(lines).rstrip()


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
