"""`mitigate bench detect`: every detector against models whose training documents are known.

    mitigate bench detect --seeds 0 1 2 --out runs/detect

Protocol: M models are fine-tuned on random halves of the documents; each is a target in turn, K OUT references judge
every document, the other models are shadows. A detector never sees which documents trained the target. Two truths:
membership (is this span's document a member?), and the counterfactual (is this token likelier by more than a nat than
under truth models, which no detector sees?). Intervals are from people resampled, figures are means over targets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from mitigate.artifacts import write_json
from mitigate.detection.calibration import expected_calibration_error, fold_of, reliability
from mitigate.detection.scores import SPAN_SCORES, TOKEN_SCORES, lira, logit, offline_mean, rmia
from mitigate.detection.shadows import MEMORIZED, Detector, Judged, fit_detector
from mitigate.lab.bench.evidence import Evidence, gather
from mitigate.lab.bench.world import World, WorldSettings, make_world
from mitigate.models import ModelStore
from mitigate.runtime import library_versions, process_state, progress
from mitigate.verification.metrics import Figure
from mitigate.verification.roc import Scored, average_precision, over_targets, weighted_auc, weighted_tpr

logger = logging.getLogger(__name__)
DETECTORS = (
    *("loss", "zlib", "min_k", "min_k_pp", "log_ratio", "log_ratio_clipped", "informia", "informia_no_kl"),
    *("informia_z", "rmia", "lira", "window_votes", "ez", "calibrated"),
)
RMIA_A = 0.3  # offline correction; the ablation has others
_TOKENS = 20_000  # tokens of a target, drawn at random, on which token figures are measured


@dataclass
class Measured:
    """What one target's detectors said, and the truth.

    Attributes:
        spans, tokens, documents: detector -> scored units with membership as labels.
        localisation: detector -> scored tokens of member documents, labels: memorized by the counterfactual.
        copies: (S,) documents that hold the span's secret; 0 where not known.
        q: (S,) false discovery rate of each known span.
        unaided: counts of `unaided_counts`.
        controls: name -> scored spans.
        seconds: detector -> seconds for all units of all kinds.
        quality: the calibrated detector's own figures on its shadows.
    """

    spans: dict[str, Scored] = field(default_factory=dict)
    tokens: dict[str, Scored] = field(default_factory=dict)
    documents: dict[str, Scored] = field(default_factory=dict)
    localisation: dict[str, Scored] = field(default_factory=dict)
    copies: np.ndarray = field(default_factory=lambda: np.zeros(0))
    q: np.ndarray = field(default_factory=lambda: np.zeros(0))
    unaided: dict[str, float] = field(default_factory=dict)
    controls: dict[str, Scored] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)


def bench_detect(
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    documents: Path | None = None,
    references: int = 3,
    fdr: float = 0.05,
    settings: WorldSettings | None = None,
    base: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run the benchmark and write `out/results.json`; models that are already in `out` are kept.

    Args:
        out: directory of the models and the results.
        seeds (*optional*): each has its own people, halves and initializations.
        documents (*optional*): JSON lines with id, text and spans; by default invented people.
        references (`int`, *optional*, defaults to 3): K, how many OUT references judge a document.
        fdr (`float`, *optional*, defaults to 0.05): false discovery rate at which spans are selected.
        settings (*optional*): models, people, schedules.
        base (*optional*): an existing base model.
        device (`str`, *optional*, defaults to `auto`): of the models.

    Returns:
        what `results.json` holds.

    Raises:
        MitigateError: bad settings, documents that cannot be read, or models of other documents in `out`.
    """
    settings = settings or WorldSettings()
    settings.check_references(references)
    state = process_state(device)
    measured: list[list[Measured]] = []
    seconds: dict[str, float] = {"models": 0.0, "judging": 0.0}
    worlds: list[World] = []
    for seed in seeds:
        started = time.monotonic()
        world = make_world(out, seed=seed, settings=settings, documents=documents, base=base, device=device)
        worlds.append(world)
        seconds["models"] += time.monotonic() - started
        started = time.monotonic()
        evidence = gather(world, references=references, store=ModelStore(device=device))
        seconds["judging"] += time.monotonic() - started
        if state.is_main_process:
            measured.append(measure(evidence, copies=world.copies, fdr=fdr, description=f"Seed {seed}"))
    state.wait_for_everyone()
    if not state.is_main_process:
        return {}
    results = {
        **figures(measured, fdr=fdr),
        "settings": {
            "seeds": list(seeds),
            "references": references,
            "fdr": fdr,
            "documents": documents.name if documents else "invented people",
            **settings.model_dump(mode="json"),
        },
        "documents_per_seed": [len(world.documents) for world in worlds],
        "versions": library_versions(),
    }
    results["seconds"] |= {name: round(value, 1) for name, value in seconds.items()}
    write_json(out / "results.json", results)
    return results


