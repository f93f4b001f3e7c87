"""The audit: planted secrets stand out, tables say what they should, and files round-trip to equal bytes."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import World

from mitigate.detection.audit import audit, load_audited, reaudit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.documents import Document, Documents, Span
from mitigate.errors import MitigateError
from mitigate.lab.tiny import train_tokenizer
from mitigate.models.store import ModelStore
from mitigate.statistics.separation import auc


@pytest.fixture(scope="module")
def known(world: World) -> Audit:
    return world.audit(select="known")


@pytest.fixture(scope="module")
def found(world: World) -> Audit:
    return world.audit(select="found")


@pytest.fixture
def saved(known: Audit, tmp_path: Path) -> Path:
    known.save(tmp_path / "audit")
    return tmp_path / "audit"


def test_planted_secrets_of_members_score_above_those_of_non_members(world: World, known: Audit) -> None:
    sets = known.sets
    scores: dict[str | None, list[float]] = {"forget": [], "retain": [], "holdout": []}
    for span in known.spans.to_pylist():
        if span["source"] == "known":
            scores[sets[span["doc_id"]]].append(span["score"])
    assert {name: len(values) for name, values in scores.items()} == {"forget": 5, "retain": 5, "holdout": 5}
    assert auc(np.array(scores["forget"] + scores["retain"]), np.array(scores["holdout"])) == 1.0
    assert min(scores["forget"]) > 1


def test_found_spans_cover_the_planted_secrets(world: World, found: Audit) -> None:
    spans = [row for row in found.spans.to_pylist() if row["source"] == "found" and row["selected"]]
    for document in world.documents.subset("forget"):
        [secret] = document.spans
        covered: set[int] = set()
        for row in spans:
            if row["doc_id"] == document.id:
                covered |= set(range(row["char_start"], row["char_end"]))
        assert set(range(secret.start, secret.end)) <= covered
        assert any(row["doc_id"] == document.id and "code" in row["label"] for row in spans)


def test_an_adapters_secrets_are_found_as_a_models_are(world: World) -> None:
    result = world.audit(world.adapter)
    sets = result.sets
    scores = {
        name: np.array(
            [r["score"] for r in result.spans.to_pylist() if sets[r["doc_id"]] == name and r["source"] == "known"]
        )
        for name in ("forget", "holdout")
    }
    assert auc(scores["forget"], scores["holdout"]) == 1.0


def test_a_documents_first_token_has_no_score_and_every_other_has_one(known: Audit) -> None:
    positions = known.tokens["position"].to_numpy()
    for name in ("log_prob", "rank", "entropy", "log_prob_out", "log_ratio", "kl", "informia", "min_k_pp", "score"):
        nulls = np.array(known.tokens[name].is_null())
        assert nulls.tolist() == (positions == 0).tolist(), name
    assert not known.columns["audited"][positions == 0].any()


def test_token_rows_give_the_characters_of_their_document(world: World, known: Audit) -> None:
    columns = known.columns
    for document in world.documents:
        rows = known.rows[document.id]
        assert columns["position"][rows].tolist() == list(range(rows.stop - rows.start))
        ranges = list(zip(columns["char_start"][rows][1:], columns["char_end"][rows][1:], strict=True))
        written = "".join(document.text[start:end] for start, end in ranges)
        assert written.replace(" ", "") == document.text.replace(" ", "")
        assert ranges == sorted(ranges)


def test_each_token_has_the_log_probability_of_its_out_reference_alone(known: Audit) -> None:
    per_reference = known.reference_log_probs
    assert per_reference.shape == (len(known.tokens), 2)
    for row in known.documents.to_pylist():
        rows = slice(known.rows[row["doc_id"]].start + 1, known.rows[row["doc_id"]].stop)
        [out] = row["out_references"]
        np.testing.assert_allclose(per_reference[rows, out], known.columns["log_prob_out"][rows], atol=1e-5)
        assert np.isnan(per_reference[rows, 1 - out]).all()


def test_known_selects_the_known_spans_and_found_the_found_ones(world: World, known: Audit, found: Audit) -> None:
    for result, source in ((known, "known"), (found, "found")):
        for row in result.spans.to_pylist():
            chosen = row["source"] == source and result.sets[row["doc_id"]] == "forget"
            assert row["selected"] is chosen
    text = {document.id: document.text for document in world.documents}
    for doc_id, rows in known.rows.items():
        selected = known.columns["selected"][rows].astype(bool)
        characters = zip(
            known.columns["char_start"][rows][selected], known.columns["char_end"][rows][selected], strict=True
        )
        taken = "".join(text[doc_id][start:end] for start, end in characters)
        secret = next(s for d in world.documents if d.id == doc_id for s in d.spans)
        assert taken == (text[doc_id][secret.start : secret.end] if doc_id.startswith("forget") else "")


def test_without_a_forget_set_spans_outside_retain_and_holdout_are_selected(world: World) -> None:
    renamed = Documents(
        tuple(
            Document(d.id, d.text, spans=d.spans, set=None if d.set == "forget" else d.set, group=d.group)
            for d in world.documents
        )
    )
    references, detect = [world.references], Detect(select="known")
    result = audit(world.target, references, documents=renamed, detect=detect, store=ModelStore(device="cpu"))
    assert {row["doc_id"][:6] for row in result.spans.to_pylist() if row["selected"]} == {"forget"}


def test_only_the_audited_range_is_scored_and_selected(world: World) -> None:
    text = "Ann went to the harbour. The door code of Ann is 123456."
    document = Document("part", text, audited=((25, len(text)),), spans=(Span(16, 23, "place"), Span(49, 55, "code")))
    result = audit(
        world.target,
        [world.base],
        documents=Documents((document,)),
        detect=Detect(select="known"),
        store=ModelStore(device="cpu"),
    )
    starts, audited = result.columns["char_start"], result.columns["audited"].astype(bool)
    assert audited.tolist() == (starts >= 25).tolist()
    assert np.isnan(result.columns["score"]).tolist() == (~audited).tolist()
    assert [row["label"] for row in result.spans.to_pylist() if row["source"] == "known"] == ["code"]
    assert result.metadata.kind == "given"


def test_a_long_document_is_audited_whole(world: World) -> None:
    text = " ".join(document.text for document in world.documents)
    result = audit(
        world.target, [world.base], documents=Documents((Document("long", text),)), store=ModelStore(device="cpu")
    )
    assert len(result.tokens) > 5 * 64
    assert result.tokens["score"].null_count == 1


def test_saved_and_loaded_audits_are_equal(known: Audit, saved: Path) -> None:
    loaded = Audit.load(saved)
    assert loaded.tokens.equals(known.tokens)
    assert loaded.documents.equals(known.documents)
    assert loaded.spans.equals(known.spans)
    assert loaded.metadata == known.metadata
    assert loaded.fingerprint == known.fingerprint
    assert loaded.document_list().fingerprint == known.document_list().fingerprint


def test_an_audit_gives_back_its_documents_and_tokens(world: World, known: Audit) -> None:
    assert known.document_list() == world.documents
    assert known.document_list().fingerprint == known.metadata.documents
    for tokens, document in zip(known.tokenized(), world.documents, strict=True):
        assert tokens.id == document.id
        assert tokens.ids.dtype == np.int64
        assert tokens.audited[1:].all()


def test_equal_inputs_give_equal_bytes(world: World, saved: Path, tmp_path: Path) -> None:
    world.audit(select="known").save(tmp_path / "again")
    Audit.load(saved).save(tmp_path / "copied")
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["audit.json", "digests.json", "documents.parquet", "spans.parquet", "tokens.parquet"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()
        assert (tmp_path / "copied" / name).read_bytes() == (saved / name).read_bytes()


def test_saved_audits_are_readable_by_their_owner_only(saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()} == {0o600}


def test_an_audit_is_not_written_over_another_thing(known: Audit, saved: Path) -> None:
    (saved / "mine").write_text("keep")
    with pytest.raises(MitigateError, match="audit: already holds something"):
        known.save(saved)
    assert (saved / "mine").read_text() == "keep"
    known.save(saved, replace=True)
    assert not (saved / "mine").exists()


def test_a_directory_without_an_audit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match=r"holds no audit \(no audit.json\); make one with `mitigate audit`"):
        Audit.load(tmp_path)


@pytest.mark.parametrize("name", ["audit.json", "documents.parquet", "spans.parquet", "tokens.parquet"])
def test_a_damaged_audit_is_refused_naming_the_file(saved: Path, name: str) -> None:
    (saved / name).write_bytes(b"\x93NOT" * 5)
    with pytest.raises(MitigateError, match=f"{name} is not .* again"):
        Audit.load(saved)


def test_an_audit_that_lacks_a_table_is_refused_naming_the_file(saved: Path) -> None:
    (saved / "spans.parquet").unlink()
    with pytest.raises(MitigateError, match=r"spans\.parquet is missing"):
        Audit.load(saved)


@pytest.mark.parametrize("select", ["known", "found"])
def test_auditing_the_same_model_again_gives_the_same_tables(
    known: Audit, found: Audit, world: World, select: str
) -> None:
    before = {"known": known, "found": found}[select]
    after = reaudit(before, world.target, store=ModelStore(device="cpu"), references_again=True)
    assert after.tokens.equals(before.tokens)
    assert after.documents.equals(before.documents)
    assert after.spans.equals(before.spans)
    assert after.metadata == before.metadata.model_copy(update={"again": before.fingerprint})


@pytest.mark.parametrize("to_base", [True, False])
def test_a_reaudit_runs_the_references_again_only_where_it_must(
    found: Audit, world: World, monkeypatch: pytest.MonkeyPatch, to_base: bool
) -> None:
    target = world.base if to_base else world.target
    whole = reaudit(found, target, store=ModelStore(device="cpu"), references_again=True)
    store, loaded = ModelStore(device="cpu"), []
    load = store.load
    monkeypatch.setattr(store, "load", lambda source, **options: loaded.append(str(source)) or load(source, **options))
    after = reaudit(found, target, store=store)
    assert loaded == [str(target)], "the references are not loaded"
    compared = {"kl", "log_ratio_variance", "informia"}
    kept = [name for name in whole.tokens.column_names if name not in compared]
    for name in set(kept) - {"doc_id", "span_id", "log_prob_references"}:
        np.testing.assert_allclose(after.columns[name], whole.columns[name], rtol=0, atol=1e-5, err_msg=name)
    assert after.tokens["log_prob_references"].equals(whole.tokens["log_prob_references"])
    assert all(after.tokens[name].null_count == len(after.tokens) for name in compared), "not looked at: null, not 0"
    assert [row.selected for row in after.span_rows] == [row.selected for row in whole.span_rows]
    assert [row.score for row in after.span_rows] == pytest.approx([row.score for row in whole.span_rows], abs=1e-5)


def test_an_audit_of_log_probabilities_alone_finds_what_one_of_all_signals_finds(found: Audit, world: World) -> None:
    detect = found.metadata.detect.model_copy(update={"signals": "log_probs"})
    options: dict[str, Any] = {"documents": world.documents, "store": ModelStore(device="cpu")}
    alone = audit(world.target, world.references, detect=detect, **options)
    compared = ["span_id", "doc_id", "char_start", "char_end", "source", "selected"]
    assert alone.spans.select(compared).equals(found.spans.select(compared))
    np.testing.assert_allclose(alone.columns["score"], found.columns["score"], rtol=0, atol=1e-5)
    assert alone.tokens["entropy"].null_count == alone.tokens["kl"].null_count == len(alone.tokens)
    for changes, told in (({"score": "informia"}, "detect.score: informia needs"), ({"fdr": 0.05}, "detect.fdr")):
        with pytest.raises(MitigateError, match=f"{told}.*detect.signals: log_probs leaves them out"):
            audit(world.target, world.references, detect=Detect(signals="log_probs", **changes), **options)


@pytest.mark.parametrize("changes", [{"score": "informia"}, {"temperature": 2.0}, {"offline_a": 0.5}])
def test_a_reaudit_whose_score_compares_distributions_runs_the_references_again(
    world: World, changes: dict[str, Any]
) -> None:
    before = audit(
        world.target,
        world.references,
        documents=world.documents[:6],
        detect=Detect(select="known", **changes),
        store=ModelStore(device="cpu"),
    )
    after = reaudit(before, world.base, store=ModelStore(device="cpu"))
    scored = ~np.isnan(before.columns["log_prob"])
    for name in ("kl", "log_ratio_variance", "informia", "log_ratio"):
        assert np.array_equal(~np.isnan(after.columns[name]), scored), name


def test_a_reaudit_keeps_the_spans_and_scores_them_anew(found: Audit, world: World) -> None:
    after = reaudit(found, world.base, store=ModelStore(device="cpu"))
    kept = ["span_id", "doc_id", "char_start", "char_end", "token_start", "token_end", "label", "source", "selected"]
    assert after.spans.select(kept).equals(found.spans.select(kept))
    assert after.tokens.select(["doc_id", "span_id", "selected"]).equals(
        found.tokens.select(["doc_id", "span_id", "selected"])
    )
    forget = [number for number, row in enumerate(found.spans.to_pylist()) if row["selected"]]
    scores = [np.mean([result.spans["score"].to_pylist()[n] for n in forget]) for result in (found, after)]
    assert scores[1] < scores[0] - 1


def test_a_reaudit_with_another_tokenizer_is_refused(
    known: Audit, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_model("llama"), tmp_path / "other"))
    train_tokenizer(["some other text"] * 3, vocabulary=300).save_pretrained(other)
    with pytest.raises(
        MitigateError, match=r"other: its tokenizer differs from that of the audited model .*the merges"
    ):
        reaudit(known, other, store=ModelStore(device="cpu"))


def test_a_reference_that_changed_since_the_audit_is_refused(world: World, tmp_path: Path) -> None:
    references = Path(shutil.copytree(world.references, tmp_path / "references"))
    before = audit(world.target, [references], documents=world.documents, store=ModelStore(device="cpu"))
    shutil.rmtree(references / "reference-1")
    shutil.copytree(references / "reference-0", references / "reference-1")
    with pytest.raises(MitigateError, match="reference-1: not the model that the audit used"):
        reaudit(before, world.base, store=ModelStore(device="cpu"))
    [first, _] = before.metadata.references
    assert load_audited([first], store=ModelStore(device="cpu"))[0].fingerprint == first.fingerprint


def test_an_audit_without_a_reference_is_refused(world: World) -> None:
    with pytest.raises(MitigateError, match=r"no reference: .*--reference DIR"):
        audit(world.target, [], documents=world.documents, store=ModelStore(device="cpu"))


def test_an_audit_reads_documents_from_a_file(world: World, tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    rows = [{"id": document.id, "text": document.text, "set": document.set} for document in world.documents]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = audit(world.target, [world.references], documents=path, store=ModelStore(device="cpu"))
    assert result.documents["doc_id"].to_pylist() == [document.id for document in world.documents]


def test_metadata_never_holds_text(world: World, known: Audit) -> None:
    written = json.dumps(known.metadata.written())
    for document in world.documents:
        assert document.text[document.spans[0].start : document.spans[0].end] not in written
