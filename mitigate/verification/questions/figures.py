"""What the answers to questions show of the models. Pure functions of tables.

LUME (Ramakrishna et al., arXiv 2502.15097; SemEval 2025 Task 4) scores completions of documents by ROUGE-L recall and
answers to questions on them by equality, each of forget and retain documents. Its task aggregate is the harmonic mean
of all of these, of the forget ones 1 less the score. Its membership score is 1 − 2 · |AUC − 0.5| of the loss, and its
final score the mean of both and the accuracy in MMLU, which is not measured here. MUSE's KnowMem (Shi et al., arXiv
2407.06460) is a part scored by ROUGE-L F1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import harmonic_mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mitigate.statistics.intervals import UNMEASURED, clustered_mean, clustered_share, flat
from mitigate.statistics.separation import auc
from mitigate.verification.figures import View
from mitigate.verification.questions.asking import SETS, Asked

_AGGREGATED = ("forget", "retain")


def question_figures(
    asked: Sequence[Asked],
    tables: Mapping[str, pa.Table | None],
    view: View,
    losses: Mapping[str, np.ndarray | None],
) -> dict[str, Any]:
    """The report's section `questions`.

    Args:
        asked: the parts.
        tables: model (`before`, `after`, `oracle`) -> its table of answers; None where there is no such model.
        view: of the audit before, whose documents to forget and never-seen ones the membership score compares.
        losses: model -> (N,) log-probabilities of the audited tokens.

    Returns:
        `parts`: name -> set -> mean score of each model with its interval, and `asked`; `task_aggregate`,
        `membership_score` of each model; `left_out`: rows that were not asked.
    """
    parts: dict[str, Any] = {}
    terms: dict[str, list[float]] = {name: [] for name in tables}
    for part in asked:
        parts[part.name] = {}
        for set_name in SETS:
            count = sum(document.set == set_name for document in part.documents)
            if not count:
                continue
            figures = {}
            for model, table in tables.items():
                figures[model] = UNMEASURED
                if table is not None:
                    own = table.filter((pc.field("part") == part.name) & (pc.field("set") == set_name))
                    scores, groups = own["score"].to_numpy(), own["group"].to_pylist()
                    all_or_nothing = np.isin(scores, (0.0, 1.0)).all()  # none of 8 is no interval of no width
                    figures[model] = (clustered_share if all_or_nothing else clustered_mean)(scores, groups)
                    if set_name in _AGGREGATED:
                        value = float(scores.mean())
                        terms[model].append(1 - value if set_name == "forget" else value)
            parts[part.name][set_name] = {**flat(figures), "asked": count}
    return {
        "parts": parts,
        "task_aggregate": {model: harmonic_mean(own) if own else None for model, own in terms.items()},
        "membership_score": {model: _membership(view, log_prob) for model, log_prob in losses.items()},
        "left_out": sum(part.left_out for part in asked),
    }


def _membership(view: View, log_prob: np.ndarray | None) -> float | None:
    """1 where documents to forget and never-seen ones have like losses, 0 where these tell them apart."""
    if log_prob is None:
        return None
    scores: dict[bool, list[float]] = {True: [], False: []}
    for doc_id, rows in view.audit.rows.items():
        if view.is_forget(doc_id) or view.sets[doc_id] == "holdout":
            scores[view.is_forget(doc_id)].append(float(np.nanmean(log_prob[rows])))
    if not scores[True] or not scores[False]:
        return None
    return 1 - 2 * abs(auc(np.array(scores[True]), np.array(scores[False])) - 0.5)
