"""One target of `mitigate bench detect`: what every detector says of its spans, tokens and documents, and the truth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from mitigate.bench.evidence import DetectEvidence
from mitigate.detection.calibration.attack import fold_of
from mitigate.detection.calibration.detector import MEMORIZED, Detector, fit_detector
from mitigate.detection.calibration.shadows import PairedSignals
from mitigate.detection.scores.token import SPAN_SCORES, TOKEN_SCORES, logit
from mitigate.detection.scores.units import lira, offline_mean, rmia
from mitigate.runtime import progress
from mitigate.statistics.roc import Scored

RMIA_A = 0.3  # offline correction; the ablation has others
RMIA_GAMMA = 2.0  # the better of those that `mitigate bench population` tries
_TOKENS = 20_000  # tokens of a target, drawn at random, on which token figures are measured


@dataclass
class TargetScores:
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
        guessable: (S,) bool, spans whose tokens models that never saw them find likelier than not, on average.
        excess: correlation of estimates of the tokens' excess with the truth models', over member documents.
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
    guessable: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    excess: dict[str, float] = field(default_factory=dict)


def measure(evidence: DetectEvidence, *, copies: Mapping[str, int], fdr: float, description: str) -> list[TargetScores]:
    """All detectors on all targets of one seed."""
    measured = []
    with progress(evidence.member.shape[1], description, unit="target") as bar:
        for target in range(evidence.member.shape[1]):
            measured.append(measure_target(evidence, target, copies=copies, fdr=fdr))
            bar.update()
    return measured


def measure_target(evidence: DetectEvidence, target: int, *, copies: Mapping[str, int], fdr: float) -> TargetScores:
    """All detectors on one target."""
    paired = evidence.of_target(target)
    result = TargetScores()
    documents = np.array([pairing.document for pairing in paired.pairings])
    member = evidence.member[documents, target]
    _names, clusters = np.unique(evidence.groups, return_inverse=True)
    folds = fold_of(evidence.groups)
    starts = paired.starts

    spans = np.array(
        [(place, *unit) for place, number in enumerate(documents) for unit in evidence.known[number]], dtype=int
    ).reshape(-1, 3)
    whole = np.array([(place, 0, starts[place + 1] - starts[place]) for place in range(len(documents))])
    scores_of = {
        "spans": _unit_scores(evidence, paired, spans, member, folds[documents], result.seconds),
        "documents": _unit_scores(evidence, paired, whole, member, folds[documents], result.seconds),
    }
    tokens = _token_scores(paired, result.seconds)

    started = time.monotonic()
    dealt, shadows = evidence.shadows(target)
    detector = fit_detector(
        dealt, shadows, spare_log_prob=evidence.log_probs, known=evidence.known, groups=evidence.groups, seed=target
    )
    log_odds = detector.token_log_odds(paired, folds)
    scores_of["spans"]["calibrated"] = detector.span_log_odds(paired, spans, folds)
    scores_of["documents"]["calibrated"] = detector.span_log_odds(paired, whole, folds)
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
    scored = ~np.isnan(paired.signals["log_prob"])
    unseen = np.concatenate([evidence.counterfactual(number) for number in documents])
    truth = paired.signals["log_prob"] - unseen
    rows = [slice(starts[place] + first, starts[place] + last) for place, first, last in spans]
    result.guessable = np.array([np.nanmean(unseen[own]) > np.log(0.5) for own in rows], dtype=bool)
    result.excess = _excess_figures(paired, truth, member[np.repeat(np.arange(len(documents)), np.diff(starts))])
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
    result.unaided = unaided_counts(evidence, paired, detector, log_odds, truth, member, folds, fdr=fdr)
    result.controls = _controls(evidence, target, detector, spans, scores_of["spans"], folds)
    result.quality = detector.quality
    return result


def _excess_figures(paired: PairedSignals, truth: np.ndarray, member: np.ndarray) -> dict[str, float]:
    """How an estimate of the tokens' excess correlates with the truth models', over member tokens.

    `log_ratio` is log p_θ − log p̄, `typical` log p_θ − the mean of the references' log-probabilities.
    """
    rows = np.flatnonzero(member & ~np.isnan(truth))
    log_prob, references = (paired.signals[name][rows] for name in ("log_prob", "log_prob_references"))
    estimates = {
        "log_ratio": log_prob - paired.signals["log_prob_out"][rows],
        "typical": log_prob - np.nanmean(references, axis=1),
    }
    return {name: float(np.corrcoef(own, truth[rows])[0, 1]) for name, own in estimates.items()}


def unaided_counts(
    evidence: DetectEvidence,
    paired: PairedSignals,
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
    starts = paired.starts
    marked, found = detector.find(paired, log_odds)
    spans = np.array([(place, *unit) for place, units in enumerate(found) for unit in units], dtype=int).reshape(-1, 3)
    span_log_odds = detector.span_log_odds(paired, spans, folds)
    scored = ~np.isnan(paired.signals["log_prob"])
    spans = spans[detector.q(span_log_odds, kind="found", searched=float(scored.sum())) <= fdr]
    inside = np.zeros(len(truth), dtype=bool)
    for place, first, last in spans:
        inside[starts[place] + first : starts[place] + last] = True
    said = inside & marked
    of_member = np.repeat(member, np.diff(starts)) & scored
    others = ~np.repeat(member, np.diff(starts)) & scored
    memorized = truth > MEMORIZED
    secret, secret_found = 0, 0
    for place, pairing in enumerate(paired.pairings):
        if not member[place]:
            continue
        own = evidence.tokenized[pairing.document]
        covered = np.zeros(len(evidence.documents[pairing.document].text), dtype=bool)
        for _, first, last in spans[spans[:, 0] == place]:
            covered[own.offsets[first, 0] : own.offsets[last - 1, 1]] = True
        for (first, last), span in zip(
            evidence.known[pairing.document], evidence.documents[pairing.document].spans, strict=False
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


def _unit_scores(
    evidence: DetectEvidence,
    paired: PairedSignals,
    units: np.ndarray,
    member: np.ndarray,
    folds: np.ndarray,
    seconds: dict[str, float],
) -> dict[str, np.ndarray]:
    """Detector -> (S,) scores of (S, 3) units: place of the pairing, first and end token."""
    starts = paired.starts
    rows = [slice(starts[place] + first, starts[place] + last) for place, first, last in units]
    columns = [{name: column[own] for name, column in paired.signals.items()} for own in rows]
    texts = []
    for place, first, last in units:
        number = paired.pairings[place].document
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
        scores["rmia"][here] = rmia(mean[here], log_mean[here], mean[there], log_mean[there], gamma=RMIA_GAMMA)
    seconds["rmia"] += time.monotonic() - started
    started = time.monotonic()
    scores["lira"] = lira(mean, out)
    seconds["lira"] += time.monotonic() - started
    return scores


def _token_scores(paired: PairedSignals, seconds: dict[str, float]) -> dict[str, np.ndarray]:
    """Detector -> (N,) token scores."""
    scores: dict[str, np.ndarray] = {}
    for name, score in TOKEN_SCORES.items():
        started = time.monotonic()
        scores[name] = score(paired.signals)
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started
    scores["lira"] = lira(logit(paired.signals["log_prob"]), logit(paired.signals["log_prob_references"]))
    return scores


def _controls(
    evidence: DetectEvidence,
    target: int,
    detector: Detector,
    spans: np.ndarray,
    scores: Mapping[str, np.ndarray],
    folds: np.ndarray,
) -> dict[str, Scored]:
    """Spans scored where there is nothing to find: each must read chance."""
    documents = np.array([pairing.document for pairing in evidence.of_target(target).pairings])
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
    evidence: DetectEvidence, documents: np.ndarray, member: np.ndarray, folds: np.ndarray, clusters: np.ndarray
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
