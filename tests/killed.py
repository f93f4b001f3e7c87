"""Fits that are killed at a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from mitigate.models.fitting.saves import Saves


class Killed(BaseException):
    """As Ctrl-C is, nothing that code catches."""


def kill_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which checkpoints are written from now on; after so many the process is killed."""
    offer, steps = Saves.offer, list[int]()

    def counted(self: Saves, module: Any, optimizer: Any, pace: Any, losses: list[float]) -> None:
        offer(self, module, optimizer, pace, losses)
        steps.append(len(losses))
        if len(steps) == count:
            raise Killed

    monkeypatch.setattr(Saves, "offer", counted)
    return steps
