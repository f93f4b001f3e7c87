"""A whole tiny benchmark: every figure is there, finished models are kept, the truth stays out of the detectors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from commands import modified
from typer.testing import CliRunner

from mitigate.artifacts.files import read_json
from mitigate.bench.detect.hard import bench_detect_hard
from mitigate.bench.detect.run import bench_detect
from mitigate.bench.detect.target import measure_target
from mitigate.bench.evidence import DetectEvidence, gather
from mitigate.bench.settings import HardWorldSettings, WorldSettings
from mitigate.bench.world import World, make_bench_base, make_world, sources
from mitigate.cli.app import app
from mitigate.detection.signals.compute import token_log_probs
from mitigate.documents import read_documents
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError
from mitigate.lab.settings import TinyModel
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore

pytestmark = pytest.mark.usefixtures("few_trees")

SETTINGS = WorldSettings(
    models=4,
    truth_models=2,
    people={0: 4, 1: 24, 2: 6},
    schedule=Schedule(epochs=6, learning_rate=1e-2, batch_size=4),
    base=TinyModel(
        vocabulary=400,
        hidden_size=32,
        layers=1,
        heads=2,
        context=320,
        schedule=Schedule(epochs=1, learning_rate=1e-2, batch_size=16),
    ),
    base_documents=100,
)
K = 1
UNIT_DETECTORS = {"loss", "zlib", "min_k", "min_k_pp", "log_ratio", "log_ratio_clipped", "informia", "informia_no_kl"}
UNIT_DETECTORS |= {"informia_z", "rmia", "lira", "window_votes", "ez", "calibrated"}
TOKEN_DETECTORS = UNIT_DETECTORS - {"zlib", "min_k", "rmia", "window_votes", "ez"}


def measured_in(out: Path, **options: Any) -> dict[str, Any]:
    return bench_detect(out, references=K, settings=SETTINGS, device="cpu", **options)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished benchmark; not to be changed by a test."""
    directory = tmp_path_factory.mktemp("bench")
    measured_in(directory)
    return directory


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return read_json(out / "results.json")


@pytest.fixture(scope="module")
def made(out: Path) -> World:
    return make_world(out, seed=0, settings=SETTINGS, device="cpu")


@pytest.fixture(scope="module")
def evidence(made: World) -> DetectEvidence:
    return gather(made, references=K, store=ModelStore(device="cpu"))


