"""Figures of a report: the audit before, cut the ways that they need it, and what each audit gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mitigate.detection.record import Audit
from mitigate.detection.spans.alike import never_seen_stretches
from mitigate.secrets.same import comparable
from mitigate.statistics.intervals import UNMEASURED, Figure, clustered_mean, flat
from mitigate.statistics.separation import FEWEST_CLUSTERS, clustered_auc, clustered_tpr, rank_among


class View:
    """The audit before, cut the ways that figures need it."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.sets = audit.sets
        self.groups = audit.groups
        self.labelled = any(name is not None for name in self.sets.values())
        self.token_set = np.empty(len(audit.tokens), dtype=object)
        self.token_group = np.empty(len(audit.tokens), dtype=object)
        for doc_id, rows in audit.rows.items():
            self.token_set[rows], self.token_group[rows] = self.sets[doc_id], self.groups[doc_id]
        self.scored = ~np.isnan(audit.columns["log_prob"])
        self.selected = audit.columns["selected"].astype(bool)
        self.forget = (self.token_set == "forget") if "forget" in self.sets.values() else self.token_set == None  # noqa: E711
        self.spans = audit.span_rows
        self.secret = np.zeros(len(audit.tokens), dtype=bool)
        self._known: dict[str, list[tuple[int, int, str]]] = {doc_id: [] for doc_id in self.sets}
        self.no_control = self._no_control()
        for span in self.spans:
            if span.source == "known" and span.span_id not in self.no_control:
                self._known[span.doc_id].append((span.token_start, span.token_end, span.label))
            if span.source == "known" and self.is_forget(span.doc_id):
                self.secret[audit.rows_of(span)] = True
        self.secret &= self.scored

    def _no_control(self) -> set[int]:
        """Known secrets of never-seen documents that stand in trained ones as well: those were learned."""
        values: dict[bool, dict[int, str]] = {True: {}, False: {}}
        starts, ends = self.audit.columns["char_start"], self.audit.columns["char_end"]
        for span in self.spans:
            if span.source == "known":
                rows = self.audit.rows_of(span)
                start, end = starts[rows.start], ends[rows.stop - 1]
                value = comparable(self.audit.texts[span.doc_id][int(start) : int(end)])
                values[self.sets[span.doc_id] == "holdout"][span.span_id] = value
        trained = set(values[False].values()) - {""}
        return {number for number, value in values[True].items() if value in trained}

    def is_forget(self, doc_id: str) -> bool:
        """Whether a document is in the forget set (or in no set, if no document is)."""
        name = self.sets[doc_id]
        return name == "forget" if "forget" in self.sets.values() else name is None

    @property
    def selected_share(self) -> float:
        """Selected tokens among the scored tokens of the forget documents."""
        among = self.scored & self.forget
        return float((self.selected & among).sum() / max(1, among.sum()))

    def places(self, name: str, *, member: bool) -> tuple[np.ndarray, list[str]]:
        """(n, 2) first and one past the last token row of the texts that an AUC compares, with their groups.

        Args:
            name: `span_auc` (known spans) or `document_auc` (whole documents).
            member: of the documents to forget; else of the holdout.
        """
        return self.places_in(name, "forget" if member else "holdout")

    def places_in(self, name: str, which: str) -> tuple[np.ndarray, list[str]]:
        """`places` of the texts of any set: `forget` (those to forget), `retain` or `holdout`."""
        rows, groups, _ = self.labelled_in(name, which)
        return rows, groups

    def labelled_in(self, name: str, which: str) -> tuple[np.ndarray, list[str], list[str]]:
        """`places_in`, and the label of each known span; of a document it is empty."""
        rows: list[tuple[int, int]] = []
        groups, labels = [], []
        for doc_id, own in self.audit.rows.items():
            if not (self.is_forget(doc_id) if which == "forget" else self.sets[doc_id] == which):
                continue
            spans = [(0, own.stop - own.start, "")] if name == "document_auc" else self._known[doc_id]
            rows += [(own.start + first, own.start + last) for first, last, _ in spans]
            groups += [self.groups[doc_id]] * len(spans)
            labels += [label for _, _, label in spans]
        return np.array(rows, dtype=int).reshape(-1, 2), groups, labels

    def span_scores(self, audit: Audit, *, member: bool, source: str) -> tuple[np.ndarray, list[str]]:
        """Scores of the forget documents' spans (or the holdout's), with their groups."""
        spans = [
            span
            for span in audit.span_rows
            if span.source == source
            and span.span_id not in self.no_control
            and (self.is_forget(span.doc_id) if member else self.sets[span.doc_id] == "holdout")
        ]
        return np.array([span.score for span in spans]), [self.groups[span.doc_id] for span in spans]

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
        spans = [span for span in self.spans if span.selected]
        known = [span for span in self.spans if span.source == "known" and self.is_forget(span.doc_id)]
        hit = sum(bool(self.selected[self.audit.rows_of(span)].any()) for span in known)
        detect = self.audit.metadata.detect
        where = "the forget documents" if "forget" in self.sets.values() else "documents outside retain and holdout"
        if detect.select == "known":
            why = f"known sensitive spans in {where}"
        elif self.audit.metadata.calibration.kind == "shadows":
            why = f"spans in {where} around tokens that the calibrated detector calls memorized"
        else:
            rule = detect.spans
            why = (
                f"spans in {where} whose {detect.score} score, averaged over {rule.window} tokens, reaches "
                f"{rule.threshold:g} nats; gaps of up to {rule.gap} tokens joined, words completed"
            )
        if detect.fdr is not None:
            why += f"; of these, the ones selected at a false discovery rate of {detect.fdr:.0%}"
        if detect.select == "exposed" and (own := sum(span.source == "known" for span in spans)):
            why += f"; and {own} known spans that the model knows better than models that never saw them"
        if detect.min_score is not None:
            why += f"; with a mean score of {detect.min_score:g} nats or more"
        if detect.share is not None:
            why += f"; the strongest {detect.share:.0%} of them"
        if linked := sum(span.source == "linked" for span in spans):
            why += f"; and {linked} places in other documents that hold the same secrets"
        return {
            "spans": len(spans),
            "found": sum(span.source == "found" for span in spans),
            "tokens": int(self.selected.sum()),
            "documents": len({span.doc_id for span in spans}),
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
            "skipped": len(self.audit.metadata.skipped),
        }

    def notes(self) -> list[str]:
        """What a reader must know to read the figures right."""
        notes = []
        if self.no_control:
            notes.append(
                f"{len(self.no_control)} known secrets of never-seen documents stand in trained documents as well and "
                "are left out as controls."
            )
        if self.audit.metadata.kind == "given" and len(self.audit.metadata.references) == 1:
            notes.append(
                "One given reference: it cannot tell text memorized from a domain learned. "
                "Cross-fitted references (mitigate references) give a sharper judgement."
            )
        notes += self.audit.metadata.warnings
        calibration = self.audit.metadata.calibration
        if calibration.kind == "none":
            notes.append("Spans are found by a threshold on an uncalibrated score: their error rate is not known.")
        elif calibration.kind == "shadows":
            notes.append(
                f"Calibrated on {calibration.shadows} cross-fitted references standing in for the target, each "
                f"document judged by {calibration.references} of the others. A probability is as if half of all "
                "spans were memorized; a false discovery rate is as if none were, so it is on the safe side."
            )
        else:
            notes.append(
                f"False discovery rates come from the {calibration.documents} holdout documents, searched alike; "
                "without shadows there is no probability for each span."
            )
        return notes


