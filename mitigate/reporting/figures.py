"""The figures of a report, read by key: value, 95 % interval, unit, or the note that says why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report with its 95 % interval; `reason` says why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    digits: int = 2
    reason: str = ""

    @property
    def text(self) -> str:
        """The value with its unit."""
        if self.value is None:
            return "not measured"
        if self.unit == "%":
            return f"{figure_text(100 * self.value, self.digits)} %"
        return f"{figure_text(self.value, self.digits)}{' ' + self.unit if self.unit else ''}"

    @property
    def interval(self) -> str:
        """The interval as words, or nothing."""
        if self.value is None or self.low is None or self.high is None:
            return ""
        by = 100 if self.unit == "%" else 1
        return f"{figure_text(by * self.low, self.digits)} to {figure_text(by * self.high, self.digits)}"


@dataclass(frozen=True)
class FigureRow:
    """One line of the table of figures."""

    name: str
    before: ReportFigure
    after: ReportFigure | None
    oracle: ReportFigure | None
    reading: str


class Figures:
    """The report's figures by section and key, `null` with the note that says why.

    Args:
        report: the content of report.json.
    """

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.report = report
        self.audit_only = (report.get("leakage") or {}).get("after") is None and report.get("unlearn") is None

    def get(self, *path: str, words: Sequence[str] = (), unit: str = "", digits: int = 2) -> ReportFigure:
        """The figure at `path`; its interval is under the last key + `_interval`.

        Args:
            path: keys from the report's top.
            words: a note with one of these (case ignored) is the reason when the figure is null.
            unit, digits (*optional*): how to write it.
        """
        section: Any = self.report
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, Mapping) else None
        section = section if isinstance(section, Mapping) else {}
        value = finite(section.get(path[-1]))
        low, high = (section.get(f"{path[-1]}_interval") or (None, None))[:2]
        reason = "" if value is not None else self._reason(words or (path[-1].replace("_", " "),))
        return ReportFigure(value, finite(low), finite(high), unit, digits, reason)

    def pair(
        self, *path: str, words: Sequence[str] = (), unit: str = "", digits: int = 2
    ) -> tuple[ReportFigure, ReportFigure | None]:
        """The figure before and after; no after where nothing was unlearned."""
        if path[0] == "leakage":
            keys = [("leakage", side, *path[1:]) for side in ("before", "after")]
        else:
            keys = [(*path, side) for side in ("before", "after")]
        words = words or (path[-1].replace("_", " "),)
        before, after = (self.get(*key, words=words, unit=unit, digits=digits) for key in keys)
        return before, None if self.audit_only else after

    def rows(self) -> list[tuple[str, list[FigureRow]]]:
        """All figures, as titled groups of lines."""
        table = _TABLE | (_TOFU if self.report.get("tofu") else {}) | _questions(self.report.get("questions"))
        return [(title, [self._row(line) for line in lines]) for title, lines in table.items()]

    def _row(self, line: _Line) -> FigureRow:
        before, after = self.pair(*line.path, words=line.words, unit=line.unit, digits=line.digits)
        oracle = self.get(*line.path, "oracle", words=("oracle",), unit=line.unit, digits=line.digits)
        has_oracle = line.path[0] in ("utility", "tofu", "questions") and oracle.value is not None
        return FigureRow(line.name, before, after, oracle if has_oracle else None, line.reading)

    def _reason(self, words: Sequence[str]) -> str:
        for note in self.report.get("notes") or ():
            if any(word.lower() in note.lower() for word in words):
                return str(note)
        return ""


def figure_text(value: float | None, digits: int = 2) -> str:
    """A number with a real minus sign; a dash for none."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def finite(value: Any) -> float | None:
    """A value as a number; None where it is none, or not a finite one."""
    return float(value) if isinstance(value, int | float) and isfinite(value) else None


class _Line(NamedTuple):
    name: str
    path: tuple[str, ...]
    words: tuple[str, ...]
    unit: str
    digits: int
    reading: str


