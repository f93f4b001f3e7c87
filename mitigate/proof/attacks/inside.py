"""Attacks that look inside: predictions read from middle layers, and a classifier of everything a model says."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mitigate.detection.references.dealing import draw
from mitigate.detection.scores.token import min_k_pp
from mitigate.models.inside.lens import DEPTHS, Lens, NoLensError
from mitigate.models.model import kept_logits
from mitigate.proof.case import Case, NotPossibleError, Subject
from mitigate.runtime import progress
from mitigate.tokens.batches import cut_pieces, default_batch_tokens, make_batches
from mitigate.verification.never_seen import Sides

_FOLDS = 5
_LEAST_PEOPLE = 10  # on each side, for a classifier


def read_from_layers(case: Case, subject: Subject) -> dict[str, np.ndarray]:
    """Depth -> (N,) log-probability that the output head gives to each token from that depth's hidden states.

    Raises:
        NotPossibleError: no final norm is found, or the head does not give the model's own logits from the last layer.
    """
    model = subject.plain()
    numbers = case.documents("forget", "holdout")
    documents = [case.tokenized[number] for number in numbers]
    rows = list(case.before.rows.values())
    starts = [rows[number].start for number in numbers]
    columns = np.full((len(DEPTHS), len(case.before.tokens)), np.nan)
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
    return dict(zip(DEPTHS, columns, strict=True))


def told_apart(case: Case, subject: Subject, *, seed: int) -> Sides:
    """Log-odds of a classifier of everything that the model says of a text: to forget, or never seen?

    Logistic regression on means, lowest and highest of the token signals, cross-fitted by person, so nobody is judged
    by a classifier that was fitted on him. It finds what lies too low as well as what lies too high.

    Raises:
        NotPossibleError: too few people on a side.
    """
    signals = case.signals(subject.load())
    columns = [
        case.ratio(signals["log_prob"]),
        signals["log_prob"],
        np.log(signals["rank"]),
        signals["entropy"],
        signals["log_prob"] - signals["top_log_prob"],
        min_k_pp(signals["log_prob"], signals["entropy"], signals["log_prob_std"]),
    ]
    columns = [np.where(subject.seen, np.nan, column) for column in columns]
    features, groups = [], []
    for member in (True, False):
        places, of = case.view.places(case.compared, member=member)
        rows = [_summary([column[first:last] for column in columns]) for first, last in places]
        there = [number for number, row in enumerate(rows) if row is not None]
        features.append(np.array([rows[number] for number in there]))
        groups.append([of[number] for number in there])
    if min(len(set(own)) for own in groups) < _LEAST_PEOPLE:
        raise NotPossibleError(f"a classifier needs {_LEAST_PEOPLE} people to forget, and as many never-seen ones")
    people = [sorted(set(own)) for own in groups]
    dealt = [own[place] for own in people for place in draw(range(len(own)), len(own), key=f"forensic {seed}")]
    folds = {group: number % _FOLDS for number, group in enumerate(dealt)}
    fold = np.array([folds[group] for own in groups for group in own])
    x = np.nan_to_num(np.concatenate(features), posinf=0.0, neginf=0.0)
    y = np.repeat([1, 0], [len(own) for own in features])
    scores = np.zeros(len(y))
    for number in range(_FOLDS):
        judged = fold == number
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced"))
        scores[judged] = classifier.fit(x[~judged], y[~judged]).decision_function(x[judged])
    return (scores[y == 1], groups[0]), (scores[y == 0], groups[1])


def _summary(columns: list[np.ndarray]) -> list[float] | None:
    known = ~np.isnan(columns[1])
    if not known.any():
        return None
    kept = [np.nan_to_num(column[known]) for column in columns]
    return [float(value) for column in kept for value in (column.mean(), column.min(), column.max())]