def measure(evidence: Evidence, *, copies: Mapping[str, int], fdr: float, description: str = "Bench") -> list[Measured]:
    """All detectors on all targets of one seed."""
    measured = []
    with progress(evidence.member.shape[1], description, unit="target") as bar:
        for target in range(evidence.member.shape[1]):
            measured.append(measure_target(evidence, target, copies=copies, fdr=fdr))
            bar.update()
    return measured


def measure_target(evidence: Evidence, target: int, *, copies: Mapping[str, int], fdr: float) -> Measured:
    """All detectors on one target."""
    judged = evidence.of_target(target)
    result = Measured()
    documents = np.array([judgement.document for judgement in judged.judgements])
    member = evidence.member[documents, target]
    _names, clusters = np.unique(evidence.groups, return_inverse=True)
    folds = fold_of(evidence.groups)
    starts = judged.starts

    spans = np.array(
        [(place, *unit) for place, number in enumerate(documents) for unit in evidence.known[number]], dtype=int
    ).reshape(-1, 3)
    whole = np.array([(place, 0, starts[place + 1] - starts[place]) for place in range(len(documents))])
    scores_of = {
        "spans": _unit_scores(evidence, judged, spans, member, folds[documents], result.seconds),
        "documents": _unit_scores(evidence, judged, whole, member, folds[documents], result.seconds),
    }
    tokens = _token_scores(judged, result.seconds)

    started = time.monotonic()
    dealt, shadows = evidence.shadows(target)
    detector = fit_detector(
        dealt, shadows, spare_log_prob=evidence.log_probs, known=evidence.known, groups=evidence.groups, seed=target
    )
    log_odds = detector.token_log_odds(judged, folds)
    scores_of["spans"]["calibrated"] = detector.span_log_odds(judged, spans, folds)
    scores_of["documents"]["calibrated"] = _means(log_odds, starts)
    tokens["calibrated"] = log_odds
    result.seconds["calibrated"] = time.monotonic() - started

    for kind, units in (("spans", spans), ("documents", whole)):
        place = units[:, 0]
        getattr(result, kind).update(
            {
                name: Scored(np.nan_to_num(scores), member[place], clusters[documents[place]])
                for name, scores in scores_of[kind].items()
            }
        )
    row_place = np.repeat(np.arange(len(documents)), np.diff(starts))
    scored = ~np.isnan(judged.signals["log_prob"])
    truth = judged.signals["log_prob"] - np.concatenate([evidence.counterfactual(number) for number in documents])
    rng = np.random.default_rng(target)
    some = rng.permutation(np.flatnonzero(scored))[:_TOKENS]
    inside = rng.permutation(np.flatnonzero(scored & member[row_place]))[:_TOKENS]
    for name, column in tokens.items():
        place = row_place[some]
        result.tokens[name] = Scored(column[some], member[place], clusters[documents[place]])
        result.localisation[name] = Scored(
            column[inside], truth[inside] > MEMORIZED, clusters[documents[row_place[inside]]]
        )
    result.copies = np.array([copies.get(evidence.documents[documents[place]].id, 0) for place in spans[:, 0]])
    result.q = detector.q(scores_of["spans"]["calibrated"], kind="known", searched=len(spans))
    result.unaided = unaided_counts(evidence, judged, detector, log_odds, truth, member, folds, fdr=fdr)
    result.controls = _controls(evidence, target, detector, spans, scores_of["spans"], folds)
    result.quality = detector.quality
    return result


