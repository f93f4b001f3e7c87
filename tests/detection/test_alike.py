"""Never-seen stretches that are like the spans to forget: chosen by length and difficulty, never by the target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from made_up import make_audit

from mitigate.detection.panel import with_column
from mitigate.detection.record import Audit
from mitigate.detection.spans.alike import ENOUGH, never_seen_stretches
from mitigate.detection.spans.row import SpanRow, span_table
from mitigate.statistics.separation import auc
from mitigate.unlearning.material.control import Limits, never_seen_numbers
from mitigate.verification.figures import View, over_forgotten

DOCUMENTS, WORDS = 80, 90


@pytest.fixture(scope="module")
def blind() -> Audit:
    """Half never seen; nobody was learned: the target is one more model. Spans are found where it stands out."""
    rng = np.random.default_rng(0)
    texts = {f"{name}-{number}": "word " * WORDS for name in ("forget", "holdout") for number in range(DOCUMENTS // 2)}
    audit = make_audit(texts, sets={doc_id: doc_id.split("-")[0] for doc_id in texts})
    count = len(audit.tokens)
    scored = ~np.isnan(audit.columns["log_prob"])
    hard = np.repeat(rng.gamma(2.0, 1.5, count // 5 + 1), 5)[:count]
    out = np.where(scored, -hard, np.nan)
    ratio = np.where(scored, rng.normal(0, 0.8, count), np.nan)
    tokens = audit.tokens
    for name, values in {"log_prob_out": out, "log_prob": out + ratio, "score": ratio}.items():
        tokens = with_column(tokens, name, values.astype(np.float32))
    rows: list[SpanRow] = []
    like = SpanRow(0, "", 0, 1, 0, 1, "", "found", 0.0, selected=False)
    for doc_id, own in audit.rows.items():
        for start in range(1, WORDS - 6, 3):
            length = 3 + (start % 4)
            score = float(np.mean(ratio[own][start : start + length]))
            if score > 0.5:
                span = {"token_start": start, "token_end": start + length, "score": score, "doc_id": doc_id}
                rows.append(replace(like, **span, span_id=len(rows), selected=doc_id.startswith("forget")))
    assert len(rows) > 200
    return replace(audit, tokens=tokens, spans=span_table(rows))


def test_stretches_are_of_never_seen_text_as_long_and_as_hard_and_apart(blind: Audit) -> None:
    spans = [row for row in blind.span_rows if row.selected]
    found = never_seen_stretches(blind, spans)
    assert len(found) >= ENOUGH
    out = blind.columns["log_prob_out"]
    used = np.zeros(len(out), dtype=int)
    for doc_id, rows in found:
        assert blind.sets[doc_id] == "holdout"
        assert blind.rows[doc_id].start <= rows.start < rows.stop <= blind.rows[doc_id].stop
        assert not np.isnan(out[rows]).any()
        used[rows] += 1
    assert used.max() == 1
    wanted, got = [blind.rows_of(row) for row in spans], [rows for _, rows in found]
    lengths, own = ([rows.stop - rows.start for rows in places] for places in (wanted, got))
    assert set(lengths) == set(own)
    assert np.mean(own) == pytest.approx(np.mean(lengths), rel=0.1)
    hardness, theirs, anywhere = (
        np.mean([out[rows].mean() for rows in wanted]),
        np.mean([out[rows].mean() for rows in got]),
        np.nanmean(out),
    )
    assert abs(theirs - hardness) < 0.15 * abs(hardness)
    assert found == never_seen_stretches(blind, spans)
    harder = [row for row in spans if out[blind.rows_of(row)].mean() < anywhere - 1.5]
    assert np.mean([out[rows].mean() for _, rows in never_seen_stretches(blind, harder)[: len(harder)]]) < anywhere - 1


def test_what_the_target_says_decides_nothing(blind: Audit) -> None:
    spans = [row for row in blind.span_rows if row.selected]
    scored = ~np.isnan(blind.columns["log_prob"])
    other = np.where(scored, -np.random.default_rng(1).gamma(2.0, 1.0, len(scored)), np.nan).astype(np.float32)
    tokens = with_column(blind.tokens, "log_prob", other)
    assert never_seen_stretches(replace(blind, tokens=tokens), spans) == never_seen_stretches(blind, spans)


def test_without_never_seen_text_there_are_none(blind: Audit) -> None:
    place = blind.documents.column_names.index("set")
    sets = pa.array(["forget"] * len(blind.documents))
    members = replace(blind, documents=blind.documents.set_column(place, "set", sets))
    assert never_seen_stretches(members, [row for row in members.span_rows if row.selected]) == []


def test_spans_at_the_level_of_never_seen_text_are_neither_over_forgotten_nor_told_from_it(blind: Audit) -> None:
    """Found spans of never-seen text were found since they stand out: beside these, all that is forgotten lies low."""
    rng = np.random.default_rng(2)
    scored = ~np.isnan(blind.columns["log_prob"])
    forgotten = np.where(scored, rng.normal(0, 0.8, len(scored)), np.nan).astype(np.float32)  # another never-seen model
    tokens = blind.tokens
    holdout = np.zeros(len(scored), dtype=bool)
    for doc_id, rows in blind.rows.items():
        holdout[rows] = blind.sets[doc_id] == "holdout"
    now = np.where(holdout, blind.columns["score"], forgotten)
    tokens = with_column(tokens, "score", now)
    tokens = with_column(tokens, "log_prob", (blind.columns["log_prob_out"] + now).astype(np.float32))
    rows = [replace(row, score=float(now[blind.rows_of(row)].mean())) for row in blind.span_rows]
    after = replace(blind, tokens=tokens, spans=span_table(rows))
    numbers = never_seen_numbers(blind)
    ratio = np.clip(blind.columns["log_prob"] - blind.columns["log_prob_out"], -3, 3)
    limits = Limits.of(np.array([ratio[numbers == number].mean() for number in range(numbers.max() + 1)]))
    assert limits.low is not None
    means = np.array([row.score for row in rows if row.selected])
    assert 0.42 < auc(means, limits.means) < 0.58
    assert (means < limits.low).mean() < 0.04
    figure = over_forgotten(View(blind), after)
    assert figure.value is not None
    assert figure.value < 0.04
    standing_out = [row.score for row in blind.span_rows if blind.sets[row.doc_id] == "holdout"]
    assert auc(means, np.array(standing_out)) < 0.1, "which is what they are not to be held against"
