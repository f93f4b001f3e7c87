"""Memorized spans by a threshold on the bare score, with false discovery rates where there are non-members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mitigate.detection.calibration.attack import q_values, stratified_z
from mitigate.detection.settings import SpanRule
from mitigate.detection.spans.scored import Findings, Page
from mitigate.detection.spans.threshold import find_spans

LEAST_NON_MEMBERS = 20


def by_score(
    page: Page,
    signals: Mapping[str, np.ndarray],
    kind: str,
    *,
    rule: SpanRule,
    given: Sequence[Mapping[str, Any]] | None,
) -> Findings:
    """Spans by a threshold on the windowed score.

    Args:
        page: the documents.
        signals: of their tokens.
        kind: `non_members` adds false discovery rates.
        rule: how spans are found.
        given: span rows of an earlier audit, to be judged again.
    """
    starts = page.starts
    if given is not None:
        rows = page.rescored(given)
    else:
        rows = []
        for number, (document, own) in enumerate(zip(page.documents, page.tokenized, strict=True)):
            part = page.score[starts[number] : starts[number + 1]]
            for found in find_spans(part, offsets=own.offsets, text=document.text, rule=rule):
                limits = (found.char_start, found.char_end, found.token_start, found.token_end)
                rows.append(page.found_row(number, *limits))
        rows += page.known_rows()
    memorized = np.zeros(len(page.score), dtype=bool)
    for row in rows:
        if row["source"] == "found":
            start = starts[page.numbers[row["doc_id"]]]
            memorized[start + row["token_start"] : start + row["token_end"]] = True
    memorized &= ~np.isnan(page.score)
    calibration: dict[str, Any] = {"kind": kind}
    if kind == "non_members":
        calibration |= _false_discovery_by_non_members(page, rows, signals)
    return Findings(rows, np.full(len(page.score), np.nan), memorized, calibration)


def _false_discovery_by_non_members(
    page: Page, rows: list[dict[str, Any]], signals: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """q of every span, from holdout documents searched alike; token scores count among tokens as hard to predict."""
    starts = page.starts
    non_member = np.array([document.set == "holdout" for document in page.documents])
    of_non_member = np.repeat(non_member, np.diff(starts))
    scored = ~np.isnan(page.score)
    entropy = signals["entropy_out"]
    z = stratified_z(page.score, entropy, page.score[of_non_member], entropy[of_non_member])
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(z))])
    count = np.concatenate([[0], np.cumsum(scored)])

    def strength(start: int, first: int, last: int) -> float:  # Stouffer's sum of deviates
        return float((total[start + last] - total[start + first]) / np.sqrt(count[start + last] - count[start + first]))

    strengths = np.array([strength(starts[page.numbers[r["doc_id"]]], r["token_start"], r["token_end"]) for r in rows])
    is_null = np.array([bool(non_member[page.numbers[r["doc_id"]]]) for r in rows], dtype=bool)
    sources = np.array([r["source"] for r in rows])
    nulls: dict[str, int] = {}
    for kind in ("found", "known"):
        null, findings = strengths[is_null & (sources == kind)], np.flatnonzero(~is_null & (sources == kind))
        searched = float((scored & ~of_non_member).sum()) if kind == "found" else float(len(findings))
        null_searched = float((scored & of_non_member).sum()) if kind == "found" else float(len(null))
        nulls[kind] = len(null)
        if kind == "known" and len(null) < LEAST_NON_MEMBERS:
            continue
        q = q_values(strengths[findings], null, searched=searched, null_searched=null_searched)
        for place, value in zip(findings, q, strict=True):
            rows[place]["q"] = float(value)
    return {"documents": int(non_member.sum()), "null_spans": nulls}
