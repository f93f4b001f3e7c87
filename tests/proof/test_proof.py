"""Attacks find what leaks, and spare a model that never saw it; evidence follows from what was read, or is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from commands import Mitigate, contents, launch_two
from world import World, planted_documents

from mitigate.artifacts.digests import file_digest
from mitigate.artifacts.files import write_digests, write_record, write_table
from mitigate.detection.audit import audit
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import load_references
from mitigate.detection.settings import Detect
from mitigate.detection.signals.compute import token_log_probs
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.models.fitting.training import fine_tune
from mitigate.models.settings import Lora, Schedule
from mitigate.models.store import ModelStore
from mitigate.proof import prove as prove_module
from mitigate.proof.again import check_again
from mitigate.proof.battery import ATTACKS
from mitigate.proof.certificate import certificate
from mitigate.proof.evidence import Evidence, check_evidence
from mitigate.proof.findings import findings_of, verdict_of
from mitigate.proof.prove import prove
from mitigate.proof.settings import ATTACKS as NAMES
from mitigate.proof.settings import Proof
from mitigate.statistics.separation import auc
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.trainer import unlearn

EACH = 20
SETTINGS = Proof(
    samples=2, short_prefix=8, lora=Lora(rank=4, alpha=8), relearn=Schedule(epochs=1, learning_rate=2e-3, batch_size=4)
)
NOT_APPLICABLE = {"other_document", "own_prompts"}  # one document of each person, and no prompts
ON_THE_MODEL = [name for name, attack in ATTACKS.items() if attack.scope == "model"]


def cpu() -> ModelStore:
    return ModelStore(device="cpu")


@dataclass(frozen=True)
class People:
    """A target that was trained on forget and retain people, its audit, and models that never saw the first."""

    audit: Audit
    target: Path
    oracle: Path
    another: Path  # trained as the oracle was, in another order


@pytest.fixture(scope="module")
def people(world: World, tmp_path_factory: pytest.TempPathFactory) -> People:
    root = tmp_path_factory.mktemp("people")
    documents = planted_documents(each=EACH, seed=4)

    def made(name: str, seed: int, *sets: str) -> Path:
        schedule = Schedule(epochs=40, learning_rate=5e-3, batch_size=8)
        chosen: Documents = documents.subset(sets)
        shape = {"method": "full", "lora": Lora(), "schedule": schedule, "description": name, "store": cpu()}
        fine_tune(world.base, chosen, out=root / name, seed=seed, **shape)  # type: ignore[arg-type]
        return root / name

    target = made("target", 1, "forget", "retain")
    oracle, another, *references = (
        made(name, seed, "retain") for seed, name in enumerate(("oracle", "another", "one", "two"), start=2)
    )
    found = audit(
        target, references, documents=documents, detect=Detect(select="known", spans={"threshold": 1.0}), store=cpu()
    )
    return People(found, target, oracle, another)


def proven(people: People, model: Path, out: Path, **values: Any) -> Evidence:
    given: dict[str, Any] = {"oracle": people.oracle, "settings": SETTINGS, "store": cpu()} | values
    return prove(people.audit, model, out=out, **given)


@pytest.fixture(scope="module")
def leaky(people: People, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evidence, Path]:
    """Evidence of the model that nothing was done to."""
    out = tmp_path_factory.mktemp("leaky") / "evidence"
    return proven(people, people.target, out, request={"reference": "R-17"}), out


@pytest.fixture(scope="module")
def clean(people: People, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Evidence of a model that never saw what is to be forgotten."""
    return proven(people, people.another, tmp_path_factory.mktemp("clean") / "evidence")


def states(evidence: Evidence) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in evidence.record["findings"]:
        found.setdefault(one["attack"], set()).add(one["state"])
    return found


