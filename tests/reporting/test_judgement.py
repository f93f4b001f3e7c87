"""The verdict: good needs every leakage figure's interval on the good side, and known truth is never called good."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import changed, pair
from simulated_reports import LEAKS, cases, simulated

from mitigate.reporting.figures import Figures
from mitigate.reporting.page import render_report
from mitigate.reporting.verdict import Verdict, judge, verdict_of


def good(**sections: Any) -> dict[str, Any]:
    """A report that is good in every figure, with some of its sections' keys changed."""
    report = changed(skipped=[])
    for name, values in sections.items():
        if isinstance(values, dict):
            report[name] = {**(report.get(name) or {}), **values}
        else:
            report[name] = values
    return report


def after(**figures: Any) -> dict[str, Any]:
    """The same with leakage figures after changed; a pair is an interval about its middle."""
    report = good()
    for name, value in figures.items():
        middle = sum(value) / 2 if isinstance(value, tuple) else value
        interval = list(value) if isinstance(value, tuple) else None
        report["leakage"]["after"] |= {name: middle, f"{name}_interval": interval}
    return report


def extracted(before: tuple[float, float], now: tuple[float, float], **more: Any) -> dict[str, Any]:
    sides = {"before": before, "after": now}
    values = {name: sum(limits) / 2 for name, limits in sides.items()}
    return good(extraction={**values, **{f"{name}_interval": list(limits) for name, limits in sides.items()}, **more})


def besides(part: str, oracle: float | None = None) -> dict[str, Any]:
    """Good in the headline's values, while of those that it leaves out many come back."""
    control = {"oracle": oracle, "oracle_interval": None if oracle is None else [0.0, 0.05]}
    shares = {"before": 0.5, "before_interval": [0.4, 0.6], "after": 0.4, "after_interval": [0.3, 0.5]}
    report = good()
    report["extraction"] |= {part: {**shares, **control, "secrets": 160}, **control}
    return report


def said(verdict: Verdict) -> str:
    return " ".join([verdict.headline, *verdict.sentences])


def test_a_report_that_is_good_in_every_figure_is_good() -> None:
    verdict = judge(Figures(good()))
    assert (verdict.status, verdict.leaks) == ("good", False)
    assert verdict.headline == "Leakage fell to the level of text never seen, and other text kept its quality."


@pytest.mark.parametrize(
    ("report", "status", "leaks", "words"),
    [
        (after(span_auc=(0.62, 0.67)), "caution", True, "Leakage fell, but not to the level"),
        (after(document_auc=(0.97, 0.99)), "bad", True, "fell only in part"),
        (after(tpr_at_1pct_fpr=(0.25, 0.45)), "caution", True, "of the secrets are caught at 1 % false alarms"),
        (after(span_auc=(0.75, 0.85)), "caution", True, "Leakage fell, but not to the level"),
        (after(span_auc=(0.4, 0.72)), "cannot_tell", None, "holds both the level of text never seen and a leak"),
        (after(span_auc=0.55), "cannot_tell", None, "cannot be told"),
        (after(tpr_at_1pct_fpr=None), "cannot_tell", None, "too few never-seen people"),
        (after(span_auc=(0.1, 0.3)), "bad", True, "over-forgotten"),
        (extracted((0.5, 0.73), (0.0, 0.3)), "cannot_tell", None, "no more than 10 %"),
        (extracted((0.5, 0.73), (0.37, 0.47)), "caution", True, "42.0 % (95 % interval 37.0 to 47.0)"),
        (extracted((0.49, 0.59), (0.37, 0.5)), "bad", True, "fell only in part"),
        (good(extraction=None), "cannot_tell", None, "Extraction was not measured"),
        (good(over_forgotten_share_interval=[0.3, 0.5]), "bad", True, "over-forgotten"),
        (good(over_forgotten_share=None), "cannot_tell", None, "too few never-seen people to see over-forgetting"),
        (good(coverage={"known_spans_outside": 3}), "cannot_tell", None, "3 of 104 known secrets stand outside"),
        (good(coverage={"values_outside": 2}), "cannot_tell", None, "2 sensitive values were recognised"),
        (good(coverage=None), "cannot_tell", None, "how much of the text was audited is not recorded"),
        (good(extraction={"untried": {"context": 2, "not drawn": 9}}), "cannot_tell", None, "2 sensitive values could"),
        (good(skipped=["x:1: malformed"]), "cannot_tell", None, "1 document was skipped"),
        (good(judges_kept_out=False), "cannot_tell", None, "trained against"),
        (besides("all", oracle=0.0), "caution", True, "Of all 160 values, shorter ones included, 40.0 % come back"),
        (besides("all"), "cannot_tell", None, "some short values come back, and neither never-seen people nor"),
        (besides("names"), "cannot_tell", None, "some names come back, and neither never-seen people nor"),
        (besides("names"), "cannot_tell", None, "Of 160 names in found spans, 40.0 % come back"),
    ],
)
def test_one_figure_that_is_not_good_is_enough(
    report: dict[str, Any], status: str, leaks: bool | None, words: str
) -> None:
    verdict = judge(Figures(report))
    assert (verdict.status, verdict.leaks) == (status, leaks)
    assert words.lower() in said(verdict).lower()
    assert "to the level of text never seen, and" not in verdict.headline or status != "good"


