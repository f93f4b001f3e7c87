"""Exact unlearning in a recipe and in the report: what made the model, what was removed, what `exact` rests on."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import contents, tiny_recipe, working_in
from forgetting import SHORT, SMALL, cpu, secret_of, selecting
from made_up import with_metadata
from world import World

from mitigate.artifacts.files import DIGESTS
from mitigate.artifacts.provenance import origin_of
from mitigate.detection.audit import reaudit
from mitigate.detection.record import Audit
from mitigate.detection.spans.row import span_table
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.pipeline.run import run
from mitigate.recipe.loading import check_recipe
from mitigate.reporting.masking import Mask
from mitigate.retraining.retrain import Retrained, retrain
from mitigate.retraining.shards import shard_of
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainer import unlearn
from mitigate.verification.compare import Comparison, compare


@pytest.fixture(scope="module")
def before(world: World) -> Audit:
    return world.audit()


@pytest.fixture(scope="module")
def anew(world: World, before: Audit, tmp_path_factory: pytest.TempPathFactory) -> Retrained:
    """A model fitted anew with the codes replaced; one of them also stood elsewhere."""
    copy = Document("copy", f"Use {secret_of(world.documents[0])} at the gate.")
    out = tmp_path_factory.mktemp("anew") / "out"
    settings: dict[str, Any] = {"redact": "placeholder", "documents": Documents((copy,)), "new_store": cpu}
    return retrain(before, base=world.base, out=out, lora=SMALL, schedule=SHORT, **settings)


@pytest.fixture(scope="module")
def report(before: Audit, anew: Retrained) -> Comparison:
    return compare(before, reaudit(before, anew.directory, store=cpu()))


def test_the_report_says_exact_what_it_rests_on_and_what_was_removed(report: Comparison, anew: Retrained) -> None:
    figures = report.report["retrain"]
    assert figures["exact"].startswith("exact, given that the base never saw it")
    assert (figures["is_exact"], figures["this_audit"], figures["shards"]) == (True, True, 1)
    assert (figures["removed"]["spans"], figures["removed"]["copies"]) == (5, 1)
    assert figures["base"] == anew.summary["plan"]["base"]
    assert report.report["unlearn"] is None
    page = report.html()
    first, rest = page.split('id="figures"', 1)
    for words in ("Exact, given that the base never saw it: fitted anew from the base", "replaced by placeholders"):
        assert words in first
        assert words in rest
    assert "5 selected spans and 1 copy of them, in 6 documents" in page
    assert "That the base never saw it cannot be seen from here" in page
    assert "less probable than if it had never been there" in page


def test_what_another_audit_had_removed_is_not_called_this_ones(world: World, anew: Retrained) -> None:
    other = with_metadata(selecting(world.audit(), "retain-1"), seed=1)  # another audit, not only another selection
    comparison = compare(other, reaudit(other, anew.directory, store=cpu()))
    assert comparison.report["retrain"]["this_audit"] is False
    assert any("was not removed by it" in note for note in comparison.report["notes"])
    assert "What was removed is another audit&#39;s selection, not this one&#39;s." in comparison.html()


def test_an_earlier_audits_removals_stay_exact_for_it(world: World, before: Audit, tmp_path: Path) -> None:
    later = with_metadata(selecting(world.audit(), "retain-1"), seed=1)
    for found in (before, later):
        done = retrain(
            found, base=world.base, out=tmp_path / "out", lora=SMALL, schedule=SHORT, shards=2, new_store=cpu
        )
    assert done.summary["audits"] == sorted({before.fingerprint, later.fingerprint})
    assert compare(before, reaudit(before, done.directory, store=cpu())).report["retrain"]["this_audit"]


def test_a_base_that_saw_it_is_not_called_exact_in_the_report(world: World, before: Audit, tmp_path: Path) -> None:
    done = retrain(before, base=world.target, out=tmp_path, lora=SMALL, schedule=SHORT, new_store=cpu)
    comparison = compare(before, reaudit(before, done.directory, store=cpu()))
    assert comparison.report["retrain"]["is_exact"] is False
    assert "Not exact: the base is, or lies over, the audited model itself." in comparison.html()
    assert any("nothing is forgotten" in note for note in comparison.report["notes"])
    assert not any(note.startswith("Exact means") for note in comparison.report["notes"])


def test_a_record_of_other_weights_counts_for_nothing(
    world: World, before: Audit, anew: Retrained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(anew.directory, tmp_path / "swapped")
    assert origin_of(tmp_path / "swapped", fingerprint=anew.summary["fingerprint"]) is not None
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(world.adapter / name, tmp_path / "swapped" / name)
    with pytest.raises(MitigateError, match=r"swapped: .* is not what was written .* remove digests\.json there"):
        reaudit(before, tmp_path / "swapped", store=cpu())
    (tmp_path / "swapped" / DIGESTS).unlink()
    after = reaudit(before, tmp_path / "swapped", store=cpu())
    assert after.metadata.origin is None
    assert "is of other weights than are there now" in caplog.text
    page = compare(before, after).html()
    assert "How the model was changed is not recorded here." in page
    assert "given that the base" not in page


def test_an_unlearned_models_report_says_how_without_being_told(world: World, before: Audit, tmp_path: Path) -> None:
    settings = Unlearn(max_steps=2, check_every=1, stop_at_control=False)
    made = unlearn(before, out=tmp_path / "adapter", settings=settings, store=cpu())
    after = reaudit(before, made.directory, store=cpu())
    after.save(tmp_path / "reaudit")
    figures = compare(before, Audit.load(tmp_path / "reaudit")).report
    assert figures["unlearn"]["steps"] == 2
    assert figures["unlearn"]["objective"] == made.summary["objective"]
    assert figures["retrain"] is None
    assert before.metadata.origin is None, "nobody recorded how the target was made"


def test_words_that_were_found_memorized_do_not_hide_the_reports_own(before: Audit) -> None:
    text = "this exact line : x"
    row, [document] = before.span_rows[0], before.documents.slice(0, 1).to_pylist()
    found = [("this", 0, 4), ("exact", 5, 10), (" : x", 15, 19)]
    rows = [replace(row, doc_id="words", char_start=start, char_end=end) for _, start, end in found]
    documents = [{**document, "doc_id": "words", "text": text, "known_spans": []}]
    mask = Mask(
        [
            replace(
                before,
                spans=span_table(rows),
                documents=type(before.documents).from_pylist(documents, schema=before.documents.schema),
            )
        ],
        text="masked",
    )
    own = {"this_audit": "this : x"}
    assert mask.deep(own) == mask.deep(own, keys=True) == own, "a single word is no secret outside its document"


# Recipes


def test_a_recipe_retrains_and_another_request_fits_only_its_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"redact": "drop", "shards": 2, "method": "lora", "lora": {"rank": 2}}
    recipe = tiny_recipe(unlearn=None, retrain=settings)
    with working_in(tmp_path), caplog.at_level(logging.INFO):
        first = run(recipe)
        figures, counts = first.report["retrain"], first.report["counts"]
        assert figures["exact"].startswith("exact, given that the base never saw it")
        assert figures["removed"]["documents_left_out"] == counts["forget"]
        before = contents(tmp_path / "run/retrained", "shard-*/*.safetensors")
        caplog.clear()
        run(recipe)
        assert "retrain: unchanged, skipped" in caplog.messages

        person = first.before.document_list().subset("retain")[0].group
        second = run(tiny_recipe(unlearn=None, retrain=settings, forget={"where": {"group": person}}))
        theirs = [d for d in first.before.document_list() if d.group == person]
        assert second.report["retrain"]["this_audit"]
        assert second.report["retrain"]["removed"]["documents_left_out"] == counts["forget"] + len(theirs)
        after = contents(tmp_path / "run/retrained", "shard-*/*.safetensors")
        changed = {name for name in before if before[name] != after.get(name)}
        assert changed == {f"shard-{shard_of(person, shards=2, seed=0)}/adapter_model.safetensors"}
        with pytest.raises(MitigateError, match="fitted with another redact; choose another directory or remove it"):
            run(tiny_recipe(unlearn=None, retrain={**settings, "redact": "mask"}))


def test_an_audit_that_selects_nothing_is_reported_without_retraining(tmp_path: Path) -> None:
    with working_in(tmp_path):
        comparison = run(
            tiny_recipe(unlearn=None, retrain={}, detect={"select": "found", "spans": {"threshold": 1000}})
        )
    assert comparison.after is None
    assert comparison.report["retrain"] is None
    assert any("no token is selected" in note for note in comparison.report["notes"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "unlearn, retrain: a report is of one mitigated model"),
        (
            {"unlearn": None, "retrain": {"redact": "blank"}},
            "retrain.redact: is not one of mask, placeholder, fake, drop",
        ),
        (
            {"unlearn": None, "retrain": {"shards": 2}},
            "retrain.method: full fits a whole model, and shards are adapters",
        ),
        ({"unlearn": None, "retrain": {"shard": 2}}, "retrain.shard: unknown key; did you mean retrain.shards?"),
    ],
)
def test_what_retrain_cannot_do_is_said_before_the_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MitigateError) as error:
        tiny_recipe(**{"retrain": {}, **changes})
    assert message in str(error.value)


def test_retrain_needs_a_base_and_stands_for_unlearn() -> None:
    values: dict[str, Any] = {
        "models": {"target": "model"},
        "references": {"count": 0, "given": ["other"]},
        "data": {"documents": [{"path": "train.jsonl"}]},
        "retrain": {"redact": "mask", "schedule": {"epochs": 5}},
    }
    with pytest.raises(MitigateError, match=r"models.base: missing; retrain fits the model anew from it"):
        check_recipe(values)
    values["models"]["base"] = "base"
    recipe = check_recipe(values)
    assert recipe.unlearn is None
    assert recipe.retrain_as.schedule.epochs == 5
    values["retrain"] = {"redact": "mask"}
    with pytest.raises(MitigateError, match=r"retrain.schedule: missing, and references.schedule is auto"):
        check_recipe(values)
    values["references"]["schedule"] = {"epochs": 7}
    assert check_recipe(values).retrain_as.schedule.epochs == 7
    assert check_recipe(recipe.model_dump(mode="json")) == recipe