def test_what_models_said_is_kept_and_read_again(
    made: World, evidence: DetectEvidence, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, store = tmp_path / "judged.npz", ModelStore(device="cpu")
    gather(made, references=K, store=store, kept=kept)
    kept.with_name("other.npz").write_bytes(kept.read_bytes()[:1000])
    monkeypatch.setattr("mitigate.bench.evidence.compute_signals", lambda *_, **__: pytest.fail("asked again"))
    assert (out / "seed-0" / f"judged-by-{K}.npz").is_file(), "a benchmark keeps it, too"
    for path in (kept, out / "seed-0" / f"judged-by-{K}.npz"):
        again = gather(made, references=K, store=store, kept=path)
        for name, column in evidence.everything.signals.items():
            assert np.array_equal(again.everything.signals[name], column, equal_nan=True)
    for path in (kept.with_name("other.npz"), kept.with_name("none.npz")):
        with pytest.raises(pytest.fail.Exception, match="asked again"):
            gather(made, references=K, store=store, kept=path)
    monkeypatch.setattr("mitigate.bench.evidence.__version__", "another")
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        gather(made, references=K, store=store, kept=kept)


# results --------------------------------------------------------------------------------------------------------------


def test_results_hold_every_detector_with_its_figures(results: dict[str, Any]) -> None:
    rates = {"auc", "tpr_at_1pct_fpr", "tpr_at_0.1pct_fpr"}
    for kind, detectors, figures in (
        ("span", UNIT_DETECTORS, rates),
        ("document", UNIT_DETECTORS, rates),
        ("token", TOKEN_DETECTORS, rates),
        ("localisation", TOKEN_DETECTORS, {"auc", "ap"}),
    ):
        assert set(results[kind]) == detectors, kind
        for name, row in results[kind].items():
            assert set(row) == figures
            for figure, value in row.items():
                assert set(value) == {"value", "low", "high"}
                if value["value"] is None:
                    assert figure == "tpr_at_0.1pct_fpr", (kind, name)
                else:
                    assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1, (kind, name, figure)


def test_results_hold_calibration_unaided_detection_controls_and_seconds(results: dict[str, Any]) -> None:
    calibration = results["calibration"]
    assert {"ece", "realised_fdr", "selected", "recall", "reliability", "attack_models"} <= set(calibration)
    assert all(0 <= calibration[name] <= 1 for name in ("ece", "realised_fdr", "selected", "recall"))
    assert set(calibration["attack_models"]) <= {"logistic", "boosted", "both"}
    unaided = {"precision", "recall", "f1", "secret_recall", "span_precision", "span_recall"}
    assert set(results["unaided"]) == unaided | {"non_member_share", "realised_fdr"}
    assert all(value is None or 0 <= value <= 1 for value in results["unaided"].values())
    assert set(results["controls"]) == {"shuffled_labels", "target_is_reference", "bag_of_words"}
    assert set(results["seconds"]) == UNIT_DETECTORS | {"models", "judging"}
    assert set(results["by_copies"]) == {"1", "2"}
    json.dumps(results, allow_nan=False)


def test_results_say_how_they_were_made(results: dict[str, Any], made: World) -> None:
    settings = results["settings"]
    assert (settings["seeds"], settings["references"], settings["documents"]) == ([0], K, "invented people")
    assert settings["base_model"] == "from scratch, of the shape base"
    assert WorldSettings(**{name: settings[name] for name in WorldSettings.model_fields}) == SETTINGS
    assert results["documents_per_seed"] == [len(made.documents)]
    assert {"python", "mitigate", "torch"} <= set(results["versions"])


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"base": SETTINGS.base.model_copy(update={"vocabulary": 300})}, "shape"), ({"base_documents": 101}, "documents")],
)
def test_a_base_of_other_settings_is_not_gone_on_with(out: Path, changed: dict[str, Any], named: str) -> None:
    assert make_bench_base(out, settings=SETTINGS, device="cpu") == out / "base"
    with pytest.raises(MitigateError, match=f"base: a base of another {named} than .*choose another --out"):
        make_bench_base(out, settings=SETTINGS.model_copy(update=changed), device="cpu")