def leakage(view: View, audit: Audit | None, notes: list[str]) -> dict[str, Any] | None:
    """AUC, true positive rate and mean score of an audit; what cannot be had goes to `notes`."""
    if audit is None:
        return None
    source = "known" if any(span.source == "known" for span in view.spans) else "found"
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
        "span_auc": clustered_auc(members, non_members) if source == "known" else UNMEASURED,
        "document_auc": clustered_auc(*documents),
        "tpr_at_1pct_fpr": clustered_tpr(members, non_members, fpr=0.01) if source == "known" else UNMEASURED,
    }
    if source == "known" and len(non_members[0]) >= 100 and len(set(non_members[1])) < FEWEST_CLUSTERS:
        notes.append(
            f"The known secrets in holdout documents are of {len(set(non_members[1]))} people; an error rate of 1 % "
            f"needs {FEWEST_CLUSTERS} or more."
        )
    selected = [(span.score, view.groups[span.doc_id]) for span in audit.span_rows if span.selected]
    figures["span_score_mean"] = clustered_mean(np.array([s for s, _ in selected]), [g for _, g in selected])
    people = {"members": len(set(documents[0][1])), "never_seen": len(set(documents[1][1]))}
    compared = (members, non_members) if source == "known" and len(members[0]) else documents
    return {**flat(figures), "people": people, **_rank(compared, notes)}


