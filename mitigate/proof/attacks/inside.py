"""Attacks that look inside: predictions read from middle layers, and classifiers of everything a model says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mitigate.detection.references.dealing import draw
from mitigate.detection.scores.token import min_k_pp
from mitigate.models.inside.lens import DEPTHS, Lens, NoLensError
from mitigate.models.model import kept_logits
from mitigate.proof.case import Case
from mitigate.proof.subject import NotPossibleError, Subject, Texts
from mitigate.runtime import progress
from mitigate.tokens.batches import cut_pieces, default_batch_tokens, make_batches

_FOLDS = 5
_LEAST_PEOPLE = 10  # on each side, for a classifier


def read_from_layers(case: Case, subject: Subject, numbers: list[int] | None = None) -> dict[str, np.ndarray]:
    """Depth -> (N,) log-probability that the output head gives to each token from that depth's hidden states.

    Args:
        case, subject: who is attacked.
        numbers (*optional*): of the documents; by default those to forget and the never-seen ones.

    Raises:
        NotPossibleError: no final norm is found, or the head does not give the model's own logits from the last layer.
    """
    return case.once(subject, "layers", numbers, partial(_read_layers, case, subject))


def _read_layers(case: Case, subject: Subject, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    model = subject.plain()
    documents = [case.tokenized[number] for number in numbers]
    starts = np.cumsum([0, *(len(one.ids) for one in documents)])
    columns = np.full((len(DEPTHS), starts[-1]), np.nan)
    size = default_batch_tokens(model.vocabulary_size, device=model.device)
    batches = list(make_batches(cut_pieces(documents, context=model.context), batch_tokens=size))
    try:
        with model.active() as module, torch.inference_mode(), progress(len(batches), "Layers", unit="batch") as bar:
            lens = Lens.of(module)
            for batch in (one.to(model.device) for one in batches):
                with lens.reading(batch.keep, batch.targets) as said:
                    logits = kept_logits(module, batch.input_ids, batch.attention_mask, batch.keep).float()
                own = logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
                said.check(own, name=subject.source)
                place = np.concatenate([starts[piece.document] + piece.start + piece.scored for piece in batch.pieces])
                columns[:, place] = said.log_probs.T.cpu().numpy()
                bar.update()
    except NoLensError as reason:
        raise NotPossibleError(str(reason)) from None
    return {depth: case.scattered(column, numbers) for depth, column in zip(DEPTHS, columns, strict=True)}


def told_apart(case: Case, subject: Subject, *, seed: int) -> tuple[Texts, Texts]:
    """Log-odds of a classifier of everything that the model says of a text: to forget, or never seen?

    Logistic regression on means, lowest and highest of the token signals, cross-fitted by person, so nobody is judged
    by a classifier that was fitted on him. It finds what lies too low as well as what lies too high.

    Raises:
        NotPossibleError: too few people on a side.
    """
    signals = case.signals(subject)
    columns = [*_said(signals), case.ratio(signals["log_prob"])]
    columns = [np.where(subject.seen, np.nan, column) for column in columns]
    sides = [_features(case, columns, which) for which in ("forget", "holdout")]
    _check_people([texts.groups for _, texts in sides])
    folds = {
        group: number % _FOLDS
        for number, group in enumerate(
            own[place]
            for own in (sorted(set(texts.groups)) for _, texts in sides)
            for place in draw(range(len(own)), len(own), key=f"forensic {seed}")
        )
    }
    fold = np.array([folds[group] for _, texts in sides for group in texts.groups])
    x, y = np.concatenate([own for own, _ in sides]), np.repeat([1, 0], [len(own) for own, _ in sides])
    scores = cross_fitted(x, y, fold)
    return sides[0][1].scored(scores[y == 1]), sides[1][1].scored(scores[y == 0])


def cross_fitted(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(n,) log-odds of each row (n, d) by a classifier of y (n,) that was fitted on the rows of the other folds."""
    scores = np.zeros(len(y))
    for number in np.unique(fold):
        judged = fold == number
        scores[judged] = _fitted(x[~judged], y[~judged]).decision_function(x[judged])
    return scores