def test_sources_are_named_without_their_directories(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    named = sources(tmp_path / "people.jsonl", str(tmp_path / "own"))
    assert named == {"documents": "people.jsonl", "base_model": "own"}
    assert sources(None, "someone/model-1b")["base_model"] == "someone/model-1b"


def test_memorization_is_found_and_where_there_is_nothing_chance_is_read(results: dict[str, Any]) -> None:
    for name in ("log_ratio", "informia", "calibrated"):
        assert results["span"][name]["auc"]["value"] > 0.65, name
        assert results["document"][name]["auc"]["value"] > 0.7, name
    for name, figure in results["controls"].items():
        assert 0.25 < figure["value"] < 0.75, name


def test_a_rate_of_one_in_a_thousand_is_not_given_from_few_spans(results: dict[str, Any]) -> None:
    assert results["non_member_spans"] < 1000
    assert results["non_member_documents"] < results["non_member_spans"]
    for kind in ("span", "document"):
        for row in results[kind].values():
            assert row["tpr_at_0.1pct_fpr"] == {"value": None, "low": None, "high": None}


# what is kept, and what is refused ------------------------------------------------------------------------------------


def weights(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def test_a_second_run_trains_nothing_and_gives_the_same_figures(out: Path, results: dict[str, Any]) -> None:
    before = weights(out)
    assert len(before) == 1 + 4 + 2, "a base, the detector's models, the truth's"
    again = json.loads(json.dumps(measured_in(out)))
    assert weights(out) == before
    for name in ("span", "token", "document", "localisation", "calibration", "unaided", "controls", "by_copies"):
        assert again[name] == results[name], name


def test_other_documents_in_the_same_directory_are_refused(out: Path, tmp_path: Path) -> None:
    before = weights(out)
    first, *others = read_documents(out / "seed-0" / "documents.jsonl")
    write_jsonl(others, tmp_path / "other.jsonl")
    with pytest.raises(MitigateError, match=r"documents\.jsonl: other documents than before; choose another --out"):
        measured_in(out, documents=tmp_path / "other.jsonl")
    assert weights(out) == before
    assert first.id in {document.id for document in read_documents(out / "seed-0" / "documents.jsonl")}


def test_other_settings_in_the_same_directory_are_refused(out: Path) -> None:
    settings = SETTINGS.model_copy(update={"schedule": Schedule(epochs=1)})
    with pytest.raises(MitigateError, match="holds references of other documents, base or settings"):
        bench_detect(out, references=K, settings=settings, device="cpu")


@pytest.mark.parametrize("references", [0, 2, 3])
def test_more_references_than_half_of_the_models_can_give_are_refused(tmp_path: Path, references: int) -> None:
    with pytest.raises(MitigateError, match=rf"references: {references} OUT references of 4 models; .* give 1 to 1"):
        bench_detect(tmp_path / "bench", references=references, settings=SETTINGS, device="cpu")
    assert not (tmp_path / "bench").exists(), "before anything is trained"


# the world ------------------------------------------------------------------------------------------------------------


def test_half_of_the_models_saw_each_planted_document_and_none_a_twin(made: World) -> None:
    for document, member, truth in zip(made.documents, made.member, made.truth_member, strict=True):
        trained = document.set != "holdout"
        assert member.sum() == (2 if trained else 0)
        assert truth.sum() == (1 if trained else 0)


def test_detectors_and_truth_are_dealt_apart(made: World) -> None:
    assert not set(made.models.paths) & set(made.truth.paths)
    halves = [half for models in (made.models, made.truth) for half in models.trained_on]
    assert len(set(halves)) == 6


def test_a_twin_has_the_copies_and_the_owner_of_whom_it_mirrors(made: World) -> None:
    copies: dict[str, set[int]] = {}
    for document in made.documents:
        group = made.owner.get(document.group, document.group)
        copies.setdefault(group, set()).add(made.copies[document.id])
    assert all(len(found) == 1 for found in copies.values())
    held = [len([d for d in made.documents if d.group == group]) for group in copies]
    assert held == [found.pop() or 1 for found in copies.values()]
    twins = [document for document in made.documents if document.group in made.owner]
    assert len(twins) == 30
    assert all(document.set == "holdout" for document in twins)


def test_documents_of_ones_own_are_all_trained_on(tmp_path: Path, made: World) -> None:
    texts = tmp_path / "texts.jsonl"
    write_jsonl(list(made.documents)[:12], texts)
    settings = SETTINGS.model_copy(update={"schedule": Schedule(epochs=1)})
    own = make_world(tmp_path / "bench", seed=3, settings=settings, documents=texts, base=made_base(made), device="cpu")
    assert (own.member.sum(1) == 2).all()
    assert (own.truth_member.sum(1) == 1).all()
    assert not own.copies
    assert not own.owner
    assert not (tmp_path / "bench" / "base").exists()


def made_base(made: World) -> str:
    return str(Path(made.models.paths[0]).parents[2] / "base")


# evidence -------------------------------------------------------------------------------------------------------------


def test_truth_models_judge_nothing_and_are_no_shadow(evidence: DetectEvidence, made: World) -> None:
    models = made.member.shape[1]
    with_references = [pairing for pairing in evidence.everything.pairings if pairing.out]
    assert with_references
    assert all(pairing.target < models and max(pairing.out) < models for pairing in with_references)
    assert len(set(evidence.everything.pairings)) == len(evidence.everything.pairings)


@pytest.mark.parametrize("target", range(4))
def test_a_target_is_no_judge_of_itself_and_no_reference_saw_what_it_judges(
    evidence: DetectEvidence, target: int
) -> None:
    paired = evidence.of_target(target)
    assert [pairing.document for pairing in paired.pairings] == list(range(len(evidence.documents)))
    for pairing in paired.pairings:
        assert pairing.target == target
        assert len(pairing.out) == K
        assert target not in pairing.out
        assert not evidence.member[pairing.document, list(pairing.out)].any()
    dealt, shadows = evidence.shadows(target)
    assert [shadow.pairing for shadow in dealt] == list(shadows.pairings)
    assert all(target not in (shadow.pairing.target, *shadow.pairing.out, shadow.spare) for shadow in dealt)


def test_the_control_puts_a_judging_reference_in_the_targets_place(evidence: DetectEvidence) -> None:
    for own, control in zip(evidence.of_target(2).pairings, evidence.of_reference(2).pairings, strict=True):
        assert (control.document, control.out, control.target) == (own.document, own.out, own.out[0])
    ratio = evidence.of_reference(2).signals["log_ratio"]
    assert np.nanmax(np.abs(ratio)) < 1e-4, "with one reference, it is compared with itself"


def test_the_rows_of_a_judgement_are_those_of_its_document_and_models(evidence: DetectEvidence, made: World) -> None:
    store = ModelStore(device="cpu")
    paired = evidence.of_target(1)
    expected = token_log_probs(store.load(made.models.paths[1]), evidence.tokenized)
    np.testing.assert_allclose(paired.signals["log_prob"], expected, rtol=0, atol=1e-4)
    for place in (0, 7, 30):
        rows = slice(paired.starts[place], paired.starts[place + 1])
        pairing = paired.pairings[place]
        [judge] = pairing.out
        np.testing.assert_allclose(
            paired.signals["log_prob_out"][rows], evidence.log_probs[pairing.document, judge], rtol=0, atol=1e-4
        )


def test_the_counterfactual_is_the_mean_of_the_truth_models_that_never_saw_the_document(
    evidence: DetectEvidence, made: World
) -> None:
    store = ModelStore(device="cpu")
    numbers = [0, 1, 2, 3, next(n for n, document in enumerate(made.documents) if document.set == "holdout")]
    truths = [store.load(path) for path in made.truth.paths]
    for number in numbers:
        out = [model for model, saw in zip(truths, made.truth_member[number], strict=True) if not saw]
        assert len(out) == (1 if made.member[number].any() else 2)
        alone = [token_log_probs(model, [evidence.tokenized[number]]).astype(float) for model in out]
        expected = np.log(np.mean(np.exp(alone), axis=0))
        np.testing.assert_allclose(evidence.counterfactual(number), expected, rtol=0, atol=1e-4)


def test_known_spans_are_the_tokens_of_the_secrets(evidence: DetectEvidence) -> None:
    for document, own, known in zip(evidence.documents, evidence.tokenized, evidence.known, strict=True):
        assert len(known) == len(document.spans) > 0
        for (first, last), span in zip(known, document.spans, strict=True):
            assert own.offsets[first, 0] <= span.start < own.offsets[first, 1]
            assert own.offsets[last - 1, 0] < span.end <= own.offsets[last - 1, 1]


def test_a_person_and_the_twin_share_a_group(evidence: DetectEvidence, made: World) -> None:
    groups = {document.group: group for document, group in zip(evidence.documents, evidence.groups, strict=True)}
    assert all(groups[twin] == groups[person] for twin, person in made.owner.items())
    assert len(set(evidence.groups)) == 34


def test_members_are_likelier_under_the_models_that_saw_them(evidence: DetectEvidence) -> None:
    def gain(model: int) -> Callable[[int], float]:
        return lambda number: float(np.nanmean(evidence.log_probs[number, model] - evidence.counterfactual(number)))

    for model in range(4):
        gains = np.array([gain(model)(number) for number in range(len(evidence.documents))])
        member = evidence.member[:, model]
        assert gains[member].mean() > gains[~member].mean() + 0.2


# --- the hard world ---------------------------------------------------------------------------------------------------


SIZES = {
    "people": "{0: 12, 1: 24}",
    "epochs": "[6, 9]",
    "method": "full",
}  # a base of 32 dimensions is moved as a whole
SIZES |= {"schedule.learning_rate": "1e-2", "schedule.batch_size": "4"}


@pytest.fixture(scope="module")
def hard(out: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A finished benchmark in a hard world, from the command line; not to be changed by a test."""
    directory = tmp_path_factory.mktemp("hard") / "hard"
    given = [part for name, value in SIZES.items() for part in ("--set", f"{name}={value}")]
    counts = ["--models", "4", "--truth-models", "2", "--references", str(K), "--device", "cpu", "--plot"]
    command = ["bench", "detect", "--world", "hard", "--base", str(out / "base"), *counts, *given]
    return CliRunner().invoke(app, [*command, "--out", str(directory)]), directory


def test_the_command_line_shows_a_table_for_each_number_of_epochs(hard: tuple[Result, Path]) -> None:
    done, directory = hard
    assert done.exit_code == 0, done.output
    for epochs in ("6", "9"):
        assert f"{epochs} epochs" in done.stdout
        assert (directory / f"epochs-{epochs}" / "detect.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.count("calibrated ") == 2
    assert done.stdout.count("TPR@1%") >= 2
    assert "excess" in done.stdout


def test_the_hard_world_is_adapters_over_a_given_base_one_world_for_each_number_of_epochs(
    hard: tuple[Result, Path], out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert HardWorldSettings().method == "lora"
    _, directory = hard
    results = read_json(directory / "results.json")
    assert results["world"] == "hard"
    assert list(results["epochs"]) == ["6", "9"]
    for epochs, own in results["epochs"].items():
        assert own["settings"]["schedule"]["epochs"] == float(epochs)
        assert own["settings"]["method"] == "full"
        assert set(own["by_copies"]) == {"1"}, "each secret is in one document"
        assert set(own["by_guess"]) <= {"guessable", "random"}
        assert sum(kind["spans"] for kind in own["by_guess"].values()) > 0
        assert -1 <= own["excess_correlation"]["log_ratio"] <= 1
        assert (directory / f"epochs-{epochs}" / "seed-0" / "models" / "reference-3").is_dir()
    weights = modified(directory / "epochs-6" / "seed-0" / "models")
    schedule = Schedule(learning_rate=1e-2, batch_size=4)
    settings = HardWorldSettings(
        models=4, truth_models=2, people={0: 12, 1: 24}, epochs=(6,), schedule=schedule, method="full"
    )
    with caplog.at_level("INFO"):
        again = bench_detect_hard(directory, references=K, settings=settings, device="cpu", base=str(out / "base"))
    told = r"0 models to train \(6 epochs; 6 are there\), \d+ documents .*minutes on this machine"
    assert re.search(told, caplog.text)
    assert modified(directory / "epochs-6" / "seed-0" / "models") == weights
    assert again["epochs"]["6"]["span"] == results["epochs"]["6"]["span"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--world", "hard"), "--base: missing"), (("--world", "harder"), "'harder' is not one of easy, hard")],
)
def test_a_world_that_cannot_be_made_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["bench", "detect", *arguments, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, MitigateError)
    assert said in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_the_excess_correlates_as_counted_token_by_token(evidence: DetectEvidence) -> None:
    target = measure_target(evidence, 1, copies={}, fdr=0.05)
    paired, ours, truths = evidence.of_target(1), [], []
    for number, pairing in enumerate(paired.pairings):
        if not evidence.member[pairing.document, 1]:
            continue
        unseen, rows = evidence.counterfactual(pairing.document), range(*paired.starts[number : number + 2])
        for row, other in zip(rows, unseen.tolist(), strict=True):
            own = float(paired.signals["log_prob"][row])
            if own == own and other == other:
                references = [value for value in paired.signals["log_prob_references"][row].tolist() if value == value]
                ours.append(own - sum(references) / len(references))
                truths.append(own - other)
    assert len(ours) > 100
    assert target.excess["typical"] == pytest.approx(float(np.corrcoef(ours, truths)[0, 1]), abs=1e-5)


def test_guessable_spans_are_those_that_the_truth_models_find_likelier_than_not(evidence: DetectEvidence) -> None:
    target = measure_target(evidence, 0, copies={}, fdr=0.05)
    paired, wanted = evidence.of_target(0), []
    for pairing in paired.pairings:
        unseen = evidence.counterfactual(pairing.document)
        for first, last in evidence.known[pairing.document]:
            values = [value for value in unseen[first:last].tolist() if value == value]
            wanted.append(sum(values) / len(values) > np.log(0.5))
    assert target.guessable.tolist() == wanted
