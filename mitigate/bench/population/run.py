"""`mitigate bench population`: how many population documents RMIA needs, and how few sequence InfoRMIA does.

    mitigate bench population --seeds 0 1 2 --out runs/detect

The claim measured: InfoRMIA is as good as RMIA or better, with a fraction of the population (Tao & Shokri,
arXiv 2510.05582). Document level: every model is a target in turn, K OUT references judge every document, the
population is documents that trained no model and are written like the others. Two readings of every score:

- per target: a threshold for each target, figures averaged over targets. InfoRMIA's KL is one constant for a target, so
  here it is the log-ratio to the references, whatever the population.
- pooled: the documents of all targets of a seed under one threshold. Here the constant counts.

RMIA is a share of Z population documents: it has Z + 1 values, and its highest is shared by about 1/(Z + 1) of the
non-members. Where that is above a false positive rate, no threshold meets the rate and the true positive rate is 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mitigate.artifacts.files import write_json
from mitigate.bench.population.evidence import (
    SIZES,
    TOKEN_BASED,
    Sequences,
    cut_sizes,
    fresh_people,
    read_sequences,
    set_aside,
    with_non_members,
)
from mitigate.bench.rates import RATES, Units, compare, rates, resampled, resolves
from mitigate.bench.settings import WorldSettings
from mitigate.bench.world import World, make_world, sources
from mitigate.detection.scores import informia_sequence, rmia
from mitigate.documents import Documents
from mitigate.models.store import ModelStore
from mitigate.runtime import library_versions, process_state, progress
from mitigate.statistics.roc import Scored

GAMMAS = (1.0, 2.0)  # RMIA's γ
OFFLINE_A = (1.0, 0.3)  # RMIA's a in p̄ = ½[(1 + a) p_out + (1 − a)]
# 0.3 of length-normalised log-probabilities is near LOSS: 1 − a outweighs most p_out.
DRAWS = 5  # populations drawn of each size below the largest
NON_MEMBERS = 600  # fresh people's documents that are judged besides, so that a target has 1,000 non-members
_Read = dict[str, Units]
_Choice = tuple[str, str | None, float | None, float | None, int]
_CHOICE = ("score", "statistic", "a", "gamma", "population")
READINGS = {"per_target": "A threshold for each target", "pooled": "One threshold for all targets"}


def bench_population(
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    documents: Path | None = None,
    references: int = 3,
    sizes: Sequence[int] = SIZES,
    settings: WorldSettings | None = None,
    base: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run the study and write `out/population.json`; models that are already in `out` are kept.

    Args:
        out: directory of the models and the results; that of `bench_detect` serves for invented people.
        seeds (*optional*): each has its own people, halves and initializations.
        documents (*optional*): a file of documents; a third of its groups, at most 1,000 documents, are the population
            and train no model. The rest is written to `out/documents-trained.jsonl`, so `out` must be of this study's
            own. By default invented people, whose population is fresh people.
        references (`int`, *optional*, defaults to 3): K, how many OUT references judge a document.
        sizes (*optional*, defaults to 10, 100, 1000): numbers of population documents.
        settings (*optional*): models, people, schedules.
        base (*optional*): an existing base model.
        device (`str`, *optional*, defaults to `auto`): of the models.

    Returns:
        what `population.json` holds; see `study_population`.

    Raises:
        MitigateError: bad settings, documents that cannot be read, or models of other documents in `out`.
    """
    settings = settings or WorldSettings()
    settings.check_references(references)
    state = process_state(device)
    trained, aside = (None, None) if documents is None else set_aside(documents, out)
    worlds, populations = [], []
    for seed in seeds:
        world = make_world(out, seed=seed, settings=settings, documents=trained, base=base, device=device)
        if aside is None:
            fresh = fresh_people(max(sizes) + NON_MEMBERS, seed=seed)
            worlds.append(with_non_members(world, fresh[max(sizes) :]))
            populations.append(fresh[: max(sizes)])
        else:
            worlds.append(world)
            populations.append(aside)
    results = study_population(
        worlds, populations=populations, references=references, sizes=sizes, store=ModelStore(device=device)
    )
    state.wait_for_everyone()
    if not state.is_main_process:
        return {}
    results |= {
        "settings": {
            "seeds": list(seeds),
            "references": references,
            **sources(documents, base),
            "non_members_added": 0 if documents else NON_MEMBERS,
            **settings.model_dump(mode="json"),
        },
        "versions": library_versions(),
    }
    write_json(out / "population.json", results)
    return results


def study_population(
    worlds: Sequence[World],
    *,
    populations: Sequence[Documents],
    references: int,
    sizes: Sequence[int],
    store: ModelStore,
) -> dict[str, Any]:
    """RMIA and sequence InfoRMIA by population size, and scores from tokens that ask no population.

    Args:
        worlds: one for each seed.
        populations: for each world, documents that trained none of its models.
        references: K, how many OUT references judge a document.
        sizes: of the population; cut to what there is.
        store: loads the models.

    Returns:
        `rows`: one for each score (`informia` as published, `informia_mean` with every z weighted alike, `rmia`, and,
        with a population of 0, `log_ratio_sequence`, InfoRMIA without its KL, and `TOKEN_BASED`), statistic of a
        document (`mean` or `sum` of token log-probabilities), a, γ and population size, with figures `per_target` and
        `pooled`, `values` (distinct scores for a target), `top_fpr` (share of non-members that have a target's highest
        score) and `seconds` (scoring, all targets of all seeds, one population); `forward_seconds`: by population size;
        `documents`, `non_members`: for a target; `findings`: sentences made from the figures.
    """
    count = min(max(sizes), *map(len, populations))
    every = [
        read_sequences(world, population[:count], references=references, sizes=sizes, store=store)
        for world, population in zip(worlds, populations, strict=True)
    ]
    return population_results(every, sizes=sizes)


def population_results(every: Sequence[Sequences], *, sizes: Sequence[int], draws: int = DRAWS) -> dict[str, Any]:
    """The results of `study_population` from what was judged of each seed.

    Args:
        every: of each seed.
        sizes: of the population; cut to what there is.
        draws (`int`, *optional*, defaults to 5): populations drawn of each size below the largest; figures are means.
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
            drawn = _populations(every, size, draws=1 if size == sizes[-1] else draws)
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
        "draws": draws,
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
            best = max(tokens, key=lambda name: resampled(tokens[name], [rate])[0, 0])
            sentences.append(f"{begins} {best}, the best without a population, {compare(ours, tokens[best], rate)}.")
    return sentences
