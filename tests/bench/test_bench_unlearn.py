"""A whole tiny unlearning benchmark: every figure is there, finished work is kept, judges stay out of unlearning."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from world import World

from mitigate.artifacts.files import read_json
from mitigate.bench.unlearn.evidence import UnlearnEvidence, gather_evidence, measure_model
from mitigate.bench.unlearn.hard import bench_unlearn_hard
from mitigate.bench.unlearn.methods import (
    RETRAINED,
    SELECTIONS,
    Seed,
    choose,
    run_method,
    run_retrain,
    selected_share,
)
from mitigate.bench.unlearn.run import bench_unlearn, check_methods
from mitigate.bench.unlearn.settings import (
    METHODS,
    FineTuning,
    HardUnlearnBenchSettings,
    RunSettings,
    UnlearnBenchSettings,
    UnlearnWorldSettings,
)
from mitigate.bench.unlearn.show import draw_unlearn, unlearn_table
from mitigate.bench.unlearn.summary import summarize_seeds
from mitigate.bench.unlearn.tries import BETWEEN, WEIGHTS, Try, run_seed
from mitigate.bench.unlearn.world import UnlearnWorld, deal_people, find_people, make_unlearn_world, without_secrets
from mitigate.cli.app import app
from mitigate.detection.panel import with_column
from mitigate.detection.record import Audit
from mitigate.documents import Document, Documents, Span, read_documents
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError
from mitigate.lab.settings import TinyModel
from mitigate.mistakes import checked
from mitigate.models.directory import load_tokenizer
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.recipe.loading import check_settings
from mitigate.recognisers.values import sensitive_values
from mitigate.tokens.tokenization import tokenize_documents
from mitigate.unlearning.settings import Unlearn
from mitigate.verification.extraction import extract
from mitigate.verification.extraction_values import secrets_of

pytestmark = pytest.mark.usefixtures("few_trees")

SETTINGS = UnlearnBenchSettings(
    forget=12,
    retain=12,
    holdout=12,
    references=4,
    judges=2,
    copies={2: 0.1},
    anchors=6,
    prose=6,
    schedule=FineTuning(epochs=8, learning_rate=1e-2, batch_size=4),
    base=TinyModel(
        vocabulary=400,
        hidden_size=32,
        layers=1,
        heads=2,
        context=320,
        schedule=Schedule(epochs=1, learning_rate=1e-2, batch_size=16),
    ),
    base_documents=100,
    unlearn=RunSettings(learning_rate=1e-2, max_steps=4, check_every=4),
)
ONE_STEP = RunSettings(learning_rate=1e-2, max_steps=1, check_every=1)
FIGURES = {"secret_distance", "secret_distance_ratio", "token_oracle_distance", "token_oracle_distance_ratio"}
FIGURES |= {"secret_log_prob", "other_moved_nats", "other_distance", "retain_gap_nats", "holdout_gap_nats"}
FIGURES |= {"prose_gap_nats", "span_auc", "tpr_at_1pct_fpr", "over_forgotten", "extraction_forget", "extraction_retain"}
NEED_MANY_SPANS = {"tpr_at_1pct_fpr", "over_forgotten"}  # a hundred of non-members, which this world does not have


def measured_in(out: Path, **options: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"objectives": ["default", "npo"], "tries": 1, "settings": SETTINGS}
    return bench_unlearn(out, device="cpu", **(chosen | options))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished benchmark; not to be changed by a test."""
    directory = tmp_path_factory.mktemp("bench-unlearn")
    measured_in(directory)
    return directory


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return read_json(out / "results.json")


@pytest.fixture(scope="module")
def made(out: Path) -> UnlearnWorld:
    return make_unlearn_world(out, seed=0, settings=SETTINGS, device="cpu")


@pytest.fixture(scope="module")
def evidence(made: UnlearnWorld) -> UnlearnEvidence:
    return gather_evidence(made, device="cpu")


# results --------------------------------------------------------------------------------------------------------------


