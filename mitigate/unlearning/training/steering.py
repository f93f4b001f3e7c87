"""What steers the steps of unlearning: the weight of the anchors, and how much of the learning rate is left."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mitigate.models.fitting.pace import rate_factor
from mitigate.unlearning.material.control import Control
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.training.watch import LAST_NATS, control_now, corrected

logger = logging.getLogger(__name__)
HARM = 0.5  # nats a token by which the anchors may move before it is said
_SLOWER, _FASTER, _LEAST_SHARE = 0.8, 1.1, 1 / 64
_RISE, _MEMORY = 1.1, 0.8  # of the anchors' mean over its running mean: a rise; of the running mean at a step
_DUAL_RATE = 0.1
_DUAL_RANGE = (1e-3, 1e4)
_LAST_SHARE = 0.35  # of the whole way to the control, from where the rate falls
_SLOWEST = 0.2
_RECENT = 0.5  # share of a step in the running mean of its tokens' log-ratio
_KEPT = ("dual", "held", "share", "drift", "ratio", "level", "way", "moved", "trim")


class Steering:
    """Follows the anchors' mean after every step, and what the watch says.

    Args:
        settings: of unlearning.
        trusted: whether the anchors' mean is a distance that `retain.trust` is about.

    Attributes:
        dual: the anchors' weight; with a budget a dual variable.
        held: the anchors' mean at the last step; None before the first.
        share: of the learning rate that the trust region leaves.
        drift: running mean of `held`.
        ratio: running mean of the log-ratio of the tokens to forget; None before the first step.
        level: that of text that the target never saw, nats; None where nothing ends at it.
        way: how far above it they were when the watch first looked.
        moved: how far never-seen text has moved since the audit, nats.
        trim: see `corrected`.
        warned: it was said that other text moves along.
    """

    def __init__(self, settings: Unlearn, *, trusted: bool) -> None:
        self.settings, self.trusted = settings, trusted
        self.dual = settings.retain.weight or 0.0
        self.held: float | None = None
        self.share, self.way = 1.0, 0.0
        self.drift: float | None = None
        self.ratio: float | None = None
        self.level: float | None = None
        self.moved = self.trim = 0.0
        self.warned = False

    @property
    def near(self) -> float:
        """The share of the rate that is left near the control: full steps there throw the tokens far below it.

        It falls with what is left of the way, over its last third or its last 0.15 nats, whichever is farther.
        """
        if self.level is None or self.ratio is None:
            return 1.0
        return min(1.0, max(_SLOWEST, (self.ratio - self.level) / max(LAST_NATS, _LAST_SHARE * self.way)))

    @property
    def tilt(self) -> float:
        """Nats to add to a token's logit where it is to end: as never-seen text moved, and what is off besides."""
        return self.moved + self.trim

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        factor = rate_factor(step, self.settings.max_steps, warmup_share=0.05)
        return self.settings.learning_rate * self.share * self.near * factor

    def after_step(self, held: float, ratio: float) -> None:
        """Take in the anchors' mean of a step, and the mean log-ratio of its tokens to forget."""
        self.held = held
        if math.isfinite(held):
            self._update_dual(held)
            self._update_share(held)
        if math.isfinite(ratio):
            self.ratio = ratio if self.ratio is None else _RECENT * ratio + (1 - _RECENT) * self.ratio

    def after_look(self, history: Sequence[Mapping[str, Any]], control: Control) -> None:
        """Take in what the watch said so far."""
        now = history[-1]
        if self.level is None:
            self.way = max(0.0, now["selected_log_ratio"] - control_now(now, control))
        self.level, self.moved = control_now(now, control), float(now["never_seen_moved"])
        self.trim = corrected(self.trim, history, control)

    def warn_of_harm(self, step: int) -> None:
        """Say once, while it can still be stopped, that other text moves along."""
        if not self.warned and self.held is not None and self.held > HARM:
            self.warned = True
            logger.warning(
                "step %d: other text moves with what is to be forgotten, by %.2f nats a token; lower "
                "unlearn.learning_rate, raise unlearn.retain.weight, or give more text to hold still (data.anchors)",
                step,
                self.held,
            )

    def go_on_from(self, before: Steering) -> None:
        """Begin a round with the weight, the trust region and the tilt of the one before."""
        for name in ("dual", "share", "drift", "moved", "trim", "warned"):
            setattr(self, name, getattr(before, name))

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {name: getattr(self, name) for name in _KEPT}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name in _KEPT:
            setattr(self, name, state[name])

    def _update_dual(self, held: float) -> None:
        """Exponentiated-gradient ascent on the dual variable of `held <= budget`: it stays positive, and bounded."""
        budget = self.settings.retain.budget
        if budget is not None:
            factor = math.exp(_DUAL_RATE * max(-1.0, min(3.0, held / budget - 1)))
            self.dual = min(max(self.dual * factor, _DUAL_RANGE[0]), _DUAL_RANGE[1])

    def _update_share(self, held: float) -> None:
        """Trust region: where other text has moved far and still moves further, the next steps are shorter.

        How far it must move is the task's; a plateau, where the anchors balance what is forgotten, slows nothing.
        """
        trust = self.settings.retain.trust
        if trust is None or not self.trusted:
            return
        further = held > trust and self.drift is not None and held > _RISE * self.drift
        self.share = min(1.0, max(_LEAST_SHARE, self.share * (_SLOWER if further else _FASTER)))
        self.drift = held if self.drift is None else _MEMORY * self.drift + (1 - _MEMORY) * held
