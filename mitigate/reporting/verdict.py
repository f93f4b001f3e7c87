"""What the figures of a report say, in plain words, and how good that is.

The judgement of leakage is `mitigate.reporting.judgement`; the limits are the ones this project holds itself to, and
the page states them. "Good" needs every leakage figure's interval on the good side; what so few people, or what was not
looked at, cannot tell is "cannot tell".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mitigate.reporting.cards import Card, closeness_card, cost_card, extraction_card, leak_card, with_interval
from mitigate.reporting.figures import AUC_WORDS, Figures
from mitigate.reporting.judgement import Finding, findings, worst


@dataclass(frozen=True)
class Verdict:
    """The first screen.

    Attributes:
        status: good, caution, bad, cannot_tell, or audit where nothing was unlearned.
        leaks: whether the model leaks now; None if that cannot be told.
        headline, sentences: in plain words.
        cards: the questions behind it.
        findings: the judgement of each leakage figure.
    """

    status: str
    leaks: bool | None
    headline: str
    sentences: tuple[str, ...]
    cards: tuple[Card, ...]
    findings: tuple[Finding, ...]


STATUS_WORDS = {
    "good": "Good",
    "caution": "Caution",
    "bad": "Not good",
    "cannot_tell": "Cannot tell",
    "unknown": "Not measured",
    "baseline": "Baseline",
    "audit": "Audit",
}


def verdict_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report's section `verdict`, for machines and the console.

    Returns:
        `status` (good, caution, bad, cannot_tell, audit), `leaks` (true, false, null: cannot be told), `headline`,
        `sentences`, `questions`: of each the `status` and the `answer`, `findings`: of each leakage figure its state.
    """
    verdict = judge(Figures(report))
    return {
        "status": verdict.status,
        "leaks": verdict.leaks,
        "headline": verdict.headline,
        "sentences": list(verdict.sentences),
        "questions": {card.question: {"status": card.status, "answer": card.answer} for card in verdict.cards},
        "findings": {
            one.name: {"state": one.state, "why": one.why if one.state != "good" else ""} for one in verdict.findings
        },
    }


def judge(figures: Figures) -> Verdict:
    """The first screen of a report: did leakage fall, how far, at what cost, and is that good."""
    found = findings(figures)
    leak, extraction, cost = leak_card(figures, found), extraction_card(figures, found), cost_card(figures)
    closeness = closeness_card(figures)
    cards = (leak, closeness, extraction, cost)
    state = worst([one.state for one in found])
    leaks = {"leaks": True, "over_forgotten": True, "good": False}.get(state)
    whys = dict.fromkeys(one.why for one in found if one.state not in ("good", "leaks"))  # two may have one reason
    open_ = [f"{why[0].upper()}{why[1:]}." for why in whys]
    if figures.audit_only:
        answers = (leak.answer, *([extraction.answer] if extraction.status != "unknown" else []))
        headline = _audit_headline(figures, leaks)
        return Verdict("audit", leaks, headline, (*answers, *open_), cards, tuple(found))
    leak_status, leak_headline = _overall(found)
    headline = f"{leak_headline}{_COST_HEADLINES[cost.status]}"
    answering = [card for card in (leak, extraction, cost) if card is not extraction or card.status != "unknown"]
    sentences = [*_exactness(figures), *(card.answer for card in answering), *open_, *_documents_aside(figures, found)]
    leaked_before = any(one.before != "good" for one in found)
    if closeness.status == "bad" or (closeness.status == "caution" and leaked_before):
        sentences.append(closeness.answer)
    statuses = [leak_status, "cannot_tell" if cost.status == "unknown" else cost.status]
    if closeness.status == "bad" or (closeness.status == "caution" and leaked_before):
        statuses.append(closeness.status)
    return Verdict(max(statuses, key=_SEVERITY.index), leaks, headline, tuple(sentences), cards, tuple(found))


def _overall(found: Sequence[Finding]) -> tuple[str, str]:
    """Status and headline of all leakage figures together."""
    state = worst([one.state for one in found])
    fell = [one for one in found if one.fell]
    if state == "leaks":
        leaking = [one for one in found if one.state == "leaks"]
        if all(one.fell for one in leaking):
            return "caution", "Leakage fell, but not to the level of text never seen"
        if fell:
            down, still = (
                " and ".join(_NAMES[one.name] for one in some)
                for some in (fell, [one for one in leaking if not one.fell])
            )
            return "bad", f"Leakage fell only in part ({down}; not {still})"
        return "bad", "Leakage did not fall"
    if state == "over_forgotten":
        return "bad", "The secrets were over-forgotten: they now stand out as too unlikely"
    if state == "good":
        if any(one.before == "leaks" for one in found):
            return "good", "Leakage fell to the level of text never seen"
        if all(one.before == "good" for one in found):
            return "good", "No leakage was found, neither before nor after"
        return "good", "No leakage is found now"
    if fell:
        return "cannot_tell", "Leakage fell; whether to the level of text never seen cannot be told"
    return "cannot_tell", "Whether it still leaks cannot be told"


def _documents_aside(figures: Figures, found: Sequence[Finding]) -> list[str]:
    """What is known of whole documents where only given secrets in them were to be forgotten."""
    after = figures.get("leakage", "after", "document_auc", words=AUC_WORDS, digits=3)
    if any(one.name == "documents" for one in found) or after.value is None:
        return []
    return [
        "Only the given secrets were to be forgotten: the documents that hold them are told from never-seen ones with "
        f"an AUC of {with_interval(after)}, which this verdict does not judge."
    ]


def _exactness(figures: Figures) -> list[str]:
    """What a model that was fitted anew is, and is conditional on."""
    retrain = figures.report.get("retrain")
    if retrain is None:
        return []
    sentence = f"{retrain['exact'][0].upper()}{retrain['exact'][1:]}."
    if not retrain["this_audit"]:
        sentence += " What was removed is another audit's selection, not this one's."
    return [sentence]


def _audit_headline(figures: Figures, leaks: bool | None) -> str:
    selected = figures.report.get("selected") or {}
    spans, documents = selected.get("spans") or 0, selected.get("documents") or 0
    reading = {True: "The model leaks", False: "No leakage was found", None: "Whether the model leaks cannot be told"}
    if not spans:
        return f"{reading[leaks]}. No memorized text was selected, nothing was unlearned."
    in_documents = "one document" if documents == 1 else f"{documents:,} documents"
    found = "One memorized span was" if spans == 1 else f"{spans:,} memorized spans were"
    return f"{reading[leaks]}. {found} selected in {in_documents}. Nothing was unlearned yet."


_SEVERITY = ("good", "caution", "cannot_tell", "bad")
_NAMES = {
    "spans": "telling secrets from never-seen ones",
    "documents": "telling documents from never-seen ones",
    "caught": "secrets caught at 1 % false alarms",
    "extraction": "extraction",
}
_COST_HEADLINES = {
    "good": ", and other text kept its quality.",
    "caution": ", at some cost to other text.",
    "bad": ", at a high cost to other text.",
    "unknown": ". What it cost was not measured.",
}
