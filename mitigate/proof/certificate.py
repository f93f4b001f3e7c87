"""EVIDENCE.md: the evidence in words, for those who answer for a deletion and for those who doubt it.

A pure function of the record, so that it can be checked against it. It holds no text of documents and no name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mitigate.proof.battery import ATTACKS

STATUS_WORDS = {
    "withstood": "The model withstood every attack made on it",
    "fell": "THE MODEL FELL: what was to be forgotten can still be told or had from it",
    "over_forgotten": "THE HOLE SHOWS: what was forgotten lies below text that was never seen, and so can be told",
    "cannot_tell": "Cannot tell: not every attack was made, or there are too few people to tell",
}
STATE_WORDS = {
    "withstood": "withstood",
    "fell": "**fell**",
    "over_forgotten": "**too low**",
    "cannot_tell": "cannot tell",
}
_CLAUSES = (
    (
        "GDPR Art. 17(1)",
        "erasure of personal data from the model",
        "whether its trace in the model is gone, as far as these attacks can tell; not whether the request is valid",
    ),
    (
        "GDPR Art. 5(2)",
        "accountability: being able to demonstrate it",
        "this record, its readings and fingerprints, which can be checked again",
    ),
    (
        "EDPB Opinion 28/2024",
        "that personal data are extracted from the model, or obtained from queries, must be insignificantly likely",
        "membership inference, extraction from several kinds of prompt and by drawing, the former after relearning and "
        "rounding, too",
    ),
    (
        "OWASP AISVS 12.2.2",
        "shadow-model or membership-inference evaluation after unlearning, against a documented threshold",
        "the attacks above; the threshold is the margin",
    ),
    (
        "OWASP AISVS 12.2.3",
        "unlearning retrains on what remains, or gives a documented (ε, δ) guarantee",
        "only where the model was retrained (see *How it was done*); otherwise this clause is not met",
    ),
    ("OWASP AISVS 12.3.2", "an empirical lower bound on ε, beside the declared budget", "the bound under the table"),
    (
        "OWASP AISVS 11.3.3",
        "membership-inference simulations do not exceed guessing on held-out data",
        "the AUC and its control",
    ),
    ("OWASP AISVS 11.2.7", "audits repeated after fine-tuning, quantization and merging", "relearning and rounding"),
)
_NOT_TESTED = (
    "copies of the text outside the model: training files, indexes, caches, logs, backups",
    "prompts in other languages, conversations of several turns, tools and retrieval around the model",
    "attackers who know more of the text than what stands before it, or who optimize prompts by gradients",
    "text that differs from the audited one: paraphrases, translations, the same fact in other words",
)


def certificate(record: Mapping[str, Any]) -> str:
    """The content of EVIDENCE.md."""
    verdict, asked = record["verdict"], record["asked"]
    lines = [
        f"# Evidence of unlearning{': ' + record['name'] if record['name'] else ''}",
        "",
        f"**{STATUS_WORDS[verdict['status']]}.** {' '.join(verdict['sentences'])}",
        "",
        f"Made on {record['created']} by mitigate {record['code']}. Every figure can be computed again from the "
        "numbers beside this file: `mitigate verify --check DIR`.",
        "",
        "## What was asked",
        "",
        *[f"- {key}: {value}" for key, value in record["request"].items()],
        f"- {asked['documents']:,} documents of {asked['people']:,} people, with {asked['known_spans']:,} known "
        f"secrets; {asked['selected_spans']:,} spans ({asked['selected_tokens']:,} tokens) were selected to be "
        "unlearned",
    ]
    if left := asked["unselected_values"]:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in left.items())
        lines.append(
            f"- **{sum(left.values()):,} values of these documents were not selected, and stay as they were: {kinds}**"
        )
    if (erasure := asked["erasure"]) is not None:
        lines.append(
            f"- an erasure request that names {erasure['documents']:,} documents; their secrets stand in "
            f"{erasure['linked_places']:,} other places, of which {erasure['linked_selected']:,} were selected, too"
        )
    lines += ["", "## How it was done", "", *_how(record), "", "## What was tested", "", *_tested(record)]
    lines += ["", "## What it cost", "", *_cost(record)]
    lines += ["", "## What was not tested", "", *_not_tested(record)]
    lines += ["", "## What remains", "", *_remains(record)]
    lines += ["", "## Clauses", "", "| clause | asks for | what this record says of it |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in _CLAUSES]
    lines += ["", "A map for the reader, no legal advice.", "", "## Fingerprints", ""]
    lines += [f"- {name.replace('_', ' ')}: {_listed(value)}" for name, value in record["models"].items()]
    return "\n".join(lines) + "\n"


def _how(record: Mapping[str, Any]) -> list[str]:
    origin = record["origin"]
    if origin is None:
        return ["How the model was made is not recorded beside it."]
    facts = ", ".join(f"{key} {_listed(value)}" for key, value in origin.items() if key not in ("by", "exact"))
    if origin["by"] == "retrain":
        exact = origin.get("exact") or "exact as far as it says so itself"
        return [f"Fitted anew without what was selected. Claim: **exact** ({exact}). {facts}".strip()]
    return [
        f"Unlearned ({facts}). Claim: **empirical**: no guarantee follows from how it was done, only from what it "
        "withstands."
    ]


def _tested(record: Mapping[str, Any]) -> list[str]:
    compared = "known secrets" if record["compared"] == "span_auc" else "whole documents"
    control = {
        "oracle": "a model that was trained without what was to be forgotten",
        "reference": "a reference that never saw it, on the documents that it did not see",
        None: "none: an AUC is held against 0.5",
    }[record["models"]["control_is"]]
    margin = record["settings"]["margin"]
    lines = [
        f"Each attack compares {compared} to forget with {compared} of people whom the model never saw: AUC, the "
        "chance that one to forget looks more memorized (0.5: as if never seen); or the share of the values that come "
        f"back word for word. Control: {control}. The gap is what the attack gets beyond the control, with its 95 % "
        f"interval (clusters: people). A model *fell* where the gap is above {margin:g} and surely above 0, all "
        f"attacks counted as one family of tests; it *withstood* where the interval lies within {margin:g}.",
        "",
        *_judges(record),
        "",
        "| attack | texts, people: to forget; never seen | model | control | gap | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in record["findings"]:
        attack = ATTACKS[one["attack"]]
        part = f" ({one['part'].replace('_', ' ')} depth)" if one["part"] else ""
        counts = "; ".join(f"{one['texts'][side]}, {one['people'][side]}" for side in ("forgotten", "never_seen"))
        state = STATE_WORDS[one["state"]] if attack.scope == "model" else "needs the model before"
        lines.append(
            f"| {attack.title}{part} | {counts} | {_number(one, 'value')} | {_number(one, 'control')} | "
            f"{_gap(one)} | {state} |"
        )
    bound = next((one["epsilon"] for one in record["findings"] if one["attack"] == "judges"), None)
    if bound is not None:
        lines += [
            "",
            "*Beside models that never saw it* shows, with 95 % confidence, that no claim of (ε, δ)-"
            f"indistinguishability with ε below {bound:.2f} (δ = 1e-5) holds for the model; 0 shows nothing.",
        ]
    lines += _needs(record["findings"]) + _kinds(record["findings"])
    lines += [line for one in record["findings"] if "leak_at" in one for line in ("", _draws(one))]
    lines += ["", *[f"- *{ATTACKS[name].title}*: {ATTACKS[name].asks}" for name in _names(record["findings"])]]
    return lines


def _needs(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """With how many people it could be told what now cannot."""
    untold = [one for one in findings if one["state"] == "cannot_tell" and ATTACKS[one["attack"]].scope == "model"]
    needed: dict[str, list[str]] = {}
    for one in untold:
        counts = one["people_needed"]
        many = "no number" if counts is None else f"{counts['forgotten']:,} and {counts['never_seen']:,}"
        needed.setdefault(many, []).append(f"*{ATTACKS[one['attack']].title}*")
    if not untold:
        return []
    said = "; ".join(f"{many}: {', '.join(dict.fromkeys(names))}" for many, names in needed.items())
    return [
        "",
        "*Cannot tell*: the interval reaches beyond the margin. Were the gaps what they seem, about so many people to "
        f"forget, and never-seen ones, would tell. {said}.",
    ]


def _kinds(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which kinds of text it is that the model fell by."""
    lines = []
    for one in findings:
        if one["state"] in ("fell", "over_forgotten") and one["kinds"] and ATTACKS[one["attack"]].scope == "model":
            lines.append(f"- *{ATTACKS[one['attack']].title}*: {said_by_kind(one)}")
    return ["", "By kind (model, control; no test of its own):", "", *lines] if lines else []