def test_results_hold_every_method_in_both_scopes_with_its_figures(results: dict[str, Any]) -> None:
    assert set(results["methods"]) == {"default", "npo"}
    rows = [results["methods"][name][scope] for name in ("default", "npo") for scope in ("token", "sequence")]
    for row in [
        *rows,
        results["recognised_spans"]["default"],
        results["known_spans"]["default"],
        *results["retrain"].values(),
        results["before"],
    ]:
        assert set(row) >= FIGURES
        for name in FIGURES:
            value, low, high = (row[name][key] for key in ("value", "low", "high"))
            if name in NEED_MANY_SPANS:
                assert value is None
            else:
                assert low <= value <= high, name
    for row in rows:
        assert row["steps"] == 4
        assert row["seconds"] > 0
        assert len(row["learning_rate"]) == len(row["stopped"]) == 1
        [entry] = row["tries"]["1"]
        assert set(entry) == {"learning_rate", "anchor_weight", "criterion", "validation", "test"}
        assert set(entry["validation"]) == set(entry["test"]) == FIGURES


def test_results_hold_what_methods_are_compared_with(results: dict[str, Any]) -> None:
    assert set(results["retrain"]) == set(RETRAINED) == {"mask", "placeholder", "fake", "mask_known"}
    assert set(results["oracle"]) == {"document", "token"}
    floors = {"secret_distance", "other_distance", "token_oracle_distance", "token_oracle_other_distance"}
    assert set(results["floor"]) == floors
    assert results["before"]["secret_distance_ratio"]["value"] == 1
    assert results["before"]["other_moved_nats"]["value"] == 0
    assert results["floor"]["secret_distance"]["value"] < results["before"]["secret_distance"]["value"]
    matched = results["matched"]["secret_distance_ratio"]["value"]
    assert 0 < matched < 1, "references know less than the target and differ from the oracles"
    assert results["people"] == {"validation": [6], "test": [6], "retain": [12], "holdout": [12]}
    assert all(count > 0 for [count] in results["secrets"].values())
    assert set(results["equal_forgetting"]["methods"]) == {"default", "npo"}
    json.dumps(results, allow_nan=False)


def test_results_say_how_they_were_made(results: dict[str, Any]) -> None:
    settings = results["settings"]
    assert (settings["seeds"], settings["tries"], settings["documents"]) == ([0], [1e-2], "invented people")
    assert "validation people" in settings["criterion"]
    assert {"python", "mitigate", "torch"} <= set(results["versions"])
    kept = {name: settings[name] for name in UnlearnWorldSettings.model_fields}
    assert UnlearnWorldSettings(**kept) == UnlearnWorldSettings(**SETTINGS.model_dump(exclude={"unlearn"}))


def test_secrets_leave_the_target_and_known_spans_disturb_less_than_documents(results: dict[str, Any]) -> None:
    methods = results["methods"]
    for row in (methods["default"]["token"], results["known_spans"]["default"]):
        assert row["secret_log_prob"]["value"] < results["before"]["secret_log_prob"]["value"]
    moved = results["known_spans"]["default"]["other_moved_nats"]["value"]
    assert moved < methods["npo"]["sequence"]["other_moved_nats"]["value"]
    assert methods["npo"]["sequence"]["selected_token_share"] > methods["npo"]["token"]["selected_token_share"]


def test_the_default_adapter_is_under_two_percent_of_a_model_of_a_billion_parameters(results: dict[str, Any]) -> None:
    share = results["adapter_share_at_1b"]
    layer = 2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192)  # q o, k v, gate up down: inputs and outputs
    assert share["adapter_parameters"] == 16 * 16 * layer
    assert 1.0e9 < share["parameters"] < 1.3e9
    assert share["share"] == pytest.approx(share["adapter_parameters"] / share["parameters"])
    assert share["share"] < 0.02


def test_the_table_and_the_plot_show_every_method(results: dict[str, Any], tmp_path: Path) -> None:
    table = unlearn_table(results)
    for name in (
        "default, token",
        "npo, sequence",
        "default, known spans",
        "retrain, fake",
        "before",
        "references' mean",
        "token oracle",
    ):
        assert any(line.startswith(name) for line in table.splitlines()), name
    draw_unlearn(results, tmp_path / "unlearn.png")
    assert (tmp_path / "unlearn.png").read_bytes()[:4] == b"\x89PNG"


# what is kept, and what is refused ------------------------------------------------------------------------------------


def files(out: Path) -> dict[Path, int]:
    kinds = ("*.safetensors", "run.json", "*.npz", "audit.json")
    return {path: path.stat().st_mtime_ns for kind in kinds for path in out.rglob(kind)}


def test_a_second_run_repeats_nothing_and_gives_the_same_figures(out: Path, results: dict[str, Any]) -> None:
    before = files(out)
    assert sum(path.name == "run.json" for path in before) == 2 * 2 + 2 + len(RETRAINED)
    again = json.loads(json.dumps(measured_in(out)))
    assert files(out) == before
    assert {name: again[name] for name in results} == results


