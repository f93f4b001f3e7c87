"""What `mitigate bench population` reads: documents, and a population that trained no model, judged by all models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from mitigate.bench.evidence import target_pairings
from mitigate.bench.world import World, write_once
from mitigate.detection.calibration.shadows import PairedSignals, out_of
from mitigate.detection.scores.aggregations import mean, min_k
from mitigate.detection.scores.token import TOKEN_SCORES
from mitigate.detection.scores.units import offline_mean
from mitigate.detection.signals.compute import compute_signals
from mitigate.detection.signals.pairings import Pairing
from mitigate.documents import Documents, read_documents
from mitigate.errors import MitigateError
from mitigate.lab.planting import plant
from mitigate.models.model import Model
from mitigate.models.store import ModelStore
from mitigate.tokens.tokenization import TokenizedDocument, tokenize_documents

SIZES = (10, 100, 1000)
TOKEN_BASED: dict[str, Callable[[Mapping[str, np.ndarray]], float]] = {
    "loss": lambda signals: mean(TOKEN_SCORES["loss"](signals)),
    "log_ratio": lambda signals: mean(TOKEN_SCORES["log_ratio"](signals)),
    "log_ratio_clipped": lambda signals: mean(TOKEN_SCORES["log_ratio_clipped"](signals)),
    "informia_tokens": lambda signals: mean(TOKEN_SCORES["informia"](signals)),
    "informia_tokens_min_k": lambda signals: min_k(TOKEN_SCORES["informia"](signals)),
}
"""Scores of a document from its tokens' signals; they ask no population."""
_LARGEST_SET_ASIDE = 1000


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


def read_sequences(
    world: World,
    population: Documents,
    *,
    references: int,
    sizes: Sequence[int],
    store: ModelStore,
) -> Sequences:
    """Judge a world's documents and its population; the models of the counterfactual truth take no part."""
    models = [store.load(path) for path in world.models.paths]
    tokenized = tokenize_documents(world.documents, models[0].tokenizer)
    keys = [document.id for document in world.documents]
    seconds: dict[str, float] = {}

    started = time.monotonic()
    pairings = [
        pairing for target in range(len(models)) for pairing in target_pairings(world.member, target, references, keys)
    ]
    paired = PairedSignals(
        pairings,
        compute_signals(models, pairings, documents=tokenized, description="Judging documents"),
        [own.ids for own in tokenized],  # one word a token: words are of no use here, but their number is
    )
    seconds["documents"] = time.monotonic() - started
    shape = (len(keys), len(models))
    log_prob, out = np.full(shape, np.nan), np.zeros((*shape, references), dtype=int)
    token_based = {name: np.full(shape, np.nan) for name in TOKEN_BASED}
    for number, pairing in enumerate(pairings):
        place = (pairing.document, pairing.target)
        rows = slice(paired.starts[number], paired.starts[number + 1])
        own = {name: column[rows] for name, column in paired.signals.items()}
        log_prob[place] = np.nansum(own["log_prob"].astype(np.float64))
        out[place] = pairing.out
        for name, score in TOKEN_BASED.items():
            started = time.monotonic()
            token_based[name][place] = score(own)
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started

    others = tokenize_documents(population, models[0].tokenizer)
    chunks, forward = [], 0.0
    bounds = [0, *cut_sizes(sizes, len(population))]
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
    write_once(rest, trained)
    return trained, aside


def cut_sizes(sizes: Sequence[int], available: int) -> list[int]:
    """The sizes of populations, ascending, each cut to what is available."""
    return sorted({min(size, available) for size in sizes})


def _judged(
    log_prob: np.ndarray, length: np.ndarray, out: np.ndarray, target: int, *, statistic: str, a: float
) -> tuple[np.ndarray, np.ndarray]:
    own = log_prob / length[:, None] if statistic == "mean" else log_prob
    judges = np.take_along_axis(own, out[:, target], axis=1)  # (D, K)
    return own[:, target], offline_mean(logsumexp(judges, axis=1) - np.log(judges.shape[1]), a=a)


def _totals(models: Sequence[Model], documents: Sequence[TokenizedDocument]) -> np.ndarray:
    """(Z, M) total log-probability of documents under each model, nats."""
    pairings = [Pairing(number, model) for number in range(len(documents)) for model in range(len(models))]
    log_prob = compute_signals(models, pairings, documents=documents, description="Scoring the population")["log_prob"]
    lengths = [len(documents[pairing.document].ids) for pairing in pairings]
    parts = np.split(log_prob.astype(np.float64), np.cumsum(lengths)[:-1])
    return np.array([np.nansum(part) for part in parts]).reshape(len(documents), len(models))


def _others(count: int, target: int) -> list[int]:
    return [model for model in range(count) if model != target]
