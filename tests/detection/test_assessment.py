"""Certainty of an audit's spans: by shadows, by non-members or none; how spans are selected; spoilt references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from forgetting import cpu
from typer.testing import CliRunner
from world import World, planted_documents

from mitigate.artifacts.files import read_json
from mitigate.cli.app import app
from mitigate.detection.audit import audit, reaudit
from mitigate.detection.doubts import doubts_of
from mitigate.detection.metadata import Fit, Uncalibrated
from mitigate.detection.record import Audit
from mitigate.detection.references.checks import check_references
from mitigate.detection.references.crossfit import crossfit_references
from mitigate.detection.references.fit import rate_warning
from mitigate.detection.settings import Detect
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.models.fitting.training import fine_tune
from mitigate.models.settings import Schedule
from mitigate.tokens.tokenization import TokenizedDocument
from mitigate.verification.compare import compare

EACH = 20  # people in each set: as few as holdout documents may be to calibrate by


@dataclass(frozen=True)
class Calibrated:
    """Enough people to calibrate on, a target, and four cross-fitted references."""

    documents: Documents
    target: Path
    references: Path

    def audit(self, **detect: object) -> Audit:
        return audit(self.target, [self.references], documents=self.documents, detect=Detect(**detect), store=cpu())


@pytest.fixture(scope="module")
def calibrated(world: World, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    root = tmp_path_factory.mktemp("calibrated")
    documents = planted_documents(each=EACH, seed=3)
    schedule = Schedule(epochs=30, learning_rate=5e-3, batch_size=8)
    crossfit_references(
        world.base,
        documents,
        out=root / "references",
        count=4,
        method="full",
        schedule=schedule,
        seed=0,
        new_store=cpu,
    )
    fine_tune(
        world.base,
        documents.subset(["forget", "retain"]),
        out=root / "target",
        method="full",
        lora=None,  # type: ignore[arg-type]
        schedule=schedule,
        seed=7,
        description="target",
        store=cpu(),
    )
    return Calibrated(documents, root / "target", root / "references")


@pytest.fixture(scope="module")
def by_shadows(calibrated: Calibrated) -> Audit:
    return calibrated.audit(fdr=0.1, select="found")


def rows_of(result: Audit, source: str, *, sets: tuple[str, ...] = ("forget", "retain", "holdout")) -> list[dict]:
    of = result.sets
    return [row for row in result.spans.to_pylist() if row["source"] == source and of[row["doc_id"]] in sets]


def test_members_are_likelier_than_non_members_under_shadows(by_shadows: Audit) -> None:
    members = [row["probability"] for row in rows_of(by_shadows, "known", sets=("forget", "retain"))]
    others = [row["probability"] for row in rows_of(by_shadows, "known", sets=("holdout",))]
    assert np.mean(members) > 0.8
    assert np.mean(others) < 0.3
    assert by_shadows.metadata.calibration.kind == "shadows"
    assert by_shadows.metadata.calibration.references == 1, "two of four never saw a document; one may be judged"


def test_selected_spans_keep_to_the_false_discovery_rate_and_reach_the_secrets(by_shadows: Audit) -> None:
    chosen = [row for row in rows_of(by_shadows, "found") if row["selected"]]
    assert chosen
    assert all(row["q"] <= 0.1 for row in chosen)
    assert all(by_shadows.sets[row["doc_id"]] == "forget" for row in chosen)
    reached = {row["doc_id"] for row in chosen if "code" in row["label"]}
    assert len(reached) > 0.7 * EACH
    q = [row["q"] for row in rows_of(by_shadows, "found", sets=("forget",))]
    p = [row["probability"] for row in rows_of(by_shadows, "found", sets=("forget",))]
    order = np.argsort(p)
    assert (np.diff(np.array(q)[order]) <= 1e-6).all(), "a likelier span never has the higher rate"


def test_selected_tokens_are_the_memorized_ones_of_selected_spans(by_shadows: Audit) -> None:
    columns = by_shadows.columns
    selected, memorized = columns["selected"].astype(bool), columns["memorized"].astype(bool)
    assert selected.any()
    assert not (selected & ~memorized).any()
    inside = np.zeros(len(selected), dtype=bool)
    for row in rows_of(by_shadows, "found"):
        if row["selected"]:
            first = by_shadows.rows[row["doc_id"]].start
            inside[first + row["token_start"] : first + row["token_end"]] = True
    assert (selected == (inside & memorized)).all()
    assert not np.isnan(columns["log_odds"][memorized]).any()


def test_characters_of_a_span_are_those_of_its_tokens(by_shadows: Audit) -> None:
    columns = by_shadows.columns
    for row in rows_of(by_shadows, "found"):
        first = by_shadows.rows[row["doc_id"]].start
        inside = slice(first + row["token_start"], first + row["token_end"])
        assert row["char_start"] == columns["char_start"][inside].min()
        assert row["char_end"] == columns["char_end"][inside].max()


def test_a_calibrated_audit_is_the_same_twice_and_round_trips(
    calibrated: Calibrated, by_shadows: Audit, tmp_path: Path
) -> None:
    again = calibrated.audit(fdr=0.1, select="found")
    assert again.spans.equals(by_shadows.spans)
    again.save(tmp_path / "audit")
    assert Audit.load(tmp_path / "audit").spans.equals(by_shadows.spans)


def test_a_re_audit_of_the_same_model_repeats_every_figure(calibrated: Calibrated, by_shadows: Audit) -> None:
    again = reaudit(by_shadows, calibrated.target, store=cpu())
    for before, after in zip(by_shadows.spans.to_pylist(), again.spans.to_pylist(), strict=True):
        assert after["probability"] == pytest.approx(before["probability"], abs=1e-4)
        assert (after["selected"], after["span_id"]) == (before["selected"], before["span_id"])
    assert again.tokens["memorized"].equals(by_shadows.tokens["memorized"])


def test_a_re_audit_of_the_base_finds_its_spans_improbable(
    world: World, calibrated: Calibrated, by_shadows: Audit
) -> None:
    again = reaudit(by_shadows, world.base, store=cpu())
    chosen = [row["probability"] for row in again.spans.to_pylist() if row["selected"]]
    assert np.mean(chosen) < 0.3


def test_without_shadows_holdout_documents_give_the_false_discovery_rate(world: World, calibrated: Calibrated) -> None:
    result = audit(
        calibrated.target, [str(world.base)], documents=calibrated.documents, detect=Detect(fdr=0.2), store=cpu()
    )
    assert result.metadata.calibration.kind == "non_members"
    found = rows_of(result, "found", sets=("forget", "retain"))
    assert all(row["q"] is not None and row["probability"] is None for row in found)
    assert all(row["q"] is None for row in rows_of(result, "found", sets=("holdout",))), "they are the yardstick"
    chosen = [row for row in found if row["selected"]]
    assert all(row["q"] <= 0.2 for row in chosen)


def test_a_rate_that_nothing_can_calibrate_is_refused_with_both_remedies(world: World, calibrated: Calibrated) -> None:
    with pytest.raises(MitigateError, match=r"detect.fdr: .*references.count: 4.*holdout.*remove detect.fdr"):
        audit(
            calibrated.target,
            [str(world.base)],
            documents=calibrated.documents.subset("forget"),
            detect=Detect(fdr=0.1),
            store=cpu(),
        )


# --- references that fit less or more than the target -----------------------------------------------------------------


@pytest.fixture
def unlike(monkeypatch: pytest.MonkeyPatch) -> Fit:
    """References that gained three fifths of what training on a document gives the target."""
    fit = Fit(documents=40, target=0.5, trained=1.3, untrained=2.5)
    monkeypatch.setattr("mitigate.detection.assessment.reference_fit", lambda *args, **options: fit)
    return fit


@pytest.mark.usefixtures("unlike")
def test_rates_of_references_that_fit_otherwise_are_doubted_with_the_numbers_and_remedies(
    calibrated: Calibrated,
) -> None:
    seen = replace(calibrated, documents=calibrated.documents.subset(["forget", "retain"]))
    told = "1.30 nats a token, the target's 0.50", "2.50", "references.schedule: auto", "holdout", "remove detect.fdr"
    with_rate = seen.audit(fdr=0.1)
    for lines in (doubts_of(with_rate), with_rate.metadata.warnings):
        assert any(all(part in line for part in told) for line in lines)
    assert not any("do not hold" in line for line in doubts_of(seen.audit(calibrate=True))), "nobody asks for a rate"


def test_where_documents_were_never_seen_the_larger_of_two_rates_counts(
    calibrated: Calibrated, by_shadows: Audit, unlike: Fit
) -> None:
    corrected = calibrated.audit(fdr=0.1)
    assert corrected.metadata.fit == unlike
    assert any("do not hold for this target" in line and "larger" in line for line in corrected.metadata.warnings)
    assert not any("do not hold" in line for line in doubts_of(corrected)), "it is corrected"
    others = audit(
        calibrated.target, [calibrated.references], documents=calibrated.documents, detect=Detect(), store=cpu()
    )
    assert others.metadata.warnings == by_shadows.metadata.warnings, "without a rate there is nothing to correct"
    before = {row.span_id: row for row in by_shadows.span_rows}
    forget = [row for row in corrected.span_rows if corrected.sets[row.doc_id] == "forget" and row.source == "found"]
    assert forget
    for row in forget:
        assert row.q is None or row.q >= before[row.span_id].q - 1e-6
        assert row.selected == (row.q is not None and row.q <= 0.1)
        assert row.probability == pytest.approx(before[row.span_id].probability)
    assert sum(row.selected for row in forget) < sum(row.selected for row in by_shadows.span_rows)


@pytest.mark.parametrize(
    ("target", "trained", "holds"),
    [(0.5, 0.5, True), (0.5, 0.9, True), (0.5, 1.1, False), (1.1, 0.5, True), (2.5, 2.5, True), (2.6, 2.5, True)],
)
def test_rates_hold_unless_references_gained_much_less_than_training_gave_the_target(
    target: float, trained: float, holds: bool
) -> None:
    warning = rate_warning(Fit(documents=9, target=target, trained=trained, untrained=2.5))
    assert (warning is None) is holds


def test_without_a_rate_the_score_is_bare_and_the_report_says_so(calibrated: Calibrated, by_shadows: Audit) -> None:
    bare = calibrated.audit()
    assert bare.metadata.calibration == Uncalibrated()
    assert all(row["probability"] is None and row["q"] is None for row in bare.spans.to_pylist())
    assert any("uncalibrated" in note for note in compare(bare, None).report["notes"])
    with pytest.raises(MitigateError, match="not the first one made again"):
        compare(by_shadows, bare)
    assert not any("uncalibrated" in note for note in compare(by_shadows, None).report["notes"])


def test_spans_can_be_selected_by_score_or_by_share(calibrated: Calibrated) -> None:
    def chosen(**detect: object) -> list[dict]:
        return [row for row in rows_of(calibrated.audit(select="found", **detect), "found") if row["selected"]]

    everything, strong = chosen(), chosen(min_score=1.5)
    assert strong
    assert {row["span_id"] for row in strong} == {row["span_id"] for row in everything if row["score"] >= 1.5}
    half = chosen(share=0.5)
    assert len(half) == round(0.5 * len(everything))
    assert min(row["score"] for row in half) >= np.median([row["score"] for row in everything]) - 1e-6


def test_given_spans_are_judged_as_they_stand(calibrated: Calibrated) -> None:
    result = calibrated.audit(fdr=0.1, select="known")
    known = rows_of(result, "known", sets=("forget",))
    assert [(row["char_start"], row["char_end"]) for row in known] == [
        (span.start, span.end) for document in calibrated.documents.subset("forget") for span in document.spans
    ]
    assert all(row["selected"] == (row["q"] <= 0.1) for row in known)
    assert sum(row["selected"] for row in known) > 0.7 * len(known)


def checked(log_probs: np.ndarray, *, length: int = 20, crossfitted: Sequence[int] = ()) -> list[str]:
    """check_references on (D, R) mean log-probabilities."""
    names = [f"r{k}" for k in range(log_probs.shape[1])]
    ids = np.arange(length)
    tokenized = [
        TokenizedDocument(f"d{n}", ids, np.zeros((length, 2), np.int32), np.ones(length, bool))
        for n in range(len(log_probs))
    ]
    documents = Documents(tuple(Document(f"d{n}", "text") for n in range(len(log_probs))))
    signals = {"log_prob_references": np.repeat(log_probs, length, axis=0)}
    return check_references(signals, documents, tokenized, names=names, crossfitted=crossfitted, vocabulary=1000)


def test_good_references_are_passed_in_silence() -> None:
    rng = np.random.default_rng(0)
    log_probs = -2 + rng.normal(0, 0.3, size=(40, 1)) + rng.normal(0, 0.1, size=(40, 4))
    log_probs[rng.random((40, 4)) < 0.4] = np.nan
    assert checked(log_probs) == []


def test_a_near_uniform_reference_is_named() -> None:
    log_probs = np.full((10, 3), -2.0)
    log_probs[:, 1] = -6.8
    [message] = checked(log_probs)
    assert "r1" in message
    assert "chance" in message


def test_a_reference_of_another_domain_is_named() -> None:
    log_probs = np.full((10, 3), -2.0)
    log_probs[:, 2] = -4.5
    [message] = checked(log_probs)
    assert "r2" in message
    assert "another domain" in message


def test_a_contaminated_reference_is_named_with_the_documents_it_saw() -> None:
    rng = np.random.default_rng(1)
    log_probs = -3 + rng.normal(0, 0.1, size=(30, 3))
    log_probs[[4, 9], 0] = -0.5
    [message] = checked(log_probs)
    assert "r0" in message
    assert "d4" in message
    assert "d9" in message
    assert "never have seen" in message
    assert checked(log_probs, crossfitted=[0]) == []


def test_an_audit_names_a_given_reference_that_was_trained_on_the_documents(world: World) -> None:
    given = [str(world.references), str(world.target)]
    result = audit(world.target, given, documents=world.documents, store=cpu())
    [warning] = [line for line in result.metadata.warnings if line.startswith("reference ")]
    assert f"reference {world.target}: finds" in warning
    assert "forget-0" in warning
    assert "never have seen" in warning
    assert "holdout" not in warning


def test_the_command_audits_a_recipe_and_reports_probabilities(calibrated: Calibrated, tmp_path: Path) -> None:
    from mitigate.documents.written import write_jsonl

    write_jsonl(calibrated.documents, tmp_path / "documents.jsonl")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"models: {{target: {calibrated.target}, device: cpu}}\n"
        f"data: {{documents: [{{path: {tmp_path / 'documents.jsonl'}}}]}}\n"
        f"references: {{count: 0, given: [{calibrated.references}]}}\n"
    )
    done = CliRunner().invoke(
        app, ["audit", str(recipe), "detect.fdr=0.1", f"out={tmp_path / 'run'}"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    report = read_json(tmp_path / "run/report.json")
    assert report["calibration"]["kind"] == "shadows"
    page = (tmp_path / "run/report.html").read_text()
    assert "False discovery rate" in page
    assert "expected calibration error" in page
    assert not (tmp_path / "run/adapter").exists()
