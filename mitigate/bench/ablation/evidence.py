"""What `mitigate bench ablation` reads: a target's scores on known spans and on member tokens, in every variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mitigate.bench.evidence import DetectEvidence, target_pairings
from mitigate.bench.world import World
from mitigate.detection.calibration.detector import MEMORIZED
from mitigate.detection.calibration.shadows import PairedSignals
from mitigate.detection.references.crossfit import References, crossfit_references
from mitigate.detection.scores.aggregations import clipped_mean, max_window, mean, min_k
from mitigate.detection.scores.token import TOKEN_SCORES
from mitigate.detection.signals.compute import compute_signals
from mitigate.detection.signals.pairings import Pairing
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.models.settings import Lora, Schedule
from mitigate.models.store import ModelStore
from mitigate.statistics.roc import Scored
from mitigate.tokens.tokenization import tokenize_documents

TEMPERATURES = (0.5, 1.0, 2.0)
OFFLINE_A = (1.0, 0.9, 0.5)
LORA = Lora(rank=32, alpha=64)
_TOKENS = 5_000  # tokens of a target's member documents, drawn at random, on which localisation is measured

SCORES: dict[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]] = {
    name: TOKEN_SCORES[name]
    for name in ("informia", "informia_no_kl", "informia_z", "log_ratio", "log_ratio_clipped", "loss")
} | {"log_ratio_half_kl": lambda signals: TOKEN_SCORES["log_ratio"](signals) - signals["kl"] / 2}
"""Token scores; `informia_no_kl` is the log-ratio at the temperature and offline correction of the variant."""
AGGREGATIONS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": mean,
    "min_k": min_k,
    "clipped_mean": clipped_mean,
    "max_window_4": partial(max_window, window=4),
}
AGGREGATED = ("informia", "log_ratio")  # scores of which all aggregations are measured


@dataclass(frozen=True)
class Variant:
    """Who judges, and how.

    Attributes:
        references: `K`, `base` or `lora`.
        count: K, how many OUT references judge; 1 for the base.
        temperature, offline_a: as for `compute_signals`.
    """

    references: str
    count: int
    temperature: float = 1.0
    offline_a: float = 1.0


@dataclass(frozen=True)
class VariantScores:
    """One target's scores in one variant.

    Attributes:
        spans: (score, aggregation) -> scored spans with membership as labels.
        localisation: score -> scored tokens of member documents.
        copies: (S,) documents that hold each span's secret; 0 where not known.
    """

    spans: Mapping[tuple[str, str], Scored]
    localisation: Mapping[str, Scored]
    copies: np.ndarray


Seed = Mapping[Variant, Sequence[VariantScores]]  # of one seed: for each variant, the targets


def lora_references(world: World, base: str, *, out: Path, seed: int, schedule: Schedule, device: str) -> References:
    """Adapters on the halves that the world's models were trained on: adapter k saw what model k saw.

    Raises:
        MitigateError: `out` holds other adapters, or the halves differ.
    """
    trained = frozenset().union(*(groups or () for groups in world.models.trained_on))
    adapters = crossfit_references(
        base,
        Documents(tuple(document for document in world.documents if document.group in trained)),
        out=out,
        count=len(world.models.paths),
        method="lora",
        lora=LORA,
        schedule=schedule,
        seed=2 * seed,
        new_store=lambda: ModelStore(device=device),
    )
    if adapters.trained_on != world.models.trained_on:
        raise MitigateError(
            f"{out}: these adapters were trained on other halves than the models; remove that directory"
        )
    return adapters


def variants(models: int, *, references: int, base: bool, lora: bool) -> list[Variant]:
    """Every variant, the one that all are compared with first.

    K is 1, 2, 4, ... and the most that half of the models less one allow.
    """
    most = models // 2 - 1
    counts = sorted({count for count in (1, 2, 4, 8, 16) if count < most} | {most})
    changed = [Variant("K", count) for count in counts if count != references]
    changed += [Variant("K", references, temperature=t) for t in TEMPERATURES if t != 1.0]
    changed += [Variant("K", references, offline_a=a) for a in OFFLINE_A if a != 1.0]
    changed += [Variant("base", 1)] if base else []
    changed += [Variant("lora", references)] if lora else []
    return [Variant("K", references), *changed]


def measure_seed(
    world: World,
    *,
    base: str | None,
    lora: References | None,
    references: int,
    targets: Sequence[int],
    store: ModelStore,
) -> Seed:
    """All variants on all targets of one seed.

    Raises:
        MitigateError: the documents have no spans.
    """
    own, truth = len(world.models.paths), len(world.truth.paths)
    paths = [*world.models.paths, *world.truth.paths, *([base] if base else []), *(lora.paths if lora else ())]
    models = [store.load(path) for path in paths]
    base_at, lora_at = own + truth, own + truth + bool(base)
    tokenized = tokenize_documents(world.documents, models[0].tokenizer)
    keys = [document.id for document in world.documents]

    def pairings(variant: Variant, target: int) -> list[Pairing]:
        by_models = target_pairings(world.member, target, variant.count, keys)
        if variant.references == "base":
            return [Pairing(pairing.document, target, (base_at,)) for pairing in by_models]
        if variant.references == "lora":  # adapter k was trained on what model k was, so it serves where model k does
            return [Pairing(j.document, target, tuple(lora_at + k for k in j.out)) for j in by_models]
        return by_models

    wanted = variants(own, references=references, base=bool(base), lora=lora is not None)
    plain = [Pairing(document, own + number) for document in range(len(keys)) for number in range(truth)]
    log_probs: dict[tuple[int, int], np.ndarray] = {}
    paired: dict[tuple[Variant, int], PairedSignals] = {}
    numbers = [own.ids for own in tokenized]  # one word a token: words are of no use here, but their number is
    for temperature, offline_a in dict.fromkeys((variant.temperature, variant.offline_a) for variant in wanted):
        alike = [v for v in wanted if (v.temperature, v.offline_a) == (temperature, offline_a)]
        parts = {(variant, target): pairings(variant, target) for variant in alike for target in targets}
        together = [pairing for part in parts.values() for pairing in part] + ([] if log_probs else plain)
        signals = compute_signals(
            models,
            together,
            documents=tokenized,
            temperature=temperature,
            offline_a=offline_a,
            description=f"Judging at T={temperature:g}, a={offline_a:g}",
        )
        everything = PairedSignals(together, signals, numbers)
        first = 0
        for key, part in parts.items():
            paired[key] = everything.take(range(first, first + len(part)))
            first += len(part)
        for number in range(first, len(together)):
            rows = slice(everything.starts[number], everything.starts[number + 1])
            log_probs[together[number].document, together[number].target] = signals["log_prob"][rows]
    evidence = DetectEvidence(
        documents=world.documents,
        tokenized=tokenized,
        groups=[world.owner.get(document.group, document.group) for document in world.documents],
        member=world.member,
        truth_member=world.truth_member,
        everything=PairedSignals([], {}, numbers),
        log_probs=log_probs,
        references=references,
    )
    if not any(evidence.known):
        raise MitigateError("bench ablation: no document has a span; give documents with spans")
    return {
        variant: [
            measure_target(
                evidence, paired[variant, target], target, copies=world.copies, aggregate=variant == wanted[0]
            )
            for target in targets
        ]
        for variant in wanted
    }


def measure_target(
    evidence: DetectEvidence, paired: PairedSignals, target: int, *, copies: Mapping[str, int], aggregate: bool
) -> VariantScores:
    """The scores of one target's spans and tokens."""
    documents = np.array([pairing.document for pairing in paired.pairings])
    member = evidence.member[documents, target]
    _, clusters = np.unique(evidence.groups, return_inverse=True)
    starts = paired.starts
    spans = np.array(
        [(place, *unit) for place, number in enumerate(documents) for unit in evidence.known[number]], dtype=int
    )
    place = spans[:, 0]
    rows = starts[place][:, None] + spans[:, 1:]
    tokens = {name: score(paired.signals) for name, score in SCORES.items()}
    of_spans = {
        (name, how): Scored(
            np.array([aggregation(column[first:last]) for first, last in rows]),
            member[place],
            clusters[documents[place]],
        )
        for name, column in tokens.items()
        for how, aggregation in AGGREGATIONS.items()
        if how == "mean" or (aggregate and name in AGGREGATED)
    }
    of_row = np.repeat(np.arange(len(documents)), np.diff(starts))
    inside = np.flatnonzero(~np.isnan(paired.signals["log_prob"]) & member[of_row])
    inside = np.random.default_rng(target).permutation(inside)[:_TOKENS]
    truth = paired.signals["log_prob"] - np.concatenate([evidence.counterfactual(number) for number in documents])
    return VariantScores(
        spans=of_spans,
        localisation={
            name: Scored(column[inside], truth[inside] > MEMORIZED, clusters[documents[of_row[inside]]])
            for name, column in tokens.items()
        },
        copies=np.array([copies.get(evidence.documents[documents[at]].id, 0) for at in place]),
    )