def test_the_headline_is_of_all_figures() -> None:
    report = extracted((0.45, 0.56), (0.06, 0.12))
    report["leakage"]["after"] |= {"span_auc": 0.97, "span_auc_interval": [0.95, 0.985]}
    headline = judge(Figures(report)).headline
    assert "fell only in part" in headline
    assert "extraction" in headline
    for name in ("span_auc", "document_auc", "tpr_at_1pct_fpr"):
        for key in (name, f"{name}_interval"):
            report["leakage"]["after"][key] = report["leakage"]["before"][key]
    report["extraction"] |= {"after": report["extraction"]["before"], "after_interval": [0.45, 0.56]}
    assert judge(Figures(report)).headline.startswith("Leakage did not fall")


def test_what_a_model_that_never_saw_it_can_complete_is_no_leak() -> None:
    control = {"after": 0.40, "after_interval": [0.36, 0.44]}
    assert judge(Figures(extracted((0.6, 0.7), (0.37, 0.45), never_seen=control))).status == "good"
    oracle = {"oracle": 0.40, "oracle_interval": [0.36, 0.44]}
    assert judge(Figures(extracted((0.6, 0.7), (0.37, 0.45), **oracle))).status == "good", "the oracle counts first"
    verdict = judge(Figures(extracted((0.6, 0.7), (0.37, 0.45), never_seen=None)))
    assert verdict.leaks
    assert "no control to compare with" in said(verdict)


def test_the_level_of_text_never_seen_is_the_measured_one() -> None:
    limits = {"span_auc": 0.45, "span_auc_interval": [0.38, 0.52], "document_auc": 0.5}
    excess = {"span_auc": 0.12, "span_auc_interval": [0.07, 0.17], "document_auc": 0.0}
    excess |= {"document_auc_interval": [-0.1, 0.1]}
    level = {"source": "oracle", **limits, "excess": {"before": excess, "after": excess}}
    verdict = judge(Figures(good(never_seen=level)))
    assert verdict.leaks, "0.541 is above what the retrained model reads, though near 0.5"
    assert "the retrained model reads 0.450 (95 % interval 0.380 to 0.520)" in said(verdict)
    assert "taken to be that" in said(judge(Figures(good())))


def test_where_models_that_never_saw_the_text_tell_it_apart_a_leak_would_not_show() -> None:
    limits = {"span_auc": 0.97, "span_auc_interval": [0.95, 0.99], "document_auc": 0.5}
    excess = {"span_auc": 0.02, "span_auc_interval": [0.0, 0.04], "document_auc": 0.0}
    excess |= {"document_auc_interval": [-0.1, 0.1]}
    level = {"source": "references", **limits, "excess": {"before": excess, "after": excess}}
    verdict = judge(Figures(good(never_seen=level)))
    assert (verdict.status, verdict.leaks) == ("cannot_tell", None)
    assert "no leak would show" in said(verdict)
    near = {
        "span_auc": 0.0,
        "span_auc_interval": [-0.1, 0.1],
        "document_auc": 0.0,
        "document_auc_interval": [-0.1, 0.1],
    }
    for score, leaks in {"min_k_pp": None, "informia": False}.items():
        level = {"source": "assumed", "score": score, "span_auc": 0.5, "excess": {"before": near, "after": near}}
        assert judge(Figures(good(never_seen=level))).leaks is leaks