@pytest.fixture
def seed(out: Path, made: UnlearnWorld, evidence: UnlearnEvidence, tmp_path: Path) -> Seed:
    """The finished benchmark's models and audits, with a place of its own for runs."""
    directory = tmp_path / "seed-0"
    directory.mkdir()
    shutil.copy(out / "seed-0" / "plan.json", directory)
    audits = {name: Audit.load(out / "seed-0" / "audits" / name) for name in SELECTIONS}
    return Seed(0, directory, made, evidence, audits, SETTINGS, "cpu")


def test_a_run_is_kept_as_long_as_its_settings_are_the_same(seed: Seed) -> None:
    first = run_method(seed, "npo", "token", factor=1.0)
    kept = run_method(seed, "npo", "token", factor=1.0)
    assert kept.record == first.record
    assert kept.measured is not None
    assert first.measured is not None
    np.testing.assert_array_equal(kept.measured.log_prob, first.measured.log_prob)
    shorter = SETTINGS.model_copy(update={"unlearn": ONE_STEP})
    other = run_method(replace(seed, settings=shorter), "npo", "token", factor=1.0)
    assert (first.record["steps"], other.record["steps"]) == (4, 1)


def test_where_the_audit_selects_nothing_the_target_is_measured_as_it_is(seed: Seed) -> None:
    none = seed.audits["found"]
    tokens = with_column(none.tokens, "selected", np.zeros(len(none.tokens), dtype=bool))
    blind = replace(seed, audits={**seed.audits, "found": replace(none, tokens=tokens)})
    run = run_method(blind, "default", "token", factor=1.0)
    assert run.record["steps"] == 0
    assert run.record["stopped"].startswith("no token is selected")
    assert run.record["selected_secret_share"] == 0
    assert run.record["figures"]["test"]["secret_distance_ratio"]["value"] == pytest.approx(1.0)
    retrained = run_retrain(blind, "mask")
    assert retrained.measured is None
    assert "selected" in retrained.record["error"]


def test_a_run_that_fails_is_never_chosen_and_only_the_chosen_one_keeps_its_adapter(seed: Seed) -> None:
    tries = [run_method(seed, "ascent", "sequence", factor=factor) for factor in (1.0, 1e-3, 1e38)]
    failed = tries[2]
    assert failed.measured is None
    assert failed.criterion == float("inf")
    assert "lower unlearn.learning_rate" in failed.record["error"]
    runs = seed.directory / "runs"
    assert not (runs / failed.record["name"] / "run.json").exists(), "tried again next time"
    best = choose(seed, tries)
    assert best.criterion == min(run.criterion for run in tries[:2])
    for run in tries:
        assert (runs / run.record["name"] / "adapter").is_dir() == (run is best)
    assert all((runs / run.record["name"] / "measured.npz").is_file() for run in tries[:2])


def test_rates_and_weights_are_chosen_on_the_first_seed_and_taken_on_the_others(seed: Seed) -> None:
    pairs, settings = [("default", "token"), ("npo", "sequence")], SETTINGS.model_copy(update={"unlearn": ONE_STEP})
    pairs.append(("undial", "sequence"))
    first = run_seed(replace(seed, settings=settings), pairs, tries=(1 / 3, 1.0), retrain=False, first=None)
    later = replace(seed, settings=settings, directory=seed.directory.with_name("seed-1"))
    later.directory.mkdir()
    shutil.copy(seed.directory / "plan.json", later.directory)
    other = run_seed(later, pairs, tries=(1 / 3, 1.0), retrain=False, first=first)
    for tried, again in ((first.methods[pair], other.methods[pair]) for pair in pairs):
        assert tried.chosen.criterion == min(run.criterion for run in tried.tries.values())
        assert {Try(1 / 3), Try(1.0)} < set(tried.tries), "of two rates the best lies at an edge"
        assert len(tried.tries) <= 6
        assert list(again.tries) == [tried.best]
        for name in ("learning_rate", "anchor_weight"):
            assert again.chosen.record[name] == tried.chosen.record[name]
    for pair, weight in zip(pairs, (10.0, 1.0, 0.0), strict=True):
        weights = [run.record["anchor_weight"] for run in first.methods[pair].tries.values()]
        if weight:
            assert sorted(set(weights)) == pytest.approx([weight / 3, weight, 3 * weight])
            assert [weights.count(factor * weight) for factor in WEIGHTS] == [1, 1]
        else:
            assert set(weights) == {0.0}
            assert len(weights) >= 2 + len(BETWEEN), "as many tries, of other rates"
    rows = summarize_seeds([first, other])["methods"]["npo"]["sequence"]
    counts = sorted(len(entries) for entries in rows["tries"].values())
    assert counts == [1] * (len(counts) - 1) + [2]
    assert len(rows["learning_rate"]) == 2
    shipped = run_seed(
        replace(seed, settings=settings), pairs[:1], tries=(1 / 3, 1.0), retrain=False, first=None, as_shipped=True
    )
    assert list(shipped.methods[pairs[0]].tries) == list(shipped.known.tries) == [Try(1.0)]


