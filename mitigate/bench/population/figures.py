"""The figures of `mitigate bench population`: every score, statistic, a, γ and size of population, in two readings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mitigate.bench.population.evidence import TOKEN_BASED, Sequences, cut_sizes
from mitigate.bench.rates import RATES, Units, compare, rates, resampled, resolves
from mitigate.detection.scores.units import informia_sequence, rmia
from mitigate.runtime import progress
from mitigate.statistics.roc import Scored

GAMMAS = (1.0, 2.0)
OFFLINE_A = (1.0, 0.3)  # 0.3 of length-normalised log-probabilities is near LOSS: 1 − a outweighs most p_out
DRAWS = 5  # populations drawn of each size below the largest
_Read = dict[str, Units]
_Choice = tuple[str, str | None, float | None, float | None, int]
_CHOICE = ("score", "statistic", "a", "gamma", "population")
READINGS = {"per_target": "A threshold for each target", "pooled": "One threshold for all targets"}


def population_results(every: Sequence[Sequences], *, sizes: Sequence[int]) -> dict[str, Any]:
    """The results of `study_population` from what was judged of each seed.

    For every γ of `GAMMAS`, and a of `OFFLINE_A` in p̄ = ½[(1 + a) p_out + (1 − a)].
    """
    sizes = cut_sizes(sizes, len(every[0].population_length))
    variants = [(statistic, a) for statistic in ("mean", "sum") for a in OFFLINE_A]
    scored: dict[_Choice, _Read] = {}
    seconds: dict[_Choice, float] = {}
    for name in TOKEN_BASED:
        choice: _Choice = (name, None, None, None, 0)
        scored[choice] = _read(every, [[seed.token_based[name].T] for seed in every])
        seconds[choice] = sum(seed.seconds[name] for seed in every)
    for statistic, a in variants:
        choice = ("log_ratio_sequence", statistic, a, None, 0)
        started = time.monotonic()
        unshifted = [[_log_ratios(seed, statistic=statistic, a=a)] for seed in every]
        seconds[choice] = time.monotonic() - started
        scored[choice] = _read(every, unshifted)
        for size in sizes:
            drawn = _populations(every, size, draws=1 if size == sizes[-1] else DRAWS)
            for name, gamma, score in _population_scores():
                choice = (name, statistic, a, gamma, size)
                started = time.monotonic()
                scores = [
                    [_scores(seed, score, chosen, statistic=statistic, a=a) for chosen in of_seed]
                    for seed, of_seed in zip(every, drawn, strict=True)
                ]
                seconds[choice] = (time.monotonic() - started) / len(drawn[0])
                scored[choice] = _read(every, scores)
    rows = []
    with progress(len(scored), "Figures", unit="row") as bar:
        for choice, read in scored.items():
            rows.append(dict(zip(_CHOICE, choice, strict=True)) | _row(read) | {"seconds": round(seconds[choice], 4)})
            bar.update()
    return {
        "rows": rows,
        "sizes": list(sizes),
        "draws": DRAWS,
        "documents": [len(seed.member) for seed in every],
        "non_members": min(int((~seed.member).sum(0).min()) for seed in every),
        "forward_seconds": {
            "documents": round(sum(seed.seconds["documents"] for seed in every), 2),
            **{str(size): round(sum(seed.seconds[str(size)] for seed in every), 2) for size in sizes},
        },
        "findings": _findings(scored, sizes),
    }


def _scores(
    seed: Sequences, score: Callable[..., np.ndarray], chosen: np.ndarray, *, statistic: str, a: float
) -> np.ndarray:
    """(M, D) scores of all documents for each target, by one population."""
    found = []
    for target in range(seed.member.shape[1]):
        population = seed.population(target, chosen, statistic=statistic, a=a)
        found.append(score(*seed.judged(target, statistic=statistic, a=a), *population))
    return np.stack(found)


def _log_ratios(seed: Sequences, *, statistic: str, a: float) -> np.ndarray:
    """(M, D) log p_θ(x) − log p̄(x): InfoRMIA without its constant."""
    targets = range(seed.member.shape[1])
    return np.stack([np.subtract(*seed.judged(target, statistic=statistic, a=a)) for target in targets])


def _population_scores() -> list[tuple[str, float | None, Callable[..., np.ndarray]]]:
    """Name, γ, and a score of log p_θ(x), log p̄(x), log p_θ(z), log p̄(z)."""

    def published(x: np.ndarray, x_mean: np.ndarray, z: np.ndarray, z_mean: np.ndarray) -> np.ndarray:
        return informia_sequence(x - x_mean, z - z_mean, population_log_prob_out=z_mean)

    def plain_mean(x: np.ndarray, x_mean: np.ndarray, z: np.ndarray, z_mean: np.ndarray) -> np.ndarray:
        return informia_sequence(x - x_mean, z - z_mean)

    def share(gamma: float) -> Callable[..., np.ndarray]:
        return lambda x, x_mean, z, z_mean: rmia(x, x_mean, z, z_mean, gamma=gamma)

    return [
        ("informia", None, published),
        ("informia_mean", None, plain_mean),
        *(("rmia", gamma, share(gamma)) for gamma in GAMMAS),
    ]


def _populations(every: Sequence[Sequences], size: int, *, draws: int) -> list[list[np.ndarray]]:
    """For each seed, `draws` random populations of a size: indices, the same whatever the score."""
    rng = np.random.default_rng(size)
    return [[rng.permutation(len(seed.population_length))[:size] for _ in range(draws)] for seed in every]


def _read(every: Sequence[Sequences], scores: Sequence[Sequence[np.ndarray]]) -> _Read:
    """Both readings of a score, from (M, D) scores for each seed and each draw of a population."""
    per_target = [
        [
            Scored(of_target, seed.member[:, target], seed.clusters)
            for of_draw in of_seed
            for target, of_target in enumerate(of_draw)
        ]
        for seed, of_seed in zip(every, scores, strict=True)
    ]
    pooled = [
        [Scored(of_draw.ravel(), seed.member.T.ravel(), np.tile(seed.clusters, len(of_draw))) for of_draw in of_seed]
        for seed, of_seed in zip(every, scores, strict=True)
    ]
    return {"per_target": per_target, "pooled": pooled}


def _row(read: _Read) -> dict[str, Any]:
    targets = [target for of_seed in read["per_target"] for target in of_seed]
    top = [(target.scores == target.scores.max())[~target.labels].mean() for target in targets]
    return {
        **{reading: rates(units) for reading, units in read.items()},
        "values": round(float(np.mean([len(target.ties) for target in targets])), 1),
        "top_fpr": round(float(np.mean(top)), 4),
    }


def _findings(scored: Mapping[_Choice, _Read], sizes: Sequence[int]) -> list[str]:
    """What the figures say about the claim, for length-normalised log-probabilities without offline correction."""
    least, most = sizes[0], sizes[-1]
    sentences = []
    for reading, threshold in READINGS.items():
        units = {choice: read[reading] for choice, read in scored.items()}
        ours = units["informia", "mean", 1.0, None, least]
        tokens = {name: units[name, None, None, None, 0] for name in TOKEN_BASED}
        for rate, words in RATES.items():
            if not resolves(ours, rate):
                continue
            begins = f"{threshold}, {words}: sequence InfoRMIA with {least} population documents against"
            for gamma in GAMMAS:
                against = {size: compare(ours, units["rmia", "mean", 1.0, gamma, size], rate) for size in sizes}
                even = [size for size in sizes if not against[size].startswith("wins")]
                sentences.append(
                    f"{begins} RMIA (γ={gamma:g}) with {most} {against[most]}; "
                    + (f"the fewest with which RMIA does not lose are {even[0]}." if even else "RMIA always loses.")
                )
            without = units["log_ratio_sequence", "mean", 1.0, None, 0]
            sentences.append(f"{begins} the same without the KL {compare(ours, without, rate)}.")
            best = max(tokens, key=lambda name: resampled(tokens[name], [rate])[0, :, 0].mean())
            sentences.append(f"{begins} {best}, the best without a population, {compare(ours, tokens[best], rate)}.")
    return sentences
