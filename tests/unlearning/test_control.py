"""Levels of text that the target never saw equal plain loops over tokens and spans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from forgetting import log_ratio, selected_of
from world import World

from mitigate.detection.record import Audit
from mitigate.detection.spans.row import span_table
from mitigate.unlearning.material.control import (
    FEWEST_KNOWN_TOKENS,
    FEWEST_NEVER_SEEN,
    Control,
    Limits,
    control_level,
    never_seen_numbers,
    token_levels,
)


@pytest.mark.parametrize("unseen", [2, 5])
def test_the_control_is_what_as_hard_tokens_of_unseen_documents_look_like(whole: Audit, unseen: int) -> None:
    sets = [name if name != "holdout" else None for name in whole.sets.values()]
    sets[-unseen:] = ["holdout"] * unseen
    place = whole.documents.column_names.index("set")
    whole = replace(whole, documents=whole.documents.set_column(place, "set", pa.array(sets)))
    chosen, ratio, out = selected_of(whole), log_ratio(whole), whole.columns["log_prob_out"]
    ordered = sorted(float(x) for x in out[chosen])
    edges = []
    for tenth in range(1, 10):
        at = tenth / 10 * (len(ordered) - 1)
        low = int(at)
        edges.append(ordered[low] + (at - low) * (ordered[low + 1] - ordered[low]))
    alike: list[list[float]] = [[] for _ in range(10)]
    count = [0] * 10
    for doc_id, rows in whole.rows.items():
        for row in range(rows.start, rows.stop):
            if np.isnan(out[row]):
                continue
            stratum = sum(edge <= out[row] for edge in edges)
            count[stratum] += bool(chosen[row])
            if whole.sets[doc_id] == "holdout":
                alike[stratum].append(float(ratio[row]))
    usable = [n for n in range(10) if len(alike[n]) >= 10]
    assert len(usable) > 1, "more than one stratum has unseen tokens enough"
    assert len(usable) < 10 or unseen > 2, "of few documents some have not"
    total = sum(count[n] for n in usable)
    level = sum(count[n] * sum(alike[n]) / len(alike[n]) for n in usable) / total
    distance = sum(count[n] * sum(map(abs, alike[n])) / len(alike[n]) for n in usable) / total
    got = control_level(whole)
    assert (got.log_ratio, got.distance) == pytest.approx((level, distance), rel=1e-5)
    assert got.typical == pytest.approx(got.log_ratio, rel=1e-5), "one OUT reference is its own mean"
    assert control_level(whole, chosen) == got


def test_secrets_are_held_against_never_seen_secrets_where_there_are_enough(whole: Audit) -> None:
    like = next(row for row in whole.span_rows if row.source == "known")
    rows = [row for row in whole.span_rows if row.source == "known" and whole.sets[row.doc_id] != "holdout"]
    ordinary = 6  # tokens at the end of each holdout document that are no secret
    for doc_id, place in whole.rows.items():
        if whole.sets[doc_id] == "holdout":
            rows.append(replace(like, doc_id=doc_id, token_start=1, token_end=place.stop - place.start - ordinary))
    marked = replace(whole, spans=span_table([replace(row, span_id=n) for n, row in enumerate(rows)]))
    secret = np.zeros(len(whole.tokens), dtype=bool)
    for row in rows:
        secret[whole.rows_of(row)] = True
    assert (secret & (_set_of(whole) == "holdout")).sum() >= FEWEST_KNOWN_TOKENS
    lifted = whole.columns["log_prob"] + np.where(secret, 0.0, 5.0)  # ordinary words are predicted much better
    place = whole.tokens.column_names.index("log_prob")
    lifted = pa.array(lifted.astype(np.float32), from_pandas=True)
    other = replace(marked, tokens=marked.tokens.set_column(place, "log_prob", lifted))
    assert secret[selected_of(whole)].all(), "secrets are what is selected"
    assert control_level(other) == control_level(marked)


def test_secrets_and_other_tokens_each_have_the_level_of_their_kind(whole: Audit) -> None:
    rng = np.random.default_rng(0)
    chosen = selected_of(whole) | (rng.random(len(whole.tokens)) < 0.3)
    secret = np.zeros(len(whole.tokens), dtype=bool)
    for row in whole.span_rows:
        if row.source == "known":
            secret[whole.rows_of(row)] = True
    levels = token_levels(whole, chosen)
    for kind in (secret, ~secret):
        level = control_level(whole, chosen & kind)
        assert set(levels.margin[kind]) == {level.log_ratio}
        assert set(levels.typical[kind]) == {level.typical}
    assert (token_levels(whole, chosen, margin=0.7).margin == 0.7).all()


def _set_of(audit: Audit) -> np.ndarray:
    sets = np.empty(len(audit.tokens), dtype=object)
    for doc_id, rows in audit.rows.items():
        sets[rows] = audit.sets[doc_id]
    return sets


def test_the_typical_level_is_that_over_the_mean_of_the_references(whole: Audit) -> None:
    two = np.stack([whole.columns["log_prob_out"] - 0.2, whole.columns["log_prob_out"] - 0.6], axis=1)
    place = whole.tokens.column_names.index("log_prob_references")
    listed = pa.array(two.astype(np.float32).tolist(), type=pa.list_(pa.float32()), from_pandas=True)
    apart = replace(whole, tokens=whole.tokens.set_column(place, "log_prob_references", listed))
    place = whole.tokens.column_names.index("log_prob")
    higher = pa.array(whole.columns["log_prob"] + np.float32(0.4), from_pandas=True)
    raised = replace(whole, tokens=whole.tokens.set_column(place, "log_prob", higher))
    assert control_level(apart).typical == pytest.approx(control_level(raised).log_ratio, rel=1e-4)


def test_without_holdout_the_control_is_the_references_own_level(world: World) -> None:
    members = world.documents.subset(["forget", "retain"])
    assert control_level(replace(world, documents=members).audit()) == Control(0.0, None)


def test_never_seen_spans_are_the_holdouts_known_ones_and_spread_evenly_where_there_are_many(
    whole: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (never_seen_numbers(whole) == -1).all(), "five spans tell nothing"
    like = next(row for row in whole.span_rows if row.source == "known")
    rows = [
        replace(like, doc_id=doc_id, token_start=n, token_end=n + 2)
        for doc_id, place in whole.rows.items()
        for n in range(1, place.stop - place.start - 2, 3)
    ]
    found = [replace(row, source="found", token_end=row.token_start + 1) for row in rows]
    many = replace(whole, spans=span_table(rows + found))
    holdout = [row for row in rows if many.sets[row.doc_id] == "holdout"]
    assert len(holdout) >= FEWEST_NEVER_SEEN
    numbers = never_seen_numbers(many)
    for number, row in enumerate(holdout):
        assert (numbers[many.rows_of(row)] == number).all()
    assert (numbers >= 0).sum() == 2 * len(holdout), "and nowhere else"
    monkeypatch.setattr("mitigate.unlearning.material.control._MOST_NEVER_SEEN", len(holdout) // 2)
    half = never_seen_numbers(many)
    documents = {row.doc_id for row in holdout if (half[many.rows_of(row)] >= 0).any()}
    assert documents == set(list(dict.fromkeys(row.doc_id for row in holdout))[::2])


def test_the_limits_are_the_first_and_the_last_percentile_of_unseen_spans() -> None:
    means = np.sort(np.random.default_rng(0).normal(size=150))
    limits = Limits.of(means)
    assert (Limits.of(means[:30]).low, Limits.of(means[:30]).high) == (None, None), "thirty spans tell no percentile"
    for got, quantile in ((limits.low, 0.01), (limits.high, 0.99)):
        place = quantile * (len(means) - 1)
        low = int(place)
        assert got == pytest.approx(means[low] + (place - low) * (means[low + 1] - means[low]), rel=1e-5)
