"""Compare an audit with its re-audit: how far the leakage fell, and what it cost.

    comparison = compare(before, after)
    comparison.save("report")           # report.json and report.html

The keys of report.json are stable and explained in docs/report.md. A figure that cannot be had is null, and `notes`
says why. Higher scores = more memorized; distances and losses in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mitigate.artifacts.files import new_directory, new_file, write_json
from mitigate.detection.audit import load_audited
from mitigate.detection.panel import as_judged
from mitigate.detection.record import Audit
from mitigate.detection.signals.compute import token_log_probs
from mitigate.errors import MitigateError
from mitigate.mistakes import not_one_of
from mitigate.models.model import Model
from mitigate.models.store import ModelStore
from mitigate.reporting.content import SCHEMA, Report, checked
from mitigate.reporting.masking import Mask
from mitigate.reporting.settings import ShownText
from mitigate.reporting.verdict import verdict_of
from mitigate.runtime import library_versions
from mitigate.statistics.intervals import flat
from mitigate.verification.erasure import erasure_figures, erasure_notes, without_request
from mitigate.verification.extraction import Attempts, Extraction, extract
from mitigate.verification.extraction_figures import extraction_figures
from mitigate.verification.extraction_values import Secrets, secrets_of
from mitigate.verification.figures import (
    View,
    asked_to_forget,
    leakage,
    oracle_distance,
    out_distance,
    over_forgotten,
    utility,
)
from mitigate.verification.mitigation import mitigation_figures, mitigation_notes
from mitigate.verification.never_seen import never_seen_level
from mitigate.verification.tofu.figures import tofu_notes

_AUDITS = ("audit", "reaudit")  # stages that read every token
MOST_VALUES = 1000  # sensitive values that extraction tries; of more, a random sample: 3 points of interval either way


@dataclass(frozen=True)
class Comparison:
    """An audit, its re-audit and the figures that say what changed.

    Attributes:
        report: the content of report.json.
        before: the audit.
        after: the re-audit, or None if nothing was unlearned.
    """

    report: Report
    before: Audit
    after: Audit | None

    def html(self) -> str:
        """The self-contained report page."""
        from mitigate.reporting.page import render_report

        before, after, _ = as_judged(self.before, self.after)  # as the figures are told
        return render_report(self.report, before, after, mask=self._mask)

    def save(self, directory: str | Path, *, replace: bool = False) -> None:
        """Write report.json and report.html, readable by their owner only."""
        with new_directory(Path(directory), replace=replace) as temporary:
            self.save_into(temporary)

    def save_into(self, directory: Path) -> None:
        """Write report.json and report.html into a directory that holds other things too; both masked alike."""
        page = self.html()
        write_json(directory / "report.json", self._mask.report(self.report))
        with new_file(directory / "report.html") as temporary:
            temporary.write_text(page, encoding="utf-8")

    @cached_property
    def _mask(self) -> Mask:
        """What may be shown."""
        return Mask([audit for audit in (self.before, self.after) if audit is not None], text=self.report["text"])

    def show(self) -> Any:
        """The report, for a notebook's output."""
        from html import escape

        from IPython.display import HTML

        return HTML(
            f'<div><iframe srcdoc="{escape(self.html(), quote=True)}" width="100%" height="900"></iframe></div>'
        )


