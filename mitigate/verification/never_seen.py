"""What a model that never saw the documents would read: the level that leakage is measured against.

An AUC of 0.5 is what equal texts give. The documents to forget and the never-seen ones need not be equal texts, nor are
the references equally good on both, so a retrained model may read 0.41 as well as 0.55. The level is measured:

- by the oracle, a model retrained without the documents, judged as the target is, on the same texts;
- else by the references standing in for the target: reference k on the documents of both kinds that it never saw, by
  log p_k − log of the mean of the other OUT references' probabilities; the mean of their AUCs. Two OUT references a
  document are needed (four cross-fitted ones, or two given ones);
- else it is taken to be 0.5, and `source` says so.

A stand-in is scored as the target is: by the log-ratio, clipped or not, or by its own log p. Scores that need a model's
whole distribution (InfoRMIA, Min-K%++) are not in an audit for the stand-ins: their level is taken to be 0.5.

The excess of the target over the level has an interval of its own: both are read from the same people, so what makes a
person's text easy moves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp

from mitigate.detection.record import Audit
from mitigate.detection.scores.token import clipped, log_ratio, loss
from mitigate.statistics.intervals import UNMEASURED, Figure, Sample, flat
from mitigate.statistics.separation import auc_of_many, clustered_auc
from mitigate.verification.figures import View

ASSUMED = 0.5
_LEVELS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {  # score -> of log p and log p̄
    "log_ratio": log_ratio,
    "log_ratio_clipped": lambda own, out: clipped(log_ratio(own, out)),
    "loss": lambda own, out: loss(own),
}
Sides = tuple[Sample, Sample]


def never_seen_level(
    view: View, audits: Mapping[str, Audit | None], oracle: np.ndarray | None, notes: list[str]
) -> dict[str, Any]:
    """The report's section `never_seen`.

    Args:
        view: the audit before.
        audits: `before` and `after`.
        oracle: (N,) log-probabilities under a model retrained without the documents, if there is one.
        notes: gets the reason where the level is not measured.

    Returns:
        `source` (`oracle`, `references` or `assumed`), `score`, `stand_ins` (their number), `span_auc` and
        `document_auc` of models that never saw the text, and `excess.{before,after}`: the target's AUCs less
        these; with intervals.
        `by_oracle`: the same excess of the model after, of span AUC where it is known and else of document AUC, as the
        oracle tells it, which no unlearning was trained against: all are scored by log p − log p of the oracle, and the
        references stand in for models that never saw the text. None without an oracle. `selected`: on the selected
        spans alone, the chance that the model after scores above a stand-in, less one half; needs no never-seen text.
    """
    source, token_scores = _stand_ins(view, oracle)
    score = view.audit.metadata.detect.score
    if score not in _LEVELS:
        notes.append(
            f"The AUC of models that never saw the text is taken to be 0.50, not measured: an audit does not hold "
            f"{score} of its references; detect.score: log_ratio_clipped can be measured."
        )
    elif source == "assumed":
        notes.append(
            "The AUC of models that never saw the text is taken to be 0.50, not measured: that needs an oracle, or two "
            "references that never saw a document (references.count: 4)."
        )
    level: dict[str, Figure] = {}
    excess: dict[str, dict[str, Figure]] = {key: {} for key in audits}
    for name in ("span_auc", "document_auc"):
        sides = [sides_of(view, scores, name) for scores in token_scores]
        sides = _usable(sides)
        level[name] = _level(sides)
        for key, audit in audits.items():
            own = sides_of(view, audit.columns["score"], name) if audit is not None else None
            excess[key][name] = excess_over(own, sides) if own is not None else UNMEASURED
            if key == "before" and excess[key][name].value is None:
                level[name] = UNMEASURED
    return {
        "source": source,
        "score": score,
        "stand_ins": len(token_scores),
        **flat(level),
        "excess": {key: flat(own) if audits[key] is not None else None for key, own in excess.items()},
        **flat(
            {
                "by_oracle": _by_oracle(view, audits.get("after"), oracle),
                "selected": _on_selected(view, audits.get("after"), token_scores),
            }
        ),
    }


def _by_oracle(view: View, after: Audit | None, oracle: np.ndarray | None) -> Figure:
    """How far the oracle tells the texts to forget from never-seen ones, less what it tells of the references."""
    if after is None or oracle is None:
        return UNMEASURED
    name = "span_auc" if all(len(view.places("span_auc", member=member)[0]) for member in (True, False)) else ""
    name = name or "document_auc"
    level = [sides_of(view, clipped(own - oracle), name) for own in view.audit.reference_log_probs.T]
    if not (level := _usable(level)):
        return UNMEASURED
    return excess_over(sides_of(view, clipped(after.columns["log_prob"] - oracle), name), level)


def _on_selected(view: View, after: Audit | None, stand_ins: Sequence[np.ndarray]) -> Figure:
    """How far the model scores above those that never saw the text, on the spans that were to be forgotten."""
    chosen = [span for span in view.spans if span.selected]
    if after is None or not chosen:
        return UNMEASURED
    places = np.array([(rows.start, rows.stop) for rows in map(view.audit.rows_of, chosen)])
    groups = [view.groups[span.doc_id] for span in chosen]
    sides = []
    for score in stand_ins:
        known = ~np.isnan(score)
        own = _scored(np.where(known, after.columns["score"], np.nan), places, groups)
        sides.append((own, _scored(score, places, groups)))
    sides = _usable(sides)
    if not sides:
        return UNMEASURED
    figure = auc_of_many(sides, [1 / len(sides)] * len(sides))
    return Figure(*(value if value is None else value - 0.5 for value in figure))


def _usable(sides: Sequence[Sides]) -> list[Sides]:
    """Stand-ins that judge texts of both kinds; of several, those that judge two people or more of each."""
    there = [side for side in sides if len(side[0][0]) and len(side[1][0])]
    return [side for side in there if min(len(set(groups)) for _, groups in side) > 1] or there


def _level(sides: Sequence[Sides]) -> Figure:
    """The mean AUC of the stand-ins; the assumed one where there are none."""
    if not sides:
        return Figure(ASSUMED, None, None)
    if len(sides) == 1:
        return clustered_auc(*sides[0])
    figure = auc_of_many(sides, [1 / len(sides)] * len(sides))
    return Figure(*(None if value is None else min(1.0, max(0.0, value)) for value in figure))


def excess_over(own: Sides, level: Sequence[Sides]) -> Figure:
    """A model's AUC less the mean of the level's, or less the assumed one where there is none; with its interval."""
    if not len(own[0][0]) or not len(own[1][0]):
        return UNMEASURED
    if not level:
        figure = clustered_auc(*own)
        return Figure(*(value if value is None else value - ASSUMED for value in figure))
    return auc_of_many([own, *level], [1.0, *[-1 / len(level)] * len(level)])


def _stand_ins(view: View, oracle: np.ndarray | None) -> tuple[str, list[np.ndarray]]:
    """Where the level comes from, and the (N,) token scores of each model that never saw the text (NaN: it did)."""
    as_score = _LEVELS.get(view.audit.metadata.detect.score)
    if as_score is None:
        return "assumed", []
    if oracle is not None:
        return "oracle", [as_score(oracle, view.audit.columns["log_prob_out"])]
    references = view.audit.reference_log_probs
    if references.shape[1] < 2:
        return "assumed", []
    known = ~np.isnan(references)
    scores = []
    for number in range(references.shape[1]):
        others = np.delete(references, number, axis=1)
        count = (~np.isnan(others)).sum(axis=1)
        usable = known[:, number] & (count > 0)
        mean = np.full(len(references), np.nan)
        filled = np.where(np.isnan(others[usable]), -np.inf, others[usable])
        mean[usable] = logsumexp(filled, axis=1) - np.log(count[usable])
        if usable.any():
            scores.append(as_score(np.where(usable, references[:, number], np.nan), mean))
    return ("references", scores) if scores else ("assumed", [])


def sides_of(view: View, score: np.ndarray, name: str) -> Sides:
    """Members' and never-seen texts' mean token scores with their groups; texts without a score are left out."""
    members, never_seen = (_scored(score, *view.places(name, member=member)) for member in (True, False))
    return members, never_seen


def _scored(score: np.ndarray, places: np.ndarray, groups: Sequence[str]) -> Sample:
    means = means_of(score, places)
    there = ~np.isnan(means)
    return means[there], [group for group, scored in zip(groups, there, strict=True) if scored]


def means_of(score: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,) mean of the token scores (N,) of each of the (n, 2) places; NaN where no token has one."""
    known = ~np.isnan(score)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, score, 0.0), dtype=np.float64)])
    counts = np.concatenate([[0], np.cumsum(known)])
    first, last = places[:, 0], places[:, 1]
    number = counts[last] - counts[first]
    return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)
