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
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp

from mitigate.artifacts import write_json
from mitigate.detection.aggregations import mean, min_k
from mitigate.detection.scores import TOKEN_SCORES, informia_sequence, offline_mean, rmia
from mitigate.detection.shadows import Judged, out_of
from mitigate.detection.signals import Judgement, judge
from mitigate.documents import Documents, read_documents
from mitigate.errors import MitigateError
from mitigate.lab.bench.evidence import target_judgements
from mitigate.lab.bench.world import World, WorldSettings, make_world
from mitigate.lab.people import plant, write_jsonl
from mitigate.models import Model, ModelStore
from mitigate.runtime import library_versions, process_state, progress
from mitigate.tokenization import TokenizedDocument, tokenize_documents
from mitigate.verification.metrics import UNMEASURED, Figure
from mitigate.verification.roc import RESAMPLES, Scored, weighted_auc, weighted_tpr

SIZES = (10, 100, 1000)
GAMMAS = (1.0, 2.0)
OFFLINE_A = (1.0, 0.3)  # 0.3 of length-normalised log-probabilities is near LOSS: 1 − a outweighs most p_out
DRAWS = 5  # populations drawn of each size below the largest
NON_MEMBERS = 600  # fresh people's documents that are judged besides, so that a target has 1,000 non-members
_LARGEST_SET_ASIDE = 1000
_RESOLVES_ONE_IN_A_THOUSAND = 1000
_EVEN = 5e-4  # a difference that three decimals do not show

Units = Sequence[Sequence[Scored]]  # for each seed, the scored units of each target
_Read = dict[str, Units]
_Choice = tuple[str, str | None, float | None, float | None, int]
_CHOICE = ("score", "statistic", "a", "gamma", "population")

READINGS = {"per_target": "A threshold for each target", "pooled": "One threshold for all targets"}
RATES = {"auc": "AUC", "tpr_at_1pct_fpr": "TPR at 1 % FPR", "tpr_at_0.1pct_fpr": "TPR at 0.1 % FPR"}
_STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "auc": weighted_auc,
    "tpr_at_1pct_fpr": partial(weighted_tpr, fpr=0.01),
    "tpr_at_0.1pct_fpr": partial(weighted_tpr, fpr=0.001),
}
TOKEN_BASED: dict[str, Callable[[Mapping[str, np.ndarray]], float]] = {
    "loss": lambda signals: mean(TOKEN_SCORES["loss"](signals)),
    "log_ratio": lambda signals: mean(TOKEN_SCORES["log_ratio"](signals)),
    "log_ratio_clipped": lambda signals: mean(TOKEN_SCORES["log_ratio_clipped"](signals)),
    "informia_tokens": lambda signals: mean(TOKEN_SCORES["informia"](signals)),
    "informia_tokens_min_k": lambda signals: min_k(TOKEN_SCORES["informia"](signals)),
}
"""Scores of a document from its tokens' signals; they ask no population."""