def compare(
    before: Audit,
    after: Audit | None = None,
    *,
    oracle_log_probs: np.ndarray | None = None,
    extraction: Extraction | None = None,
    tofu: Mapping[str, Any] | None = None,
    questions: Mapping[str, Any] | None = None,
    name: str = "",
    recipe: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    text: str = "masked",
    warnings: Sequence[str] = (),
) -> Comparison:
    """Figures over two audits of the same documents.

    Args:
        before: audit of the leaky model.
        after (*optional*): re-audit of the mitigated model, made with `reaudit`; it says how that model was made.
        oracle_log_probs (*optional*): (N,) log-probabilities, nats, of the same tokens under a model retrained without
            the forget documents.
        extraction (*optional*): which sensitive values the models complete, from `measure`; without it the report says
            that extraction was not measured, and is never good. `verify` measures and compares in one call.
        tofu (*optional*): the TOFU benchmark's figures, from `tofu.tofu_figures`.
        questions (*optional*): what was answered to further questions, from `questions.question_figures`.
        name, recipe, seconds (*optional*): recorded in the report.
        text (`str`, *optional*, defaults to `masked`): what the report shows of the documents: `none`: figures only;
            `masked`: text with its secrets masked; `all`: everything.
        warnings (*optional*): notes that come before those of the comparison.

    Raises:
        MitigateError: the two audits are not of the same documents, spans and references; another `text`.
    """
    if wrong := not_one_of(ShownText, text):
        raise MitigateError(f"compare: text {wrong}")
    if after is not None and after.metadata.documents != before.metadata.documents:
        raise MitigateError("compare: the two audits are of different documents; audit the same documents again")
    made_again = after is None or after.metadata.again == before.fingerprint
    if not made_again or (after is not None and _judged(after) != _judged(before)):
        raise MitigateError(
            "compare: the second audit is not the first one made again, for its spans or its references are others, or "
            "the two were swapped; make it with `mitigate audit --target MODEL --again AUDIT`"
        )
    notes = _extract_notes(before)
    seen_before, seen_after, kept_out = as_judged(before, after)
    if kept_out is False:
        notes.append(_unjudged(after))
    view = View(seen_before)
    audits = {"before": seen_before, "after": seen_after}
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "leakage": {key: leakage(view, audit, notes) for key, audit in audits.items()},
        "never_seen": never_seen_level(view, audits, oracle_log_probs, notes),
        "asked": asked_to_forget(before, after),
        "judges_kept_out": kept_out,
        "coverage": before.metadata.coverage.written(),
        "oracle_distance": oracle_distance(view, audits, oracle_log_probs, notes),
        "out_distance": out_distance(view, audits),
        "utility": utility(view, audits, oracle_log_probs),
        "extraction": extraction_figures(view, extraction, audits, notes),
        "selected_token_share": view.selected_share,
        "selected": view.selection(),
        **flat({"over_forgotten_share": over_forgotten(view, seen_after)}),
        "tofu": tofu,
        "questions": questions,
        "erasure": erasure_figures(seen_before, seen_after),
        "calibration": before.metadata.calibration.written(),
        "counts": view.counts(),
        "skipped": list(before.metadata.skipped),
        **mitigation_figures(before, after),
        "seconds": {stage: round(value, 1) for stage, value in (seconds or {}).items()},
        "tokens_per_second": {
            stage: round(len(before.tokens) / value, 1) for stage, value in (seconds or {}).items() if stage in _AUDITS
        },
        "fingerprints": {
            "target": before.metadata.target.fingerprint,
            "mitigated": after.metadata.target.fingerprint if after is not None else None,
            "references": [reference.fingerprint for reference in before.metadata.references],
            "tokenizer": before.metadata.tokenizer,
            "documents": before.metadata.documents,
        },
        "versions": library_versions(),
        "recipe": dict(recipe or {}) if text == "all" else without_request(recipe or {}),
        "notes": [],
        "text": text,
    }
    notes += (
        view.notes()
        + mitigation_notes(report["retrain"])
        + erasure_notes(report["erasure"], report["retrain"])
        + tofu_notes(tofu)
    )
    report["notes"] = [*warnings, *dict.fromkeys(notes)]
    report["verdict"] = verdict_of(report)
    return Comparison(checked(report), before, after)


def verify(
    before: Audit,
    after: Audit | None = None,
    *,
    oracle: str | Path | None = None,
    extraction: bool = True,
    store: ModelStore | None = None,
    name: str = "",
    text: str = "masked",
) -> Comparison:
    """Attack the audited models and compare the audits: all figures of a report in one call.

    Args:
        before: audit of the leaky model.
        after (*optional*): re-audit of the mitigated model, made with `reaudit`.
        oracle (*optional*): a model retrained without the forget documents.
        extraction (`bool`, *optional*, defaults to `True`): try to extract the sensitive values.
        store (*optional*): loads the models.
        name (*optional*): recorded in the report.
        text (`str`, *optional*, defaults to `masked`): what the report shows of the documents; see `compare`.

    Raises:
        MitigateError: the audits do not belong together, a model changed since, or the oracle has another tokenizer.
    """
    log_probs, found = measure(before, after, oracle=oracle, extraction=extraction, store=store)
    return compare(before, after, oracle_log_probs=log_probs, extraction=found, name=name, text=text)