def unaided_counts(
    evidence: Evidence,
    judged: Judged,
    detector: Detector,
    log_odds: np.ndarray,
    truth: np.ndarray,
    member: np.ndarray,
    folds: np.ndarray,
    *,
    fdr: float,
) -> dict[str, float]:
    """Counts behind the figures of spans that were found without being told where secrets are.

    Args:
        truth: (N,) log-probability above the truth models', nats, NaN where a token is not scored.

    Returns:
        of member documents, tokens: `said` to be memorized (marked, inside a selected span), `right`ly so, `memorized`,
        `inside` selected spans, `inside_memorized`; `secret_found`, `secret`: characters of known spans
        of members whose mean truth is above a nat; `false_tokens`, `tokens`: of non-member documents; `false_spans`,
        `spans`.
    """
    starts = judged.starts
    marked, found = detector.find(judged, log_odds)
    spans = np.array([(place, *unit) for place, units in enumerate(found) for unit in units], dtype=int).reshape(-1, 3)
    span_log_odds = detector.span_log_odds(judged, spans, folds)
    scored = ~np.isnan(judged.signals["log_prob"])
    spans = spans[detector.q(span_log_odds, kind="found", searched=float(scored.sum())) <= fdr]
    inside = np.zeros(len(truth), dtype=bool)
    for place, first, last in spans:
        inside[starts[place] + first : starts[place] + last] = True
    said = inside & marked
    of_member = np.repeat(member, np.diff(starts)) & scored
    others = ~np.repeat(member, np.diff(starts)) & scored
    memorized = truth > MEMORIZED
    secret, secret_found = 0, 0
    for place, judgement in enumerate(judged.judgements):
        if not member[place]:
            continue
        own = evidence.tokenized[judgement.document]
        covered = np.zeros(len(evidence.documents[judgement.document].text), dtype=bool)
        for _, first, last in spans[spans[:, 0] == place]:
            covered[own.offsets[first, 0] : own.offsets[last - 1, 1]] = True
        for (first, last), span in zip(
            evidence.known[judgement.document], evidence.documents[judgement.document].spans, strict=False
        ):
            if np.nanmean(truth[starts[place] + first : starts[place] + last]) > MEMORIZED:
                secret += span.end - span.start
                secret_found += int(covered[span.start : span.end].sum())
    return {
        "said": float((said & of_member).sum()),
        "right": float((said & memorized & of_member).sum()),
        "memorized": float((memorized & of_member).sum()),
        "secret_found": float(secret_found),
        "secret": float(secret),
        "inside": float((inside & of_member).sum()),
        "inside_memorized": float((inside & memorized & of_member).sum()),
        "false_tokens": float((inside & others).sum()),
        "tokens": float(others.sum()),
        "false_spans": float((~member[spans[:, 0]]).sum()),
        "spans": float(len(spans)),
    }


