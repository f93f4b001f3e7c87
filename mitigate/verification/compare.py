"""Compare an audit with its re-audit: how far the leakage fell, and what it cost.

    comparison = compare(before, after)
    comparison.save("report")           # report.json and report.html

The keys of report.json are stable and documented in the README. A figure that cannot be had is null, and `notes` says
why. Higher scores = more memorized; distances and losses in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mitigate.artifacts import new_directory, new_file, write_json
from mitigate.detection.audit import Audit, load_audited
from mitigate.detection.signals import token_log_probs
from mitigate.errors import MitigateError
from mitigate.models import ModelStore
from mitigate.runtime import library_versions
from mitigate.sources import tokenizer_fingerprint
from mitigate.verification.erasure import erasure_figures, erasure_notes, without_request
from mitigate.verification.extraction import extract, secrets_of
from mitigate.verification.metrics import UNMEASURED, auc, clustered, flat, mean, share, tpr_at_fpr
from mitigate.verification.mitigation import mitigation_figures, mitigation_notes
from mitigate.verification.tofu import tofu_notes


@dataclass(frozen=True)
class Comparison:
    """An audit, its re-audit and the figures that say what changed.

    Attributes:
        report: the content of report.json.
        before: the audit.
        after: the re-audit, or None if nothing was unlearned.
    """

    report: dict[str, Any]
    before: Audit
    after: Audit | None

    def html(self) -> str:
        """The self-contained report page."""
        from mitigate.reporting.html import render_report

        return render_report(self.report, self.before, self.after, show_text=self.report["show_text"])

    def save(self, directory: str | Path, *, replace: bool = False) -> None:
        """Write report.json and report.html, readable by their owner only."""
        with new_directory(Path(directory), replace=replace) as temporary:
            self.save_into(temporary)

    def save_into(self, directory: Path) -> None:
        """Write report.json and report.html into a directory that holds other things too."""
        page = self.html()
        write_json(directory / "report.json", self.report)
        with new_file(directory / "report.html") as temporary:
            temporary.write_text(page, encoding="utf-8")

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
    extraction: Mapping[str, Mapping[int, bool]] | None = None,
    tofu: Mapping[str, Any] | None = None,
    name: str = "",
    recipe: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    show_text: bool = False,
) -> Comparison:
    """Figures over two audits of the same documents.

    Args:
        before: audit of the leaky model.
        after (*optional*): re-audit of the mitigated model, made with `reaudit`; it says how that model was made.
        oracle_log_probs (*optional*): (N,) log-probabilities, nats, of the same tokens under a model retrained without
            the forget documents.
        extraction (*optional*): `{"before": {span_id: completed}, "after": ...}` from `extraction.extract`.
        tofu (*optional*): the TOFU benchmark's figures, from `tofu.tofu_figures`.
        name, recipe, seconds (*optional*): recorded in the report.
        show_text (`bool`, *optional*, defaults to `False`): let the report show the text of sensitive spans.

    Raises:
        MitigateError: the two audits are not of the same documents, spans and references.
    """
    if after is not None and after.metadata["documents"] != before.metadata["documents"]:
        raise MitigateError("compare: the two audits are of different documents; audit the same documents again")
    if after is not None and _judged(after) != _judged(before):
        raise MitigateError(
            "compare: the second audit is not the first one made again, for its spans or its references are others; "
            "make it with `mitigate audit --target MODEL --again AUDIT`"
        )
    notes: list[str] = []
    view = _View(before)
    audits = {"before": before, "after": after}
    report: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "leakage": {key: _leakage(view, audit, notes) for key, audit in audits.items()},
        "oracle_distance": _oracle_distance(view, audits, oracle_log_probs, notes),
        "out_distance": _out_distance(view, audits),
        "utility": _utility(view, audits, oracle_log_probs),
        "extraction": _extraction(extraction or {}, notes),
        "selected_token_share": view.selected_share,
        "selected": view.selection(),
        "over_forgotten_share": _over_forgotten(view, after),
        "tofu": tofu,
        "erasure": erasure_figures(before, after),
        "calibration": before.metadata["calibration"],
        "counts": view.counts(),
        "skipped": before.metadata["skipped"],
        **mitigation_figures(before, after),
        "seconds": {stage: round(value, 1) for stage, value in (seconds or {}).items()},
        "fingerprints": {
            "target": before.metadata["target"]["fingerprint"],
            "mitigated": after.metadata["target"]["fingerprint"] if after is not None else None,
            "references": [entry["fingerprint"] for entry in before.metadata["references"]],
            "tokenizer": before.metadata["tokenizer"],
            "documents": before.metadata["documents"],
        },
        "versions": library_versions(),
        "recipe": dict(recipe or {}) if show_text else without_request(recipe or {}),
        "notes": [],
        "show_text": show_text,
    }
    notes += (
        view.notes()
        + mitigation_notes(report["retrain"])
        + erasure_notes(report["erasure"], report["retrain"])
        + tofu_notes(tofu)
    )
    report["notes"] = list(dict.fromkeys(notes))
    return Comparison(report, before, after)


def measure(
    before: Audit, after: Audit | None = None, *, oracle: str | None = None, extraction: bool = True, store: ModelStore
) -> tuple[np.ndarray | None, dict[str, dict[int, bool]]]:
    """Run the models that `compare` needs figures of.

    Args:
        before: the audit; its target is attacked by extraction.
        after (*optional*): the re-audit; its target likewise.
        oracle (*optional*): a model retrained without the forget documents.
        extraction (`bool`, *optional*, defaults to `True`): try to extract the secrets.
        store: loads the models.

    Returns:
        `oracle_log_probs` and `extraction` as `compare` takes them.
    """
    log_probs = None
    if oracle is not None:
        model = store.load(oracle)
        if tokenizer_fingerprint(model.tokenizer) != before.metadata["tokenizer"]:
            raise MitigateError(f"oracle {oracle}: its tokenizer differs from the audited model's")
        log_probs = token_log_probs(model, before.tokenized())
    completed: dict[str, dict[int, bool]] = {}
    if extraction:
        sets = ("forget",) if "forget" in before.sets().values() else (None,)
        for key, audit in {"before": before, "after": after}.items():
            if audit is not None:
                [model] = load_audited([audit.metadata["target"]], store=store)
                secrets = secrets_of(before, sets=sets, context=model.context)
                completed[key] = extract(model, secrets, description=f"Extraction {key}")
    return log_probs, completed


class _View:
    """The audit before, cut the ways that figures need it."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.sets = audit.sets()
        self.groups = dict(
            zip(audit.documents["doc_id"].to_pylist(), audit.documents["group"].to_pylist(), strict=True)
        )
        self.labelled = any(name is not None for name in self.sets.values())
        self.token_set = np.empty(len(audit.tokens), dtype=object)
        self.token_group = np.empty(len(audit.tokens), dtype=object)
        for doc_id, rows in audit.rows.items():
            self.token_set[rows], self.token_group[rows] = self.sets[doc_id], self.groups[doc_id]
        self.scored = ~np.isnan(audit.columns["log_prob"])
        self.selected = audit.columns["selected"].astype(bool)
        self.forget = (self.token_set == "forget") if "forget" in self.sets.values() else self.token_set == None  # noqa: E711
        self.spans = audit.spans.to_pylist()
        self.secret = np.zeros(len(audit.tokens), dtype=bool)
        for span in self.spans:
            if span["source"] == "known" and self.is_forget(span["doc_id"]):
                first = audit.rows[span["doc_id"]].start
                self.secret[first + span["token_start"] : first + span["token_end"]] = True
        self.secret &= self.scored

    def is_forget(self, doc_id: str) -> bool:
        """Whether a document is in the forget set (or in no set, if no document is)."""
        name = self.sets[doc_id]
        return name == "forget" if "forget" in self.sets.values() else name is None

    @property
    def selected_share(self) -> float:
        """Selected tokens among the scored tokens of the forget documents."""
        among = self.scored & self.forget
        return float((self.selected & among).sum() / max(1, among.sum()))

    def span_scores(self, audit: Audit, *, member: bool, source: str) -> tuple[np.ndarray, list[str]]:
        """Scores of the forget documents' spans (or the holdout's), with their groups."""
        rows = [
            row
            for row in audit.spans.to_pylist()
            if row["source"] == source
            and (self.is_forget(row["doc_id"]) if member else self.sets[row["doc_id"]] == "holdout")
        ]
        return np.array([row["score"] for row in rows]), [self.groups[row["doc_id"]] for row in rows]

    def document_scores(self, audit: Audit, *, member: bool) -> tuple[np.ndarray, list[str]]:
        """Mean token score of each forget (or holdout) document, with its group."""
        scores, groups = [], []
        for doc_id, rows in audit.rows.items():
            if self.is_forget(doc_id) if member else self.sets[doc_id] == "holdout":
                scores.append(float(np.nanmean(audit.columns["score"][rows])))
                groups.append(self.groups[doc_id])
        return np.array(scores), groups

    def selection(self) -> dict[str, Any]:
        """What was selected, and by which rule."""
        spans = [row for row in self.spans if row["selected"]]
        known = [row for row in self.spans if row["source"] == "known" and self.is_forget(row["doc_id"])]
        hit = 0
        for row in known:
            first = self.audit.rows[row["doc_id"]].start
            hit += bool(self.selected[first + row["token_start"] : first + row["token_end"]].any())
        detect = self.audit.metadata["detect"]
        where = "the forget documents" if "forget" in self.sets.values() else "documents outside retain and holdout"
        calibration = self.audit.metadata["calibration"]
        if detect["select"] == "known":
            why = f"known sensitive spans in {where}"
        elif calibration["kind"] == "shadows":
            why = f"spans in {where} around tokens that the calibrated detector calls memorized"
        else:
            rule = detect["spans"]
            why = (
                f"spans in {where} whose {detect['score']} score, averaged over {rule['window']} tokens, reaches "
                f"{rule['threshold']:g} nats; gaps of up to {rule['gap']} tokens joined, words completed"
            )
        if detect["fdr"] is not None:
            why += f"; of these, the ones selected at a false discovery rate of {detect['fdr']:.0%}"
        if detect["min_score"] is not None:
            why += f"; with a mean score of {detect['min_score']:g} nats or more"
        if detect["share"] is not None:
            why += f"; the strongest {detect['share']:.0%} of them"
        if linked := sum(row["source"] == "linked" for row in spans):
            why += f"; and {linked} places in other documents that hold the same secrets"
        return {
            "spans": len(spans),
            "tokens": int(self.selected.sum()),
            "documents": len({row["doc_id"] for row in spans}),
            "known_recall": hit / len(known) if known else None,
            "rule": why,
        }

    def counts(self) -> dict[str, int]:
        """How much was audited."""
        names = list(self.sets.values())
        return {
            "documents": len(names),
            "forget": names.count("forget"),
            "retain": names.count("retain"),
            "holdout": names.count("holdout"),
            "tokens": int(self.scored.sum()),
            "skipped": len(self.audit.metadata["skipped"]),
        }

    def notes(self) -> list[str]:
        """What a reader must know to read the figures right."""
        notes = []
        if self.audit.metadata["kind"] == "given" and len(self.audit.metadata["references"]) == 1:
            notes.append(
                "One given reference: it cannot tell text memorized from a domain learned. "
                "Cross-fitted references (mitigate references) give a sharper judgement."
            )
        notes += self.audit.metadata["warnings"]
        calibration = self.audit.metadata["calibration"]
        if calibration["kind"] == "none":
            notes.append("Spans are found by a threshold on an uncalibrated score: their error rate is not known.")
        elif calibration["kind"] == "shadows":
            notes.append(
                f"Calibrated on {calibration['shadows']} cross-fitted references standing in for the target, each "
                f"document judged by {calibration['references']} of the others. A probability is as if half of all "
                "spans were memorized; a false discovery rate is as if none were, so it is on the safe side."
            )
        else:
            notes.append(
                f"False discovery rates come from the {calibration['documents']} holdout documents, searched alike; "
                "without shadows there is no probability for each span."
            )
        return notes


