"""Audits by parts say what one audit says, go on where they were cut short, and give what stands out as one audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner
from world import World, planted_documents, sentences

from mitigate.cli.app import app
from mitigate.detection.audit import Auditor, audit, reaudit
from mitigate.detection.parts import audit as by_parts
from mitigate.detection.parts.audit import PartedAudit, audit_parts
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.documents import Document, Documents, DocumentSource, read_documents
from mitigate.documents import corpus as corpus_module
from mitigate.documents.corpus import survey
from mitigate.documents.request import Request
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError
from mitigate.models.store import ModelStore
from mitigate.retraining.removals import training_documents
from mitigate.verification.compare import compare

PLAIN = 60


def cpu() -> ModelStore:
    return ModelStore(device="cpu")


def plain(count: int = PLAIN, *, seed: int = 11, **values: Any) -> list[Document]:
    return [Document(f"plain-{seed}-{n}", text, **values) for n, text in enumerate(sentences(count, seed=seed))]


@pytest.fixture(scope="module")
def path(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's documents among others that no model saw, those of the set holdout last."""
    planted = list(world.documents)
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    write_jsonl([*plain()[:30], *planted[:10], *plain()[30:], *planted[10:]], path)
    return path


def made_by_parts(world: World, path: Path, out: Path, **values: Any) -> PartedAudit:
    given = {"detect": Detect(select="known"), "store": cpu(), "part_tokens": 400} | values
    return audit_parts(world.target, [world.references], documents=path, out=out, **given)


@pytest.fixture(scope="module")
def parted(world: World, path: Path, tmp_path_factory: pytest.TempPathFactory) -> PartedAudit:
    return made_by_parts(world, path, tmp_path_factory.mktemp("parted") / "out")


@pytest.fixture(scope="module")
def at_once(world: World, path: Path) -> Audit:
    return audit(world.target, [world.references], documents=path, detect=Detect(select="known"), store=cpu())


def parts_of(made: PartedAudit) -> list[Audit]:
    return [Audit.load(directory) for directory in sorted((made.directory / "parts").iterdir())]


def spans_of(audits: Sequence[Audit], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(row, name) for name in names) for one in audits for row in one.span_rows]


def test_the_parts_together_say_what_one_audit_says(parted: PartedAudit, at_once: Audit) -> None:
    parts = parts_of(parted)
    assert len(parts) > 3
    assert [doc_id for part in parts for doc_id in part.rows] == list(at_once.rows)
    for name, column in at_once.columns.items():
        together = np.concatenate([part.columns[name] for part in parts])
        np.testing.assert_allclose(together, column, rtol=0, atol=1e-4, err_msg=name)
    placed = ("doc_id", "char_start", "char_end", "token_start", "token_end", "label", "source", "selected")
    assert sorted(spans_of(parts, *placed)) == sorted(spans_of([at_once], *placed))
    sizes = [len(part.tokens) for part in parts]
    assert max(sizes) < 1.5 * np.mean(sizes)
    assert sum(part.metadata.coverage.characters for part in parts) == at_once.metadata.coverage.characters


def test_what_is_counted_is_what_one_audit_counts(parted: PartedAudit, at_once: Audit) -> None:
    total, rows = parted.total, at_once.span_rows
    assert (total.documents, total.tokens) == (len(at_once.documents), len(at_once.tokens))
    assert total.parts == len(parts_of(parted))
    assert total.found == sum(row.source == "found" for row in rows) > 0
    assert total.known == sum(row.source == "known" for row in rows) == 15
    assert total.selected == sum(row.selected for row in rows) == 5
    assert total.exposed == len({row.doc_id for row in rows if row.source == "found" or row.selected})


