"""Memorized spans by a threshold on the bare score, with false discovery rates where there are non-members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mitigate.detection.calibration.attack import q_values, stratified_z
from mitigate.detection.metadata import Calibration, Kind, NonMembers, Uncalibrated
from mitigate.detection.settings import SpanRule
from mitigate.detection.spans.row import SpanRow
from mitigate.detection.spans.scored import Findings, ScoredDocuments
from mitigate.detection.spans.threshold import find_spans

LEAST_NON_MEMBERS = 20


def by_score(
    scored: ScoredDocuments,
    signals: Mapping[str, np.ndarray],
    kind: Kind,
    *,
    rule: SpanRule,
    given: Sequence[SpanRow] | None,
) -> Findings:
    """Spans by a threshold on the windowed score.

    Args:
        scored: the documents.
        signals: of their tokens.
        kind: `non_members` adds false discovery rates.
        rule: how spans are found.
        given: span rows of an earlier audit, to be judged again.
    """
    if given is not None:
        rows = scored.rescored(given)
    else:
        starts = scored.starts
        rows = []
        for number, (document, own) in enumerate(zip(scored.documents, scored.tokenized, strict=True)):
            part = scored.score[starts[number] : starts[number + 1]]
            for found in find_spans(part, offsets=own.offsets, text=document.text, rule=rule):
                limits = (found.char_start, found.char_end, found.token_start, found.token_end)
                rows.append(scored.found_row(len(rows), number, *limits))
        rows += scored.known_rows(first=len(rows))
    memorized = np.zeros(len(scored.score), dtype=bool)
    for row in rows:
        if row.source == "found":
            memorized[scored.rows_of(row)] = True
    memorized &= ~np.isnan(scored.score)
    calibration: Calibration = Uncalibrated()
    if kind == "non_members":
        rows, calibration = false_discovery_by_non_members(scored, rows, signals)
    return Findings(rows, np.full(len(scored.score), np.nan), memorized, calibration)


def false_discovery_by_non_members(
    scored: ScoredDocuments, rows: Sequence[SpanRow], signals: Mapping[str, np.ndarray]
) -> tuple[list[SpanRow], NonMembers]:
    """The spans with q, from holdout documents searched alike; token scores count among tokens as hard to predict."""
    non_member = np.array([document.set == "holdout" for document in scored.documents])
    of_non_member = np.repeat(non_member, np.diff(scored.starts))
    has_score = ~np.isnan(scored.score)
    entropy = signals["entropy_out"]
    z = stratified_z(scored.score, entropy, scored.score[of_non_member], entropy[of_non_member])
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(z))])
    count = np.concatenate([[0], np.cumsum(has_score)])

    def strength(at: slice) -> float:  # Stouffer's sum of deviates
        return float((total[at.stop] - total[at.start]) / np.sqrt(count[at.stop] - count[at.start]))

    strengths = np.array([strength(scored.rows_of(row)) for row in rows])
    is_null = np.array([bool(non_member[scored.numbers[row.doc_id]]) for row in rows], dtype=bool)
    sources = np.array([row.source for row in rows])
    certain = list(rows)
    nulls: dict[str, int] = {}
    for kind in ("found", "known"):
        null, findings = strengths[is_null & (sources == kind)], np.flatnonzero(~is_null & (sources == kind))
        searched = float((has_score & ~of_non_member).sum()) if kind == "found" else float(len(findings))
        null_searched = float((has_score & of_non_member).sum()) if kind == "found" else float(len(null))
        nulls[kind] = len(null)
        if kind == "known" and len(null) < LEAST_NON_MEMBERS:
            continue
        q = q_values(strengths[findings], null, searched=searched, null_searched=null_searched)
        for place, value in zip(findings, q, strict=True):
            certain[place] = replace(certain[place], q=float(value))
    return certain, NonMembers(documents=int(non_member.sum()), null_spans=nulls)