def test_the_untouched_model_falls(leaky: tuple[Evidence, Path]) -> None:
    evidence, _ = leaky
    assert evidence.status == "fell"
    fell = {name for name, found in states(evidence).items() if "fell" in found}
    assert fell >= {"judges", "forensic", "bfloat16", "int8", "nf4", "q4_0", "true_prefix", "relearn_retained"}
    assert evidence.figures["judges.value"] > 0.95
    assert evidence.figures["true_prefix.value"] > 0.5
    assert evidence.figures["true_prefix.control"] < 0.1
    assert set(states(evidence)) == set(NAMES) - NOT_APPLICABLE, "every attack was made"
    assert {one["attack"] for one in evidence.record["not_made"] if not one["applies"]} == NOT_APPLICABLE
    assert evidence.figures["sampled.leak_at.2"] > evidence.figures["sampled.leak_at.1"] > 0.3


def test_a_model_that_never_saw_the_text_falls_to_nothing(clean: Evidence) -> None:
    found = states(clean)
    made = set(ON_THE_MODEL) - NOT_APPLICABLE
    assert not {name for name in made if found[name] & {"fell", "over_forgotten"}}
    assert clean.record["verdict"]["fell"] == []
    assert clean.status in ("withstood", "cannot_tell")
    assert clean.figures["half_way.value"] > 0.8, "half of the leaking weights leak, whatever the other half is"
    assert "half_way" in clean.record["verdict"]["residual"]