def test_what_stands_out_is_one_audit_with_its_controls(parted: PartedAudit, at_once: Audit) -> None:
    exposed = parted.exposed
    assert exposed is not None
    ids = {row.doc_id for row in at_once.span_rows if row.source == "found" or row.selected}
    ids |= {doc_id for doc_id, name in at_once.sets.items() if name in ("retain", "holdout")}
    assert list(exposed.rows) == [doc_id for doc_id in at_once.rows if doc_id in ids]
    assert len(ids) < len(at_once.rows)
    for doc_id, rows in exposed.rows.items():
        for name in ("log_prob", "log_prob_out", "score", "token_id", "selected", "memorized"):
            expected = at_once.columns[name][at_once.rows[doc_id]]
            np.testing.assert_allclose(exposed.columns[name][rows], expected, rtol=0, atol=1e-4, err_msg=name)
    assert [row.span_id for row in exposed.span_rows] == list(range(len(exposed.span_rows)))
    marks = exposed.tokens["span_id"].to_pylist()
    for row in exposed.span_rows:
        if row.source == "found":
            assert set(marks[exposed.rows_of(row)]) == {row.span_id}
    assert exposed.metadata.documents == exposed.document_list().fingerprint
    assert exposed.metadata.coverage == at_once.metadata.coverage, "of all documents"
    assert exposed.metadata.extract == parted.total
    loaded = Audit.load(parted.directory / "exposed")
    assert loaded.metadata == exposed.metadata
    assert loaded.tokens.equals(exposed.tokens)


def test_an_exposed_audit_is_audited_again_and_reported(parted: PartedAudit, world: World) -> None:
    exposed = Audit.load(parted.directory / "exposed")
    again = reaudit(exposed, world.base, store=cpu())
    assert [row.doc_id for row in again.span_rows] == [row.doc_id for row in exposed.span_rows]
    report = compare(exposed, again, text="none").report
    assert f"taken from an audit of {parted.total.documents} documents" in report["notes"][0]
    assert report["leakage"]["after"]["span_auc"] < report["leakage"]["before"]["span_auc"]


def test_every_part_is_calibrated_beside_the_same_controls(world: World, tmp_path: Path) -> None:
    """Holdout documents at the end of the file, where a part by itself has none."""
    controls = [replace(one, id=f"h{one.id}", set="holdout") for one in planted_documents(each=10, seed=8)]
    write_jsonl([*plain(30), *world.documents.subset(["forget", "retain"]), *controls], tmp_path / "d.jsonl")
    detect = Detect(fdr=0.2, select="found")
    made = made_by_parts(world, tmp_path / "d.jsonl", tmp_path / "out", detect=detect)
    first = parts_of(made)[0]
    assert set(first.sets.values()) == {None}
    assert first.metadata.calibration.kind == "non_members"
    own = first.document_list()
    expected = audit(
        world.target, [world.references], documents=Documents((*own, *controls)), detect=detect, store=cpu()
    )
    rows = [row for row in expected.span_rows if row.doc_id in first.rows]
    assert rows
    assert spans_of([first], "char_start", "q") == [(row.char_start, row.q) for row in rows]
    assert not any(row.selected for row in first.span_rows), "there is a forget set, if in another part"
    assert any(row.selected for part in parts_of(made) for row in part.span_rows)


