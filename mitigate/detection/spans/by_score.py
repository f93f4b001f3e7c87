"""Memorized spans by a threshold on the bare score, with false discovery rates where there are non-members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mitigate.detection.calibration.attack import q_values, stratified_z
from mitigate.detection.metadata import Calibration, Kind, NonMembers, Uncalibrated
from mitigate.detection.settings import SpanRule
from mitigate.detection.spans.scored import Findings, ScoredDocuments
from mitigate.detection.spans.threshold import find_spans

LEAST_NON_MEMBERS = 20


def by_score(
    scored: ScoredDocuments,
    signals: Mapping[str, np.ndarray],
    kind: Kind,
    *,
    rule: SpanRule,
    given: Sequence[Mapping[str, Any]] | None,
) -> Findings:
    """Spans by a threshold on the windowed score.

    Args:
        scored: the documents.
        signals: of their tokens.
        kind: `non_members` adds false discovery rates.
        rule: how spans are found.
        given: span rows of an earlier audit, to be judged again.
    """
    starts = scored.starts
    if given is not None:
        rows = scored.rescored(given)
    else:
        rows = []
        for number, (document, own) in enumerate(zip(scored.documents, scored.tokenized, strict=True)):
            part = scored.score[starts[number] : starts[number + 1]]
            for found in find_spans(part, offsets=own.offsets, text=document.text, rule=rule):
                limits = (found.char_start, found.char_end, found.token_start, found.token_end)
                rows.append(scored.found_row(number, *limits))
        rows += scored.known_rows()
    memorized = np.zeros(len(scored.score), dtype=bool)
    for row in rows:
        if row["source"] == "found":
            start = starts[scored.numbers[row["doc_id"]]]
            memorized[start + row["token_start"] : start + row["token_end"]] = True
    memorized &= ~np.isnan(scored.score)
    calibration: Calibration = Uncalibrated()
    if kind == "non_members":
        calibration = _false_discovery_by_non_members(scored, rows, signals)
    return Findings(rows, np.full(len(scored.score), np.nan), memorized, calibration)


def _false_discovery_by_non_members(
    scored: ScoredDocuments, rows: list[dict[str, Any]], signals: Mapping[str, np.ndarray]
) -> NonMembers:
    """q of every span, from holdout documents searched alike; token scores count among tokens as hard to predict."""
    starts = scored.starts
    non_member = np.array([document.set == "holdout" for document in scored.documents])
    of_non_member = np.repeat(non_member, np.diff(starts))
    has_score = ~np.isnan(scored.score)
    entropy = signals["entropy_out"]
    z = stratified_z(scored.score, entropy, scored.score[of_non_member], entropy[of_non_member])
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(z))])
    count = np.concatenate([[0], np.cumsum(has_score)])

    def strength(start: int, first: int, last: int) -> float:  # Stouffer's sum of deviates
        return float((total[start + last] - total[start + first]) / np.sqrt(count[start + last] - count[start + first]))

    strengths = np.array(
        [strength(starts[scored.numbers[r["doc_id"]]], r["token_start"], r["token_end"]) for r in rows]
    )
    is_null = np.array([bool(non_member[scored.numbers[r["doc_id"]]]) for r in rows], dtype=bool)
    sources = np.array([r["source"] for r in rows])
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
            rows[place]["q"] = float(value)
    return NonMembers(documents=int(non_member.sum()), null_spans=nulls)