@pytest.fixture(scope="module")
def too_low(people: People, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that pushes what is to be forgotten too low."""
    out = tmp_path_factory.mktemp("too-low") / "adapter"
    settings = Unlearn(
        objective="npo_token", max_steps=150, learning_rate=6e-3, stop_at_control=False, lora=Lora(rank=8, alpha=16)
    )
    unlearn(people.audit, out=out, settings=settings, store=cpu(), seed=0)
    return out


def test_what_lies_too_low_is_found(people: People, too_low: Path, tmp_path: Path) -> None:
    chosen = SETTINGS.model_copy(update={"attacks": ["judges", "forensic"]})
    evidence = proven(people, too_low, tmp_path / "evidence", settings=chosen)
    assert states(evidence)["judges"] == {"over_forgotten"}
    assert states(evidence)["forensic"] == {"fell"}, "a classifier tells them, whichever side they lie on"
    assert evidence.status in ("fell", "over_forgotten")
    assert evidence.record["origin"]["by"] == "unlearn"
    assert evidence.record["copies"]["mitigated_needs_model_before"]
    assert "Deliver merged weights" in (tmp_path / "evidence" / "EVIDENCE.md").read_text()


def test_values_that_nobody_selected_are_counted(people: People, leaky: tuple[Evidence, Path], tmp_path: Path) -> None:
    assert leaky[0].record["asked"]["unselected_values"] == {}, "all known values were selected"
    documents = [
        replace(one, text=f"{one.text} Mail: {one.id}@example.org", audited=()) if one.set == "forget" else one
        for one in people.audit.document_list()
    ]
    references = [one.source for one in people.audit.metadata.references]
    more = audit(
        people.target, references, documents=Documents(tuple(documents)), detect=Detect(select="known"), store=cpu()
    )
    chosen = SETTINGS.model_copy(update={"attacks": ["judges"]})
    evidence = prove(more, people.another, out=tmp_path / "out", oracle=people.oracle, settings=chosen, store=cpu())
    assert evidence.record["asked"]["unselected_values"] == {"email": EACH}
    told = (tmp_path / "out" / "EVIDENCE.md").read_text()
    assert f"{EACH} values of these documents were not selected, and stay as they were: email" in told
    assert check_evidence(tmp_path / "out") == []


def test_judges_of_their_own_judge_in_the_place_of_the_audits(people: People, too_low: Path, tmp_path: Path) -> None:
    chosen = SETTINGS.model_copy(update={"attacks": ["judges"]})
    taught = proven(people, too_low, tmp_path / "taught", settings=chosen)
    assert taught.record["kept_out"] is False
    evidence = proven(people, too_low, tmp_path / "fresh", settings=chosen, judges=people.another)
    assert evidence.record["kept_out"] is True
    assert len(evidence.record["models"]["judges"]) == 1
    assert evidence.record["models"]["judges"][0] not in evidence.record["models"]["references"]
    store = cpu()
    documents = people.audit.tokenized()
    own, judge = (token_log_probs(store.load(str(model)), documents) for model in (too_low, people.another))
    scores: dict[str, list[float]] = {"forget": [], "holdout": []}
    for row in people.audit.span_rows:
        if row.source == "known" and people.audit.sets[row.doc_id] in scores:
            rows = people.audit.rows_of(row)
            scores[people.audit.sets[row.doc_id]].append(float(np.clip(own - judge, -3, 3)[rows].mean()))
    expected = auc(np.array(scores["forget"]), np.array(scores["holdout"]))
    assert evidence.figures["judges.value"] == pytest.approx(expected, abs=1e-3)
    with pytest.raises(MitigateError, match="holds evidence of other models"):
        proven(people, too_low, tmp_path / "fresh", settings=chosen)
    reference = people.audit.metadata.references[0].source
    with pytest.raises(MitigateError, match="1 of 1 references taught the model that they are to judge"):
        proven(people, too_low, tmp_path / "other", settings=chosen, judges=reference)


def test_judges_are_made_for_an_audit(people: People, world: World, tmp_path: Path, mitigate_: Mitigate) -> None:
    people.audit.save(tmp_path / "audit")
    given = ["references", "--base", world.base, "--judges", tmp_path / "audit", "--out", tmp_path / "judges"]
    given += ["--count", "2", "--device", "cpu", "--set", "schedule.epochs=1", "--set", "schedule.learning_rate=1e-3"]
    done = mitigate_(*given)
    assert done.status == 0, done.err
    made = load_references(tmp_path / "judges")
    groups = set(people.audit.groups.values())
    assert made.trained_on[0] | made.trained_on[1] == groups  # type: ignore[operator]
    done = mitigate_(*given, "--documents", "other.jsonl")
    assert done.status == 2
    assert "give --documents of an audit to come, or --judges" in done.err
    given = ["verify", "--audit", tmp_path / "audit", "--model", people.another, "--oracle", people.oracle]
    given += ["--judges", tmp_path / "judges", "--out", tmp_path / "out", "--set", "attacks=[judges]"]
    done = mitigate_(*given, "--device", "cpu")
    assert done.status == 0, done.err
    record = Evidence.load(tmp_path / "out").record
    assert len(record["models"]["judges"]) == 2
    assert set(record["models"]["judges"]) <= set(record["copies"]["references"]), "they hold what was to be forgotten"


def test_a_reference_is_the_control_where_there_is_no_oracle(people: People, tmp_path: Path) -> None:
    chosen = SETTINGS.model_copy(update={"attacks": ["judges", "true_prefix"]})
    for model, expected in ((people.target, "fell"), (people.another, "cannot_tell")):
        out = tmp_path / model.name
        evidence = proven(people, model, out, oracle=None, settings=chosen)
        assert evidence.status == expected
        assert evidence.record["models"]["control_is"] == "reference"
        assert evidence.record["models"]["control"] in evidence.record["models"]["references"]
        assert "a reference that never saw it" in (out / "EVIDENCE.md").read_text()


def test_the_evidence_says_what_a_reader_asks(leaky: tuple[Evidence, Path], people: People) -> None:
    evidence, out = leaky
    told = (out / "EVIDENCE.md").read_text()
    assert told == certificate(evidence.record)
    for part in (
        "THE MODEL FELL",
        "reference: R-17",
        "is among 1, 2 draws",
        "20 documents of 20 people",
        "What was not tested",
        "Art. 17",
    ):
        assert part in told
    for one in evidence.record["findings"]:
        assert ATTACKS[one["attack"]].title in told
    everything = told + (out / "evidence.json").read_text()
    for document in people.audit.document_list():
        assert document.text[:30] not in everything
        assert document.id not in everything, "an id may be a name"
        for span in document.spans:
            assert document.text[span.start : span.end] not in everything
    assert "By kind" not in told, "there is one"
    kinds = {"e-mail": {"value": 0.5, "control": None}, "phone": {"value": 0.9, "control": 0.5}}
    found = [{**one, "kinds": kinds} for one in evidence.record["findings"]]
    assert "*In 4 bits, NF4*: e-mail 0.500, –; phone 0.900, 0.500" in certificate(
        {**evidence.record, "findings": found}
    )
    utility = evidence.record["utility"]
    assert utility["retain_nll_change"] == pytest.approx(0, abs=1e-5), "it is the same model"
    assert utility["retain_kl"] == pytest.approx(0, abs=1e-4)
    assert utility["retain_likeliest_kept"] == 1
    assert utility["retained_exposure_change"] == pytest.approx(0, abs=1e-5)


def test_evidence_is_read_back_and_checked(leaky: tuple[Evidence, Path]) -> None:
    evidence, out = leaky
    assert Evidence.load(out).record == evidence.record
    assert check_evidence(out) == []


def rewritten(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Changes the record as somebody would who covers it up: seal, certificate and digests are made anew."""

    def edit(out: Path) -> None:
        record = json.loads((out / "evidence.json").read_text())
        record.pop("digest")
        change(record)
        write_record(out / "evidence.json", record)
        (out / "EVIDENCE.md").write_text(certificate(record))
        files = [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name[0] != "."]
        write_digests(out, [name for name in files if name != "digests.json"])

    return edit


def lower(record: dict[str, Any]) -> None:
    record["findings"][0]["value"] = 0.5


def acquit(record: dict[str, Any]) -> None:
    record["verdict"]["status"] = "withstood"


def forget_one(record: dict[str, Any]) -> None:
    record["findings"] = [one for one in record["findings"] if one["attack"] != "judges"]
    record["verdict"]["fell"].remove("judges")
    record["verdict"]["sentences"][0] = record["verdict"]["sentences"][0].replace("judges, ", "")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (rewritten(lower), r"findings\[0\]\.value does not follow from the readings"),
        (rewritten(acquit), r"verdict\.status does not follow from the readings"),
        (rewritten(forget_one), r"verdict\.sentences does not follow from the readings"),
        (lambda out: (out / "EVIDENCE.md").unlink(), "EVIDENCE.md: does not say what"),
        (lambda out: (out / "EVIDENCE.md").write_text("The model withstood every attack."), "EVIDENCE.md"),
        (lambda out: (out / "digests.json").unlink(), "digests.json: missing"),
        (lambda out: (out / "readings" / "judges.parquet").unlink(), "judges.parquet"),
        (lambda out: (out / "evidence.json").write_text((out / "evidence.json").read_text()[:-9]), "evidence.json"),
    ],
)
def test_edited_evidence_is_told(
    leaky: tuple[Evidence, Path], tmp_path: Path, edit: Callable[[Path], None], told: str, mitigate_: Mitigate
) -> None:
    shutil.copytree(leaky[1], tmp_path / "copy")
    edit(tmp_path / "copy")
    assert any(re.search(told, line) for line in check_evidence(tmp_path / "copy")), check_evidence(tmp_path / "copy")
    done = mitigate_("verify", "--check", tmp_path / "copy")
    assert done.status == 2
    assert "is not evidence as it was written" in done.err


