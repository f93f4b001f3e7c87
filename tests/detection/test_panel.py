"""Which references teach unlearning and which judge it; whether they fit as the target does; what is asked first."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from forgetting import QUICK, changed, loop_of
from made_up import with_metadata
from world import World

import mitigate.pipeline.run
from mitigate.artifacts.provenance import Origin
from mitigate.detection.audit import audit, reaudit
from mitigate.detection.doubts import doubts_of
from mitigate.detection.metadata import Fit
from mitigate.detection.panel import as_judged, by_judges, by_teachers, judges_of, taught_by
from mitigate.detection.record import Audit
from mitigate.detection.references.fit import fit_warning
from mitigate.detection.settings import Detect
from mitigate.detection.spans.row import span_table
from mitigate.errors import DoubtfulError, MitigateError
from mitigate.models.store import ModelStore
from mitigate.recipe.loading import load_recipe
from mitigate.recipe.schema import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def four(world: World) -> Audit:
    """An audit with four OUT references for each document: the base, and three that stand in for such."""
    folder = world.references
    given = [world.base, folder / "reference-0", folder / "reference-1", world.adapter]
    return audit(
        world.target, given, documents=world.documents, detect=Detect(select="known"), store=ModelStore(device="cpu")
    )


def columns_of(table: Audit, doc_id: str) -> tuple[np.ndarray, list[int]]:
    """(T, K) log-probabilities under the references of a document, and the references that it is judged by."""
    documents = table.documents.to_pylist()
    return table.reference_log_probs[table.rows[doc_id]], next(
        row["out_references"] for row in documents if row["doc_id"] == doc_id
    )


def test_half_of_each_document_s_references_teach_and_the_other_half_judge(four: Audit) -> None:
    judges, teachers = by_judges(four), by_teachers(four)
    for doc_id, rows in four.rows.items():
        per_reference, every = columns_of(four, doc_id)
        _, judging = columns_of(judges, doc_id)
        _, teaching = columns_of(teachers, doc_id)
        assert sorted([*judging, *teaching]) == sorted(every)
        assert len(judging) == len(teaching) == 2
        for seen, chosen in ((judges, judging), (teachers, teaching)):
            mean = np.log(np.exp(per_reference[:, chosen].astype(float)).mean(axis=1))
            np.testing.assert_allclose(seen.columns["log_prob_out"][rows], mean, rtol=0, atol=1e-5)
            ratio = np.clip(four.columns["log_prob"][rows] - mean, -3, 3)
            np.testing.assert_allclose(seen.columns["score"][rows], ratio, rtol=0, atol=1e-5)
            hidden = [k for k in range(4) if k not in chosen]
            assert np.isnan(seen.reference_log_probs[rows][:, hidden]).all()
        for row in judges.spans.to_pylist():
            if row["doc_id"] == doc_id:
                own = judges.columns["score"][rows][row["token_start"] : row["token_end"]]
                assert row["score"] == pytest.approx(np.nanmean(own), abs=1e-5)


def test_documents_of_one_group_have_the_same_judges(four: Audit) -> None:
    place = four.documents.column_names.index("group")
    one_group = four.documents.set_column(place, "group", pa.array(["person"] * len(four.documents)))
    assert len(set(judges_of(replace(four, documents=one_group)) or ())) == 1


@pytest.mark.parametrize("score", ["informia", "informia_z"])
def test_scores_of_whole_distributions_keep_nobody_out(four: Audit, score: str) -> None:
    other = with_metadata(four, detect_score=score)
    assert judges_of(other) is None
    assert by_teachers(other) is other


def test_with_fewer_than_four_references_all_teach(whole: Audit) -> None:
    assert by_teachers(whole) is whole
    with pytest.raises(MitigateError, match="8 or more"):
        by_judges(whole)


@pytest.mark.parametrize("keep", [True, False])
def test_unlearning_asks_the_teachers_alone_unless_told_otherwise(four: Audit, keep: bool, tmp_path: Path) -> None:
    loop = loop_of(four, changed(QUICK, objective="hinge", keep_judges=keep), tmp_path / "adapter")
    expected = (by_teachers(four) if keep else four).columns["log_prob_out"]
    assert loop.plan["taught"] == taught_by(four, keep_judges=keep)
    assert (loop.plan["taught"][0]["split"] is not None) is keep
    for task in loop.data.forget:
        wanted = expected[four.rows[task.doc_id]][task.start + task.scored]
        np.testing.assert_array_equal(task.out[task.selected], wanted[task.selected])


# --- who judges -------------------------------------------------------------------------------------------------------


def made(audit: Audit, origin: Origin | None, **metadata: Any) -> Audit:
    return with_metadata(audit, origin=origin, **metadata)


def unlearned(audit: Audit, *, keep_judges: bool = True) -> Origin:
    return Origin(**{"by": "unlearn", "taught": taught_by(audit, keep_judges=keep_judges)})


def test_a_re_audited_model_of_unknown_origin_may_have_been_taught_by_its_judges(whole: Audit, world: World) -> None:
    from mitigate.verification.compare import compare

    after = reaudit(whole, world.base, store=ModelStore(device="cpu"))
    assert after.metadata.origin is None
    report = compare(whole, after).report
    assert report["judges_kept_out"] is False
    assert report["verdict"]["leaks"] is not False
    assert "how the model was made is not recorded" in report["verdict"]["findings"]["judges"]["why"]
    assert any("unlearn.json" in note for note in report["notes"])
    assert compare(whole).report["verdict"]["findings"]["judges"]["state"] == "good", "a user's own model is the rule"


def test_who_judges_is_known_from_who_taught(four: Audit) -> None:
    kept, all_taught = unlearned(four), unlearned(four, keep_judges=False)
    place = four.documents.column_names.index("group")
    regrouped = replace(
        four, documents=four.documents.set_column(place, "group", pa.array(["x"] * len(four.documents)))
    )
    strangers = tuple(one.model_copy(update={"fingerprint": f"other {one.name}"}) for one in four.metadata.references)
    elsewhere = made(four, None, references=strangers)
    expected = {
        "kept out": (four, kept, True),
        "all taught": (four, all_taught, False),
        "made by an earlier version": (four, Origin(by="unlearn"), False),
        "other judges now, for the groups are others": (regrouped, kept, False),
        "references that it never met": (elsewhere, all_taught, True),
        "fitted anew": (four, Origin(by="retrain"), None),
        "unknown": (four, None, False),
    }
    for name, (before, origin, judged) in expected.items():
        seen, again, kept_out = as_judged(before, made(before, origin))
        assert kept_out is judged, name
        by = by_judges(before) if name == "kept out" else before
        for one in (seen, again):
            np.testing.assert_array_equal(one.columns["score"], by.columns["score"], err_msg=name)


def test_an_audit_alone_of_an_unlearned_model_is_not_told_by_its_teachers(four: Audit) -> None:
    assert as_judged(made(four, unlearned(four, keep_judges=False)), None)[2] is False
    seen, _, kept_out = as_judged(made(four, unlearned(four)), None)
    assert kept_out is True
    np.testing.assert_array_equal(seen.columns["score"], by_judges(four).columns["score"])
    assert as_judged(made(four, None), None)[2] is None


def test_who_taught_once_is_remembered_in_what_is_unlearned_again(four: Audit) -> None:
    again = made(four, unlearned(four, keep_judges=False))
    assert as_judged(again, made(again, unlearned(again)))[2] is False
    fair = made(four, unlearned(four))
    assert as_judged(fair, made(fair, unlearned(fair)))[2] is True
    old = made(four, Origin(by="unlearn"))
    assert as_judged(old, made(old, unlearned(old)))[2] is False


# --- fit --------------------------------------------------------------------------------------------------------------


def test_fit_is_the_loss_on_documents_that_both_were_trained_on(world: World, whole: Audit) -> None:
    fit = whole.metadata.fit
    sets, documents = whole.sets, whole.documents.to_pylist()
    members = [row for row in documents if row["in_references"] and sets[row["doc_id"]] != "holdout"]
    assert fit.documents == len(members)

    def naive(source_of: Any) -> float:
        store, total, count = ModelStore(device="cpu"), 0.0, 0
        for row in members:
            model = store.load(source_of(row))
            ids = whole.columns["token_id"][whole.rows[row["doc_id"]]].astype(int)
            kept = whole.columns["audited"][whole.rows[row["doc_id"]]].astype(bool)
            with model.active() as module, torch.inference_mode():
                tensor = torch.tensor(ids[None])
                log_probs = module(input_ids=tensor).logits[0].log_softmax(-1)
            own = log_probs[range(len(ids) - 1), ids[1:]].numpy()[kept[1:]]
            total, count = total - own.sum(), count + len(own)
        return float(total / count)

    names = [one.source for one in whole.metadata.references]
    assert fit.target == pytest.approx(naive(lambda row: world.target), abs=1e-3)
    assert fit.trained == pytest.approx(naive(lambda row: names[row["in_references"][0]]), abs=1e-3)
    assert fit.untrained == pytest.approx(naive(lambda row: names[row["out_references"][0]]), abs=1e-3)


@pytest.mark.parametrize(
    ("target", "trained", "untrained", "said"),
    [
        (0.5, 0.5, 2.6, None),
        (0.5, 0.62, 2.6, None),
        (0.5, 2.5, 2.6, "fit less closely than the target"),
        (2.5, 0.5, 2.6, "fit more closely than the target"),
        (2.50, 2.55, 2.60, None),
    ],
)
def test_references_that_do_not_fit_as_the_target_are_named(
    target: float, trained: float, untrained: float, said: str | None
) -> None:
    warning = fit_warning(Fit(documents=50, target=target, trained=trained, untrained=untrained))
    assert warning is None if said is None else warning is not None and said in warning and f"{trained:.2f}" in warning


def test_an_audit_without_cross_fitted_references_has_no_fit(four: Audit) -> None:
    assert four.metadata.fit is None
    assert fit_warning(None) is None


# --- doubts -----------------------------------------------------------------------------------------------------------


def all_selected(found: Audit) -> Audit:
    """With every token of the documents to forget selected, by the detector."""
    forget = np.zeros(len(found.tokens), dtype=bool)
    for doc_id, rows in found.rows.items():
        forget[rows] = found.sets[doc_id] == "forget"
    place = found.tokens.column_names.index("selected")
    tokens = found.tokens.set_column(place, "selected", pa.array(forget & ~np.isnan(found.columns["log_prob"])))
    rows = [replace(row, selected=False) for row in found.span_rows]
    return replace(with_metadata(found, detect_select="found"), tokens=tokens, spans=span_table(rows))


def test_a_selection_of_most_of_the_text_is_doubtful_but_known_spans_are_not(whole: Audit) -> None:
    calm = with_metadata(whole, fit=None)
    assert doubts_of(calm) == []
    [doubt] = doubts_of(all_selected(calm))
    assert doubt.startswith("100% of the")


def test_who_unlearns_in_python_is_told_of_doubts(
    whole: Audit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop_of(all_selected(whole), QUICK, tmp_path / "adapter")
    assert "doubtful: 100% of the" in caplog.text


def test_a_doubtful_run_stops_before_it_unlearns_and_goes_on_when_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = user_recipe(world, tmp_path)
    monkeypatch.setattr(mitigate.pipeline.run, "doubts_of", lambda _: ["everything was selected"])
    with pytest.raises(DoubtfulError, match="everything was selected") as stopped:
        mitigate.pipeline.run.run(recipe)
    assert "--yes" in str(stopped.value)
    out = recipe.out
    assert (out / "audit/audit.json").is_file()
    assert not (out / "adapter").exists()
    mitigate.pipeline.run.run(recipe, yes=True)
    assert (out / "adapter/adapter_config.json").is_file()


def user_recipe(world: World, folder: Path) -> Recipe:
    from mitigate.documents.written import write_jsonl

    write_jsonl(world.documents, folder / "train.jsonl")
    overrides = [
        f"models.target={world.target}",
        f"models.base={world.base}",
        f"data.documents.0.path={folder / 'train.jsonl'}",
        f"out={folder / 'run'}",
        "references.count=0",
        f"references.given=[{world.base}]",
        "unlearn.max_steps=2",
        "unlearn.check_every=1",
        "report.extraction=false",
    ]
    return load_recipe(RECIPES / "finetuned.yaml", overrides)


def test_an_audit_and_its_re_audit_cannot_be_swapped(whole: Audit, world: World) -> None:
    from mitigate.verification.compare import compare

    again = reaudit(whole, world.base, store=ModelStore(device="cpu"))
    compare(whole, again)
    for before, after in ((again, whole), (again, again), (whole, whole)):
        with pytest.raises(MitigateError, match="made again"):
            compare(before, after)


def test_one_reference_may_be_given_by_itself(world: World, whole: Audit) -> None:
    alone = audit(str(world.target), str(world.references), documents=world.documents, store=ModelStore(device="cpu"))
    np.testing.assert_array_equal(alone.columns["log_prob_out"], whole.columns["log_prob_out"])


def test_long_work_without_a_terminal_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mitigate.runtime

    monkeypatch.setattr(mitigate.runtime, "LINE_EVERY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with caplog.at_level("INFO", "mitigate"), mitigate.runtime.progress(3, "Auditing", unit="documents") as bar:
        for _ in range(3):
            bar.update()
    assert "Auditing: 2 of 3 documents" in caplog.text