def _judged(audit: Audit) -> tuple[list[dict[str, Any]], list[str]]:
    """What an audit judges, and by which references."""
    spans = audit.spans.select(["doc_id", "token_start", "token_end", "source", "selected"]).to_pylist()
    return spans, [reference["fingerprint"] for reference in audit.metadata["references"]]


def _leakage(view: _View, audit: Audit | None, notes: list[str]) -> dict[str, Any] | None:
    if audit is None:
        return None
    source = "known" if any(row["source"] == "known" for row in view.spans) else "found"
    if source == "found":
        notes.append("No known sensitive spans were given: span AUC is not measured.")
    members = view.span_scores(audit, member=True, source=source)
    non_members = view.span_scores(audit, member=False, source=source)
    documents = view.document_scores(audit, member=True), view.document_scores(audit, member=False)
    if not len(documents[1][0]):
        notes.append("No holdout documents were given: AUC and error rates need text that the target never saw.")
    elif source == "known" and len(non_members[0]) < 100:
        notes.append("Fewer than 100 known secrets in holdout documents: too few to resolve an error rate of 1 %.")
    figures = {
        "span_auc": clustered(auc, members, non_members) if source == "known" else UNMEASURED,
        "document_auc": clustered(auc, *documents),
        "tpr_at_1pct_fpr": clustered(lambda m, n: tpr_at_fpr(m, n, fpr=0.01), members, non_members)
        if source == "known"
        else UNMEASURED,
    }
    selected = [(row["score"], view.groups[row["doc_id"]]) for row in audit.spans.to_pylist() if row["selected"]]
    figures["span_score_mean"] = clustered(mean, (np.array([s for s, _ in selected]), [g for _, g in selected]))
    return flat(figures)