def said_by_kind(finding: Mapping[str, Any]) -> str:
    """A finding's figures of each kind of text, the farthest above the control first."""

    def gap(of: Mapping[str, Any]) -> float:
        return (of["value"] or 0.0) - (of["control"] or 0.0)

    kinds = sorted(finding["kinds"].items(), key=lambda one: -gap(one[1]))
    return "; ".join(f"{kind} {_number(of, 'value')}, {_number(of, 'control')}" for kind, of in kinds)


def _draws(finding: Mapping[str, Any]) -> str:
    """What so many draws give, of the model and of its control."""
    counts = list(finding["leak_at"])
    shown = list(dict.fromkeys([counts[0], counts[len(counts) // 2], counts[-1]]))

    def of(role: str) -> str:
        chances = [finding["leak_at"][count][role] for count in shown]
        return ", ".join("–" if chance is None else f"{chance:.3f}" for chance in chances)

    return (
        f"*{ATTACKS[finding['attack']].title}*: mean chance that a value is among {', '.join(shown)} draws: "
        f"{of('value')}; control {of('control')}; values of never-seen people {of('never_seen')}."
    )


def _gap(finding: Mapping[str, Any]) -> str:
    """With its interval; of one person, who has none, the place among the never-seen ones."""
    if (rank := finding.get("rank")) is None:
        return _number(finding, "gap", sign=True)
    return f"{rank['as_high']} of {rank['of']} never-seen people lie as high (p = {rank['p_value']:.3f})"


def _judges(record: Mapping[str, Any]) -> list[str]:
    return [
        {
            True: "The references that judge took no part in unlearning.",
            False: "The references that judge took part in unlearning, or it is not known that they did not: a model "
            "that was tuned against them would pass. Audit with eight references, of which half are kept out, or have "
            "others judge.",
            None: "No reference took part in making the model.",
        }[record["kept_out"]]
    ]


def _cost(record: Mapping[str, Any]) -> list[str]:
    rows = (
        ("loss on retained documents, change, nats a token", "retain_nll_change"),
        ("loss on never-seen documents, change", "holdout_nll_change"),
        ("KL(before, after) on retained documents, nats a token", "retain_kl"),
        ("KL(before, after) on never-seen documents", "holdout_kl"),
        ("likeliest tokens that still are, retained documents", "retain_likeliest_kept"),
        ("likeliest tokens that still are, never-seen documents", "holdout_likeliest_kept"),
        ("retained people's secrets, rise in log-probability, nats a token", "retained_exposure_change"),
    )
    lines = [
        "| figure | |",
        "| --- | --- |",
        *[f"| {words} | {_number(record['utility'], key)} |" for words, key in rows],
    ]
    return lines + [
        f"| task {one['task']}, {one['metric']}, before → after | {one['before']:.3f} → {one['mitigated']:.3f} |"
        for one in record["tasks"]
    ]
    return ["| figure | |", "| --- | --- |", *lines]


def _not_tested(record: Mapping[str, Any]) -> list[str]:
    covered = record["coverage"]
    lines = [f"- attack *{one['attack'].replace('_', ' ')}*: {one['reason']}" for one in record["not_made"]]
    if covered["known_spans_outside"]:
        lines.append(
            f"- {covered['known_spans_outside']:,} of {covered['known_spans']:,} known secrets, which stand where no "
            "token was judged"
        )
    if covered["values_outside"]:
        lines.append(f"- {covered['values_outside']:,} other values that stand where no token was judged")
    if record["skipped"]:
        lines.append(f"- {record['skipped']:,} rows or documents that were left out of the audit")
    return [*lines, *[f"- {what}" for what in _NOT_TESTED]]


def _remains(record: Mapping[str, Any]) -> list[str]:
    copies, residual = record["copies"], record["verdict"]["residual"]
    lines = [f"- the model before ({copies['model_before']}) holds what was to be forgotten: delete it, and its copies"]
    if (elsewhere := record["elsewhere"])["places"]:
        lines.append(
            f"- **the same secrets stand in {elsewhere['places']:,} places of {elsewhere['documents']:,} documents "
            "that the model was trained on and keeps; it may know them from there. Select these, too (an erasure "
            "request finds them)**"
        )
    if copies["mitigated_needs_model_before"]:
        lines.append(
            "- **the mitigated model is an adapter over it: whoever has the adapter's base has the leaking model. "
            "Deliver merged weights instead**"
        )
    if residual:
        names = ", ".join(ATTACKS[name].title.lower() for name in residual)
        lines.append(f"- who has both checkpoints can tell what was forgotten ({names}): that is so of any deletion")
    if copies["references"]:
        lines.append(
            f"- {len(copies['references'])} references were trained on documents to forget "
            f"({_listed(copies['references'])}): delete them once nothing is to be verified any more"
        )
    return [*lines, "- audits and training files hold the text itself"]


def _names(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one["attack"] for one in findings))


def _number(values: Mapping[str, Any], key: str, *, sign: bool = False) -> str:
    value, interval = values.get(key), values.get(f"{key}_interval")
    if value is None:
        return "–"
    shown, *limits = (format(round(one, 3) + 0.0, "+.3f" if sign else ".3f") for one in (value, *(interval or ())))
    return f"{shown} ({', '.join(limits)})" if limits else shown


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        return " + ".join(f"{name} {share:g}" for name, share in value.items())
    if isinstance(value, list) and value:
        return ", ".join(map(str, value))
    return "–" if value in (None, []) else str(value)