@dataclass(frozen=True)
class Sequences:
    """What sequence scores read of one seed: log-probabilities of whole documents and of the population.

    Attributes:
        member: (D, M) bool, which documents trained which models.
        clusters: (D,) index of the group that each document belongs to.
        log_prob: (D, M) total log-probability under each model, nats.
        length: (D,) scored tokens.
        out: (D, M, K) models that judge a document with model m in the target's place.
        population_log_prob, population_length, population_out: the same of Z population documents.
        token_based: name -> (D, M) scores of `TOKEN_BASED`.
        seconds: `documents` for the forward passes of the documents and their tokens' signals; the number of population
            documents -> seconds for the forward passes of all models over that many; names of `TOKEN_BASED`.
    """

    member: np.ndarray
    clusters: np.ndarray
    log_prob: np.ndarray
    length: np.ndarray
    out: np.ndarray
    population_log_prob: np.ndarray
    population_length: np.ndarray
    population_out: np.ndarray
    token_based: Mapping[str, np.ndarray]
    seconds: Mapping[str, float] = field(default_factory=dict)

    def judged(self, target: int, *, statistic: str, a: float) -> tuple[np.ndarray, np.ndarray]:
        """(D,) log p_θ(x) and log p̄(x), of totals (`sum`) or of length-normalised log-probabilities (`mean`)."""
        return _judged(self.log_prob, self.length, self.out, target, statistic=statistic, a=a)

    def population(self, target: int, chosen: np.ndarray, *, statistic: str, a: float) -> tuple[np.ndarray, np.ndarray]:
        """The same, log p_θ(z) and log p̄(z), of the chosen population documents."""
        log_prob, length, out = (
            self.population_log_prob[chosen],
            self.population_length[chosen],
            self.population_out[chosen],
        )
        return _judged(log_prob, length, out, target, statistic=statistic, a=a)


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
            "documents": documents.name if documents else "invented people",
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
    sizes: Sequence[int] = SIZES,
    gammas: Sequence[float] = GAMMAS,
    offline_a: Sequence[float] = OFFLINE_A,
    draws: int = DRAWS,
    store: ModelStore | None = None,
) -> dict[str, Any]:
    """RMIA and sequence InfoRMIA by population size, and scores from tokens that ask no population.

    Args:
        worlds: one for each seed.
        populations: for each world, documents that trained none of its models.
        references: K, how many OUT references judge a document.
        sizes (*optional*, defaults to 10, 100, 1000): of the population; cut to what there is.
        gammas (*optional*, defaults to 1 and 2): RMIA's γ.
        offline_a (*optional*, defaults to 1 and 0.3): RMIA's a in p̄ = ½[(1 + a) p_out + (1 − a)].
        draws (`int`, *optional*, defaults to 5): populations drawn of each size below the largest; figures are means.
        store (*optional*): loads the models.

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
    return population_results(every, sizes=sizes, gammas=gammas, offline_a=offline_a, draws=draws)


def read_sequences(
    world: World,
    population: Documents,
    *,
    references: int,
    sizes: Sequence[int] = SIZES,
    store: ModelStore | None = None,
) -> Sequences:
    """Judge a world's documents and its population; the models of the counterfactual truth take no part."""
    store = store or ModelStore()
    models = [store.load(path) for path in world.models.paths]
    tokenized = tokenize_documents(world.documents, models[0].tokenizer)
    keys = [document.id for document in world.documents]
    seconds: dict[str, float] = {}

    started = time.monotonic()
    judgements = [
        judgement
        for target in range(len(models))
        for judgement in target_judgements(world.member, target, references, keys)
    ]
    judged = Judged(
        judgements,
        judge(models, judgements, documents=tokenized, description="Judging documents"),
        [own.ids for own in tokenized],  # one word a token: words are of no use here, but their number is
    )
    seconds["documents"] = time.monotonic() - started
    shape = (len(keys), len(models))
    log_prob, out = np.full(shape, np.nan), np.zeros((*shape, references), dtype=int)
    token_based = {name: np.full(shape, np.nan) for name in TOKEN_BASED}
    for number, judgement in enumerate(judgements):
        place = (judgement.document, judgement.target)
        rows = slice(judged.starts[number], judged.starts[number + 1])
        own = {name: column[rows] for name, column in judged.signals.items()}
        log_prob[place] = np.nansum(own["log_prob"].astype(np.float64))
        out[place] = judgement.out
        for name, score in TOKEN_BASED.items():
            started = time.monotonic()
            token_based[name][place] = score(own)
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started

    others = tokenize_documents(population, models[0].tokenizer)
    chunks, forward = [], 0.0
    bounds = [0, *_cut_sizes(sizes, len(population))]
    for first, last in pairwise(bounds):
        started = time.monotonic()
        chunks.append(_totals(models, others[first:last]))
        forward += time.monotonic() - started
        seconds[str(last)] = forward
    no_member = np.zeros(len(models), dtype=bool)
    population_out = [
        [
            out_of(no_member, available=_others(len(models), target), count=references, key=document.id)[:references]
            for target in range(len(models))
        ]
        for document in population[: bounds[-1]]
    ]
    _, clusters = np.unique([world.owner.get(d.group, d.group) for d in world.documents], return_inverse=True)
    return Sequences(
        member=world.member,
        clusters=clusters,
        log_prob=log_prob,
        length=np.array([own.audited.sum() for own in tokenized]),
        out=out,
        population_log_prob=np.concatenate(chunks),
        population_length=np.array([own.audited.sum() for own in others[: bounds[-1]]]),
        population_out=np.array(population_out),
        token_based=token_based,
        seconds=seconds,
    )