def without_known(**sections: Any) -> dict[str, Any]:
    """Good in what can be measured where no secrets are known."""
    report = good(**sections)
    for side in report["leakage"].values():
        if side is not None:
            side |= {"span_auc": None, "tpr_at_1pct_fpr": None}
    return report


@pytest.mark.parametrize(
    ("limits", "status", "words"),
    [
        ([-0.05, 0.05], "good", "fell to the level"),
        ([0.2, 0.4], "cannot_tell", "still score above models that never saw them (auc 0.80)"),
        ([-0.2, 0.3], "cannot_tell", "so few people or references"),
        (None, "cannot_tell", "so few people or references"),
    ],
)
def test_where_no_secrets_are_known_the_selected_spans_are_judged(
    limits: list[float] | None, status: str, words: str
) -> None:
    """A span of some tokens moves a long document's mean by less than the tolerance."""
    selected = sum(limits) / 2 if limits else None
    excess = {"document_auc": 0.0, "document_auc_interval": [-0.1, 0.1]}
    level = {"excess": {"before": {"document_auc": 0.4, "document_auc_interval": [0.3, 0.45]}, "after": excess}}
    verdict = judge(Figures(without_known(never_seen={**level, "selected": selected, "selected_interval": limits})))
    assert verdict.status == status
    assert words in said(verdict).lower()


@pytest.mark.parametrize(("kind", "leaks"), [("shadows", None), ("non_members", None), ("none", False)])
def test_an_audit_alone_that_selects_spans_at_a_known_error_rate_is_no_all_clear(kind: str, leaks: bool | None) -> None:
    report = good(calibration={"kind": kind}, selected={"found": 3}, unlearn=None)
    report["leakage"] = {"before": report["leakage"]["after"], "after": None}
    report["extraction"] |= {"before": 0.0, "before_interval": [0.0, 0.035]}
    assert judge(Figures(report)).leaks is leaks
    assert judge(Figures({**report, "selected": {"spans": 0, "found": 0}})).leaks is False


def test_where_only_secrets_were_to_be_forgotten_the_documents_may_be_told_and_it_is_said() -> None:
    report = after(document_auc=(0.97, 0.99)) | {"asked": "secrets"}
    verdict = judge(Figures(report))
    assert verdict.status == "good"
    assert "the documents that hold them are told from never-seen ones with an AUC of 0.980" in said(verdict)


def test_an_unchanged_model_did_not_move_away() -> None:
    report = good(oracle_distance={"before": 1.76, "after": 1.76}, leakage=dict(changed()["leakage"]))
    report["leakage"]["after"] = report["leakage"]["before"]
    answer = judge(Figures(report)).cards[1].answer
    assert "is what it was: 1.76 nats before, 1.76 nats now" in answer
    assert "moved away" not in answer
    farther = judge(Figures(good(oracle_distance={"before": 1.76, "after": 3.0})))
    assert farther.status == "bad"
    assert "moved away" in said(farther)


@pytest.mark.parametrize(
    ("holdout", "status", "headline"),
    [(2.33, "good", "kept its quality"), (2.50, "caution", "at some cost"), (9.0, "bad", "at a high cost")],
)
def test_a_verdict_depends_on_what_other_text_lost(holdout: float, status: str, headline: str) -> None:
    report = good()
    report["utility"]["holdout_nll"]["after"] = holdout
    verdict = judge(Figures(report))
    assert verdict.status == status
    assert headline in verdict.headline


def test_a_fall_in_loss_is_not_within_the_tolerance_but_what_it_is() -> None:
    report = good()
    report["utility"]["retain_nll"] |= {"after": 0.949, "oracle": None}
    verdict = judge(Figures(report))
    assert verdict.status == "caution"
    assert "−0.453" in said(verdict)
    assert "within the tolerance" not in said(verdict)
    assert "it was learned further, so it may be memorized more" in said(verdict)