def figures(measured: Sequence[Sequence[Measured]], *, fdr: float) -> dict[str, Any]:
    """The figures of results.json from all targets of all seeds."""
    every = [target for of_seed in measured for target in of_seed]

    def per_detector(kind: str, **statistics: Callable[..., np.ndarray]) -> dict[str, dict[str, Any]]:
        table: dict[str, dict[str, Any]] = {}
        for name in DETECTORS:
            if name in getattr(every[0], kind):
                scored = [[getattr(target, kind)[name] for target in of_seed] for of_seed in measured]
                table[name] = {key: _plain(over_targets(scored, statistic)) for key, statistic in statistics.items()}
        return table

    def tpr(fpr: float) -> Callable[..., np.ndarray]:
        return lambda true, false: weighted_tpr(true, false, fpr=fpr)

    rates = {"auc": weighted_auc, "tpr_at_1pct_fpr": tpr(0.01), "tpr_at_0.1pct_fpr": tpr(0.001)}
    results: dict[str, Any] = {
        "span": per_detector("spans", **rates),
        "token": per_detector("tokens", **rates),
        "document": per_detector("documents", **rates),
        "localisation": per_detector("localisation", auc=weighted_auc, ap=average_precision),
    }
    for kind, units in (("span", "spans"), ("document", "documents")):
        fewest = min(int((~getattr(target, units)["calibrated"].labels).sum()) for target in every)
        results[f"non_member_{units}"] = fewest
        if fewest < 1000:  # too few to resolve one in a thousand
            for row in results[kind].values():
                row["tpr_at_0.1pct_fpr"] = _plain(Figure(None, None, None))
    probability = np.concatenate([expit(target.spans["calibrated"].scores) for target in every])
    labels = np.concatenate([target.spans["calibrated"].labels for target in every])
    selected = np.concatenate([target.q for target in every]) <= fdr
    results["calibration"] = {
        "ece": expected_calibration_error(probability, labels),
        "realised_fdr": float((~labels[selected]).mean()) if selected.any() else 0.0,
        "selected": float(selected.mean()),
        "recall": float(selected[labels].mean()),
        "reliability": reliability(probability, labels),
        "attack_models": sorted({str(target.quality["attack_model"]) for target in every}),
    }
    results["unaided"] = _unaided([target.unaided for target in every])
    results["controls"] = {
        name: _plain(over_targets([[t.controls[name] for t in of_seed] for of_seed in measured], weighted_auc))
        for name in every[0].controls
    }
    grid = np.geomspace(1e-3, 1.0, 40)
    results["roc"] = {"fpr": [round(float(fpr), 5) for fpr in grid]} | {
        name: [round(float(np.mean([_tpr_of(target.spans[name], fpr) for target in every])), 4) for fpr in grid]
        for name in results["span"]
    }
    results["by_copies"] = _by_copies(every)
    results["seconds"] = {name: round(sum(target.seconds[name] for target in every), 2) for name in every[0].seconds}
    return results


def _unit_scores(
    evidence: Evidence,
    judged: Judged,
    units: np.ndarray,
    member: np.ndarray,
    folds: np.ndarray,
    seconds: dict[str, float],
) -> dict[str, np.ndarray]:
    """Detector -> (S,) scores of (S, 3) units: place of the judgement, first and end token."""
    starts = judged.starts
    rows = [slice(starts[place] + first, starts[place] + last) for place, first, last in units]
    columns = [{name: column[own] for name, column in judged.signals.items()} for own in rows]
    texts = []
    for place, first, last in units:
        number = judged.judgements[place].document
        offsets = evidence.tokenized[number].offsets[first:last]
        inside = offsets[offsets[:, 1] > offsets[:, 0]]
        texts.append(evidence.documents[number].text[inside[:, 0].min() : inside[:, 1].max()])
    scores: dict[str, np.ndarray] = {}
    for name, score in SPAN_SCORES.items():
        started = time.monotonic()
        scores[name] = np.array([score(own, text) for own, text in zip(columns, texts, strict=True)])
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started
    started = time.monotonic()
    mean = np.array([np.nanmean(own["log_prob"]) for own in columns])
    out = np.array([np.nanmean(own["log_prob_references"], axis=0) for own in columns])
    log_mean = offline_mean(np.logaddexp.reduce(out, axis=1) - np.log(out.shape[1]), a=RMIA_A)
    seconds["rmia"] = seconds["lira"] = time.monotonic() - started
    started = time.monotonic()
    scores["rmia"] = np.empty(len(units))
    for fold in np.unique(folds):  # the population is of other people, and trained nothing
        here, there = folds[units[:, 0]] == fold, (folds[units[:, 0]] != fold) & ~member[units[:, 0]]
        scores["rmia"][here] = rmia(mean[here], log_mean[here], mean[there], log_mean[there])
    seconds["rmia"] += time.monotonic() - started
    started = time.monotonic()
    scores["lira"] = lira(mean, out)
    seconds["lira"] += time.monotonic() - started
    return scores


def _token_scores(judged: Judged, seconds: dict[str, float]) -> dict[str, np.ndarray]:
    """Detector -> (N,) token scores."""
    scores: dict[str, np.ndarray] = {}
    for name, score in TOKEN_SCORES.items():
        started = time.monotonic()
        scores[name] = score(judged.signals)
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started
    scores["lira"] = lira(logit(judged.signals["log_prob"]), logit(judged.signals["log_prob_references"]))
    return scores