def measure(
    before: Audit,
    after: Audit | None = None,
    *,
    oracle: str | Path | None = None,
    extraction: bool = True,
    store: ModelStore | None = None,
) -> tuple[np.ndarray | None, Extraction | None]:
    """Run the models that `compare` needs figures of.

    Args:
        before: the audit; its target is attacked by extraction.
        after (*optional*): the re-audit; its target likewise.
        oracle (*optional*): a model retrained without the forget documents; attacked likewise.
        extraction (`bool`, *optional*, defaults to `True`): try to extract the sensitive values.
        store (*optional*): loads the models.

    Returns:
        `oracle_log_probs` and `extraction` as `compare` takes them.
    """
    store = store or ModelStore()
    log_probs = None
    oracle_model = store.load(oracle) if oracle is not None else None
    if oracle_model is not None:
        before.check_tokenizer(oracle_model.tokenizer, name=f"oracle {oracle}", store=store)
        log_probs = token_log_probs(oracle_model, before.tokenized())
    if not extraction:
        return log_probs, None
    audited = [audit.metadata.target for audit in (before, after) if audit is not None]
    models = dict(zip(("before", "after"), load_audited(audited, store=store), strict=False))
    models |= {"oracle": oracle_model} if oracle_model is not None else {}
    context = min(model.context for model in models.values())
    names = before.sets.values()
    sets = {"forget": ("forget",) if "forget" in names else (None,), "holdout": ("holdout",)}
    most = {"forget": MOST_VALUES, "holdout": MOST_VALUES // 2}
    chosen = {
        name: secrets_of(before, sets=sets[name], context=context, most=most[name], seed=before.metadata.seed)
        for name in sets
    }
    return log_probs, Extraction(
        _attempt(chosen["forget"], models, "Extraction"),
        _attempt(chosen["holdout"], {key: models[key] for key in models if key != "oracle"}, "Extraction, never seen")
        if chosen["holdout"]
        else None,
    )


def _attempt(secrets: Secrets, models: Mapping[str, Model], description: str) -> Attempts:
    completed = {
        key: tuple(extract(model, secrets, description=f"{description}: {key}")) for key, model in models.items()
    }
    return Attempts(tuple(secret.place for secret in secrets), completed, secrets.total, secrets.untried)


def _extract_notes(before: Audit) -> list[str]:
    """What of a larger audit this one is."""
    extract = before.metadata.extract
    if extract is None:
        return []
    return [
        f"taken from an audit of {extract.documents:,} documents ({extract.tokens:,} tokens, {extract.parts:,} parts): "
        f"the {extract.exposed:,} in which a span was found or selected, and others to compare with; shares are of "
        "these, what was not judged is of all"
    ]


def _unjudged(after: Audit | None) -> str:
    """Why those who judge may have taught, and what to do about it."""
    if after is not None and after.metadata.origin is None:
        return (
            "How the second model was made is not recorded beside it (unlearn.json or retrain.json, which lie where it "
            "was written): it may have been trained against the references that judge it. Re-audit it where it was "
            "written, or judge it by references that it cannot have met."
        )
    return (
        "The model is judged by the references that unlearning was trained against: what models that it was not "
        "trained against could still tell is not shown. Eight cross-fitted references (references.count: 8) leave "
        "half of each document's to judge."
    )


def _judged(audit: Audit) -> tuple[list[tuple[Any, ...]], list[str]]:
    """What an audit judges, and by which references."""
    spans = [(one.doc_id, one.token_start, one.token_end, one.source, one.selected) for one in audit.span_rows]
    return spans, [reference.fingerprint for reference in audit.metadata.references]