def _oracle_distance(
    view: _View, audits: Mapping[str, Audit | None], oracle: np.ndarray | None, notes: list[str]
) -> dict[str, Any]:
    """Mean |log p − log p_oracle| over the secret tokens of the forget documents, nats."""
    rows = view.secret if view.secret.any() else view.selected & view.scored
    if oracle is None:
        notes.append("No oracle (a model retrained without the forget documents): distances to it are not measured.")
    figures = {}
    for key, audit in audits.items():
        figures[key] = UNMEASURED
        if audit is not None and oracle is not None:
            distance = np.abs(audit.columns["log_prob"] - oracle)[rows]
            figures[key] = clustered(mean, (distance, view.token_group[rows].tolist()))
    before, after = figures["before"].value, figures["after"].value
    return {**flat(figures), "ratio": after / before if before and after is not None else None}


def _out_distance(view: _View, audits: Mapping[str, Audit | None]) -> dict[str, Any]:
    """Mean |log p − log p̄| over the selected tokens, nats: for users who have no oracle."""
    figures = {}
    for key, audit in audits.items():
        figures[key] = UNMEASURED
        if audit is not None:
            distance = np.abs(audit.columns["log_prob"] - audit.columns["log_prob_out"])[view.selected]
            figures[key] = clustered(mean, (distance, view.token_group[view.selected].tolist()))
    return flat(figures)