def test_other_settings_in_the_same_directory_are_refused(out: Path) -> None:
    settings = SETTINGS.model_copy(update={"schedule": FineTuning(epochs=1)})
    with pytest.raises(MitigateError, match=r"plan\.json: models of another schedule; choose another --out"):
        measured_in(out, settings=settings)


def test_methods_that_do_not_exist_are_named_together() -> None:
    with pytest.raises(MitigateError, match=r"(?s)'npoo' is not one of default, .*'word' is not one of token, seq"):
        check_methods(["npoo", "npo"], ["word"], 3)
    assert check_methods(["npo"], ["sequence"], 3) == [("default", "token"), ("npo", "sequence")]
    assert len(check_methods(METHODS, ("token", "sequence"), 1)) == 2 * len(METHODS)


def test_what_the_benchmark_sets_itself_is_no_setting() -> None:
    with pytest.raises(MitigateError, match=r"unlearn\.objective: .*choose methods with --objectives and --scopes"):
        checked(UnlearnBenchSettings, {"unlearn": {"objective": "npo"}}, name="--set")
    assert UnlearnBenchSettings(unlearn={"max_steps": 5}).unlearn.check_every == RunSettings().check_every


def test_the_command_trains_the_models_only_where_asked(out: Path) -> None:
    before = files(out)
    given = [f"--set={key}={value}" for key, value in plain_settings().items()]
    done = CliRunner().invoke(
        app, ["bench", "unlearn", "--models-only", "--out", str(out), "--references", "4", *given]
    )
    assert done.exit_code == 0, done.output
    assert files(out) == before


def plain_settings() -> dict[str, Any]:
    values = SETTINGS.model_dump(exclude={"references", "unlearn", "lora", "method"})
    return {name: json.dumps(value) for name, value in values.items()}


# the world ------------------------------------------------------------------------------------------------------------


def test_people_are_dealt_to_one_set_each_and_half_of_the_forgotten_choose_settings(made: UnlearnWorld) -> None:
    of_set = {name: {d.group for d in made.documents.subset(name)} for name in ("forget", "retain", "holdout")}
    assert made.test < of_set["forget"]
    assert [len(of_set["forget"]), len(made.test)] == [12, 6]
    assert [len(groups) for groups in of_set.values()] == [12, 12, 12]
    assert len(set().union(*of_set.values())) == 36
    assert len(made.documents) > 36, "some people have two documents"


def test_judges_are_none_of_the_models_that_audits_and_unlearning_use(out: Path, made: UnlearnWorld) -> None:
    judges = set(made.judges.paths)
    assert len(judges) == 2
    for selection in SELECTIONS:
        metadata = Audit.load(out / "seed-0" / "audits" / selection).metadata
        used = {metadata.target.source, *(one.source for one in metadata.references)}
        assert used == {made.target, *made.references.paths}
        assert not used & judges
    assert not set(made.judges.trained_on) & set(made.references.trained_on), "other halves"
    counts = [len(out_of) for out_of in made.judges.out_for(made.documents)]
    assert set(counts) == {1}, "members and non-members are judged by as many"


def test_audits_select_in_documents_to_forget_only(out: Path, made: UnlearnWorld, evidence: UnlearnEvidence) -> None:
    for selection in SELECTIONS:
        found = Audit.load(out / "seed-0" / "audits" / selection)
        assert np.isin(evidence.role[found.columns["selected"].astype(bool)], ["validation", "test"]).all()
        seed = Seed(0, out, made, evidence, {selection: found}, SETTINGS, "cpu")
        rows = evidence.rows("test")
        naive = [bool(found.columns["selected"][row]) for row in rows]
        assert selected_share(seed, selection) == pytest.approx(np.mean(naive))
        assert selected_share(seed, selection, scope="sequence") >= selected_share(seed, selection)
    audits = {name: Audit.load(out / "seed-0" / "audits" / name) for name in SELECTIONS}
    forms = audits["recognised"].document_list()
    assert all(
        span.label in {value.kind for value in sensitive_values(one.text)} for one in forms for span in one.spans
    )
    assert any(one.spans for one in forms)
    assert not any(one.spans for one in audits["found"].document_list())
    seed = replace(seed, audits=audits)
    assert selected_share(seed, "recognised", secret=True) > selected_share(seed, "found", secret=True)
    assert selected_share(seed, "known", secret=True) == 1
    assert selected_share(seed, "known", secret=False) == 0


