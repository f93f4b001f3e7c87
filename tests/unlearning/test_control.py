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
from mitigate.unlearning.training.control import Control, control_level, span_limits


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
    assert control_level(whole, chosen) == got


def test_without_holdout_the_control_is_the_references_own_level(world: World) -> None:
    members = world.documents.subset(["forget", "retain"])
    assert control_level(replace(world, documents=members).audit()) == Control(0.0, None)


def test_the_limits_are_the_first_and_the_last_percentile_of_unseen_spans(whole: Audit) -> None:
    assert span_limits(whole) is None, "five spans tell no percentile"
    ratio, rows = log_ratio(whole), []
    like = next(row for row in whole.span_rows if row.source == "known")
    for doc_id, place in whole.rows.items():
        length = place.stop - place.start
        rows += [replace(like, doc_id=doc_id, token_start=n, token_end=n + 3) for n in range(1, length - 3)]
    found = [replace(row, source="found", token_end=row.token_start + 1) for row in rows]
    many = replace(whole, spans=span_table(rows + found))
    means = sorted(
        sum(float(ratio[whole.rows[row.doc_id].start + row.token_start + n]) for n in range(3)) / 3
        for row in rows
        if row.doc_id.startswith("holdout")
    )
    limits = span_limits(many)
    assert limits is not None
    for got, quantile in ((limits.low, 0.01), (limits.high, 0.99)):
        place = quantile * (len(means) - 1)
        low = int(place)
        assert got == pytest.approx(means[low] + (place - low) * (means[low + 1] - means[low]), rel=1e-5)