def test_readings_that_were_never_read_are_told_with_the_models_at_hand(people: People, tmp_path: Path) -> None:
    """All that can be computed again from the readings follows from them; they are made up."""
    chosen = SETTINGS.model_copy(update={"attacks": ["judges", "true_prefix"]})
    out = tmp_path / "out"
    evidence = proven(people, people.target, out, settings=chosen)
    again = {"oracle": people.oracle, "store": cpu()}
    assert check_again(out, people.audit, people.target, **again) == []  # type: ignore[arg-type]
    table = evidence.readings["judges"]
    scores = table["score"].to_numpy().copy()
    scores[:5] -= 0.01
    place = table.schema.get_field_index("score")
    made_up = {**evidence.readings, "judges": table.set_column(place, "score", pa.array(scores))}
    write_table(out / "readings" / "judges.parquet", made_up["judges"])

    def follow(record: dict[str, Any]) -> None:
        record["readings"]["judges"] = file_digest(out / "readings" / "judges.parquet")
        record["findings"] = findings_of(made_up, margin=0.05, samples=chosen.samples)
        record["verdict"] = verdict_of(record["findings"], kept_out=record["kept_out"])

    rewritten(follow)(out)
    assert check_evidence(out) == []
    told = check_again(out, people.audit, people.target, **again)  # type: ignore[arg-type]
    assert told == [f"judges: 5 of {len(scores)} scores are others"]
    with pytest.raises(MitigateError, match=r"evidence of other models \(mitigated\)"):
        check_again(out, people.audit, people.another, **again)  # type: ignore[arg-type]