def test_document_oracles_never_saw_the_forget_set_and_token_oracles_did(made: UnlearnWorld) -> None:
    for path in made.document_oracles:
        assert read_json(Path(path) / "training.json")["documents"] == len(made.documents.subset("retain"))
    for path in (*made.token_oracles, made.target):
        trained = made.documents.subset(("forget", "retain"))
        assert read_json(Path(path) / "training.json")["documents"] == len(trained)


def test_a_document_without_its_secrets_has_a_loss_on_all_other_tokens(made: UnlearnWorld) -> None:
    tokenizer = load_tokenizer(made.base)
    documents = made.documents.subset("forget")
    for document, own in zip(documents, tokenize_documents(documents, tokenizer), strict=True):
        masked = without_secrets(document, own)
        assert masked is not None
        [after] = tokenize_documents([masked], tokenizer)
        for place, (start, end) in enumerate(own.offsets):
            secret = any(start < span.end and end > span.start for span in document.spans)
            assert after.audited[place] == (own.audited[place] and not secret)
    bare = Document("bare", "1234", spans=(Span(0, 4),))
    assert without_secrets(bare, tokenize_documents([bare], tokenizer)[0]) is None


def test_too_few_people_and_documents_without_secrets_are_refused(tmp_path: Path) -> None:
    documents = [Document(f"d{n}", f"Ann {n} has code {n}{n}{n}.", spans=(Span(0, 3),)) for n in range(12)]
    write_jsonl(documents, tmp_path / "people.jsonl")
    found = find_people(tmp_path / "people.jsonl", SETTINGS, seed=0)
    with pytest.raises(MitigateError, match=r"12 people, but forget \+ retain \+ holdout is 36; give more documents"):
        deal_people(found, SETTINGS, seed=0)
    small = SETTINGS.model_copy(update={"forget": 4, "retain": 4, "holdout": 2})
    chosen, validation, test = deal_people(found, small, seed=0)
    assert len(chosen) == 10, "the others are left out"
    assert deal_people(found, small, seed=0) == (chosen, validation, test)
    assert deal_people(found, small, seed=1)[1:] != (validation, test)
    bare = Documents(tuple(replace(document, spans=()) for document in found))
    with pytest.raises(MitigateError, match="no known span in the documents of the validation people"):
        deal_people(bare, small, seed=0)


def test_prose_of_a_file_is_held_still_or_measured_but_not_both(tmp_path: Path, out: Path) -> None:
    write_jsonl([Document(f"p{n}", f"It rained {n} times.") for n in range(5)], tmp_path / "prose.jsonl")
    settings = SETTINGS.model_copy(update={"anchors": 3, "prose": 2})
    with pytest.raises(MitigateError, match="models of another prose"):
        make_unlearn_world(out, seed=0, settings=settings, prose=tmp_path / "prose.jsonl", device="cpu")


# evidence -------------------------------------------------------------------------------------------------------------


def test_secret_tokens_are_those_of_the_known_spans(made: UnlearnWorld, evidence: UnlearnEvidence) -> None:
    start = 0
    of_spans = set()
    for document, own in zip(made.documents, evidence.tokenized, strict=True):
        for place, (first, last) in enumerate(own.offsets):
            secret = any(first < span.end and last > span.start for span in document.spans) and last > first
            assert evidence.secret[start + place] == secret
            of_spans |= {start + place} if secret else set()
        start += len(own.ids)
    rows = [row for secret in evidence.secrets for row in range(secret.first, secret.last)]
    assert set(rows) == {row for row in of_spans if not np.isnan(evidence.before.log_prob[row])}
    assert set(evidence.rows("test", secret=True)) | set(evidence.rows("test", secret=False)) == set(
        evidence.rows("test")
    )


