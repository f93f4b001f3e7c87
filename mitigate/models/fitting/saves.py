"""What is kept of a fit while it goes on, so that one that is killed goes on where it was, to the same weights.

A checkpoint holds the trained weights, the optimizer, the random state, the losses so far and the pace's own state. The
order of the documents follows from the seed and the step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mitigate.artifacts.checkpoints import Checkpoints, optimizer_parts, optimizer_state, parts_named
from mitigate.artifacts.files import fingerprint
from mitigate.models.fitting.pace import Pace

logger = logging.getLogger(__name__)
SAVE_EVERY = 300.0  # seconds


class Saves:
    """The checkpoints of one fit.

    Args:
        directory: where they lie; made with the first one.
        plan: what the fit is made from; a checkpoint of another plan is not gone on from.
    """

    def __init__(self, directory: Path, plan: Mapping[str, Any]) -> None:
        self._checkpoints, self._plan = Checkpoints(directory), fingerprint(plan)
        self._saved = time.monotonic()

    def restore(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, pace: Pace) -> list[float]:
        """Put the newest checkpoint's state in place, if there is one.

        Returns:
            the loss of each step that was done.
        """
        newest = self.newest()
        if newest is None:
            return []
        state, tensors = newest
        trained = _trained(module)
        with torch.no_grad():
            for name, tensor in parts_named(tensors, "trained").items():
                trained[name].copy_(tensor)
        optimizer.load_state_dict(optimizer_state(state["optimizer"], tensors))
        pace.restore(state["pace"])
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"])
        logger.info("resuming at step %d", state["step"])
        losses: list[float] = state["losses"]
        return losses

    def newest(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """State and tensors of the newest checkpoint of this plan; those of another plan are removed."""
        self._checkpoints.mend()
        newest = self._checkpoints.newest()
        if newest is not None and newest[0]["plan"] != self._plan:
            self.forget()
            return None
        return newest

    def offer(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, pace: Pace, losses: list[float]) -> None:
        """Write a checkpoint, if the last one is five minutes old."""
        if time.monotonic() < self._saved + SAVE_EVERY:
            return
        rest, tensors = optimizer_parts(optimizer.state_dict())
        tensors |= {f"trained.{name}": tensor for name, tensor in _trained(module).items()}
        tensors["random"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random_cuda"] = torch.cuda.get_rng_state()
        state = {"plan": self._plan, "losses": losses, "optimizer": rest, "pace": pace.state()}
        self._checkpoints.save(len(losses), state, tensors)
        self._saved = time.monotonic()

    def forget(self) -> None:
        """Remove them: the fit is done and saved."""
        self._checkpoints.forget()


def _trained(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.data for name, one in module.named_parameters() if one.requires_grad}