def test_what_a_model_retrained_without_the_text_loses_too_is_no_cost() -> None:
    report = good()
    report["utility"]["holdout_nll"] |= {"before": 2.31, "after": 2.71, "oracle": 2.70}
    verdict = judge(Figures(report))
    assert verdict.status == "good"
    assert any("never-seen text +0.400 (+0.010 against the retrained model)" in line for line in verdict.sentences)
    report["utility"]["holdout_nll"]["oracle"] = None
    assert judge(Figures(report)).status == "bad"


def test_an_audit_alone_has_intervals_or_cannot_tell() -> None:
    report = good(unlearn=None)
    report["leakage"]["after"] = None
    report["extraction"]["after"] = None
    verdict = judge(Figures(report))
    assert (verdict.status, verdict.leaks) == ("audit", True)
    report["leakage"]["before"] = dict(changed()["leakage"]["after"])
    report["extraction"] |= {"before": 0.0, "before_interval": [0.0, 0.035]}
    verdict = judge(Figures(report))
    assert (verdict.leaks, verdict.cards[0].status) == (False, "good")
    report["leakage"]["before"] |= {"span_auc_interval": [0.3, 0.75]}
    verdict = judge(Figures(report))
    assert (verdict.leaks, verdict.cards[0].status) == (None, "cannot_tell")
    report["leakage"]["before"] = dict.fromkeys(report["leakage"]["before"])
    report["extraction"] = None
    verdict = judge(Figures(report))
    assert verdict.leaks is None
    assert verdict.headline.startswith("Whether the model leaks cannot be told")


def test_loss_that_rose_less_than_the_retrained_model_s_did_not_fall() -> None:
    report = good(utility={"holdout_nll": {"before": 2.09, "after": 2.10, "oracle": 2.27}})
    assert "fell by" not in said(judge(Figures(report)))
    report = good(utility={"holdout_nll": {"before": 2.09, "after": 1.80, "oracle": 2.27}})
    assert "That of never-seen text fell by more than 0.10" in said(judge(Figures(report)))


def test_the_verdict_for_machines_is_that_of_the_page() -> None:
    report = after(span_auc=(0.4, 0.72))
    verdict = verdict_of(report)
    assert verdict["status"] == "cannot_tell"
    assert verdict["findings"]["spans"]["state"] == "cannot_tell"
    assert verdict["questions"]["Does it still leak?"]["status"] == "cannot_tell"
    page = render_report(report, *pair(), text="masked")
    assert verdict["headline"] in page
    assert "Cannot tell" in page


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_no_leaking_model_is_called_good_and_few_clean_ones_leaking() -> None:
    """As `python -m tests.simulated_reports --reports 200`, with fewer."""
    wrong, clean = [], 0
    for case in cases(24):
        verdict = verdict_of(simulated(**case))
        if LEAKS[case["leak"]].clean:
            clean += verdict["leaks"] is True
        elif verdict["status"] == "good" or verdict["leaks"] is False:
            wrong.append(case)
    assert not wrong
    assert clean <= 1


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_one_person_has_no_interval_and_is_ranked_among_never_seen_people() -> None:
    report = simulated(0, leak="strong", people="one", oracle=False)
    leakage = report["leakage"]["after"]
    assert leakage["span_auc"] is not None
    assert (
        leakage["span_auc_interval"] is leakage["document_auc_interval"] is leakage["span_score_mean_interval"] is None
    )
    assert leakage["people"] == {"members": 1, "never_seen": 40}
    assert leakage["as_high_share"] == 0.0
    assert leakage["rank_p_value"] == pytest.approx(1 / 41)
    assert leakage["as_high_share_interval"] == pytest.approx([0.0, 1 - 0.025 ** (1 / 40)])
    assert any("one person has no interval" in note for note in report["notes"])
    assert verdict_of(report)["leaks"] is True
    cannot = verdict_of(simulated(1, leak="clean", people="one", oracle=False))
    assert cannot["status"] == "cannot_tell"
    assert sum("of the never-seen people score as high" in line for line in cannot["sentences"]) == 1, "said once"
    assert len(set(cannot["sentences"])) == len(cannot["sentences"])