def test_likeliest_tokens_tell_what_greedy_decoding_extracts(world: World) -> None:
    model = ModelStore(device="cpu").load(world.target)
    tokenized = tokenize_documents(world.documents, model.tokenizer)
    measured = measure_model(world.target, tokenized, tokenized[:1], device="cpu")
    audit = world.audit()
    tried = [secrets_of(audit, sets=sets, context=model.context) for sets in (("forget", "retain"), ("holdout",))]
    secrets = [secret for own in tried for secret in own if secret.place.source == "known"]
    assert len(secrets) == len(world.documents)
    extracted = extract(model, secrets)
    spans = {(row["doc_id"], row["char_start"]): row for row in audit.spans.to_pylist()}
    for secret, completed in zip(secrets, extracted, strict=True):
        span = spans[secret.place.doc_id, secret.place.start]
        first = audit.rows[secret.place.doc_id].start
        rows = slice(first + span["token_start"], first + span["token_end"])
        assert bool(measured.first[rows].all()) == completed
    assert set(extracted) == {True, False}, "some are extracted and some not"


# the hard world -------------------------------------------------------------------------------------------------------

HARD = [
    *("forget=12", "retain=12", "holdout=12", "judges=2", "anchors=6", "prose=6", "method=full", "epochs=[4,8]"),
    *("schedule.learning_rate=1e-2", "schedule.batch_size=4"),
    *("unlearn.learning_rate=1e-2", "unlearn.max_steps=2", "unlearn.check_every=2"),
]


def test_the_hard_world_is_adapters_over_a_given_base_with_the_defaults_of_unlearning() -> None:
    settings = HardUnlearnBenchSettings()
    assert settings.method == "lora"
    assert settings.copies == {}
    for name in ("learning_rate", "max_steps", "check_every", "lora", "retain", "rounds"):
        assert getattr(settings.unlearn, name) == getattr(Unlearn(), name)
    own = settings.of(UnlearnBenchSettings, 3.0)
    assert (own.schedule.epochs, own.schedule.learning_rate) == (3.0, settings.schedule.learning_rate)
    with pytest.raises(MitigateError, match=r"schedule.epochs: the hard world has several"):
        checked(HardUnlearnBenchSettings, {"schedule": {"epochs": 3}}, name="settings")


def test_the_hard_world_makes_and_measures_a_world_for_each_number_of_epochs_and_tells_its_cost(
    out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(MitigateError, match=r"--base: missing"):
        bench_unlearn_hard(tmp_path / "hard")
    given = [part for setting in HARD for part in ("--set", setting)]
    command = ["bench", "unlearn", "--world", "hard", "--references", "4", "--objectives", "default"]
    command += ["--scopes", "token", "--tries", "1", "--no-retrain", "--device", "cpu", "--plot", *given]
    with caplog.at_level("INFO"):
        done = CliRunner().invoke(app, [*command, "--base", str(out / "base"), "--out", str(tmp_path / "hard")])
    assert done.exit_code == 0, done.output
    assert re.search(r"22 models to train \(4, 8 epochs; 0 are there\), then 6 runs", caplog.text)
    assert re.search(r"at most about \d+ minutes on this machine", caplog.text)
    results = read_json(tmp_path / "hard" / "results.json")
    assert results["world"] == "hard"
    assert list(results["epochs"]) == ["4", "8"]
    for epochs, own in results["epochs"].items():
        folder = tmp_path / "hard" / f"epochs-{epochs}"
        assert own == read_json(folder / "results.json")
        assert own["settings"]["schedule"]["epochs"] == float(epochs)
        assert own["settings"]["default_as_shipped"]
        assert set(own["methods"]["default"]["token"]) >= FIGURES
        assert (folder / "unlearn.png").read_bytes().startswith(b"\x89PNG")
        people = [len({d.group for d in read_documents(folder / "seed-0" / "documents.jsonl")})]
        assert people == [36]
        assert f"epochs-{epochs}" in done.stdout
    before = [results["epochs"][epochs]["before"]["secret_log_prob"]["value"] for epochs in ("4", "8")]
    assert before[0] < before[1], "more epochs memorize more"
    settings = check_settings(HardUnlearnBenchSettings, [*HARD, "epochs=[8]", "references=4"])
    options: dict[str, Any] = {"objectives": ["default"], "scopes": ["token"], "tries": 1, "retrain": False}
    with caplog.at_level("INFO"):
        bench_unlearn_hard(tmp_path / "hard", settings=settings, base=str(out / "base"), device="cpu", **options)
    assert re.search(r"0 models to train \(8 epochs; 11 are there\)", caplog.text)