def _controls(
    evidence: Evidence,
    target: int,
    detector: Detector,
    spans: np.ndarray,
    scores: Mapping[str, np.ndarray],
    folds: np.ndarray,
) -> dict[str, Scored]:
    """Spans scored where there is nothing to find: each must read chance."""
    documents = np.array([judgement.document for judgement in evidence.of_target(target).judgements])
    member = evidence.member[documents, target]
    _, clusters = np.unique(evidence.groups, return_inverse=True)
    place = spans[:, 0]
    rng = np.random.default_rng(target)
    trained = np.asarray(evidence.member.any(axis=1))[documents]  # what trained no model stays as it is
    shuffled = member.copy()
    groups = np.unique(clusters[documents[trained]])
    of_group = dict(zip(clusters[documents[trained]], member[trained], strict=True))
    moved = dict(zip(groups, np.array([of_group[group] for group in rng.permutation(groups)]), strict=True))
    shuffled[trained] = [moved[cluster] for cluster in clusters[documents[trained]]]
    other = evidence.of_reference(target)
    some = trained[place]
    return {
        "shuffled_labels": Scored(scores["calibrated"][some], shuffled[place][some], clusters[documents[place]][some]),
        "target_is_reference": Scored(
            detector.span_log_odds(other, spans, folds)[some], member[place][some], clusters[documents[place]][some]
        ),
        "bag_of_words": _bag_of_words(evidence, documents[trained], member[trained], folds, clusters),
    }


def _bag_of_words(
    evidence: Evidence, documents: np.ndarray, member: np.ndarray, folds: np.ndarray, clusters: np.ndarray
) -> Scored:
    """A detector that reads the text and asks no model."""
    counts = CountVectorizer(token_pattern=r"\w+", binary=True).fit_transform(
        [evidence.documents[number].text for number in documents]
    )
    scores = np.empty(len(documents))
    for fold in np.unique(folds):
        here = folds[documents] == fold
        blind = LogisticRegression(C=0.1, max_iter=500, class_weight="balanced").fit(counts[~here], member[~here])
        raw = blind.decision_function(counts[here])
        scores[here] = (raw - raw.mean()) / max(raw.std(), 1e-9)  # folds are not to differ as a whole
    return Scored(scores, member, clusters[documents])


def _unaided(counts: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    total = {name: sum(target[name] for target in counts) for name in counts[0]}

    def rate(part: str, whole: str) -> float | None:
        return total[part] / total[whole] if total[whole] else None

    return {
        "precision": rate("right", "said"),
        "recall": rate("right", "memorized"),
        "f1": 2 * total["right"] / (total["said"] + total["memorized"]) if total["said"] + total["memorized"] else None,
        "secret_recall": rate("secret_found", "secret"),
        "span_precision": rate("inside_memorized", "inside"),
        "span_recall": rate("inside_memorized", "memorized"),
        "non_member_share": rate("false_tokens", "tokens"),
        "realised_fdr": rate("false_spans", "spans"),
    }


def _by_copies(every: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Share of member spans above the score that 1 % of non-members exceed, by documents that hold the secret."""
    found: dict[int, list[np.ndarray]] = {}
    for target in every:
        spans = target.spans["calibrated"]
        limit = np.quantile(spans.scores[~spans.labels], 0.99)
        for number in np.unique(target.copies[spans.labels]):
            found.setdefault(int(number), []).append((spans.scores > limit)[spans.labels & (target.copies == number)])
    return {
        str(number): {"tpr_at_1pct_fpr": float(np.concatenate(parts).mean()), "spans": sum(map(len, parts))}
        for number, parts in sorted(found.items())
    }


def _tpr_of(scored: Scored, fpr: float) -> float:
    counts = scored.counts(np.ones((1, int(scored.clusters.max()) + 1)))
    return float(weighted_tpr(*counts, fpr=fpr)[0])


def _means(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    return np.diff(total[starts]) / np.maximum(np.diff(count[starts]), 1)


def _plain(figure: Figure) -> dict[str, float | None]:
    return figure._asdict()
