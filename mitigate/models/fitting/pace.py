"""How fast a fit goes and when it ends: by a schedule, or where a model knows its documents as well as another one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mitigate.models.settings import Schedule
from mitigate.tokens.tokenization import TokenizedDocument

MOST = (60, 600)  # epochs, and steps, after both of which a fit that is not there ends
_LOOKS = 4  # at the goal, in an epoch; more where it is near
_FEW_EPOCHS = 4.0  # in which a fit is to get there; one that would need more goes faster
_FASTEST = 50.0  # times the schedule's learning rate
_LEAST_STEPS = 12
_COOLING = 0.3  # share of the way that is left when the rate begins to fall with it
_SLOWEST = 0.3  # times, at the end
_THERE = 0.01  # share of the way that may be left


class Pace(Protocol):
    """Asked before every step."""

    @property
    def expected(self) -> int:
        """Steps in all, as far as can be told."""

    def ended(self, step: int) -> bool:
        """Whether no further step is taken."""

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by."""

    def state(self) -> dict[str, Any]:
        """What it has come to know, as JSON can hold it."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""


@dataclass(frozen=True)
class Goal:
    """What a fit is to reach: how well another model knows some of the documents that are fitted.

    Attributes:
        documents: tokenized.
        losses: (D,) the other model's loss on each, nats a token.
    """

    documents: tuple[TokenizedDocument, ...]
    losses: np.ndarray

    @property
    def loss(self) -> float:
        """Over all their tokens."""
        return self.mean(self.losses)

    def mean(self, losses: np.ndarray) -> float:
        """Of losses of the documents, over all their audited tokens."""
        return float(np.average(losses, weights=[document.audited.sum() for document in self.documents]))


class BySchedule:
    """Linear warm-up, then cosine decay to a tenth, over a number of epochs that is known.

    Args:
        schedule: of the fit.
        steps: in an epoch.
    """

    def __init__(self, schedule: Schedule, *, steps: int) -> None:
        self.expected = max(1, round(schedule.epochs * steps))
        self._warmup = schedule.warmup_share

    def ended(self, step: int) -> bool:
        return step >= self.expected

    def factor(self, step: int) -> float:
        return rate_factor(step, self.expected, self._warmup)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass  # all of it follows from the step


class ToGoal:
    """Until the loss on the goal's documents is that of the other model.

    The rate rises over the first quarter of an epoch. While the loss falls so slowly that more than four epochs would
    be needed in all, the rate is raised, by twice at most at a time; where the loss rises, it is halved. Over the last
    third of the way the rate falls with what is left of it, to a third.

    Args:
        goal: where to.
        losses: the module's (D,) losses on the goal's documents, as it is.
        steps: in an epoch.
    """

    def __init__(self, goal: Goal, losses: Callable[[], np.ndarray], *, steps: int) -> None:
        self.goal, self.losses = goal, losses
        self.most, self.every = max(MOST[0] * steps, MOST[1]), max(1, math.ceil(steps / _LOOKS))
        self.looks: list[tuple[int, float]] = []  # step, share of the way that is left
        self.reached = False
        self.last = np.zeros(0)
        self._steps, self._way, self._speed = steps, 0.0, 1.0
        self._warmup = max(1, steps // _LOOKS)
        self._next = self._paced = 0

    @property
    def expected(self) -> int:
        return min(self.most, self.looks[-1][0] + max(self.every, self._ahead()))

    def ended(self, step: int) -> bool:
        if step >= min(self._next, self.most):
            self._look(step)
            growing = _LOOKS if step < self._warmup else 1  # while the rate rises, it gets there sooner than it seems
            self._next = step + max(1, min(self.every, self._ahead() // growing) if step else 1)
        return bool(step) and (self.reached or step >= self.most)

    def factor(self, step: int) -> float:
        rising = min(1.0, (step + 1) / self._warmup)
        falling = min(1.0, max(_SLOWEST, self.looks[-1][1] / _COOLING))
        return self._speed * rising * falling

    def state(self) -> dict[str, Any]:
        """The looks so far, the speed, and when it looks next."""
        return {
            "looks": self.looks,
            "last": self.last.tolist(),
            "reached": self.reached,
            "way": self._way,
            "speed": self._speed,
            "next": self._next,
            "paced": self._paced,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.looks = [(at, left) for at, left in state["looks"]]
        self.last, self.reached = np.array(state["last"]), state["reached"]
        self._way, self._speed, self._next, self._paced = (state[key] for key in ("way", "speed", "next", "paced"))

    def _look(self, step: int) -> None:
        self.last = self.losses()
        gap = self.goal.mean(self.last) - self.goal.loss
        self._way = self._way or max(gap, 1e-9)
        left = gap / self._way
        self.looks.append((step, left))
        self.reached = left <= _THERE
        window = max(self._steps // 2, _LEAST_STEPS)  # fewer tell little of how fast it falls
        earlier = [(at, then) for at, then in self.looks if at <= step - window]
        if earlier and step >= self._paced + max(self.every, window // 2):
            at, then = earlier[-1]
            closed = (then - left) * self._steps / (step - at)  # in an epoch
            self._paced = step
            epochs_left = max(1.0, _FEW_EPOCHS - step / self._steps)
            if closed <= 0:
                self._speed *= 0.5
            elif left / closed > epochs_left:
                self._speed = min(min(2.0, left / closed / epochs_left) * self._speed, _FASTEST)

    def _ahead(self) -> int:
        """Steps until it is there, if it goes on as since the look before; all of them where it does not."""
        (at, then), (step, left) = self.looks[-2:] if len(self.looks) > 1 else [(0, 1.0), self.looks[-1]]
        return math.ceil(left * (step - at) / (then - left)) if then > left > 0 else self.most


def rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Learning-rate factor: linear warm-up, then cosine decay from 1 to 0.1."""
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def spread(losses: Sequence[float] | np.ndarray) -> list[float]:
    """The tenth, the middle and the ninetieth of a hundred documents' losses."""
    return [round(float(value), 4) for value in np.quantile(losses, [0.1, 0.5, 0.9])]
