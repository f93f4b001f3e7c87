"""Which rates and weights every method of `mitigate bench unlearn` tries, and those that it is measured at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mitigate.bench.unlearn.methods import RETRAINED, STEP, Run, Seed, choose, run_method, run_retrain

MORE_TRIES = 2  # for a method whose best rate is the lowest or the highest of those tried
WEIGHTS = (1 / STEP, STEP)  # of the anchors, tried at the best rate besides the method's own
BETWEEN = (STEP**-0.5, STEP**0.5)  # times the best rate, for methods without anchors: as many tries as the others have


class Try(NamedTuple):
    """Factor of the common learning rate, and of the method's own weight of its anchors."""

    rate: float
    hold: float = 1.0

    def __str__(self) -> str:
        return f"{self.rate:.3g}" + ("" if self.hold == 1 else f", anchors {self.hold:.3g}")


@dataclass(frozen=True)
class Tried:
    """One method on one seed.

    Attributes:
        tries: what was tried -> run; on all seeds but the first only the chosen one.
        best: of the first seed's by its validation people.
    """

    tries: Mapping[Try, Run]
    best: Try

    @property
    def chosen(self) -> Run:
        return self.tries[self.best]


@dataclass(frozen=True)
class SeedRuns:
    """What one seed gave: methods by (objective, scope), the default on recognised and on known spans, retraining."""

    seed: Seed
    methods: Mapping[tuple[str, str], Tried]
    recognised: Tried
    known: Tried
    retrained: Mapping[str, Run]


def run_seed(
    seed: Seed,
    wanted: Iterable[tuple[str, str]],
    *,
    tries: Sequence[float],
    retrain: bool,
    first: SeedRuns | None,
    as_shipped: bool = False,
) -> SeedRuns:
    """All runs of one seed: every try, or, after the first seed, each method at the rate and weight chosen there.

    With `as_shipped` the default runs at its own rate and weight alone, as those have it who do not search.
    """

    def tried(objective: str, scope: str, selection: str, chosen: Tried | None) -> Tried:
        def run(one: Try) -> Run:
            return run_method(seed, objective, scope, factor=one.rate, hold=one.hold, selection=selection)

        if chosen:
            return Tried({chosen.best: run(chosen.best)}, chosen.best)
        rates = (1.0,) if as_shipped and objective == "default" else tries
        runs = {Try(factor): run(Try(factor)) for factor in rates}
        while beyond := beyond_edge({t.rate: r.criterion for t, r in runs.items()}, at_most=len(rates) + MORE_TRIES):
            runs[Try(beyond)] = run(Try(beyond))
        if len(rates) > 1:
            at, nearest = min(runs.items(), key=lambda item: item[1].criterion)
            held = nearest.record["anchor_weight"] > 0
            further = [Try(at.rate, hold) for hold in WEIGHTS] if held else [Try(at.rate * step) for step in BETWEEN]
            runs |= {one: run(one) for one in further}
        best = choose(seed, list(runs.values()))
        return Tried(dict(sorted(runs.items())), next(one for one, of_it in runs.items() if of_it is best))

    methods = {pair: tried(*pair, "found", first.methods[pair] if first else None) for pair in wanted}
    recognised = tried("default", "token", "recognised", first.recognised if first else None)
    known = tried("default", "token", "known", first.known if first else None)
    return SeedRuns(seed, methods, recognised, known, {name: run_retrain(seed, name) for name in RETRAINED if retrain})


def beyond_edge(criteria: Mapping[float, float], *, at_most: int) -> float | None:
    """The next factor to try where the best one lies at the edge of those tried; None if it lies within, or is enough.

    Args:
        criteria: factor -> criterion, infinite for a run that failed.
        at_most: tries in all.
    """
    best = min(criteria, key=lambda factor: criteria[factor])
    low, high = min(criteria), max(criteria)
    if len(criteria) == 1 or len(criteria) >= at_most or best not in (low, high) or criteria[best] == float("inf"):
        return None
    return high * STEP if best == high else low / STEP
