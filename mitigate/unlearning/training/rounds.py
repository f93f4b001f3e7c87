"""Rounds of unlearning: after each the whole text is looked at again, and what is left is unlearned as well.

What is left is told by the references that teach; whether anything is, by those that are kept out of unlearning. So
these choose no span and no level: they only end the rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mitigate.detection.calibration.attack import q_values
from mitigate.detection.panel import by_judges, by_teachers, judges_of, known_mean, with_column
from mitigate.detection.record import Audit
from mitigate.detection.scores.token import clipped, typical
from mitigate.detection.spans.row import SpanRow, span_table
from mitigate.detection.spans.selection import typical_excess
from mitigate.detection.spans.threshold import find_spans
from mitigate.statistics.intervals import flat
from mitigate.statistics.separation import clustered_auc
from mitigate.verification.figures import View

MOST_AUC = 0.55  # of the known spans against never-seen ones, with which nothing more is to be done


@dataclass(frozen=True)
class Left:
    """What is left after a round.

    Attributes:
        exposed: whether the spans to forget are still told from never-seen ones; None where nothing tells.
        figures: of the record: `span_auc` of the known spans with its interval, whether it is `by_judges` that were
            kept out of unlearning, `found_share` and `found_share_never_seen`.
        added: spans to be unlearned besides.
    """

    exposed: bool | None
    figures: dict[str, Any]
    added: tuple[SpanRow, ...]


def what_is_left(audit: Audit, log_prob: np.ndarray, *, keep_judges: bool) -> Left:
    """Look at the documents to forget again, beside those that were never seen.

    Args:
        audit: as it was made, with all references; its selected spans are being unlearned.
        log_prob: (N,) of its tokens under the model now, nats; NaN where there is none.
        keep_judges: some references are kept out of unlearning, where there are enough of them.
    """
    kept_out = keep_judges and judges_of(audit) is not None
    judged = _rescored(by_judges(audit) if kept_out else audit, log_prob)
    view = View(judged)
    members, never_seen = (view.span_scores(judged, member=member, source="known") for member in (True, False))
    auc = clustered_auc(members, never_seen)
    taught = _rescored(by_teachers(audit) if keep_judges else audit, log_prob)
    exposed = None if auc.value is None else auc.value > MOST_AUC
    added: list[SpanRow] = []
    figures: dict[str, Any] = {**flat({"span_auc": auc}), "by_judges": kept_out}
    figures |= {"found_share": None, "found_share_never_seen": None}
    if audit.metadata.detect.select == "exposed" and exposed is not False:
        added += _faint(taught)
    if audit.metadata.detect.select != "known":
        found, shares = _found(taught, first=len(audit.spans))
        figures |= shares
        added += found
    return Left(exposed, figures, tuple(added))


def with_spans(audit: Audit, added: Sequence[SpanRow]) -> Audit:
    """The audit with further spans selected: known ones by their number, found ones as new rows."""
    rows = {row.span_id: row for row in audit.span_rows} | {row.span_id: row for row in added}
    selected = audit.columns["selected"].astype(bool)
    for row in added:
        at = audit.rows_of(row)
        selected[at] |= ~np.isnan(audit.columns["log_prob"][at])
    tokens = with_column(audit.tokens, "selected", selected)
    return replace(audit, tokens=tokens, spans=span_table(list(rows.values())))


def as_json(added: Sequence[SpanRow]) -> list[dict[str, Any]]:
    """Spans for the record of a checkpoint; `SpanRow(**one)` reads one."""
    return [asdict(row) for row in added]


def _rescored(audit: Audit, log_prob: np.ndarray) -> Audit:
    """The audit with log p and the clipped log-ratio of the model now, of tokens and of spans."""
    score = clipped(log_prob - audit.columns["log_prob_out"]).astype(np.float32)
    tokens = with_column(audit.tokens, "log_prob", log_prob.astype(np.float32))
    tokens = with_column(tokens, "score", score)
    rows = [replace(row, score=known_mean(score[audit.rows_of(row)])) for row in audit.span_rows]
    return replace(audit, tokens=tokens, spans=span_table(rows))


def _faint(audit: Audit) -> list[SpanRow]:
    """Known spans to forget, not selected yet, that the model knows better than a typical never-seen one."""
    excess = clipped(audit.columns["log_prob"] - typical(audit.reference_log_probs))
    view = View(audit)
    spans = [row for row in audit.span_rows if row.source == "known"]
    means = {row.span_id: known_mean(excess[audit.rows_of(row)]) for row in spans}
    level = typical_excess([means[row.span_id] for row in spans if audit.sets[row.doc_id] == "holdout"])
    return [
        replace(row, selected=True)
        for row in spans
        if view.is_forget(row.doc_id) and not row.selected and means[row.span_id] > level
    ]


def _found(audit: Audit, *, first: int) -> tuple[list[SpanRow], dict[str, float | None]]:
    """Stretches that the bare rule finds now and that are not selected yet, unless never-seen text holds as many.

    Where the audit was asked for a false discovery rate, only those at which never-seen text, searched alike, holds as
    few as that.

    Returns:
        the spans, numbered from `first`, and the shares of tokens that such stretches hold: `found_share` of the
        documents to forget, `found_share_never_seen` of the holdout documents.
    """
    view, columns = View(audit), audit.columns
    scored, selected = view.scored, view.selected
    offsets = np.stack([columns["char_start"], columns["char_end"]], axis=1)
    rows: list[SpanRow] = []
    null: list[float] = []
    counted = {True: [0, 0], False: [0, 0]}
    for doc_id, own in audit.rows.items():
        member = view.is_forget(doc_id)
        if not member and audit.sets[doc_id] != "holdout":
            continue
        score = np.where(selected[own], np.nan, columns["score"][own])
        found = find_spans(score, offsets=offsets[own], text=audit.texts[doc_id], rule=audit.metadata.detect.spans)
        counted[member][0] += sum(int((~np.isnan(score[one.token_start : one.token_end])).sum()) for one in found)
        counted[member][1] += int((scored[own] & ~selected[own]).sum())
        null += [one.score for one in found if not member]
        for one in found if member else ():
            limits = (one.char_start, one.char_end, one.token_start, one.token_end)
            rows.append(SpanRow(0, doc_id, *limits, "", "found", one.score, selected=True))
    shares = {member: part / whole if whole else None for member, (part, whole) in counted.items()}
    fdr = audit.metadata.detect.fdr
    if (shares[True] or 0.0) <= (shares[False] or 0.0):
        rows = []
    elif fdr is not None and counted[False][1]:
        scores = np.array([row.score for row in rows])
        searched, null_searched = (float(counted[member][1]) for member in (True, False))
        rate = q_values(scores, np.array(null), searched=searched, null_searched=null_searched)
        rows = [row for row, own in zip(rows, rate, strict=True) if own <= fdr]
    rows = [replace(row, span_id=first + number) for number, row in enumerate(rows)]
    return rows, {"found_share": shares[True], "found_share_never_seen": shares[False]}
