"""The look that was nearest to text that the target never saw, and the weights at it: where a round ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mitigate.unlearning.trainable import State, Trainable
from mitigate.unlearning.training.watch import off

logger = logging.getLogger(__name__)


class Nearest:
    """Keeps an adapter's weights at the nearest look. Whole models are too large: they go on as they are.

    Args:
        trainable: what is trained.

    Attributes:
        look: what the watch said then; None before the first.
        state: the trained weights then, on the CPU.
    """

    def __init__(self, trainable: Trainable) -> None:
        self.trainable = trainable
        self.look: dict[str, Any] | None = None
        self.state: State = {}

    def offer(self, now: dict[str, Any]) -> None:
        """Keep the weights where this look is nearer than the one that is kept; every process must call it."""
        if not self.trainable.can_step_back:
            return
        if self.look is None or off(now) < off(self.look):
            self.look, self.state = now, self.trainable.state()

    def back_from(self, last: Mapping[str, Any]) -> int:
        """Take the weights of the nearest look, where the last one is farther off; returns the step of the weights."""
        if self.look is None or off(last) <= off(self.look):
            return int(last["step"])
        logger.info("back to step %d, which was nearer to text that the target never saw", self.look["step"])
        self.trainable.restore(self.state)
        return int(self.look["step"])
