"""From features to probabilities with a known error rate: cross-fitted attack models, reliability, false discovery.

A score says which of two spans is more memorized; it does not say how often such a score is wrong. Shadow models, whose
membership is known, say that: an attack model fitted on them gives log-odds, spans of non-members judged alike give
the false discovery rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mitigate.errors import MitigateError

FOLDS = 3
_BINS = 10
_LEAST_PER_CLASS = 20
_TREES = 150


def fold_of(groups: Sequence[str]) -> np.ndarray:
    """(N,) the fold of each group: by a hash of its name, so that it is the same in every run and for every model."""
    known = {group: int.from_bytes(hashlib.sha256(group.encode()).digest()[:4]) % FOLDS for group in set(groups)}
    return np.array([known[group] for group in groups], dtype=int)


@dataclass(frozen=True)
class AttackModel:
    """A cross-fitted attack model: a row is judged by the part that was fitted without the rows of its fold.

    Attributes:
        kind: `logistic`, `boosted` or `both` (the mean of their log-odds): the best on held-out rows.
        models: for each fold, the fitted classifiers.
        platt: (folds, 2) slope and intercept that turn raw log-odds into calibrated ones (Platt, 1999).
        out_of_fold: (n,) calibrated log-odds of the rows it was fitted on, each from the part that did not see it.
    """

    kind: str
    models: tuple[tuple[Any, ...], ...]
    platt: np.ndarray
    out_of_fold: np.ndarray

    def log_odds(self, features: np.ndarray, folds: np.ndarray) -> np.ndarray:
        """Calibrated log-odds of rows.

        Args:
            features: (N, F) as at fitting.
            folds: (N,) the fold of each row's group.
        """
        result = np.empty(len(features))
        for fold, models in enumerate(self.models):
            rows = folds == fold
            if rows.any():
                slope, intercept = self.platt[fold]
                result[rows] = slope * _raw(models, features[rows]) + intercept
        return result


def fit_attack_model(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, *, kinds: Sequence[str] = ("logistic", "boosted")
) -> AttackModel:
    """Fit an attack model on rows of known membership, cross-fitted over folds of groups.

    Logistic regression, boosted trees and their mean compete; the least log loss on rows that the fit did not see wins.

    Args:
        features: (n, F), NaN allowed.
        labels: (n,) bool.
        folds: (n,) the fold of each row's group, see `fold_of`.
        kinds (*optional*): candidates among `logistic` and `boosted`.

    Raises:
        MitigateError: too few rows of a class to fit without a fold.
    """
    count = max(FOLDS, int(folds.max(initial=0)) + 1)  # also a fold that has no row here is asked for later
    fitted: dict[str, list[Any]] = {kind: [] for kind in kinds}
    raw = {kind: np.empty(len(features)) for kind in kinds}
    for fold in range(count):
        inside = folds != fold
        if min(labels[inside].sum(), (~labels[inside]).sum()) < _LEAST_PER_CLASS:
            raise MitigateError(
                f"calibration: {int(labels.sum())} member and {int((~labels).sum())} non-member examples among the "
                "shadows are too few to fit and check an attack model; "
                f"{_LEAST_PER_CLASS} of each are needed outside each fold"
            )
        for kind in kinds:
            model = _CLASSIFIERS[kind]().fit(features[inside], labels[inside])
            fitted[kind].append(model)
            if (~inside).any():
                raw[kind][~inside] = _raw((model,), features[~inside])
    candidates: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in kinds}
    if len(kinds) > 1:
        candidates["both"] = tuple(kinds)
    losses, calibrated, scales = {}, {}, {}
    for name, parts in candidates.items():
        mean = np.mean([raw[part] for part in parts], axis=0)
        scales[name] = np.array([_platt(mean[folds != fold], labels[folds != fold]) for fold in range(count)])
        calibrated[name] = scales[name][folds, 0] * mean + scales[name][folds, 1]
        losses[name] = log_loss(labels, expit(calibrated[name]))
    best = min(losses, key=lambda name: losses[name])
    models = tuple(tuple(fitted[part][fold] for part in candidates[best]) for fold in range(count))
    return AttackModel(best, models, scales[best], calibrated[best])


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """Reliability curve over bins of equal width: mean probability, share of members and number of rows in each.

    Args:
        probabilities: (N,).
        labels: (N,) bool.

    Returns:
        `probability`, `share` and `count` of the bins that are not empty, of ten.
    """
    place = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    curve: dict[str, list[float]] = {"probability": [], "share": [], "count": []}
    for number in range(_BINS):
        inside = place == number
        if inside.any():
            curve["probability"].append(float(probabilities[inside].mean()))
            curve["share"].append(float(labels[inside].mean()))
            curve["count"].append(int(inside.sum()))
    return curve


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean gap between stated probability and share of members, over bins weighted by their rows (Naeini et al., 2015).

    Args:
        probabilities: (N,).
        labels: (N,) bool.
    """
    curve = reliability(probabilities, labels)
    gaps = np.abs(np.array(curve["probability"]) - np.array(curve["share"]))
    return float((gaps * np.array(curve["count"])).sum() / max(1, len(probabilities)))