def recognised(case: Case, subject: Subject) -> tuple[Texts, Texts]:
    """Log-odds of a classifier that was fitted to tell what the model keeps from what it never saw.

    It reads all that the model and its middle layers say, no reference, and knows nothing of those to forget. Half of
    the never-seen people are what it is fitted on, the other half what these are compared with, either way round. Of a
    reference as the control, the texts that it was trained on are what it keeps.

    Raises:
        NotPossibleError: too few people who are kept, to forget, or never seen.
    """
    numbers = case.documents("forget", "retain", "holdout")
    signals = case.signals(subject, numbers)
    try:
        layers = list(read_from_layers(case, subject, numbers).values())
    except NotPossibleError:  # the model's own words are left
        layers = []
    columns = [*_said(signals), *layers]
    unseen = [np.where(subject.seen, np.nan, column) for column in columns]
    if subject.seen.any():
        seen = [np.where(subject.seen, column, np.nan) for column in columns]
        trained = [_features(case, seen, which) for which in ("forget", "retain", "holdout")]
    else:
        trained = [_features(case, columns, "retain")]
    kept = np.concatenate([own for own, _ in trained])
    (forget, forgotten), (holdout, never_seen) = (_features(case, unseen, which) for which in ("forget", "holdout"))
    _check_people([[group for _, one in trained for group in one.groups], forgotten.groups, never_seen.groups])
    people = sorted(set(never_seen.groups))
    half = {people[place]: count % 2 for count, place in enumerate(draw(range(len(people)), len(people), key="kept"))}
    halves = np.array([half[group] for group in never_seen.groups])
    of_forget, of_holdout = np.zeros(len(forget)), np.zeros(len(holdout))
    for number in (0, 1):
        taught = halves == number
        x = np.concatenate([kept, holdout[taught]])
        classifier = _fitted(x, np.repeat([1, 0], [len(kept), int(taught.sum())]))
        of_forget += classifier.decision_function(forget) / 2
        of_holdout[~taught] = classifier.decision_function(holdout[~taught])
    return forgotten.scored(of_forget), never_seen.scored(of_holdout)


def _said(signals: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What a model says of tokens, (N,) each."""
    return [
        signals["log_prob"],
        np.log(signals["rank"]),
        signals["entropy"],
        signals["log_prob"] - signals["top_log_prob"],
        min_k_pp(signals["log_prob"], signals["entropy"], signals["log_prob_std"]),
    ]


def _features(case: Case, columns: list[np.ndarray], which: str) -> tuple[np.ndarray, Texts]:
    """(n, 3 · columns) of the texts of a set that the columns know, and these."""
    places, texts = case.texts(which)
    rows = [_summary([column[first:last] for column in columns]) for first, last in places]
    found = np.array([row for row in rows if row is not None]).reshape(-1, 3 * len(columns))
    there = np.array([row is not None for row in rows], dtype=bool)
    return np.nan_to_num(found, posinf=0.0, neginf=0.0), texts.where(there)


def _check_people(sides: Sequence[Sequence[str]]) -> None:
    if min(len(set(groups)) for groups in sides) < _LEAST_PEOPLE:
        raise NotPossibleError(
            f"a classifier needs {_LEAST_PEOPLE} people of each kind: to forget, never seen, and to be fitted on"
        )


def _fitted(x: np.ndarray, y: np.ndarray) -> Any:
    classifier = LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced")
    return make_pipeline(StandardScaler(), classifier).fit(x, y)


def _summary(columns: list[np.ndarray]) -> list[float] | None:
    known = ~np.isnan(columns[0])
    if not known.any():
        return None
    kept = [np.nan_to_num(column[known]) for column in columns]
    return [float(value) for column in kept for value in (column.mean(), column.min(), column.max())]
