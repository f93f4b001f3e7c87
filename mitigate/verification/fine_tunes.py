"""Two fine-tunes of the same text beside each other, before one of them is released: which leaks less, and by how much.

    found = compare_fine_tunes(Audit.load("audit-a"), Audit.load("audit-b"))
    found.status                        # of the second: leaks_less, leaks_more, as_much, cannot_tell
    found.save("gate")                  # comparison.json and COMPARISON.md

Both were trained for the same purpose, such as on the text as it is, redacted, deduplicated, or with differential
privacy. Each is audited on the documents as they were before that; what a model leaks alone, its own verdict says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mitigate import __version__
from mitigate.artifacts.files import new_directory, new_file, write_json
from mitigate.detection.record import Audit
from mitigate.errors import MitigateError
from mitigate.models.store import ModelStore
from mitigate.runtime import library_versions
from mitigate.statistics.intervals import UNMEASURED, Figure, clustered_mean, flat, of_family, paired_excess
from mitigate.verification.compare import compare, measure
from mitigate.verification.extraction import Attempts
from mitigate.verification.extraction_figures import headline_places
from mitigate.verification.figures import View
from mitigate.verification.never_seen import excess_over, sides_of

SCHEMA = 1
NAMES = ("a", "b")
LEAKAGE = {  # figures by which the two are compared
    "span_auc": "known secrets against never-seen ones, AUC",
    "document_auc": "documents against never-seen ones, AUC",
    "extraction": "sensitive values that come back word for word, share",
}
STATUS_WORDS = {
    "leaks_less": "B LEAKS LESS THAN A",
    "leaks_more": "B LEAKS MORE THAN A",
    "as_much": "B LEAKS AS MUCH AS A",
    "cannot_tell": "CANNOT TELL WHICH LEAKS MORE",
}


@dataclass(frozen=True)
class FineTunes:
    """What two fine-tunes leak, and the difference.

    Attributes:
        record: the content of comparison.json.
    """

    record: dict[str, Any]

    @property
    def status(self) -> str:
        """Of the second beside the first: `leaks_less`, `leaks_more`, `as_much` or `cannot_tell`."""
        return str(self.record["status"])

    @property
    def figures(self) -> dict[str, float]:
        """Every number by a name: `b.span_auc`, `difference.extraction`; what was not measured is left out."""
        named = {
            **{f"{name}.{key}": value for name in NAMES for key, value in self.record["models"][name].items()},
            **{f"difference.{key}": one["value"] for key, one in self.record["differences"].items()},
            "difference.holdout_nll": self.record["cost"]["holdout_nll"],
        }
        return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}

    def save(self, directory: str | Path, *, replace: bool = False) -> None:
        """Write comparison.json and COMPARISON.md, without any text of the documents."""
        with new_directory(Path(directory), replace=replace) as temporary:
            write_json(temporary / "comparison.json", self.record)
            with new_file(temporary / "COMPARISON.md") as made:
                made.write_text(in_words(self.record), encoding="utf-8")


def compare_fine_tunes(
    first: Audit,
    second: Audit,
    *,
    extraction: bool = True,
    margin: float = 0.05,
    store: ModelStore | None = None,
    name: str = "",
) -> FineTunes:
    """Compare what two fine-tunes leak of the same documents, person by person.

    Args:
        first: audit of the one in use, or trained on the text as it is.
        second: audit of the other: of the same documents, with the same tokenizer and score. Made by `audit` itself, it
            also finds what this one alone memorized; `reaudit` looks at the first one's spans.
        extraction (`bool`, *optional*, defaults to `True`): try to extract the sensitive values from both.
        margin (`float`, *optional*, defaults to 0.05): differences of AUC or share that count as none.
        store (*optional*): loads the models.
        name (*optional*): a title.

    Raises:
        MitigateError: audits of other documents, another tokenizer or another score.
    """
    audits = dict(zip(NAMES, (first, second), strict=True))
    _check(first, second)
    found = {key: measure(audit, extraction=extraction, store=store)[1] for key, audit in audits.items()}
    reports = {key: compare(audit, extraction=found[key]).report for key, audit in audits.items()}
    views = {key: View(audit) for key, audit in audits.items()}
    attempts = {key: one.forget for key, one in found.items() if one is not None}
    differences = {
        "span_auc": _auc_difference(views, "span_auc"),
        "document_auc": _auc_difference(views, "document_auc"),
        "extraction": _extraction_difference(attempts, views["a"].groups) if len(attempts) == 2 else UNMEASURED,
    }
    tests = sum(figure.value is not None for figure in differences.values())
    states = {key: _state(figure, margin=margin, tests=tests) for key, figure in differences.items()}
    status = _status(list(states.values()))
    return FineTunes(
        {
            "schema": SCHEMA,
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": status,
            "sentences": _sentences(status, states, {key: report["verdict"] for key, report in reports.items()}),
            "differences": {
                key: {**_told(figure), "state": states[key] if figure.value is not None else "not_measured"}
                for key, figure in differences.items()
            },
            "cost": flat({"holdout_nll": _loss_difference(views)}),
            "models": {key: _model(audits[key], reports[key]) for key in NAMES},
            "counts": reports["a"]["counts"],
            "margin": margin,
            "notes": _notes(audits),
            "code": __version__,
            "versions": library_versions(),
        }
    )


def _check(first: Audit, second: Audit) -> None:
    own, other = first.metadata, second.metadata
    for what, one, two, remedy in (
        (
            "documents",
            own.documents,
            other.documents,
            "audit both on the same documents, as they were before redaction",
        ),
        ("tokenizers", own.tokenizer, other.tokenizer, "models with other tokens are not compared token by token"),
        ("scores", own.detect.score, other.detect.score, "audit both with the same detect.score"),
    ):
        if one != two:
            raise MitigateError(f"compare: the two audits have different {what}; {remedy}")
    if own.target.fingerprint == other.target.fingerprint:
        raise MitigateError("compare: both audits are of the same model, so there is nothing to compare")


def _auc_difference(views: Mapping[str, View], name: str) -> Figure:
    first, second = (sides_of(view, view.audit.columns["score"], name) for view in (views["a"], views["b"]))
    if not all(len(scores) for sides in (first, second) for scores, _ in sides):
        return UNMEASURED
    return excess_over(second, [first])


def _extraction_difference(attempts: Mapping[str, Attempts], groups: Mapping[str, str]) -> Figure:
    """Of the values that both were asked for."""
    hits = {key: dict(zip(one.places, one.completed["before"], strict=True)) for key, one in attempts.items()}
    both = headline_places([place for place in hits["a"] if place in hits["b"]])
    if not both:
        return UNMEASURED
    own, other = (np.array([hits[key][place] for place in both], dtype=float) for key in ("b", "a"))
    return paired_excess(own, other, [groups[place.doc_id] for place in both])


def _loss_difference(views: Mapping[str, View]) -> Figure:
    """Mean rise of the loss on never-seen documents, nats a token."""
    first, second = views["a"], views["b"]
    there = (first.token_set == "holdout") & first.scored & second.scored
    if not there.any():
        return UNMEASURED
    rise = first.audit.columns["log_prob"] - second.audit.columns["log_prob"]
    return clustered_mean(rise[there], first.token_group[there].tolist())


def _state(figure: Figure, *, margin: float, tests: int) -> str:
    """Less or more: surely, all figures counted as one family of tests (Bonferroni); as much: within the margin."""
    if figure.value is None or figure.low is None or figure.high is None:
        return "cannot_tell"
    wide = of_family(figure, tests)
    if wide.high is not None and wide.high < 0:
        return "less"
    if wide.low is not None and wide.low > 0:
        return "more"
    return "as_much" if figure.high <= margin and figure.low >= -margin else "cannot_tell"


def _status(states: Sequence[str]) -> str:
    if "more" in states:
        return "leaks_more"
    if "less" in states:
        return "leaks_less"
    return "as_much" if set(states) == {"as_much"} else "cannot_tell"


def _sentences(status: str, states: Mapping[str, str], verdicts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    of = {state: [LEAKAGE[key] for key, own in states.items() if own == state] for state in set(states.values())}
    words = {"more": "It leaks more by", "less": "It leaks less by", "as_much": "As much by"}
    said = [f"{words[state]}: {'; '.join(of[state])}." for state in words if state in of]
    if "cannot_tell" in of:
        said.append(f"Not measured, or too few people to tell, by: {'; '.join(of['cannot_tell'])}.")
    for key, verdict in verdicts.items():
        leaks = {True: "it leaks", False: "no leakage is found", None: "whether it leaks cannot be told"}
        said.append(f"{key.upper()} alone: {leaks[verdict['leaks']]}.")
    if status == "leaks_less" and verdicts["b"]["leaks"] is not False:
        said.append("Less is not nothing: hold B against what may be released.")
    return said


def _model(audit: Audit, report: Mapping[str, Any]) -> dict[str, Any]:
    """One fine-tune's own figures, as its report has them."""
    leakage, extraction = report["leakage"]["before"], report["extraction"]
    keys = ("span_auc", "document_auc", "tpr_at_1pct_fpr")
    both = {key: leakage[key] for name in keys for key in (name, f"{name}_interval")}
    found = {
        "extraction": extraction["before"],
        "extraction_interval": extraction["before_interval"],
        "holdout_nll": report["utility"]["holdout_nll"]["before"],
        "holdout_nll_interval": report["utility"]["holdout_nll"]["before_interval"],
        "found_spans": report["selected"]["found"] if audit.metadata.again is None else None,
    }
    return {
        **both,
        **found,
        "verdict": {key: report["verdict"][key] for key in ("status", "leaks", "sentences")},
        "fingerprint": audit.metadata.target.fingerprint,
        "notes": report["notes"],
    }


