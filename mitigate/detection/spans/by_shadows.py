"""Memorized spans by a detector calibrated on shadows: references that stand in for the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import expit

from mitigate.detection.calibration.attack import fold_of
from mitigate.detection.calibration.detector import Detector, fit_detector
from mitigate.detection.calibration.shadows import PairedSignals, deal_shadows, out_of
from mitigate.detection.metadata import Shadows
from mitigate.detection.references.dealing import draw
from mitigate.detection.signals.pairings import Pairing
from mitigate.detection.spans.row import SpanRow
from mitigate.detection.spans.scored import Findings, ReferenceMembership, ScoredDocuments
from mitigate.documents import Documents
from mitigate.tokens.tokenization import word_numbers

_MOST_CALIBRATION = 2000  # documents that shadows are judged on


@dataclass(frozen=True)
class ShadowPlan:
    """Pairings of the shadows, of the target judged by as many references, and of the spare references."""

    shadows: list[Any]
    target: list[Pairing]
    spares: list[Pairing]
    references: int

    @property
    def pairings(self) -> list[Pairing]:
        return [*self.target, *(shadow.pairing for shadow in self.shadows), *self.spares]


def plan_shadows(documents: Documents, membership: ReferenceMembership, models: int) -> ShadowPlan:
    """Who judges whom, so that members and non-members are judged by equally many references.

    Args:
        documents: what is judged.
        membership: which references saw what.
        models: the target and the references.
    """
    member = np.zeros((len(documents), models), dtype=bool)
    for number, trained in enumerate(membership.trained):
        member[number, [k + 1 for k in trained]] = True
    available = [k + 1 for k in membership.crossfitted]
    always = [k for k in range(1, models) if k not in available]
    count = len(available) // 2 - 1  # a document in half of the references has so many left to judge one of the others
    keys = [document.id for document in documents]
    order = draw(range(len(documents)), _MOST_CALIBRATION, key="calibration")
    chosen = {number for number in order if not documents[number].is_tail}  # which trained no shadow
    shadows = [
        shadow
        for shadow in deal_shadows(member, available=available, count=count, keys=keys, always=always)
        if shadow.pairing.document in chosen
    ]
    target = [
        Pairing(
            number,
            0,
            tuple(sorted([*out_of(member[number], available=available, count=count, key=key)[:count], *always])),
        )
        for number, key in enumerate(keys)
    ]
    spares = {(s.pairing.document, s.spare) for s in shadows if s.member and s.spare is not None}
    return ShadowPlan(shadows, target, [Pairing(document, model) for document, model in sorted(spares)], count)


def by_shadows(
    scored: ScoredDocuments,
    plan: ShadowPlan,
    rest: Mapping[str, np.ndarray],
    *,
    given: Sequence[SpanRow] | None,
) -> Findings:
    """Spans with probabilities and false discovery rates.

    Args:
        scored: the documents.
        plan: of `plan_shadows`.
        rest: signals of the plan's pairings.
        given: span rows of an earlier audit, to be judged again.
    """
    words = [word_numbers(own.offsets, of.text) for own, of in zip(scored.tokenized, scored.documents, strict=True)]
    everything = PairedSignals(plan.pairings, rest, words)
    ends = np.cumsum([len(plan.target), len(plan.shadows), len(plan.spares)])
    paired = everything.take(range(ends[0]))
    shadows = everything.take(range(ends[0], ends[1]))
    starts = everything.starts
    spare_log_prob = {
        (pairing.document, pairing.target): rest["log_prob"][starts[n] : starts[n + 1]]
        for n, pairing in enumerate(plan.pairings[ends[1] :], start=int(ends[1]))
    }
    groups = [document.group for document in scored.documents]
    detector = fit_detector(
        plan.shadows, shadows, spare_log_prob=spare_log_prob, known=scored.known(), groups=groups, seed=0
    )
    folds = fold_of(groups)
    log_odds = detector.token_log_odds(paired, folds)
    memorized, found = detector.find(paired, log_odds)
    if given is None:
        rows = scored.found_rows(found)
        rows += scored.known_rows(first=len(rows))
    else:
        rows = scored.rescored(given)
    rows = _with_certainty(scored, rows, detector, paired, folds)
    calibration = Shadows(
        references=plan.references,
        shadows=len({shadow.pairing.target for shadow in plan.shadows}),
        **detector.quality,
    )
    return Findings(rows, log_odds, memorized, calibration)


def _with_certainty(
    scored: ScoredDocuments, rows: Sequence[SpanRow], detector: Detector, paired: PairedSignals, folds: np.ndarray
) -> list[SpanRow]:
    """The spans with their probability, and their false discovery rate among those of their kind and eligibility."""
    certain = list(rows)
    spans = np.array([(scored.numbers[row.doc_id], row.token_start, row.token_end) for row in rows], dtype=int)
    log_odds = detector.span_log_odds(paired, spans.reshape(-1, 3), folds)
    has_score = ~np.isnan(paired.signals["log_prob"])
    tokens = {True: 0.0, False: 0.0}
    for number, (start, end) in enumerate(pairwise(paired.starts)):
        tokens[scored.documents[number].set in scored.eligible] += float(has_score[start:end].sum())
    for kind in ("found", "known"):
        for eligible in (True, False):
            chosen = [n for n, row in enumerate(rows) if row.source == kind and scored.is_eligible(row) == eligible]
            searched = tokens[eligible] if kind == "found" else float(len(chosen))
            q = detector.q(log_odds[chosen], kind=kind, searched=searched)
            for n, value in zip(chosen, q, strict=True):
                certain[n] = replace(rows[n], probability=float(expit(log_odds[n])), q=float(value))
    return certain