def _rank(
    compared: tuple[tuple[np.ndarray, list[str]], tuple[np.ndarray, list[str]]], notes: list[str]
) -> dict[str, Any]:
    """Where a single person to forget stands among never-seen people, by mean score; null where there are more."""
    (scores, people), (others, names) = compared
    figure, p_value = UNMEASURED, None
    if len(set(people)) == 1:
        notes.append(
            "All that is to be forgotten is of one person: one person has no interval (AUC, scores, distances). "
            "Instead, the person is ranked among the never-seen people."
        )
        each = [others[np.array(names) == name].mean() for name in sorted(set(names))]
        figure, p_value = rank_among(float(scores.mean()), np.array(each))
    return {**flat({"as_high_share": figure}), "rank_p_value": p_value}


def oracle_distance(
    view: View, audits: Mapping[str, Audit | None], oracle: np.ndarray | None, notes: list[str]
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
            figures[key] = clustered_mean(distance, view.token_group[rows].tolist())
    before, after = figures["before"].value, figures["after"].value
    return {**flat(figures), "ratio": after / before if before and after is not None else None}


def out_distance(view: View, audits: Mapping[str, Audit | None]) -> dict[str, Any]:
    """Mean |log p − log p̄| over the selected tokens, nats: for users who have no oracle."""
    figures = {}
    for key, audit in audits.items():
        figures[key] = UNMEASURED
        if audit is not None:
            distance = np.abs(audit.columns["log_prob"] - audit.columns["log_prob_out"])[view.selected]
            figures[key] = clustered_mean(distance, view.token_group[view.selected].tolist())
    return flat(figures)


def utility(view: View, audits: Mapping[str, Audit | None], oracle: np.ndarray | None) -> dict[str, Any]:
    """Mean negative log-likelihood of retain and holdout documents' tokens that are not to be forgotten, nats."""
    values = {key: audit.columns["log_prob"] if audit is not None else None for key, audit in audits.items()}
    values["oracle"] = oracle
    result = {}
    for name in ("retain", "holdout"):
        rows = (view.token_set == name) & view.scored & ~view.selected
        groups = view.token_group[rows].tolist()
        result[f"{name}_nll"] = flat(
            {key: clustered_mean(-v[rows], groups) if v is not None else UNMEASURED for key, v in values.items()}
        )
    return result


def over_forgotten(view: View, after: Audit | None) -> Figure:
    """Share of the selected spans that now score below the 1 % quantile of never-seen known spans.

    Where no span is known, of never-seen stretches that are like the selected ones.
    """
    if after is None:
        return UNMEASURED
    chosen = [span for span in after.span_rows if span.selected]
    if any(span.source == "known" for span in view.spans):
        non_members, people = view.span_scores(after, member=False, source="known")
    else:
        places = never_seen_stretches(view.audit, chosen)
        non_members = np.array([np.nanmean(after.columns["score"][rows]) for _, rows in places])
        people = [view.groups[doc_id] for doc_id, _ in places]
    scores, groups = np.array([span.score for span in chosen]), [view.groups[span.doc_id] for span in chosen]
    return clustered_tpr((-scores, groups), (-non_members, people), fpr=0.01)


def asked_to_forget(before: Audit, after: Audit | None) -> str:
    """`documents` where the documents themselves were to be forgotten, `secrets` where only given spans in them.

    Only the secrets, where the spans to forget were given (detect.select: known), no erasure request names documents,
    and the model was neither unlearned on whole documents nor fitted anew without them.
    """
    origin = after.metadata.origin if after is not None else None
    whole = origin is not None and origin.whole_documents
    given = before.metadata.detect.select == "known"
    return "documents" if whole or not given or before.metadata.erasure is not None else "secrets"