def population_results(
    every: Sequence[Sequences],
    *,
    sizes: Sequence[int] = SIZES,
    gammas: Sequence[float] = GAMMAS,
    offline_a: Sequence[float] = OFFLINE_A,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """The results of `study_population` from what was judged of each seed."""
    sizes = _cut_sizes(sizes, len(every[0].population_length))
    variants = [(statistic, a) for statistic in ("mean", "sum") for a in offline_a]
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
            for name, gamma, score in _population_scores(gammas):
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
        "findings": _findings(scored, sizes, gammas) if 1.0 in offline_a else [],
    }


def rates(scored: Units) -> dict[str, dict[str, float | None]]:
    """AUC and TPR at 1 % and 0.1 % FPR, each with its interval; 0.1 % only with 1,000 non-members for every target."""
    names = [name for name in RATES if _resolves(scored, name)]
    resamples = dict(zip(names, _resampled(scored, names), strict=True))
    return {name: (_figure(resamples[name]) if name in resamples else UNMEASURED)._asdict() for name in RATES}


def difference(ours: Units, theirs: Units, rate: str) -> Figure:
    """A rate of ours less that of theirs; both see the same resamples of the clusters.

    As `over_targets`, but paired: what makes a resample hard for both does not widen the interval.

    Args:
        ours, theirs: for each seed, scored units of the same targets' documents.
        rate: a key of `RATES`.
    """
    return _figure(_resampled(ours, [rate])[0] - _resampled(theirs, [rate])[0])


def compare(ours: Units, theirs: Units, rate: str) -> str:
    """Both figures, and whether ours wins: by half a thousandth or more, where the difference's interval excludes 0."""
    one, other = (_resampled(units, [rate])[0] for units in (ours, theirs))
    gap = _figure(one - other)
    if gap.value is None or gap.low is None or gap.high is None:
        return "cannot be measured"
    verdict = "wins" if gap.low > 0 else "loses" if gap.high < 0 else "is not told apart"
    verdict = "is even" if abs(gap.value) < _EVEN else verdict
    return f"{verdict}: {one[0]:.3f} to {other[0]:.3f}, difference {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def fresh_people(count: int, *, seed: int) -> Documents:
    """Documents of invented people of whom no model of the seed's world has read; ids begin with `fresh-`.

    They are written like those of people planted 0 times: any register and template, one document a person.
    """
    documents = plant(seed=f"population/{seed}", people_per_count={0: count}).documents
    return Documents(tuple(replace(d, id=f"fresh-{d.id}", group=f"fresh-{d.group}") for d in documents))


def with_non_members(world: World, documents: Documents) -> World:
    """The world with further documents to judge, which trained no model."""
    count = len(documents)
    return replace(
        world,
        documents=Documents((*world.documents, *documents)),
        member=np.concatenate([world.member, np.zeros((count, world.member.shape[1]), dtype=bool)]),
        truth_member=np.concatenate([world.truth_member, np.zeros((count, world.truth_member.shape[1]), dtype=bool)]),
        copies={**world.copies, **{document.id: 0 for document in documents}} if world.copies else {},
    )