def test_an_audit_that_was_cut_short_goes_on_with_the_next_part(
    world: World, path: Path, parted: PartedAudit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, done = Auditor.audit, list[int]()

    def cut_short(self: Auditor, *given: Any, **values: Any) -> Audit:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return whole(self, *given, **values)

    monkeypatch.setattr(Auditor, "audit", cut_short)
    with pytest.raises(KeyboardInterrupt):
        made_by_parts(world, path, tmp_path / "out")
    done.clear()
    files = sorted((tmp_path / "out" / "parts").rglob("*.*"))
    assert {file.parent.name for file in files} == {"00000", "00001"}
    times = [file.stat().st_mtime_ns for file in files]
    (tmp_path / "out" / "parts" / "00001" / "tokens.parquet").write_bytes(b"damaged")
    monkeypatch.setattr(Auditor, "audit", whole)
    again = made_by_parts(world, path, tmp_path / "out")
    kept = [file.stat().st_mtime_ns == time for file, time in zip(files, times, strict=True)]
    assert kept == [file.parent.name == "00000" for file in files], "a damaged part is made again"
    assert again.total == parted.total
    for file in sorted(parted.directory.rglob("*.parquet")):
        assert (tmp_path / "out" / file.relative_to(parted.directory)).read_bytes() == file.read_bytes(), file


def test_what_was_made_of_something_else_is_refused(
    world: World, path: Path, parted: PartedAudit, tmp_path: Path
) -> None:
    with pytest.raises(MitigateError, match=r"holds an audit of other documents, models or settings"):
        made_by_parts(world, path, parted.directory, detect=Detect(select="found"))
    write_jsonl(plain(), tmp_path / "other.jsonl")
    with pytest.raises(MitigateError, match=r"holds an audit of other documents, models or settings"):
        made_by_parts(world, tmp_path / "other.jsonl", parted.directory)
    with pytest.raises(MitigateError, match=r"already holds something else \(no plan\.json\)"):
        made_by_parts(world, path, tmp_path)
    with pytest.raises(MitigateError, match="part_tokens: 0; give 1 or more"):
        made_by_parts(world, path, tmp_path / "out", part_tokens=0)


def test_where_nothing_stands_out_there_is_no_audit_of_it(world: World, tmp_path: Path) -> None:
    write_jsonl(plain(20), tmp_path / "d.jsonl")
    made = audit_parts(
        world.base, [world.base], documents=tmp_path / "d.jsonl", out=tmp_path / "out", part_tokens=200, store=cpu()
    )
    assert made.exposed is None
    assert made.total.documents == 20
    assert not (tmp_path / "out" / "exposed").exists()


def test_the_command_line_audits_by_parts(world: World, path: Path, parted: PartedAudit, tmp_path: Path) -> None:
    given = ["audit", "--target", str(world.target), "--reference", str(world.references), "--documents", str(path)]
    given += ["--set", "select=known", "--device", "cpu", "--part-tokens", "400", "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second time all parts are there
        done = CliRunner().invoke(app, given)
        assert done.exit_code == 0, done.output
        total = parted.total
        told = (
            f"{total.documents} documents, {total.tokens} tokens in {total.parts} parts: {total.found} memorized spans"
        )
        assert told in done.stdout
        assert f"in {total.exposed} documents -> {tmp_path / 'out' / 'exposed'}" in done.stdout
    refused = CliRunner().invoke(app, [*given, "--generate"])
    assert "--part-tokens goes with --target and --documents" in str(refused.exception)


# an erasure request over all parts


@pytest.fixture(scope="module")
def copied(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secret of one person in other documents too, before it and after: of no set, retained, never seen."""
    [secret] = world.documents[0].spans
    own = world.documents[0].text[secret.start : secret.end]
    path = tmp_path_factory.mktemp("copied") / "documents.jsonl"
    others = [Document(f"copy-{n}", f"{text} Ask for {own} there.") for n, text in enumerate(sentences(3, seed=5))]
    others = [*others[:2], replace(others[0], id="copy-kept", set="retain"), replace(others[2], set="holdout")]
    rest = world.documents[1:]
    write_jsonl([others[0], *plain()[:30], *others[2:], world.documents[0], *plain()[30:], *rest, others[1]], path)
    return path


@pytest.mark.parametrize("select", ["found", "known"])
@pytest.mark.parametrize("linked", [True, False])
def test_an_erasure_request_finds_by_parts_what_it_finds_at_once(
    world: World, copied: Path, tmp_path: Path, select: str, linked: bool
) -> None:
    request = Request(ids=[world.documents[0].id], contains=["blue coat"], linked=linked)
    options: dict[str, Any] = {"documents": copied, "detect": Detect(select=select), "store": cpu(), "forget": request}
    expected = audit(world.target, [world.references], **options)
    made = audit_parts(world.target, [world.references], **options, out=tmp_path / "out", part_tokens=300)
    exposed = made.exposed
    assert exposed is not None
    assert made.total.parts > 3
    one, other = expected.metadata.erasure, exposed.metadata.erasure
    assert one is not None
    assert other is not None
    assert {place.doc_id for place in one.linked} >= {"copy-0", "copy-1", "copy-kept", "copy-2"}
    assert other.model_dump(exclude={"linked"}) == one.model_dump(exclude={"linked"})
    numbers = {"span_id", "origins"}
    places = [[place.model_dump(exclude=numbers) for place in of.linked] for of in (other, one)]
    assert places[0] == places[1]
    for place, same in zip(other.linked, one.linked, strict=True):
        sources = []
        for result, record in ((exposed, place), (expected, same)):
            assert record.span_id is not None
            row = result.span_rows[record.span_id]
            assert (row.doc_id, row.char_start, row.source) == (record.doc_id, record.char_start, "linked")
            assert row.selected is (linked and record.set != "holdout")
            own = [result.span_rows[number] for number in record.origins]
            sources.append({(origin.doc_id, origin.char_start, origin.source) for origin in own})
        assert sources[0] == sources[1]
    chosen = [
        {(row.doc_id, row.char_start, row.char_end, row.source) for row in of.span_rows if row.selected}
        for of in (exposed, expected)
    ]
    assert chosen[0] == chosen[1]
    assert set(one.documents) <= set(exposed.rows)
    for doc_id, rows in exposed.rows.items():
        assert exposed.sets[doc_id] == expected.sets[doc_id]
        for name in ("selected", "memorized"):
            at_once = expected.columns[name][expected.rows[doc_id]]
            assert (exposed.columns[name][rows] == at_once).all(), (doc_id, name)
    assert made.total.selected == sum(row.selected for row in expected.span_rows)
    standing_out = {row.doc_id for row in expected.span_rows if row.source == "found" or row.selected}
    assert made.total.exposed == len(standing_out)
    assert Audit.load(tmp_path / "out" / "exposed").metadata == exposed.metadata


def test_copies_of_what_is_to_be_forgotten_are_in_it_without_a_request_too(
    world: World, copied: Path, tmp_path: Path
) -> None:
    made = made_by_parts(world, copied, tmp_path / "out", part_tokens=300)
    exposed = made.exposed
    assert exposed is not None
    assert {"copy-0", "copy-1", "copy-kept", "copy-2"} <= set(exposed.rows), "what verify looks for elsewhere is there"
    assert exposed.metadata.erasure is None
    assert not any(row.selected for row in exposed.span_rows if row.doc_id.startswith("copy"))


def test_fitting_anew_needs_the_documents_that_do_not_stand_out(world: World, parted: PartedAudit, path: Path) -> None:
    assert parted.exposed is not None
    with pytest.raises(MitigateError, match=r"only what stands out of 75 documents.*give them, too \(--documents\)"):
        training_documents(parted.exposed)
    training = training_documents(parted.exposed, read_documents(path))
    assert len(training) == sum(document.set != "holdout" for document in read_documents(path))


def test_a_request_over_parts_is_refused_as_at_once_and_another_is_another_audit(
    world: World, copied: Path, path: Path, tmp_path: Path
) -> None:
    with pytest.raises(MitigateError, match=r"erasure request: 2 mistakes\n  - ids: no document 'forget'"):
        made_by_parts(world, path, tmp_path / "out", forget=Request(ids=["forget"], contains=["nobody of that name"]))
    with pytest.raises(MitigateError, match=r"where: no field customer; fields there: id, text"):
        made_by_parts(world, path, tmp_path / "out", forget=Request(where={"customer": 17}))
    made = made_by_parts(world, copied, tmp_path / "out", forget=Request(where={"id": world.documents[1].id}))
    assert made.exposed is not None
    assert made.exposed.metadata.erasure is not None
    assert made.exposed.metadata.erasure.documents == (world.documents[1].id,)
    with pytest.raises(MitigateError, match="holds an audit of other documents, models or settings"):
        made_by_parts(world, copied, tmp_path / "out", forget=Request(ids=[world.documents[1].id]))


def test_the_command_line_takes_a_request_over_parts(world: World, copied: Path, tmp_path: Path) -> None:
    given = ["audit", "--target", str(world.target), "--reference", str(world.references), "--documents", str(copied)]
    given += ["--device", "cpu", "--part-tokens", "300", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*given, "--forget-ids", world.documents[0].id])
    assert done.exit_code == 0, done.output
    assert "4 places" in done.stdout, done.stdout


# documents that are not held


def test_parts_hold_the_documents_that_are_read_at_once(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    twice = [replace(one, id=f"again-{one.id}") for one in plain(10)]  # equal texts share a group, over all parts
    documents = [*plain(40), *twice, *planted_documents()]
    write_jsonl([replace(one, group=one.id) for one in documents], tmp_path / "d.jsonl")
    source = DocumentSource(path=str(tmp_path / "d.jsonl"))
    expected = read_documents(source)
    for number in (1, 3, 7):
        corpus = survey([source], tokenizer=tokenizer)
        parts = list(corpus.parts(number))
        assert len(parts) == number
        assert [document for part in parts for document in part] == list(expected)
    assert corpus.count == len(expected)
    assert corpus.characters == sum(len(document.text) for document in expected)
    assert corpus.sets == {None, "forget", "retain", "holdout"}
    counted = sum(len(ids) for ids in tokenizer([document.text for document in expected])["input_ids"])
    assert corpus.tokens == pytest.approx(counted, rel=0.01)
    assert [one.id for one in corpus.controls] == [one.id for one in expected if one.set == "holdout"]


def test_a_control_that_was_trained_on_is_left_out_whatever_its_part(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, *others = plain(30, set="holdout")
    trained = Document("trained", f"{first.text}  ", set="forget")
    write_jsonl([first, *others, trained], tmp_path / "d.jsonl")
    corpus = survey(tmp_path / "d.jsonl", tokenizer=tokenizer)
    expected = read_documents(tmp_path / "d.jsonl")
    assert first.id not in {document.id for document in expected}
    assert [document for part in corpus.parts(4) for document in part] == list(expected)
    assert corpus.skipped == expected.skipped
    assert corpus.count == len(expected)
    assert first.id not in {document.id for document in corpus.controls}
    told = [record.getMessage() for record in caplog.records if "are left out" in record.getMessage()]
    assert len(told) == 2, "once for each reading"
    assert told[0] == told[1]


def test_controls_are_drawn_where_there_are_many(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "_MOST_CONTROLS", 12)
    write_jsonl([*plain(60, set="holdout"), *plain(60, seed=4, set="retain")], tmp_path / "d.jsonl")
    corpus = survey(tmp_path / "d.jsonl", tokenizer=tokenizer)
    numbers = [int(one.id.rpartition("-")[2]) for one in corpus.controls]
    assert len(numbers) == len(corpus.retained) == 12
    assert numbers == sorted(numbers)
    assert max(numbers) > 40, "from all of the file"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"shuffle": 1}, "shuffle: needs all documents at once"),
        ({"sets": {"forget": 0.5}}, "sets: needs all documents at once"),
        ({"max_tokens": 20}, "max_tokens: needs all documents at once"),
    ],
)
def test_what_needs_all_documents_at_once_is_refused(
    tokenizer: PreTrainedTokenizerFast, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(MitigateError, match=told):
        survey(DocumentSource(path="d.jsonl", **values), tokenizer=tokenizer)


def test_bad_rows_are_told_before_anything_is_audited(world: World, path: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(path.read_text(encoding="utf-8") + '{"id": "last", "text": ""}\n', encoding="utf-8")
    with pytest.raises(MitigateError, match=r"bad\.jsonl: rows that are no documents"):
        made_by_parts(world, bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_documents_that_change_meanwhile_are_noticed(
    world: World, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "d.jsonl"
    own.write_bytes(path.read_bytes())

    def changed(*given: Any, **values: Any) -> Any:
        known = survey(*given, **values)
        own.write_text(own.read_text(encoding="utf-8").replace("door code", "room code"), encoding="utf-8")
        return known

    monkeypatch.setattr(by_parts, "survey", changed)
    with pytest.raises(MitigateError, match="the documents changed while they were audited"):
        made_by_parts(world, own, tmp_path / "out")
    assert not (tmp_path / "out" / "exposed").exists()
