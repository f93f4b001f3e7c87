"""Which spans are to be unlearned: found ones at a rate or a score, known ones that are exposed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mitigate.detection.settings import Detect
from mitigate.detection.spans.row import SpanRow
from mitigate.detection.spans.scored import ScoredDocuments
from mitigate.detection.spans.selection import select, span_excess
from mitigate.documents import Document, Documents, Span
from mitigate.errors import MitigateError
from mitigate.tokens.tokenization import TokenizedDocument

LENGTH = 6  # tokens of a document; its known span is tokens 2 to 4
REFERENCES = 3


class Texts:
    """Documents whose target exceeds the references by a constant in each known span, and by 0 elsewhere."""

    def __init__(self, excess: dict[str, float], *, sets: dict[str, str | None]) -> None:
        offsets = np.array([[n, n + 1] for n in range(LENGTH)], dtype=np.int32)
        documents, tokenized = [], []
        for name in excess:
            documents.append(Document(id=name, text="x" * LENGTH, spans=(Span(2, 4, "phone"),), set=sets[name]))
            audited = np.arange(LENGTH) > 0
            tokenized.append(TokenizedDocument(name, np.arange(LENGTH), offsets, audited))
        rng = np.random.default_rng(0)
        self.references = rng.normal(-3, 0.5, size=(len(excess) * LENGTH, REFERENCES))
        self.log_prob = self.references.mean(axis=1)
        for number, value in enumerate(excess.values()):
            self.log_prob[number * LENGTH + 2 : number * LENGTH + 4] += value
        self.references[::LENGTH] = self.log_prob[::LENGTH] = np.nan
        eligible: set[str | None] = {"forget"} if "forget" in sets.values() else {None}
        score = self.log_prob - self.references.mean(axis=1)
        self.scored = ScoredDocuments(Documents(tuple(documents)), tokenized, score, eligible)
        self.rows = self.scored.known_rows(first=0)

    def selected(self, *, rows: list[SpanRow] | None = None, trained: bool = True, **detect: object) -> set[str]:
        signals = {"log_prob": self.log_prob, "log_prob_references": self.references}
        chosen = select(self.scored, self.rows if rows is None else rows, signals, Detect(**detect), trained=trained)
        return {f"{row.doc_id} {row.source}" for row in chosen if row.selected}


def forget_set(excess: dict[str, float]) -> Texts:
    return Texts(excess, sets=dict.fromkeys(excess, "forget"))


def test_the_excess_of_a_span_is_counted_token_by_token() -> None:
    texts = forget_set({"a": 0.8, "b": -0.2, "c": 7.0})
    own = []
    for number in range(3):
        rows = range(number * LENGTH + 2, number * LENGTH + 4)
        each = [texts.log_prob[row] - sum(texts.references[row]) / REFERENCES for row in rows]
        own.append(sum(min(3.0, max(-3.0, value)) for value in each) / 2)
    found = span_excess(texts.scored, texts.rows, texts.log_prob, texts.references)
    assert found == pytest.approx(own)
    assert found == pytest.approx([0.8, -0.2, 3.0])


def test_a_reference_that_was_not_used_does_not_count() -> None:
    texts = forget_set({"a": 0.5})
    texts.references[:, 0] = np.nan
    rest = texts.log_prob[2:4] - texts.references[2:4, 1:].mean(axis=1)
    found = span_excess(texts.scored, texts.rows, texts.log_prob, texts.references)
    assert found == pytest.approx([rest.mean()])


def test_in_a_forget_set_every_known_span_that_the_model_knows_better_is_selected() -> None:
    texts = forget_set({"faint": 0.05, "strong": 2.0, "unknown": -0.1})
    assert texts.selected() == {"faint known", "strong known"}
    assert texts.selected(select="found") == set()
    assert texts.selected(select="known") == {"faint known", "strong known", "unknown known"}


def test_better_means_better_than_the_median_never_seen_span_where_there_are_enough() -> None:
    never_seen = {f"n{number}": 0.1 + 0.02 * number for number in range(21)}  # median 0.3
    excess = {"below": 0.25, "above": 0.35} | never_seen
    sets = {name: "holdout" if name in never_seen else "forget" for name in excess}
    assert Texts(excess, sets=sets).selected() == {"above known"}
    few = dict(list(excess.items())[:21])  # 19 never-seen spans are no level
    assert Texts(few, sets=sets).selected() == {"below known", "above known"}


def test_an_error_rate_is_asked_of_found_spans_and_not_of_exposed_ones_in_a_forget_set() -> None:
    texts = forget_set({"a": 0.1, "b": 0.1})
    found = [
        replace(row, span_id=2 + n, source="found", q=q)
        for n, (row, q) in enumerate(zip(texts.rows, (0.01, 0.2), strict=True))
    ]
    rows = [replace(row, q=0.9) for row in texts.rows] + found
    assert texts.selected(rows=rows, fdr=0.05) == {"a known", "b known", "a found"}
    assert texts.selected(rows=rows, fdr=0.05, select="found") == {"a found"}


def test_text_that_nobody_says_was_trained_on_needs_the_evidence_of_a_found_span() -> None:
    excess = {"faint": 0.1, "strong": 2.0}
    texts = Texts(excess, sets=dict.fromkeys(excess))
    assert texts.selected() == {"faint known", "strong known"}, "the owner's own file"
    assert texts.selected(trained=False) == {"strong known"}
    rows = [replace(row, q=q) for row, q in zip(texts.rows, (0.01, 0.5), strict=True)]
    assert texts.selected(rows=rows, trained=False, fdr=0.05) == {"faint known"}


def test_a_rate_that_known_spans_do_not_have_is_refused_or_replaced_by_the_threshold() -> None:
    excess = {"faint": 0.1, "strong": 2.0}
    texts = Texts(excess, sets=dict.fromkeys(excess))
    assert texts.selected(trained=False, fdr=0.05) == {"strong known"}
    with pytest.raises(MitigateError, match="fewer than 20 known spans in holdout documents"):
        texts.selected(fdr=0.05, select="known")