def test_a_verification_that_was_cut_short_goes_on_with_the_next_attack(
    people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = SETTINGS.model_copy(update={"attacks": ["judges", "int8", "true_prefix"]})
    whole = prove_module.read
    made: list[str] = []

    def cut_short(case: Any, name: str, **values: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(name)
        return whole(case, name, **values)

    monkeypatch.setattr(prove_module, "read", cut_short)
    with pytest.raises(KeyboardInterrupt):
        proven(people, people.target, tmp_path / "out", settings=chosen)
    assert not (tmp_path / "out" / "evidence.json").exists()
    made[:] = []
    again = proven(people, people.target, tmp_path / "out", settings=chosen)
    assert made == ["true_prefix"]
    monkeypatch.setattr(prove_module, "read", whole)
    once = proven(people, people.target, tmp_path / "once", settings=chosen)
    assert again.record["findings"] == once.record["findings"]
    assert check_evidence(tmp_path / "out") == []
    monkeypatch.setattr(prove_module, "read", cut_short)
    made[:] = []
    other = proven(people, people.target, tmp_path / "out", settings=chosen.model_copy(update={"margin": 0.5}))
    assert made == [], "no reading depends on the margin"
    assert other.record["settings"]["margin"] == 0.5
    assert other.record["seconds"] == again.record["seconds"], "what the kept readings took"
    assert check_evidence(tmp_path / "out") == []
    with pytest.raises(MitigateError, match="holds evidence of other models, documents or settings"):
        proven(people, people.another, tmp_path / "out", settings=chosen)


def test_what_was_not_made_is_said_and_nothing_is_claimed_of_it(people: People, tmp_path: Path) -> None:
    """One person to forget, and nobody who is retained: some attacks have nothing to work with."""
    sets = dict(people.audit.sets)
    kept = [document for document in people.audit.document_list() if sets[document.id] == "holdout"]
    kept = [next(one for one in people.audit.document_list() if sets[one.id] == "forget"), *kept]
    references = [one.source for one in people.audit.metadata.references]
    alone = audit(
        people.target, references, documents=Documents(tuple(kept)), detect=Detect(select="known"), store=cpu()
    )
    chosen = SETTINGS.model_copy(update={"attacks": ["judges", "forensic", "relearn_forgotten", "relearn_retained"]})
    evidence = prove(alone, people.another, out=tmp_path / "out", oracle=people.oracle, settings=chosen, store=cpu())
    reasons = {one["attack"]: one["reason"] for one in evidence.record["not_made"]}
    assert set(reasons) == {*(set(NAMES) - {"judges"})}
    assert "needs 10 people" in reasons["forensic"]
    assert "of one person" in reasons["relearn_forgotten"]
    assert "no retained documents" in reasons["relearn_retained"]
    assert reasons["nf4"] == "not asked for"
    assert evidence.status == "cannot_tell"
    [finding] = evidence.record["findings"]
    assert finding["value_interval"] is None, "one person has no interval"
    assert finding["rank"]["of"] == 20
    assert finding["rank"]["p_value"] == pytest.approx((1 + finding["rank"]["as_high"]) / 21)
    assert f"{finding['rank']['as_high']} of 20 never-seen people" in (tmp_path / "out" / "EVIDENCE.md").read_text()
    assert "attack *relearn forgotten*: all documents" in (tmp_path / "out" / "EVIDENCE.md").read_text()


def test_an_audit_with_nothing_to_compare_with_is_refused(people: People, tmp_path: Path) -> None:
    forget = [one for one in people.audit.document_list() if one.set == "forget"]
    references = [one.source for one in people.audit.metadata.references]
    alone = audit(people.target, references, documents=Documents(tuple(forget)), store=cpu())
    with pytest.raises(MitigateError, match="20 documents to forget and 0 that the model never saw"):
        prove(alone, people.another, out=tmp_path / "out", store=cpu())


def test_the_command_line_attacks_checks_and_fails(people: People, tmp_path: Path, mitigate_: Mitigate) -> None:
    people.audit.save(tmp_path / "audit")
    given = ["verify", "--audit", tmp_path / "audit", "--model", people.target, "--oracle", people.oracle]
    given += ["--out", tmp_path / "out", "--device", "cpu", "--set", "attacks=[judges,true_prefix]"]
    given += ["--request", "reference=R-17"]
    done = mitigate_(*given)
    assert done.status == 0, done.err
    assert "FELL: The model fell to: judges, true_prefix." in done.out
    assert "nf4: not made: not asked for" in done.out
    for condition, status in (
        ("fell", 3),
        ("not withstood", 3),
        ("judges.value > 0.5", 3),
        ("judges.value < 0.5", 0),
        ("true_prefix.gap >= 0.01", 3),
    ):
        assert mitigate_("verify", "--check", tmp_path / "out", "--fail-if", condition).status == status, condition
    for wrong, told in (
        (["--check", tmp_path / "out", "--fail-if", "judges.valu > 1"], "no figure 'judges.valu' was measured here"),
        (["--check", tmp_path / "out", "--fail-if", "judges"], "written NAME > NUMBER"),
        (["--check", tmp_path / "audit"], "holds no evidence"),
        (["--check", tmp_path / "out", "--model", "m"], "give --run DIR of a finished run, or --audit DIR and --model"),
        (["--check", tmp_path / "out", "--set", "samples=2"], "settings and request are those of the evidence"),
        (["--check", tmp_path / "out", *given[1:3], "--model", people.another], "of other models (mitigated, control)"),
        (["--audit", tmp_path / "audit"], "give --run DIR of a finished run, or --audit DIR and --model DIR"),
        (["--run", tmp_path], "no finished run that unlearned or retrained"),
        ([*given[1:], "--request", "reference"], "written key=value"),
        ([*given[1:], "--set", "attacks=[judge]"], "judge"),
    ):
        done = mitigate_("verify", *wrong)
        assert done.status == 2, wrong
        assert told in done.err
    again = given[: given.index("--out")]
    done = mitigate_(*again, "--check", tmp_path / "out")
    assert done.status == 0, done.err
    assert "every attack reads the same again: fell" in done.out
    changed = replace(people.audit, metadata=people.audit.metadata.model_copy(update={"seed": 7}))
    changed.save(tmp_path / "other")
    done = mitigate_(*[tmp_path / "other" if part == tmp_path / "audit" else part for part in given])
    assert done.status == 2
    assert "holds evidence of other models" in done.err


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")
def test_signed_evidence_tells_its_signer_and_nobody_elses(people: People, tmp_path: Path, mitigate_: Mitigate) -> None:
    people.audit.save(tmp_path / "audit")
    out = tmp_path / "out"
    for name in ("officer", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    public = (tmp_path / "officer.pub").read_text().split()
    allowed = tmp_path / "allowed"
    allowed.write_text(f"officer@example.org {public[0]} {public[1]}\n")
    given = ["verify", "--audit", tmp_path / "audit", "--model", people.target, "--oracle", people.oracle]
    given += ["--out", out, "--set", "attacks=[judges]"]

    def status(*more: object) -> tuple[int, str]:
        done = mitigate_("verify", "--check", out, *more)
        return done.status, done.out + done.err

    assert mitigate_(*given, "--sign", tmp_path / "nobody").status == 2
    assert not out.exists(), "a key that is missing is told before the work"
    assert mitigate_(*given, "--sign", tmp_path / "stranger").status == 0
    assert status("--signers", allowed)[0] == 2, "signed by a stranger"
    assert "a signature, which was not looked at" in status()[1]
    code, told = status("--sign", tmp_path / "officer")
    assert (code, "signature: " in told) == (0, True)
    code, told = status("--signers", allowed)
    assert (code, "signed by officer@example.org" in told) == (0, True), told
    rewritten(lambda record: record.update(name="another"))(out)
    assert status()[0] == 0, "a title follows from nothing, and the digests were made anew"
    code, told = status("--signers", allowed)
    assert (code, "is not what officer@example.org signed" in told) == (2, True), told
    assert mitigate_(*given).status == 0
    assert "not signed" in status("--signers", allowed)[1], "evidence that was made anew is not signed"


def test_figures_are_named_by_attack(leaky: tuple[Evidence, Path]) -> None:
    figures = leaky[0].figures
    assert {"judges.tpr_at_1pct_fpr", "layers.half.gap", "utility.retain_kl"} <= {*figures, "judges.tpr_at_1pct_fpr"}
    assert all(np.isfinite(value) for value in figures.values())


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (mitigate[tasks])")
def test_tasks_of_lm_eval_are_measured_before_and_after(people: People, tmp_path: Path) -> None:
    questions = [
        {"text": one.text[: one.spans[0].start], "choices": [one.text[one.spans[0].start : one.spans[0].end], "000000"]}
        for one in people.audit.document_list()
        if one.set == "forget"
    ]
    (tmp_path / "codes.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (tmp_path / "codes.yaml").write_text(
        f"task: codes\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'codes.jsonl'}}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{text}}'\ndoc_to_choice: '{{choices}}'\n"
        "target_delimiter: ''\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\nmetadata: {version: 1}\n"
    )
    few = {"attacks": ["judges"], "tasks": ["codes"], "task_files": str(tmp_path)}
    settings = SETTINGS.model_copy(update=few)
    evidence = proven(people, people.oracle, tmp_path / "out", settings=settings)
    [found] = evidence.record["tasks"]
    assert (found["task"], found["metric"], found["samples"]) == ("codes", "acc", EACH)

    def right(model: Path) -> float:
        loaded = cpu().load(model)
        hits = []
        for row in questions:
            with loaded.active() as module, torch.inference_mode():
                scores = []
                for choice in row["choices"]:
                    start = len(loaded.tokenizer(row["text"])["input_ids"])
                    ids = torch.tensor([loaded.tokenizer(row["text"] + choice)["input_ids"]])
                    said = module(input_ids=ids).logits[0].log_softmax(-1)
                    scores.append(sum(said[n - 1, ids[0, n]].item() for n in range(start, ids.shape[1])))
            hits.append(scores[0] > scores[1])
        return float(np.mean(hits))

    assert found["before"] == pytest.approx(right(people.target))
    assert found["mitigated"] == pytest.approx(right(people.oracle))
    assert evidence.figures["tasks.codes.acc.mitigated"] == found["mitigated"]
    assert "task codes, acc, before → after" in (tmp_path / "out/EVIDENCE.md").read_text()
    assert not check_evidence(tmp_path / "out")
    with pytest.raises(MitigateError, match="lm-eval knows no codez"):
        proven(people, people.oracle, tmp_path / "none", settings=settings.model_copy(update={"tasks": ["codez"]}))


def test_tasks_without_lm_eval_are_refused_before_the_work(
    people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mitigate.proof.utility.tasks.find_spec", lambda name: None)
    with pytest.raises(MitigateError, match="lm-eval is not installed"):
        proven(people, people.oracle, tmp_path / "out", settings=SETTINGS.model_copy(update={"tasks": ["hellaswag"]}))
    assert not (tmp_path / "out").exists()


def test_two_processes_read_what_one_reads(people: People, tmp_path: Path, mitigate_: Mitigate) -> None:
    people.audit.save(tmp_path / "audit")
    attacks = "judges,min_k,twins,layers,nf4,relearn_retained,true_prefix,reworded,sampled,continued"
    given = ["verify", "--audit", tmp_path / "audit", "--model", people.target, "--oracle", people.oracle]
    given += ["--device", "cpu", "--set", f"attacks=[{attacks}]", "--set", "samples=2", "--set", "twins=4", "--out"]
    assert mitigate_(*given, tmp_path / "one").status == 0
    script = tmp_path / "run.py"
    script.write_text("from mitigate.cli.app import main\n\nmain()\n")
    launch_two(script, *given, tmp_path / "two")  # type: ignore[arg-type]
    one, two = (json.loads((tmp_path / name / "evidence.json").read_text()) for name in ("one", "two"))
    apart = ("created", "digest", "seconds", "readings", "versions")
    assert {key: one[key] for key in one if key not in apart} == {key: two[key] for key in two if key not in apart}
    assert contents(tmp_path / "one" / "readings") == contents(tmp_path / "two" / "readings")
    assert not check_evidence(tmp_path / "two")
