"""What an audit says of its documents: token scores, memorized spans, and how sure it is of each.

Three grades of certainty. *Shadows*: with four or more cross-fitted references, each stands in for the target and a
calibrated detector is fitted (`mitigate.detection.shadows`): spans have a probability and a false discovery rate.
*Non-members*: with holdout documents only, spans have a false discovery rate, from what the same search finds where
nothing can be memorized. *None*: the bare score, its error rate unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import expit

from mitigate.detection.calibration import fold_of, q_values, stratified_z
from mitigate.detection.references import draw
from mitigate.detection.scores import token_scores
from mitigate.detection.settings import Detect
from mitigate.detection.shadows import Detector, Judged, deal_shadows, fit_detector, out_of
from mitigate.detection.signals import Judgement, by_model, judge
from mitigate.detection.spans import find_spans
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.models import Model
from mitigate.tokenization import TokenizedDocument, span_tokens, tokenize_documents, word_numbers

logger = logging.getLogger(__name__)
LEAST_REFERENCES = 4  # cross-fitted ones, for calibration by shadows
_LEAST_NON_MEMBERS = 20
_MOST_CALIBRATION = 2000  # documents that shadows are judged on


@dataclass(frozen=True)
class Seen:
    """Which references may judge a document, and which were trained on it.

    Attributes:
        out: for each document, the references that judge it.
        trained: for each document, the references that were trained on it.
        crossfitted: the references that were trained on some of the documents.
    """

    out: Sequence[Sequence[int]]
    trained: Sequence[Sequence[int]]
    crossfitted: Sequence[int]


@dataclass(frozen=True)
class Verdict:
    """Everything that an audit's tables are made of.

    Attributes:
        tokenized: the documents.
        signals: columns of `token_signals`.
        score: (N,) the chosen token score.
        log_odds: (N,) calibrated log-odds that a token is memorized; NaN without calibration by shadows.
        memorized: (N,) bool, tokens that the detector calls memorized.
        spans: rows of the span table.
        calibration: what the certainty rests on; `kind` is `shadows`, `non_members` or `none`.
    """

    tokenized: list[TokenizedDocument]
    signals: dict[str, np.ndarray]
    score: np.ndarray
    log_odds: np.ndarray
    memorized: np.ndarray
    spans: list[dict[str, Any]]
    calibration: dict[str, Any]


def judge_documents(
    target: Model,
    references: Sequence[Model],
    documents: Documents,
    seen: Seen,
    *,
    detect: Detect,
    eligible: set[str | None],
    given: Sequence[Mapping[str, Any]] | None = None,
) -> Verdict:
    """Score the documents, find their memorized spans and calibrate them as well as the material allows.

    Args:
        target: the model under audit.
        references: the models that judge.
        documents: what is judged.
        seen: which references saw what.
        detect: settings.
        eligible: sets whose spans may be selected.
        given (*optional*): span rows of an earlier audit, to be judged again instead of finding spans.

    Raises:
        MitigateError: `detect.fdr` is asked for and nothing can calibrate it; NaN logits.
    """
    tokenized = tokenize_documents(documents, target.tokenizer)
    models = [target, *references]
    judgements = [Judgement(number, 0, tuple(k + 1 for k in out)) for number, out in enumerate(seen.out)]
    kind = calibration_kind(documents, seen, detect)
    plan = _plan_shadows(documents, seen, len(models)) if kind == "shadows" else None
    signals = judge(
        models,
        [*judgements, *(plan.judgements if plan else ())],
        documents=tokenized,
        temperature=detect.temperature,
        offline_a=detect.offline_a,
        context=detect.context,
        stride=detect.stride,
        batch_tokens=detect.batch_tokens,
        description=f"Auditing {len(documents)} documents",
    )
    tokens = sum(len(own.ids) for own in tokenized)
    rest = {name: column[tokens:] for name, column in signals.items()}
    own = {name: column[:tokens] for name, column in signals.items()}
    own["log_prob_references"] = by_model(
        own["log_prob_references"], judgements, documents=tokenized, models=len(models)
    )[:, 1:]
    score = token_scores(own, detect.score)
    page = _Page(documents, tokenized, score, eligible)
    if plan is not None:
        return _by_shadows(page, own, plan, rest, detect, given)
    return _by_score(page, own, kind, detect, given)


def calibration_kind(documents: Documents, seen: Seen, detect: Detect) -> str:
    """`shadows`, `non_members` or `none`: the best certainty that the material allows, if one is asked for.

    Raises:
        MitigateError: `detect.fdr` is set and there is neither.
    """
    if detect.fdr is None and not detect.calibrate:
        return "none"
    if len(seen.crossfitted) >= LEAST_REFERENCES:
        return "shadows"
    if sum(document.set == "holdout" for document in documents) >= _LEAST_NON_MEMBERS:
        return "non_members"
    if detect.fdr is None:
        logger.warning(
            "calibration: fewer than %d cross-fitted references and %d holdout documents; scores stay uncalibrated",
            LEAST_REFERENCES,
            _LEAST_NON_MEMBERS,
        )
        return "none"
    raise MitigateError(
        f"detect.fdr: a false discovery rate needs {LEAST_REFERENCES} or more cross-fitted references "
        f"(references.count: {LEAST_REFERENCES}; 8 are better), or {_LEAST_NON_MEMBERS} documents of the set holdout, "
        "which the target never saw; or remove detect.fdr to select by the bare score"
    )


@dataclass(frozen=True)
class _Page:
    """The documents with their token scores, and which may have spans selected."""

    documents: Documents
    tokenized: Sequence[TokenizedDocument]
    score: np.ndarray
    eligible: set[str | None]

    @cached_property
    def starts(self) -> list[int]:
        """First token row of each document, and the end of the last."""
        return np.cumsum([0, *(len(own.ids) for own in self.tokenized)]).tolist()

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each document id."""
        return {document.id: number for number, document in enumerate(self.documents)}

    def known(self) -> list[list[tuple[int, int]]]:
        """For each document, the token indices [start, end) of its known spans that are audited."""
        found = []
        for document, own in zip(self.documents, self.tokenized, strict=True):
            covered = [span_tokens(own.offsets, span.start, span.end) for span in document.spans]
            audited = [tokens[own.audited[tokens]] for tokens in covered]
            found.append([(int(tokens[0]), int(tokens[-1]) + 1) for tokens in audited if tokens.size])
        return found

    def known_rows(self) -> list[dict[str, Any]]:
        rows = []
        for number, (document, own) in enumerate(zip(self.documents, self.tokenized, strict=True)):
            for span in document.spans:
                tokens = span_tokens(own.offsets, span.start, span.end)
                tokens = tokens[own.audited[tokens]]
                if tokens.size:
                    limits = (span.start, span.end, int(tokens[0]), int(tokens[-1]) + 1)
                    rows.append(self.row(number, *limits, label=span.label, source="known"))
        return rows

    def found_row(self, number: int, char_start: int, char_end: int, first: int, last: int) -> dict[str, Any]:
        labels = {s.label for s in self.documents[number].spans if s.start < char_end and char_start < s.end}
        return self.row(number, char_start, char_end, first, last, label="+".join(sorted(labels)), source="found")

    def row(
        self, number: int, char_start: int, char_end: int, first: int, last: int, *, label: str, source: str
    ) -> dict[str, Any]:
        start = self.starts[number]
        return {
            "doc_id": self.documents[number].id,
            "char_start": char_start,
            "char_end": char_end,
            "token_start": first,
            "token_end": last,
            "label": label,
            "source": source,
            "score": float(np.nanmean(self.score[start + first : start + last])),
            "probability": None,
            "q": None,
            "selected": False,
        }

    def is_eligible(self, row: Mapping[str, Any]) -> bool:
        return self.documents[self.numbers[row["doc_id"]]].set in self.eligible

    def rescored(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Span rows of an earlier audit with the scores of now."""
        again = []
        for row in rows:
            start = self.starts[self.numbers[row["doc_id"]]]
            now = float(np.nanmean(self.score[start + row["token_start"] : start + row["token_end"]]))
            again.append({**row, "score": now, "probability": None, "q": None})
        return again


@dataclass(frozen=True)
class _ShadowPlan:
    """Judgements of the shadows, of the target judged by as many references, and of the spare references."""

    shadows: list[Any]
    target: list[Judgement]
    spares: list[Judgement]
    references: int

    @property
    def judgements(self) -> list[Judgement]:
        return [*self.target, *(shadow.judgement for shadow in self.shadows), *self.spares]


def _plan_shadows(documents: Documents, seen: Seen, models: int) -> _ShadowPlan:
    member = np.zeros((len(documents), models), dtype=bool)
    for number, trained in enumerate(seen.trained):
        member[number, [k + 1 for k in trained]] = True
    available = [k + 1 for k in seen.crossfitted]
    always = [k for k in range(1, models) if k not in available]
    count = len(available) // 2 - 1  # a document in half of the references has so many left to judge one of the others
    keys = [document.id for document in documents]
    order = draw(range(len(documents)), _MOST_CALIBRATION, key="calibration")
    chosen = set(order)
    shadows = [
        shadow
        for shadow in deal_shadows(member, available=available, count=count, keys=keys, always=always)
        if shadow.judgement.document in chosen
    ]
    target = [
        Judgement(
            number,
            0,
            tuple(sorted([*out_of(member[number], available=available, count=count, key=key)[:count], *always])),
        )
        for number, key in enumerate(keys)
    ]
    spares = {(s.judgement.document, s.spare) for s in shadows if s.member and s.spare is not None}
    return _ShadowPlan(shadows, target, [Judgement(document, model) for document, model in sorted(spares)], count)


def _by_shadows(
    page: _Page,
    signals: dict[str, np.ndarray],
    plan: _ShadowPlan,
    rest: Mapping[str, np.ndarray],
    detect: Detect,
    given: Sequence[Mapping[str, Any]] | None,
) -> Verdict:
    words = [word_numbers(own.offsets, of.text) for own, of in zip(page.tokenized, page.documents, strict=True)]
    everything = Judged(plan.judgements, rest, words)
    ends = np.cumsum([len(plan.target), len(plan.shadows), len(plan.spares)])
    judged = everything.take(range(ends[0]))
    shadows = everything.take(range(ends[0], ends[1]))
    starts = everything.starts
    spare_log_prob = {
        (judgement.document, judgement.target): rest["log_prob"][starts[n] : starts[n + 1]]
        for n, judgement in enumerate(plan.judgements[ends[1] :], start=int(ends[1]))
    }
    groups = [document.group for document in page.documents]
    detector = fit_detector(
        plan.shadows, shadows, spare_log_prob=spare_log_prob, known=page.known(), groups=groups, seed=0
    )
    folds = fold_of(groups)
    log_odds = detector.token_log_odds(judged, folds)
    memorized, found = detector.find(judged, log_odds)
    if given is None:
        rows = _found_rows(page, found) + page.known_rows()
    else:
        rows = page.rescored(given)
    _add_certainty(page, rows, detector, judged, folds)
    _select(page, rows, detect, given)
    calibration = {
        "kind": "shadows",
        "references": plan.references,
        "shadows": len({shadow.judgement.target for shadow in plan.shadows}),
        **detector.quality,
    }
    return Verdict(list(page.tokenized), signals, page.score, log_odds, memorized, _numbered(rows), calibration)


def _found_rows(page: _Page, found: Sequence[Sequence[tuple[int, int]]]) -> list[dict[str, Any]]:
    rows = []
    for number, units in enumerate(found):
        offsets, audited = page.tokenized[number].offsets, page.tokenized[number].audited
        for first, last in units:
            scored = np.flatnonzero(audited[first:last]) + first
            if not scored.size:
                continue
            first, last = int(scored[0]), int(scored[-1]) + 1
            written = offsets[first:last][offsets[first:last, 0] < offsets[first:last, 1]]  # special tokens have none
            if written.size:
                limits = (int(written[:, 0].min()), int(written[:, 1].max()))
                rows.append(page.found_row(number, *limits, first, last))
    return rows


def _add_certainty(
    page: _Page, rows: list[dict[str, Any]], detector: Detector, judged: Judged, folds: np.ndarray
) -> None:
    """Probability of every span, and its false discovery rate among the spans of its kind and eligibility."""
    spans = np.array([(page.numbers[r["doc_id"]], r["token_start"], r["token_end"]) for r in rows], dtype=int)
    log_odds = detector.span_log_odds(judged, spans.reshape(-1, 3), folds)
    scored = ~np.isnan(judged.signals["log_prob"])
    tokens = {True: 0.0, False: 0.0}
    for number, (start, end) in enumerate(pairwise(judged.starts)):
        tokens[page.documents[number].set in page.eligible] += float(scored[start:end].sum())
    for kind in ("found", "known"):
        for eligible in (True, False):
            chosen = [n for n, r in enumerate(rows) if r["source"] == kind and page.is_eligible(r) == eligible]
            searched = tokens[eligible] if kind == "found" else float(len(chosen))
            q = detector.q(log_odds[chosen], kind=kind, searched=searched)
            for n, value in zip(chosen, q, strict=True):
                rows[n] |= {"probability": float(expit(log_odds[n])), "q": float(value)}


def _by_score(
    page: _Page,
    signals: dict[str, np.ndarray],
    kind: str,
    detect: Detect,
    given: Sequence[Mapping[str, Any]] | None,
) -> Verdict:
    """Spans by a threshold on the windowed score; false discovery rates where there are non-members."""
    starts = page.starts
    if given is not None:
        rows = page.rescored(given)
    else:
        rows = []
        for number, (document, own) in enumerate(zip(page.documents, page.tokenized, strict=True)):
            part = page.score[starts[number] : starts[number + 1]]
            for found in find_spans(part, offsets=own.offsets, text=document.text, rule=detect.spans):
                limits = (found.char_start, found.char_end, found.token_start, found.token_end)
                rows.append(page.found_row(number, *limits))
        rows += page.known_rows()
    memorized = np.zeros(len(page.score), dtype=bool)
    for row in rows:
        if row["source"] == "found":
            start = starts[page.numbers[row["doc_id"]]]
            memorized[start + row["token_start"] : start + row["token_end"]] = True
    memorized &= ~np.isnan(page.score)
    calibration: dict[str, Any] = {"kind": kind}
    if kind == "non_members":
        calibration |= _false_discovery_by_non_members(page, rows, signals)
    _select(page, rows, detect, given)
    log_odds = np.full(len(page.score), np.nan)
    return Verdict(list(page.tokenized), signals, page.score, log_odds, memorized, _numbered(rows), calibration)


def _false_discovery_by_non_members(
    page: _Page, rows: list[dict[str, Any]], signals: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """q of every span, from holdout documents searched alike; token scores count among tokens as hard to predict."""
    starts = page.starts
    non_member = np.array([document.set == "holdout" for document in page.documents])
    of_non_member = np.repeat(non_member, np.diff(starts))
    scored = ~np.isnan(page.score)
    entropy = signals["entropy_out"]
    z = stratified_z(page.score, entropy, page.score[of_non_member], entropy[of_non_member])
    total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(z))])
    count = np.concatenate([[0], np.cumsum(scored)])

    def strength(start: int, first: int, last: int) -> float:  # Stouffer's sum of deviates
        return float((total[start + last] - total[start + first]) / np.sqrt(count[start + last] - count[start + first]))

    strengths = np.array([strength(starts[page.numbers[r["doc_id"]]], r["token_start"], r["token_end"]) for r in rows])
    is_null = np.array([bool(non_member[page.numbers[r["doc_id"]]]) for r in rows], dtype=bool)
    sources = np.array([r["source"] for r in rows])
    nulls: dict[str, int] = {}
    for kind in ("found", "known"):
        null, findings = strengths[is_null & (sources == kind)], np.flatnonzero(~is_null & (sources == kind))
        searched = float((scored & ~of_non_member).sum()) if kind == "found" else float(len(findings))
        null_searched = float((scored & of_non_member).sum()) if kind == "found" else float(len(null))
        nulls[kind] = len(null)
        if kind == "known" and len(null) < _LEAST_NON_MEMBERS:
            continue
        q = q_values(strengths[findings], null, searched=searched, null_searched=null_searched)
        for place, value in zip(findings, q, strict=True):
            rows[place]["q"] = float(value)
    return {"documents": int(non_member.sum()), "null_spans": nulls}


def _select(page: _Page, rows: list[dict[str, Any]], detect: Detect, given: Sequence[Mapping[str, Any]] | None) -> None:
    """Choose spans by false discovery rate, score or share; a re-audit keeps the choice of the audit."""
    if given is not None:
        return
    candidates = [row for row in rows if row["source"] == detect.select and page.is_eligible(row)]
    if detect.fdr is not None:
        if candidates and all(row["q"] is None for row in candidates):
            raise MitigateError(
                f"detect.fdr: fewer than {_LEAST_NON_MEMBERS} known spans in holdout documents; the false discovery "
                "rate of known spans needs them: set detect.select: found, or remove detect.fdr"
            )
        candidates = [row for row in candidates if row["q"] is not None and row["q"] <= detect.fdr]
    if detect.min_score is not None:
        candidates = [row for row in candidates if row["score"] >= detect.min_score]
    if detect.share is not None:
        strength = "probability" if candidates and candidates[0]["probability"] is not None else "score"
        candidates.sort(key=lambda row: -row[strength])
        candidates = candidates[: round(detect.share * len(candidates))]
    for row in candidates:
        row["selected"] = True


def _numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "span_id": number} for number, row in enumerate(rows)]
