"""The detector that shadows calibrate: signals of a token or a span become the probability that it is memorized.

An attack model fitted on the shadows' spans, whose truth is known, and another one token by token; documents are
cross-fitted by group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from mitigate.detection.calibration.attack import (
    AttackModel,
    expected_calibration_error,
    fit_attack_model,
    fold_of,
    q_values,
    reliability,
)
from mitigate.detection.calibration.features import span_features, token_features
from mitigate.detection.calibration.shadows import PairedSignals, Shadow
from mitigate.detection.spans.segments import Segmentation, fit_segmentation, stretches

MEMORIZED = 1.0  # nats above a model that never saw the document: a token is memorized
_FEWEST_MEMORIZED = 100  # tokens to learn from; where fewer are that far above, so many of the farthest are taken
_LEAST_MEMORIZED = 0.1  # ... but none that is nearer than this, nats
_TOKEN_ROWS = 120_000  # tokens that the token model is fitted on


@dataclass(frozen=True)
class Detector:
    """A calibrated detector: attack models over tokens and spans, and how spans are cut.

    Attributes:
        tokens: log-odds that a token is memorized: `MEMORIZED` nats above what a model that never saw it says, or less
            where few are (`quality.memorized_nats`).
        spans: log-odds that a span was trained on, fitted on shadows that are members of half of what they judge.
        segmentation: how token log-odds become spans.
        null: log-odds of the spans that non-members have: `known` ones, and those `found` in them.
        searched: how much of non-members gave these: number of known spans, and of tokens.
        quality: figures on held-out shadows: `ece`, `reliability`, `spans`, `attack_model`; `memorized_nats`, above
            which a token counted as memorized.
    """

    tokens: AttackModel
    spans: AttackModel
    segmentation: Segmentation
    null: Mapping[str, np.ndarray]
    searched: Mapping[str, float]
    quality: Mapping[str, Any]

    def token_log_odds(self, paired: PairedSignals, folds: np.ndarray) -> np.ndarray:
        """(N,) log-odds that each token is memorized; NaN where it is not scored.

        Args:
            paired: the target's pairings.
            folds: (D,) the fold of each document.
        """
        return _token_log_odds(self.tokens, paired, folds)

    def find(self, paired: PairedSignals, log_odds: np.ndarray) -> tuple[np.ndarray, list[list[tuple[int, int]]]]:
        """(N,) which tokens are memorized, and for each pairing the stretches of its document that hold them.

        Stretches are token indices [start, end).
        """
        return _find(self.segmentation, paired, log_odds)

    def span_log_odds(self, paired: PairedSignals, spans: np.ndarray, folds: np.ndarray) -> np.ndarray:
        """(S,) log-odds of spans.

        Args:
            paired: the target's pairings.
            spans: (S, 3) place of the pairing, first token, end token.
            folds: (D,) the fold of each document.
        """
        return _span_log_odds(self.spans, paired, spans, folds)

    def q(self, log_odds: np.ndarray, *, kind: str, searched: float) -> np.ndarray:
        """False discovery rate at which each span is the last one selected; see `q_values`.

        Args:
            log_odds: (S,) of all spans of one kind.
            kind: `known` or `found`.
            searched: number of known spans, or of tokens in which spans were looked for.
        """
        return q_values(log_odds, self.null[kind], searched=searched, null_searched=self.searched[kind])


def fit_detector(
    shadows: Sequence[Shadow],
    paired: PairedSignals,
    *,
    spare_log_prob: Mapping[tuple[int, int], np.ndarray],
    known: Sequence[Sequence[tuple[int, int]]],
    groups: Sequence[str],
    seed: int = 0,
) -> Detector:
    """Fit a calibrated detector on shadows.

    Args:
        shadows: with known membership.
        paired: their signals, one pairing for each shadow.
        spare_log_prob: (document, model) -> (T,) log-probabilities under a spare OUT reference: the counterfactual
            that labels the tokens of members.
        known: for each document, the token indices [start, end) of its known sensitive spans.
        groups: (D,) the group of each document.
        seed (`int`, *optional*, defaults to 0): of the sample of shadows that tokens are learnt from.

    Raises:
        MitigateError: too few shadows of a kind.
    """
    folds = fold_of(groups)
    chosen = _sample(shadows, paired, seed=seed)
    part = paired.take(chosen)
    member = np.array([shadows[n].member for n in chosen])
    labels, threshold = _token_labels([shadows[n] for n in chosen], part, spare_log_prob)
    tokens, log_odds = _fit_tokens(part, labels, folds)
    segmentation = fit_segmentation(log_odds, labels, part.starts)
    _, found = _find(segmentation, part, log_odds)

    units: dict[int, set[tuple[int, int]]] = {}
    for place, number in enumerate(chosen):
        document = part.pairings[place].document
        units.setdefault(document, set(known[document]))
        if shadows[number].member:
            units[document].update(found[place])
    rows, is_known = [], []
    for place, number in enumerate(range(len(shadows))):
        document = paired.pairings[number].document
        own = set(known[document])
        for unit in sorted(units.get(document, own)):
            rows.append((place, *unit))
            is_known.append(unit in own)
    spans = _scored(np.array(rows, dtype=int).reshape(-1, 3), paired)
    rows_array, kept = spans
    known_mask = np.array(is_known, dtype=bool)[kept]
    features = _features_of(rows_array, paired)
    truth = np.array([shadow.member for shadow in shadows])[rows_array[:, 0]]
    span_folds = folds[np.array([pairing.document for pairing in paired.pairings], dtype=int)[rows_array[:, 0]]]
    attack = fit_attack_model(features, truth, span_folds)

    decoys = [(place, *stretch) for place in np.flatnonzero(~member) for stretch in found[place]]
    decoy_array, _ = _scored(np.array(decoys, dtype=int).reshape(-1, 3), part)
    of_non_members = np.repeat(~member, np.diff(part.starts))
    non_member_tokens = float((of_non_members & ~np.isnan(part.signals["log_prob"])).sum())
    judged_rows = known_mask if known_mask.any() else np.ones(len(truth), dtype=bool)
    probability = expit(attack.out_of_fold[judged_rows])
    return Detector(
        tokens=tokens,
        spans=attack,
        segmentation=segmentation,
        null={
            "known": attack.out_of_fold[judged_rows & ~truth],
            "found": _span_log_odds(attack, part, decoy_array, folds),
        },
        searched={"known": float((judged_rows & ~truth).sum()), "found": non_member_tokens},
        quality={
            "attack_model": attack.kind,
            "memorized_nats": round(threshold, 4),
            "spans": int(judged_rows.sum()),
            "ece": expected_calibration_error(probability, truth[judged_rows]),
            "reliability": reliability(probability, truth[judged_rows]),
            "segmentation": {"bias": segmentation.bias, "switch": segmentation.switch},
        },
    )


def _find(
    segmentation: Segmentation, paired: PairedSignals, log_odds: np.ndarray
) -> tuple[np.ndarray, list[list[tuple[int, int]]]]:
    memorized = segmentation.memorized(log_odds, paired.starts)
    parts = np.split(memorized, paired.starts[1:-1])
    return memorized, [
        stretches(own, paired.words[pairing.document]) for own, pairing in zip(parts, paired.pairings, strict=True)
    ]


def _fit_tokens(paired: PairedSignals, labels: np.ndarray, folds: np.ndarray) -> tuple[AttackModel, np.ndarray]:
    """The token model, and the out-of-fold log-odds of the tokens it was fitted on (NaN where there is no label)."""
    place = np.repeat(np.arange(len(paired.pairings)), np.diff(paired.starts))
    features, _ = token_features(paired.signals, place)
    token_folds = folds[np.array([pairing.document for pairing in paired.pairings], dtype=int)[place]]
    usable = ~np.isnan(labels) & ~np.isnan(paired.signals["log_prob"])
    model = fit_attack_model(features[usable], labels[usable] > 0, token_folds[usable], kinds=("boosted",))
    log_odds = np.full(len(labels), np.nan)
    log_odds[usable] = model.out_of_fold
    return model, log_odds


def _token_labels(
    shadows: Sequence[Shadow], paired: PairedSignals, spare_log_prob: Mapping[tuple[int, int], np.ndarray]
) -> tuple[np.ndarray, float]:
    """(N,) 1 for a memorized token, 0 for another, NaN where it cannot be told; and the threshold, nats.

    A token of a non-member cannot be memorized. One of a member is, if it is likelier by `MEMORIZED` nats than under
    the spare reference, which never saw the document and is none of the features' references. After one epoch hardly
    any token is that far above: then the farthest ones are what there is to learn from.
    """
    labels = np.full(len(paired.signals["log_prob"]), np.nan)
    excess = labels.copy()  # of members
    for shadow, start, end in zip(shadows, paired.starts, paired.starts[1:], strict=False):
        if not shadow.member:
            labels[start:end] = 0.0
        elif shadow.spare is not None:
            counterfactual = spare_log_prob[shadow.pairing.document, shadow.spare]
            excess[start:end] = paired.signals["log_prob"][start:end] - counterfactual
    known = np.sort(excess[~np.isnan(excess)])[::-1]
    farthest = float(known[_FEWEST_MEMORIZED]) if len(known) > _FEWEST_MEMORIZED else MEMORIZED
    threshold = max(_LEAST_MEMORIZED, min(MEMORIZED, farthest))
    return np.where(np.isnan(excess), labels, excess > threshold), threshold


def _sample(shadows: Sequence[Shadow], paired: PairedSignals, *, seed: int) -> list[int]:
    """Shadows that tokens are learnt from: members with a spare reference and as many tokens of non-members."""
    rng = np.random.default_rng(seed)
    lengths = np.diff(paired.starts)
    chosen: list[int] = []
    for member in (True, False):
        usable = [n for n, shadow in enumerate(shadows) if shadow.member == member]
        usable = [n for n in usable if shadows[n].spare is not None or not member]
        usable = [usable[index] for index in rng.permutation(len(usable))]
        within = np.cumsum(lengths[usable]) <= _TOKEN_ROWS / 2
        chosen += [number for number, keep in zip(usable, within, strict=True) if keep]
    return sorted(chosen)


def _token_log_odds(model: AttackModel, paired: PairedSignals, folds: np.ndarray) -> np.ndarray:
    place = np.repeat(np.arange(len(paired.pairings)), np.diff(paired.starts))
    features, _ = token_features(paired.signals, place)
    token_folds = folds[np.array([pairing.document for pairing in paired.pairings], dtype=int)[place]]
    scored = ~np.isnan(paired.signals["log_prob"])
    log_odds = np.full(len(place), np.nan)
    log_odds[scored] = model.log_odds(features[scored], token_folds[scored])
    return log_odds


def _span_log_odds(model: AttackModel, paired: PairedSignals, spans: np.ndarray, folds: np.ndarray) -> np.ndarray:
    if not len(spans):
        return np.zeros(0)
    features = _features_of(spans, paired)
    documents = np.array([pairing.document for pairing in paired.pairings], dtype=int)[spans[:, 0]]
    return model.log_odds(features, folds[documents])


def _features_of(spans: np.ndarray, paired: PairedSignals) -> np.ndarray:
    """(S, F) of (S, 3) spans of pairings."""
    place = spans[:, 0]
    documents = np.stack([paired.starts[place], paired.starts[place + 1]], axis=1)
    return span_features(paired.signals, _rows_of(spans, paired), documents=documents)[0]


def _rows_of(spans: np.ndarray, paired: PairedSignals) -> np.ndarray:
    """(S, 2) first and end row of (S, 3) spans of pairings."""
    return paired.starts[spans[:, 0]][:, None] + spans[:, 1:]


def _scored(spans: np.ndarray, paired: PairedSignals) -> tuple[np.ndarray, np.ndarray]:
    """The spans with a scored token, and which these are."""
    scored = np.concatenate([[0], np.cumsum(~np.isnan(paired.signals["log_prob"]))])
    rows = _rows_of(spans, paired)
    kept = scored[rows[:, 1]] > scored[rows[:, 0]]
    return spans[kept], kept