def _notes(audits: Mapping[str, Audit]) -> list[str]:
    notes = []
    if any(audit.metadata.again is not None for audit in audits.values()):
        notes.append(
            "One audit is another one made again: only spans that the first model memorized were looked at in it. "
            "Audit it by itself to find what it alone memorized."
        )
    names = {key: [one.fingerprint for one in audit.metadata.references] for key, audit in audits.items()}
    if names["a"] != names["b"]:
        notes.append("The two were judged by different references: a part of the difference may be these.")
    return notes


def _told(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "interval": [figure.low, figure.high] if figure.low is not None else None}


def in_words(record: Mapping[str, Any]) -> str:
    """The content of COMPARISON.md."""
    models, counts = record["models"], record["counts"]
    lines = [
        f"# Two fine-tunes{': ' + record['name'] if record['name'] else ''}",
        "",
        f"**{STATUS_WORDS[record['status']]}.** {' '.join(record['sentences'])}",
        "",
        f"{counts['documents']:,} documents, of which {counts['holdout']:,} were never seen by either. Differences are "
        "B less A of the same people and values, with 95 % intervals (clusters: people); they count as one family of "
        f"tests, and as none within {record['margin']:g}.",
        "",
        "| figure | A | B | difference | B leaks |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key, words in LEAKAGE.items():
        one = record["differences"][key]
        told = _shown(one["value"], one["interval"], sign=True)
        state = one["state"].replace("_", " ")
        lines.append(f"| {words} | {_of(models['a'], key)} | {_of(models['b'], key)} | {told} | {state} |")
    cost = _shown(record["cost"]["holdout_nll"], record["cost"]["holdout_nll_interval"], sign=True)
    rows = (
        ("known secrets found at 1 % false alarms", "tpr_at_1pct_fpr", "–"),
        ("spans found by its own audit", "found_spans", "–"),
        ("loss on never-seen documents, nats a token", "holdout_nll", cost),
    )
    lines += [f"| {words} | {_of(models['a'], key)} | {_of(models['b'], key)} | {d} | |" for words, key, d in rows]
    lines += ["", *[f"- {note}" for note in record["notes"]]]
    for key in NAMES:
        lines += ["", f"## {key.upper()} alone", "", " ".join(models[key]["verdict"]["sentences"]), ""]
        lines += [f"- {note}" for note in models[key]["notes"]] + [f"- fingerprint {models[key]['fingerprint']}"]
    return "\n".join(lines) + "\n"


def _of(model: Mapping[str, Any], key: str) -> str:
    return _shown(model[key], model.get(f"{key}_interval"))


def _shown(value: float | None, interval: Sequence[float] | None, *, sign: bool = False) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    shown, *limits = (format(round(one, 3) + 0.0, "+.3f" if sign else ".3f") for one in (value, *(interval or ())))
    return f"{shown} ({', '.join(limits)})" if limits else shown