def _utility(view: _View, audits: Mapping[str, Audit | None], oracle: np.ndarray | None) -> dict[str, Any]:
    """Mean negative log-likelihood of retain and holdout documents' tokens that are not to be forgotten, nats."""
    values = {key: audit.columns["log_prob"] if audit is not None else None for key, audit in audits.items()}
    values["oracle"] = oracle
    result = {}
    for name in ("retain", "holdout"):
        rows = (view.token_set == name) & view.scored & ~view.selected
        groups = view.token_group[rows].tolist()
        result[f"{name}_nll"] = flat(
            {key: clustered(mean, (-v[rows], groups)) if v is not None else UNMEASURED for key, v in values.items()}
        )
    return result


def _extraction(extraction: Mapping[str, Mapping[int, bool]], notes: list[str]) -> dict[str, Any]:
    figures = {
        key: share(sum(extraction[key].values()), len(extraction[key])) if extraction.get(key) else UNMEASURED
        for key in ("before", "after")
    }
    if figures["before"].value is None:
        notes.append("Extraction was not measured.")
    return {**flat(figures), "secrets": len(extraction.get("before", {}))}


def _over_forgotten(view: _View, after: Audit | None) -> float | None:
    """Share of the selected spans that now score below the 1 % quantile of non-members' spans."""
    if after is None:
        return None
    source = "known" if any(row["source"] == "known" for row in view.spans) else "found"
    non_members, _ = view.span_scores(after, member=False, source=source)
    if len(non_members) < 100:
        return None
    floor = np.quantile(non_members, 0.01)
    scores = [row["score"] for row in after.spans.to_pylist() if row["selected"]]
    return float(np.mean([score < floor for score in scores])) if scores else None
