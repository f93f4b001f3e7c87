"""Attacks that look inside: predictions read from middle layers, and a classifier of everything a model says."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mitigate.detection.references.dealing import draw
from mitigate.detection.scores.token import min_k_pp
from mitigate.models.model import Model
from mitigate.proof.case import Case, NotPossibleError, Subject
from mitigate.runtime import progress
from mitigate.tokens.batches import cut_pieces, default_batch_tokens, make_batches
from mitigate.verification.never_seen import Sides

DEPTHS = {"half": 1 / 2, "three_quarters": 3 / 4}
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "embedding_norm")
_FOLDS = 5
_LEAST_PEOPLE = 10  # on each side, for a classifier


def read_from_layers(case: Case, subject: Subject) -> dict[str, np.ndarray]:
    """Depth -> (N,) log-probability that the output head gives to each token from that depth's hidden states.

    The logit lens (nostalgebraist 2020): the final norm and the head, applied to a middle layer.

    Raises:
        NotPossibleError: no final norm is found, or the head does not give the model's own logits from the last layer.
    """
    model = subject.plain()
    numbers = case.documents("forget", "holdout")
    documents = [case.tokenized[number] for number in numbers]
    norm, head = _final(model)
    rows = list(case.before.rows.values())
    starts = [rows[number].start for number in numbers]
    columns = {depth: np.full(len(case.before.tokens), np.nan) for depth in DEPTHS}
    size = default_batch_tokens(model.vocabulary_size, device=model.device)
    batches = list(make_batches(cut_pieces(documents, context=model.context), batch_tokens=size))
    checked = False
    with model.active() as module, torch.inference_mode(), progress(len(batches), "Layers", unit="batch") as bar:
        for batch in (one.to(model.device) for one in batches):
            said: Any = module(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
            )
            states = said.hidden_states  # of the embeddings, and of each layer; the last one is past the final norm
            if not checked:
                _check(head(states[-1]), said.logits, batch.attention_mask.bool(), source=subject.source)
                checked = True
            for depth, share in DEPTHS.items():
                state = states[round(share * (len(states) - 1))][batch.keep]
                log_prob = head(norm(state)).float().log_softmax(-1)
                found = log_prob.gather(1, batch.targets[:, None])[:, 0].cpu().numpy()
                taken = 0
                for piece in batch.pieces:
                    place = starts[piece.document] + piece.start + piece.scored
                    columns[depth][place] = found[taken : taken + len(piece.scored)]
                    taken += len(piece.scored)
            bar.update()
    return columns


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


def _final(model: Model) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The final norm and the output head."""
    module: Any = model.base.model
    head = module.get_output_embeddings()
    norms = [part for name, part in module.base_model.named_children() if name.endswith(_NORMS)]
    if head is None or len(norms) != 1:
        raise NotPossibleError(f"{type(module).__name__}: where its final norm is, is not known here")
    return norms[0], head


def _check(own: torch.Tensor, logits: torch.Tensor, there: torch.Tensor, *, source: str) -> None:
    """Refuse a model whose head does more than one matrix product, such as to cap its logits."""
    off = (own.float().log_softmax(-1) - logits.float().log_softmax(-1))[there].abs().max()
    if not off < 0.05:
        raise NotPossibleError(f"{source}: its logits are not what its head makes of the last layer")