def set_aside(path: Path, out: Path) -> tuple[Path, Documents]:
    """Set a third of a file's groups aside as population, at most 1,000 documents, and keep the rest for training.

    Args:
        path: a file of documents.
        out: where `documents-trained.jsonl` goes.

    Returns:
        the file of the rest, and the population.

    Raises:
        MitigateError: fewer than three groups, or `out` holds the rest of another file.
    """
    documents = read_documents(path)
    groups = list(dict.fromkeys(document.group for document in documents))
    if len(groups) < 3:
        raise MitigateError(f"{path}: {len(groups)} groups of documents; a population and two halves need 3 or more")
    order = np.random.default_rng(0).permutation(len(groups))
    chosen = {groups[index] for index in order[: len(groups) // 3]}
    aside = Documents(tuple(d for d in documents if d.group in chosen)[:_LARGEST_SET_ASIDE])
    rest = Documents(tuple(d for d in documents if d.group not in chosen))
    trained = out / "documents-trained.jsonl"
    state = process_state()
    if state.is_main_process and not trained.is_file():
        write_jsonl(rest, trained)
    state.wait_for_everyone()
    if [document.text for document in read_documents(trained)] != [document.text for document in rest]:
        raise MitigateError(f"{trained}: the rest of another file; choose another --out or remove that directory")
    return trained, aside


def _judged(
    log_prob: np.ndarray, length: np.ndarray, out: np.ndarray, target: int, *, statistic: str, a: float
) -> tuple[np.ndarray, np.ndarray]:
    own = log_prob / length[:, None] if statistic == "mean" else log_prob
    judges = np.take_along_axis(own, out[:, target], axis=1)  # (D, K)
    return own[:, target], offline_mean(logsumexp(judges, axis=1) - np.log(judges.shape[1]), a=a)


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


def _population_scores(gammas: Sequence[float]) -> list[tuple[str, float | None, Callable[..., np.ndarray]]]:
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
        *(("rmia", gamma, share(gamma)) for gamma in gammas),
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


def _findings(scored: Mapping[_Choice, _Read], sizes: Sequence[int], gammas: Sequence[float]) -> list[str]:
    """What the figures say about the claim, for length-normalised log-probabilities without offline correction."""
    least, most = sizes[0], sizes[-1]
    sentences = []
    for reading, threshold in READINGS.items():
        units = {choice: read[reading] for choice, read in scored.items()}
        ours = units["informia", "mean", 1.0, None, least]
        tokens = {name: units[name, None, None, None, 0] for name in TOKEN_BASED}
        for rate, words in RATES.items():
            if not _resolves(ours, rate):
                continue
            begins = f"{threshold}, {words}: sequence InfoRMIA with {least} population documents against"
            for gamma in gammas:
                against = {size: compare(ours, units["rmia", "mean", 1.0, gamma, size], rate) for size in sizes}
                even = [size for size in sizes if not against[size].startswith("wins")]
                sentences.append(
                    f"{begins} RMIA (γ={gamma:g}) with {most} {against[most]}; "
                    + (f"the fewest with which RMIA does not lose are {even[0]}." if even else "RMIA always loses.")
                )
            without = units["log_ratio_sequence", "mean", 1.0, None, 0]
            sentences.append(f"{begins} the same without the KL {compare(ours, without, rate)}.")
            best = max(tokens, key=lambda name: _resampled(tokens[name], [rate])[0, 0])
            sentences.append(f"{begins} {best}, the best without a population, {compare(ours, tokens[best], rate)}.")
    return sentences


def _totals(models: Sequence[Model], documents: Sequence[TokenizedDocument]) -> np.ndarray:
    """(Z, M) total log-probability of documents under each model, nats."""
    judgements = [Judgement(number, model) for number in range(len(documents)) for model in range(len(models))]
    log_prob = judge(models, judgements, documents=documents, description="Scoring the population")["log_prob"]
    lengths = [len(documents[judgement.document].ids) for judgement in judgements]
    parts = np.split(log_prob.astype(np.float64), np.cumsum(lengths)[:-1])
    return np.array([np.nansum(part) for part in parts]).reshape(len(documents), len(models))


def _cut_sizes(sizes: Sequence[int], available: int) -> list[int]:
    return sorted({min(size, available) for size in sizes})


def _others(count: int, target: int) -> list[int]:
    return [model for model in range(count) if model != target]


def _resolves(scored: Units, rate: str) -> bool:
    fewest = min(int((~target.labels).sum()) for of_seed in scored for target in of_seed)
    return rate != "tpr_at_0.1pct_fpr" or fewest >= _RESOLVES_ONE_IN_A_THOUSAND


def _resampled(scored: Units, names: Sequence[str]) -> np.ndarray:
    """(rates, 1 + R): each rate's mean over targets, as it is and in R resamples of the clusters, as `over_targets`."""
    rng = np.random.default_rng(0)
    found = []
    for of_seed in scored:
        clusters = 1 + max(int(target.clusters.max()) for target in of_seed)
        drawn = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES)
        weights = np.concatenate([np.ones((1, clusters)), drawn]).astype(np.float32)
        counts = (target.counts(weights) for target in of_seed)
        found.append(np.mean([[_STATISTICS[name](*of_target) for name in names] for of_target in counts], axis=0))
    return np.mean(found, axis=0)


def _figure(resamples: np.ndarray) -> Figure:
    if np.isnan(resamples[0]):
        return UNMEASURED
    low, high = np.nanquantile(resamples[1:], [0.025, 0.975])
    return Figure(float(resamples[0]), float(low), float(high))
