"""The level of models that never saw the text equals a naive computation, and what moves it is no leak."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from made_up import with_metadata
from simulated_reports import CLEAN, REFERENCES, Leak, World

from mitigate.detection.record import Audit
from mitigate.detection.spans.row import span_table
from mitigate.statistics.separation import auc
from mitigate.verification.compare import compare

pytestmark = pytest.mark.filterwarnings("ignore:Mean of empty slice")


@pytest.fixture(scope="module")
def tables() -> tuple[Audit, Audit, np.ndarray]:
    before, after, oracle, _ = World(np.random.default_rng(5), 30, 30).tables(CLEAN)
    return before, with_metadata(after, again=before.fingerprint), oracle


def naive_auc(audit: Audit, score: np.ndarray, *, spans: bool) -> float:
    """By loops over spans or documents, texts without a score left out."""
    sides: dict[str | None, list[float]] = {"forget": [], "holdout": []}
    rows = [(row["doc_id"], row["token_start"], row["token_end"]) for row in audit.spans.to_pylist()]
    known = [row["source"] == "known" for row in audit.spans.to_pylist()]
    texts = [row for row, keep in zip(rows, known, strict=True) if keep]
    if not spans:
        texts = [(doc_id, 0, own.stop - own.start) for doc_id, own in audit.rows.items()]
    for doc_id, start, end in texts:
        first = audit.rows[doc_id].start
        values = [value for value in score[first + start : first + end].tolist() if value == value]
        if values:
            sides[audit.sets[doc_id]].append(sum(values) / len(values))
    return auc(np.array(sides["forget"]), np.array(sides["holdout"]))


@pytest.mark.parametrize("name", ["span_auc", "document_auc"])
def test_the_oracle_is_judged_as_the_target_is(tables: tuple[Audit, Audit, np.ndarray], name: str) -> None:
    before, after, oracle = tables
    section = compare(before, after, oracle_log_probs=oracle).report["never_seen"]
    score = np.clip(oracle - before.columns["log_prob_out"], -3, 3)
    assert section["source"] == "oracle"
    assert section[name] == pytest.approx(naive_auc(before, score, spans=name == "span_auc"))
    own = naive_auc(after, after.columns["score"], spans=name == "span_auc")
    assert section["excess"]["after"][name] == pytest.approx(own - section[name])


@pytest.mark.parametrize("name", ["span_auc", "document_auc"])
def test_references_stand_in_on_documents_that_they_never_saw(
    tables: tuple[Audit, Audit, np.ndarray], name: str
) -> None:
    before, after, _ = tables
    report = compare(before, after).report
    section, references = report["never_seen"], before.reference_log_probs.astype(float)
    assert (section["source"], section["stand_ins"]) == ("references", REFERENCES)
    each = []
    for number in range(REFERENCES):
        score = np.full(len(references), np.nan)
        for row, values in enumerate(references):
            others = [np.exp(x) for k, x in enumerate(values.tolist()) if k != number and x == x]
            if values[number] == values[number] and others:
                score[row] = np.clip(values[number] - np.log(np.mean(others)), -3, 3)
        each.append(naive_auc(before, score, spans=name == "span_auc"))
    assert section[name] == pytest.approx(np.mean(each))
    assert not any("taken to be 0.50" in note for note in report["notes"])


def scored_by(audit: Audit, name: str, score: np.ndarray) -> Audit:
    """The audit with another token score, and spans that are judged by it."""
    table = audit.tokens.set_column(
        audit.tokens.column_names.index("score"), "score", pa.array(score, from_pandas=True)
    )
    spans = [replace(row, score=float(np.nanmean(score[audit.rows_of(row)]))) for row in audit.span_rows]
    return replace(with_metadata(audit, detect_score=name), tokens=table, spans=span_table(spans))


def test_stand_ins_are_scored_as_the_target_is(tables: tuple[Audit, Audit, np.ndarray]) -> None:
    """By log p alone: the level is that of the oracle's, and of the references', own log p."""
    before, _, oracle = tables
    by_loss = scored_by(before, "loss", before.columns["log_prob"])
    section = compare(by_loss, oracle_log_probs=oracle).report["never_seen"]
    assert section["span_auc"] == pytest.approx(naive_auc(before, oracle, spans=True))
    references = before.reference_log_probs.astype(float)
    each = [naive_auc(before, references[:, number], spans=True) for number in range(REFERENCES)]
    assert compare(by_loss).report["never_seen"]["span_auc"] == pytest.approx(np.mean(each))


@pytest.mark.parametrize("name", ["min_k_pp", "informia"])
def test_the_level_of_a_score_that_an_audit_does_not_hold_is_not_called_measured(
    tables: tuple[Audit, Audit, np.ndarray], name: str
) -> None:
    before, _, oracle = tables
    report = compare(scored_by(before, name, before.columns["score"]), oracle_log_probs=oracle).report
    assert (report["never_seen"]["source"], report["never_seen"]["span_auc"]) == ("assumed", 0.5)
    assert any(f"does not hold {name} of its references" in note for note in report["notes"])


def test_where_one_reference_judges_the_level_is_assumed_and_it_is_said(
    tables: tuple[Audit, Audit, np.ndarray],
) -> None:
    alone = []
    for audit in tables[:2]:
        column = audit.tokens["log_prob_out"].combine_chunks()
        place = audit.tokens.column_names.index("log_prob_references")
        alone.append(
            replace(
                audit,
                tokens=audit.tokens.set_column(
                    place, "log_prob_references", pa.FixedSizeListArray.from_arrays(column, 1)
                ),
            )
        )
    report = compare(*alone).report
    after = report["leakage"]["after"]
    assert report["never_seen"]["source"] == "assumed"
    assert report["never_seen"]["span_auc"] == 0.5
    assert report["never_seen"]["excess"]["after"]["span_auc"] == pytest.approx(after["span_auc"] - 0.5)
    assert any("taken to be 0.50" in note for note in report["notes"])


def test_text_that_is_likelier_to_every_model_is_no_leak(tables: tuple[Audit, Audit, np.ndarray]) -> None:
    """The forget set is easier than the references say, for the oracle as for the target: only the excess counts."""
    before, after, oracle = tables
    sets = np.repeat([after.sets[doc_id] == "forget" for doc_id in after.rows], 16)
    shifted = after.columns["log_prob"] + 0.4 * sets
    columns = {"log_prob": shifted, "score": np.clip(shifted - after.columns["log_prob_out"], -3, 3)}
    table = after.tokens
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values, from_pandas=True))
    spans = [replace(row, score=float(np.nanmean(columns["score"][after.rows_of(row)]))) for row in after.span_rows]
    easier = replace(after, tokens=table, spans=span_table(spans))
    with_oracle = compare(before, easier, oracle_log_probs=oracle + 0.4 * sets).report
    assert with_oracle["leakage"]["after"]["span_auc"] > 0.65
    assert with_oracle["verdict"]["findings"]["spans"]["state"] != "leaks"
    assert compare(before, easier).report["verdict"]["findings"]["spans"]["state"] == "leaks"


@pytest.mark.parametrize(("leak", "state"), [(CLEAN, "good"), (Leak(secrets=2.0, other=1.0), "leaks")])
def test_where_all_references_taught_the_oracle_judges(leak: Leak, state: str) -> None:
    before, after, oracle, _ = World(np.random.default_rng(7), 80, 80).tables(leak)
    after = with_metadata(after, origin=None, again=before.fingerprint)
    report = compare(before, after, oracle_log_probs=oracle).report
    assert report["judges_kept_out"] is False
    assert report["verdict"]["findings"]["judges"]["state"] == state
    own = naive_auc(before, np.clip(after.columns["log_prob"] - oracle, -3, 3), spans=True)
    references = before.reference_log_probs.astype(float)
    each = [naive_auc(before, np.clip(references[:, k] - oracle, -3, 3), spans=True) for k in range(REFERENCES)]
    assert report["never_seen"]["by_oracle"] == pytest.approx(own - np.mean(each))
    assert compare(before, after).report["verdict"]["findings"]["judges"]["state"] == "cannot_tell"


@pytest.mark.parametrize(("leak", "told"), [(CLEAN, False), (Leak(secrets=2.0), True)])
def test_on_the_selected_spans_the_model_is_held_against_those_that_never_saw_them(leak: Leak, told: bool) -> None:
    before, after, _, _ = World(np.random.default_rng(7), 40, 40).tables(leak)
    after = with_metadata(after, again=before.fingerprint)
    section = compare(before, after).report["never_seen"]
    references = before.reference_log_probs.astype(float)
    each = []
    for number in range(REFERENCES):
        own, others = [], []
        for row in before.spans.to_pylist():
            at = slice(*(before.rows[row["doc_id"]].start + row[key] for key in ("token_start", "token_end")))
            values = references[at]
            mine, rest = values[:, number], np.delete(values, number, axis=1)
            rest = rest[:, ~np.isnan(rest).any(axis=0)]
            if row["selected"] and not np.isnan(mine).any() and rest.shape[1]:
                others.append(np.clip(mine - np.log(np.exp(rest).mean(axis=1)), -3, 3).mean())
                own.append(after.columns["score"][at].mean())
        each.append(auc(np.array(own), np.array(others)))
    assert section["selected"] == pytest.approx(np.mean(each) - 0.5)
    assert (section["selected_interval"][0] > 0.15) is told
    assert (section["selected_interval"][1] < 0.15) is not told


def test_a_secret_that_was_trained_on_is_no_control(tables: tuple[Audit, Audit, np.ndarray]) -> None:
    """Never-seen documents of the same people, with the same secrets: they are known as well, which hides the leak."""
    before, after, _ = tables
    spans, texts, sets = before.span_rows, dict(before.texts), before.sets
    known = [row for row in spans if row.source == "known"]
    secret = next(row for row in known if sets[row.doc_id] == "forget")
    copies = [row for row in known if sets[row.doc_id] == "holdout"][:5]
    first, last = 5 * secret.token_start, 5 * secret.token_end - 1
    value = texts[secret.doc_id][first:last]
    for row in copies:
        start, end, own = 5 * row.token_start, 5 * row.token_end - 1, texts[row.doc_id]
        texts[row.doc_id] = own[:start] + value.upper() + own[end:]
    documents = before.documents.set_column(
        before.documents.column_names.index("text"), "text", pa.array(list(texts.values()))
    )
    there, gone = (replace(one, documents=documents) for one in (before, after))
    without = [row for row in spans if row not in copies]
    report = compare(there, gone).report
    naive = naive_auc(replace(before, spans=span_table(without)), before.columns["score"], spans=True)
    assert report["leakage"]["before"]["span_auc"] == pytest.approx(naive)
    assert any(note.startswith("5 known secrets of never-seen documents") for note in report["notes"])
    own = naive_auc(replace(after, spans=span_table(without)), after.columns["score"], spans=True)
    section = report["never_seen"]
    assert section["excess"]["after"]["span_auc"] == pytest.approx(own - section["span_auc"])
