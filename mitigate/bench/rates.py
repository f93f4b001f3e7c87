"""AUC and TPR of scored units over the targets of all seeds, and whether one detector beats another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from mitigate.statistics.intervals import UNMEASURED
from mitigate.statistics.roc import RESAMPLES, Scored, weighted_auc, weighted_tpr
from mitigate.statistics.runs import over_runs

Units = Sequence[Sequence[Scored]]  # for each seed, the scored units of each target
RATES = {"auc": "AUC", "tpr_at_1pct_fpr": "TPR at 1 % FPR", "tpr_at_0.1pct_fpr": "TPR at 0.1 % FPR"}
_STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "auc": weighted_auc,
    "tpr_at_1pct_fpr": partial(weighted_tpr, fpr=0.01),
    "tpr_at_0.1pct_fpr": partial(weighted_tpr, fpr=0.001),
}
_RESOLVES_ONE_IN_A_THOUSAND = 1000
_EVEN = 5e-4  # a difference that three decimals do not show


def rates(scored: Units) -> dict[str, dict[str, float | None]]:
    """AUC and TPR at 1 % and 0.1 % FPR, each with its interval; 0.1 % only with 1,000 non-members for every target."""
    names = [name for name in RATES if resolves(scored, name)]
    resamples = dict(zip(names, resampled(scored, names), strict=True))
    figures = {name: over_runs(found, bounds=(0.0, 1.0)) for name, found in resamples.items()}
    return {name: figures.get(name, UNMEASURED)._asdict() for name in RATES}


def compare(ours: Units, theirs: Units, rate: str) -> str:
    """Both figures, and whether ours wins: by half a thousandth or more, where the difference's interval excludes 0.

    As `over_targets`, but paired: what makes a resample of the clusters hard for both does not widen the interval.

    Args:
        ours, theirs: for each seed, scored units of the same targets' documents.
        rate: a key of `RATES`.
    """
    one, other = (resampled(units, [rate])[0] for units in (ours, theirs))
    gap = over_runs(one - other)
    if gap.value is None or gap.low is None or gap.high is None:
        return "cannot be measured"
    verdict = "wins" if gap.low > 0 else "loses" if gap.high < 0 else "is not told apart"
    verdict = "is even" if abs(gap.value) < _EVEN else verdict
    means = f"{one[:, 0].mean():.3f} to {other[:, 0].mean():.3f}"
    return f"{verdict}: {means}, difference {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def resolves(scored: Units, rate: str) -> bool:
    """Whether every target has non-members enough for a rate: 1,000 for one in a thousand."""
    fewest = min(int((~target.labels).sum()) for of_seed in scored for target in of_seed)
    return rate != "tpr_at_0.1pct_fpr" or fewest >= _RESOLVES_ONE_IN_A_THOUSAND


def resampled(scored: Units, names: Sequence[str]) -> np.ndarray:
    """(rates, seeds, 1 + R): each rate's mean over a seed's targets, as it is and in R resamples of the clusters."""
    rng = np.random.default_rng(0)
    found = []
    for of_seed in scored:
        clusters = 1 + max(int(target.clusters.max()) for target in of_seed)
        drawn = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES)
        weights = np.concatenate([np.ones((1, clusters)), drawn]).astype(np.float32)
        counts = (target.counts(weights) for target in of_seed)
        found.append(np.mean([[_STATISTICS[name](*of_target) for name in names] for of_target in counts], axis=0))
    return np.swapaxes(found, 0, 1)