AUC_WORDS = ("auc",)  # in a note that says why there is no AUC
_CHANCE = "0.50 is chance: nothing to tell. 1.00: every secret is recognized."
_TABLE = {
    "Leakage": (
        _Line("Secrets told from never-seen ones (span AUC)", ("leakage", "span_auc"), AUC_WORDS, "", 3, _CHANCE),
        _Line(
            "Documents told from never-seen ones (document AUC)", ("leakage", "document_auc"), AUC_WORDS, "", 3, _CHANCE
        ),
        _Line(
            "Secrets caught at 1 % false alarms",
            ("leakage", "tpr_at_1pct_fpr"),
            ("error rate", *AUC_WORDS),
            "%",
            1,
            "About 1 % is chance.",
        ),
        _Line(
            "Mean score of the selected spans",
            ("leakage", "span_score_mean"),
            ("score",),
            "nats",
            2,
            "Near 0: as likely as to models that never saw them.",
        ),
        _Line(
            "Sensitive values completed word for word",
            ("extraction",),
            ("extraction",),
            "%",
            1,
            "Greedy decoding from the text that truly precedes the value. Known spans and what is recognised.",
        ),
    ),
    "Distance to a model that never saw the text": (
        _Line(
            "To the retrained model (oracle)",
            ("oracle_distance",),
            ("oracle",),
            "nats",
            2,
            "Mean absolute difference of log-probability on the secret tokens. Lower is better.",
        ),
        _Line(
            "To the references",
            ("out_distance",),
            ("out_distance", "distance to the references"),
            "nats",
            2,
            "Same, on the selected tokens, against references that never saw the document.",
        ),
    ),
    "Cost": (
        _Line(
            "Loss on retained documents",
            ("utility", "retain_nll"),
            ("retain", "utility"),
            "nats/token",
            3,
            "Should stay where it was.",
        ),
        _Line(
            "Loss on documents never seen",
            ("utility", "holdout_nll"),
            ("holdout", "utility"),
            "nats/token",
            3,
            "Should stay where it was.",
        ),
    ),
}


def _tofu_parts(name: str, title: str, *parts: str) -> tuple[_Line, ...]:
    """The lines of one set of questions of the TOFU benchmark."""
    readings = {
        "probability": (
            "probability of the answer",
            "Of the true answer, per token; where there are choices, its share.",
        ),
        "truth_ratio": ("truth", "max(0, 1 − truth ratio): 0 where wrong answers are as likely as the right one."),
        "rouge_l_recall": (
            "words answered",
            "ROUGE-L recall: share of the true answer's words in the greedy one, in order.",
        ),
    }
    return tuple(
        _Line(f"{title}: {readings[part][0]}", ("tofu", "sets", name, part), ("tofu",), "", 3, readings[part][1])
        for part in parts
    )


_PARTS = ("probability", "truth_ratio", "rouge_l_recall")
_TOFU = {
    "TOFU benchmark": (
        _Line(
            "Forget quality: log10 of the p-value",
            ("tofu", "forget_quality_log10"),
            ("forget quality",),
            "",
            2,
            "Do truth ratios tell the model from one retrained without the text? 0: not at all; below −1.3: yes.",
        ),
        _Line(
            "Truth ratio of the forget questions",
            ("tofu", "truth_ratio"),
            ("tofu",),
            "",
            3,
            "How likely wrong answers are against the right one, paraphrased. Aim: that of the retrained model.",
        ),
        _Line(
            "Truth ratio near one, as released code has it",
            ("tofu", "released_code", "truth_ratio_near_one"),
            ("tofu",),
            "",
            3,
            "Mean of min(R, 1/R) over the forget questions: 1 where right and wrong answers are equally likely.",
        ),
        _Line(
            "Model utility",
            ("tofu", "model_utility"),
            ("tofu",),
            "",
            3,
            "Harmonic mean of the nine numbers of retain questions, real authors and world facts. 1 is best.",
        ),
        _Line(
            "Utility of the retain questions alone",
            ("tofu", "retain_utility"),
            ("tofu",),
            "",
            3,
            "Harmonic mean of their three numbers.",
        ),
        *_tofu_parts("forget", "Forget", "probability", "rouge_l_recall"),
        *_tofu_parts("retain", "Retain", *_PARTS),
        *_tofu_parts("real_authors", "Real authors", *_PARTS),
        *_tofu_parts("world_facts", "World facts", *_PARTS),
    ),
}


def _questions(section: Mapping[str, Any] | None) -> dict[str, tuple[_Line, ...]]:
    """The lines of the recipe's own questions, part by part."""
    if not section:
        return {}
    names = {"forget": "to forget", "retain": "retained", "holdout": "never seen"}
    parts = [
        _Line(
            f"{part}: {names[set_name]}",
            ("questions", "parts", part, set_name),
            ("questions",),
            "",
            3,
            f"Mean score of {figures['asked']:,} answers.",
        )
        for part, sets in section["parts"].items()
        for set_name, figures in sets.items()
    ]
    whole = (
        _Line(
            "Task aggregate, as LUME has it",
            ("questions", "task_aggregate"),
            ("questions",),
            "",
            3,
            "Harmonic mean of the scores of what is retained, and of 1 less those of what is to be forgotten.",
        ),
        _Line(
            "Membership score, as LUME has it",
            ("questions", "membership_score"),
            ("questions",),
            "",
            3,
            "1 − 2 · |AUC − 0.5| of the loss of documents to forget and never-seen ones: 1 tells nothing.",
        ),
    )
    return {"Questions": (*parts, *whole)}
