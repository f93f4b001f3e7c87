"""Which learning rates every method of `mitigate bench unlearn` tries, and the one that it is measured at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mitigate.bench.unlearn.methods import RETRAINED, Run, Seed, choose, run_method, run_retrain

MORE_TRIES = 2  # for a method whose best rate is the lowest or the highest of those tried


@dataclass(frozen=True)
class Tried:
    """One method on one seed.

    Attributes:
        tries: factor of the common rate -> run; on all seeds but the first only the chosen one.
        chosen: the best of the first seed's by its validation people.
        factor: of the chosen one.
    """

    tries: Mapping[float, Run]
    factor: float

    @property
    def chosen(self) -> Run:
        return self.tries[self.factor]


@dataclass(frozen=True)
class SeedRuns:
    """What one seed gave: methods by (objective, scope), the default on known spans, and retraining."""

    seed: Seed
    methods: Mapping[tuple[str, str], Tried]
    known: Tried
    retrained: Mapping[str, Run]


def run_seed(
    seed: Seed, wanted: Iterable[tuple[str, str]], *, tries: Sequence[float], retrain: bool, first: SeedRuns | None
) -> SeedRuns:
    """All runs of one seed: every try, or, after the first seed, each method at the rate chosen there."""

    def tried(objective: str, scope: str, selection: str, chosen: Tried | None) -> Tried:
        def run(factor: float) -> Run:
            return run_method(seed, objective, scope, factor=factor, selection=selection)

        if chosen:
            return Tried({chosen.factor: run(chosen.factor)}, chosen.factor)
        runs = {factor: run(factor) for factor in tries}
        while beyond := beyond_edge({f: one.criterion for f, one in runs.items()}, at_most=len(tries) + MORE_TRIES):
            runs[beyond] = run(beyond)
        best = choose(seed, list(runs.values()))
        return Tried(dict(sorted(runs.items())), next(factor for factor, one in runs.items() if one is best))

    methods = {pair: tried(*pair, "found", first.methods[pair] if first else None) for pair in wanted}
    known = tried("default", "token", "known", first.known if first else None)
    return SeedRuns(seed, methods, known, {name: run_retrain(seed, name) for name in RETRAINED if retrain})


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
    return high * 3.0 if best == high else low / 3.0