def p_values(scores: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Empirical p-values: (1 + number of null scores at least as high) / (1 + number of null scores).

    Args:
        scores: (N,) higher = more memorized.
        null: (M,) scores of non-members, judged alike.
    """
    return (1 + _at_least(null, scores)) / (1 + len(null))


def q_values(scores: np.ndarray, null: np.ndarray, *, searched: float, null_searched: float) -> np.ndarray:
    """False discovery rate at which each finding is the last one selected.

    q(s) = least over s' <= s of (expected false findings at s' or above) / (findings at s' or above). The expectation
    comes from what the same search found where nothing can be memorized (target-decoy estimation, Elias & Gygi, 2007),
    as if all that was searched were such. With one finding for each thing searched it is Benjamini & Hochberg (1995)
    over `p_values`.

    Args:
        scores: (N,) scores of the findings.
        null: (M,) scores of the findings in non-members.
        searched: how much was searched (spans judged, or tokens).
        null_searched: how much of non-members was searched, in the same unit.
    """
    if not len(scores):
        return np.zeros(0)
    expected = (1 + _at_least(null, scores)) / (1 + null_searched) * searched
    found = _at_least(scores, scores)
    order = np.argsort(scores)  # from the least: a looser threshold may have the lower rate
    rate = np.minimum.accumulate((expected / found)[order])
    result = np.empty(len(scores))
    result[order] = np.minimum(rate, 1.0)
    return result


def stratified_z(
    scores: np.ndarray, strata: np.ndarray, null: np.ndarray, null_strata: np.ndarray, *, count: int = 10
) -> np.ndarray:
    """Token scores as normal deviates among non-member tokens that were about as hard to predict.

    Args:
        scores: (N,) token scores; NaN stays.
        strata: (N,) what tokens are alike in, the entropy of p̄.
        null: (M,) scores of non-member tokens.
        null_strata: (M,) as `strata`.
        count (`int`, *optional*, defaults to 10): strata, each with an equal share of the non-member tokens.
    """
    known = ~np.isnan(null)
    null, null_strata = null[known], null_strata[known]
    edges = np.quantile(null_strata, np.linspace(0, 1, count + 1)[1:-1])
    place, null_place = np.searchsorted(edges, strata), np.searchsorted(edges, null_strata)
    result = np.full(len(scores), np.nan)
    for number in range(count):
        rows = (place == number) & ~np.isnan(scores)
        if rows.any():
            alike = null[null_place == number]
            p = p_values(scores[rows], alike if len(alike) else null)
            result[rows] = norm.isf(np.minimum(p, 1 - 0.5 / (1 + len(null))))
    return result


def _at_least(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """For each limit, the number of values at least as high."""
    return len(values) - np.searchsorted(np.sort(values), limits, side="left")


def _raw(models: Sequence[Any], features: np.ndarray) -> np.ndarray:
    return np.mean([model.decision_function(features) for model in models], axis=0)


def _platt(raw: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    model = LogisticRegression(C=1e3).fit(raw[:, None], labels)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def _bounded(features: np.ndarray) -> np.ndarray:
    return np.clip(features, -6, 6)


_CLASSIFIERS = {
    "logistic": lambda: make_pipeline(
        SimpleImputer(),
        StandardScaler(),
        FunctionTransformer(_bounded),
        LogisticRegression(C=0.3, max_iter=2000),
    ),
    "boosted": lambda: HistGradientBoostingClassifier(
        max_iter=_TREES,
        learning_rate=0.08,
        max_leaf_nodes=15,
        min_samples_leaf=40,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    ),
}
