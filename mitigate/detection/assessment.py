"""What an audit says of its documents: token scores, memorized spans, and how sure it is of each.

Three grades of certainty. *Shadows*: with four or more cross-fitted references, each stands in for the target and a
calibrated detector is fitted (`mitigate.detection.calibration.shadows`): spans have a probability and a false discovery
rate. *Non-members*: with holdout documents only, spans have a false discovery rate, from what the same search finds
where nothing can be memorized. *None*: the bare score, its error rate unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mitigate.detection.kept import KEPT_OUT, KeptReferences
from mitigate.detection.metadata import Calibration, Fit, Kind
from mitigate.detection.record import Audit
from mitigate.detection.references.fit import rate_warning, reference_fit
from mitigate.detection.scores.token import WHOLE_SCORES, token_scores
from mitigate.detection.settings import Detect
from mitigate.detection.signals.compute import compute_signals
from mitigate.detection.signals.kept import KEPT_COLUMNS, KeepMean, KeptMean
from mitigate.detection.signals.pairings import Pairing, by_model, sliced
from mitigate.detection.spans.by_score import LEAST_NON_MEMBERS, by_score, false_discovery_by_non_members
from mitigate.detection.spans.by_shadows import ShadowPlan, by_shadows, plan_shadows
from mitigate.detection.spans.row import SpanRow
from mitigate.detection.spans.scored import Findings, ReferenceMembership, ScoredDocuments
from mitigate.detection.spans.selection import NO_NULL, select
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.models.model import Model
from mitigate.models.served import Served
from mitigate.tokens.tokenization import TokenizedDocument, tokenize_documents

logger = logging.getLogger(__name__)
LEAST_REFERENCES = 4  # cross-fitted ones, for calibration by shadows
_CORRECTED = "each span has the larger of their rate and that of the documents that the target never saw"
RATE_REMEDY = (
    "train the references until they know their documents as the target does (references.schedule: auto), give "
    f"{LEAST_NON_MEMBERS} or more documents that the target never saw (the set holdout), or remove detect.fdr"
)


@dataclass(frozen=True)
class Assessment:
    """Everything that an audit's tables are made of.

    Attributes:
        tokenized: the documents.
        signals: columns of `token_signals`.
        score: (N,) the chosen token score.
        log_odds: (N,) calibrated log-odds that a token is memorized; NaN without calibration by shadows.
        memorized: (N,) bool, tokens that the detector calls memorized.
        spans: rows of the span table.
        calibration: what the certainty rests on.
        fit: how closely the references fit beside the target; None in a re-audit.
        warnings: what a reader of the spans must know.
        kept: what a re-audit needs of the references; None where nothing is kept.
    """

    tokenized: list[TokenizedDocument]
    signals: dict[str, np.ndarray]
    score: np.ndarray
    log_odds: np.ndarray
    memorized: np.ndarray
    spans: list[SpanRow]
    calibration: Calibration
    fit: Fit | None = None
    warnings: tuple[str, ...] = ()
    kept: KeptReferences | None = None

    def first(self, count: int) -> Assessment:
        """What it says of its first documents."""
        tokenized = self.tokenized[:count]
        tokens = sum(len(own.ids) for own in tokenized)
        ids = {own.id for own in tokenized}
        rows = [row for row in self.spans if row.doc_id in ids]
        return replace(
            self,
            tokenized=tokenized,
            signals=sliced(self.signals, slice(tokens)),
            score=self.score[:tokens],
            log_odds=self.log_odds[:tokens],
            memorized=self.memorized[:tokens],
            spans=[replace(row, span_id=number) for number, row in enumerate(rows)],
            kept=None,
        )


def assess_documents(
    target: Model,
    references: Sequence[Model],
    documents: Documents,
    membership: ReferenceMembership,
    *,
    detect: Detect,
    eligible: set[str | None],
    given: Sequence[SpanRow] | None = None,
) -> Assessment:
    """Score the documents, find their memorized spans and calibrate them as well as the material allows.

    Args:
        target: the model under audit.
        references: the models that judge.
        documents: what is judged.
        membership: which references saw what.
        detect: settings.
        eligible: sets whose spans may be selected.
        given (*optional*): span rows of an earlier audit, to be judged again instead of finding spans.

    Raises:
        MitigateError: `detect.fdr` is asked for and nothing can calibrate it; NaN logits.
    """
    tokenized = tokenize_documents(documents, target.tokenizer)
    models = [target, *references]
    pairings = [Pairing(number, 0, tuple(k + 1 for k in out)) for number, out in enumerate(membership.out)]
    kind = calibration_kind(documents, crossfitted=len(membership.crossfitted), detect=detect)
    plan = plan_shadows(documents, membership, len(models)) if kind == "shadows" else None
    keep = None
    if detect.kept_entries and given is None:  # a re-audit is compared with what the audit kept
        keep = KeepMean(detect.kept_entries, detect.temperature, detect.offline_a)
    signals = compute_signals(
        models,
        [*pairings, *(plan.pairings if plan else ())],
        documents=tokenized,
        temperature=detect.temperature,
        offline_a=detect.offline_a,
        context=detect.context,
        stride=detect.stride,
        batch_tokens=detect.batch_tokens,
        log_probs_only=detect.signals == "log_probs",
        beside=keep,
        description=f"Auditing {len(documents)} documents",
    )
    tokens = sum(len(own.ids) for own in tokenized)
    own, rest = sliced(signals, slice(tokens)), sliced(signals, slice(tokens, None))
    kept = KeptReferences.of(own, rest if plan else None) if keep else None
    own, rest = ({n: column for n, column in of.items() if n not in KEPT_COLUMNS} for of in (own, rest))
    own["log_prob_references"] = by_model(
        own["log_prob_references"], pairings, documents=tokenized, models=len(models)
    )[:, 1:]
    score = token_scores(own, detect.score)
    scored = ScoredDocuments(documents, tokenized, score, eligible)
    fit, warnings = None, []
    if given is None:
        windows = {name: getattr(detect, name) for name in ("context", "stride", "batch_tokens")}
        fit = reference_fit(target, references, documents, tokenized, membership, own, settings=windows)
    if plan is not None:
        findings = by_shadows(scored, plan, rest, given=given)
        if detect.fdr is not None and (problem := rate_warning(fit)):
            enough = sum(document.set == "holdout" for document in documents) >= LEAST_NON_MEMBERS
            warnings = [f"{problem}; {_CORRECTED if enough else RATE_REMEDY}"]
            findings = _corrected(scored, findings, own) if enough else findings
    else:
        findings = by_score(scored, own, kind, rule=detect.spans, given=given)
    spans = findings.rows  # a re-audit keeps the choice of the audit
    if given is None:
        trained = "forget" in eligible or bool(membership.crossfitted)
        spans = select(scored, findings.rows, own, detect, trained=trained)
    return Assessment(
        tokenized,
        own,
        score,
        findings.log_odds,
        findings.memorized,
        spans,
        findings.calibration,
        fit=fit,
        warnings=tuple(warnings),
        kept=kept,
    )


def assess_again(before: Audit, target: Model) -> Assessment:
    """What an earlier audit's documents and spans look like under another target; no reference is run again.

    What the references said of each token is in the audit. `kl` and `log_ratio_variance`, which compare their whole
    distributions with the target's, follow from what it kept of these (`detect.kept_entries`), and are NaN where it
    kept nothing. For audits of which `is_kept` holds.

    Args:
        before: the audit.
        target: the model now.

    Raises:
        MitigateError: NaN logits.
    """
    detect, documents, tokenized = before.metadata.detect, before.document_list(), before.tokenized()
    said, kind = before.columns, before.metadata.calibration.kind
    plan = beside = None
    if before.kept is not None and not isinstance(target, Served):  # which says nothing of whole distributions
        if kind == "shadows":
            plan = plan_shadows(documents, before.membership, 1 + len(before.metadata.references))
        kept = [before.kept.own, *([before.kept.judged] if plan else [])]
        of_documents = [sliced(columns, rows) for columns in kept for rows in before.rows.values()]
        beside = KeptMean(of_documents, detect.temperature, vocabulary=target.vocabulary_size, name=target.name)
    alone = [Pairing(number, 0) for number in range(len(documents))]
    signals = compute_signals(
        [target],
        alone * (2 if plan else 1),
        documents=tokenized,
        context=before.metadata.context,
        stride=detect.stride,
        batch_tokens=detect.batch_tokens,
        log_probs_only=detect.signals == "log_probs",
        beside=beside,
        description=f"Auditing {len(documents)} documents again",
    )
    own = sliced(signals, slice(len(before.tokens)))
    own |= {"log_prob_references": before.reference_log_probs, **{name: said[name] for name in KEPT_OUT}}
    if beside is None:
        own["log_ratio"] = own["log_prob"] - own["log_prob_out"]
        own |= {name: np.full_like(own["log_ratio"], np.nan) for name in ("kl", "log_ratio_variance")}
    score = token_scores(own, detect.score)
    scored = ScoredDocuments(documents, tokenized, score, eligible_sets(documents.sets))
    if plan:
        rest = _beside_shadows(before, plan, sliced(signals, slice(len(before.tokens), None)))
        findings = by_shadows(scored, plan, rest, given=before.span_rows)
    else:
        findings = by_score(scored, own, kind, rule=detect.spans, given=before.span_rows)
    return Assessment(tokenized, own, score, findings.log_odds, findings.memorized, findings.rows, findings.calibration)


def _beside_shadows(before: Audit, plan: ShadowPlan, judged: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Signals of a plan's pairings: of the target as they are now, and of the shadows as the audit kept them."""
    assert before.kept is not None
    kept, shadows = before.kept.judged, before.kept.shadows
    references = np.full((len(before.tokens), shadows["log_prob_references"].shape[1]), np.nan, dtype=np.float32)
    for rows, pairing in zip(before.rows.values(), plan.target, strict=True):
        references[rows, : len(pairing.out)] = before.reference_log_probs[rows, [number - 1 for number in pairing.out]]
    target = {**judged, "log_prob_references": references, **{name: kept[name] for name in KEPT_OUT}}
    return {name: np.concatenate([target[name], column]) for name, column in shadows.items()}


def is_kept(before: Audit, target: Model) -> bool:
    """Whether all that a re-audit of a model needs of the references is in the audit."""
    whole = before.kept is not None and not isinstance(target, Served)
    return whole or not compares_wholes(before.metadata.detect, before.metadata.calibration.kind)


def compares_wholes(detect: Detect, kind: Kind) -> bool:
    """Whether a re-audit needs more of the references than what they said of each token.

    It does where the score compares whole distributions, and where shadows calibrate, in which references judge each
    other.
    """
    plain = detect.temperature == 1.0 and detect.offline_a == 1.0  # log_ratio is at the audit's temperature
    return not plain or detect.score in WHOLE_SCORES or kind == "shadows"


def eligible_sets(sets: Iterable[str | None]) -> set[str | None]:
    """The sets, of those that the documents belong to, whose memorized spans are selected for unlearning."""
    return {"forget"} if "forget" in sets else {None}


def check_calibration(documents: Documents, *, crossfitted: int, detect: Detect) -> None:
    """Refuse, before references are trained, a false discovery rate that nothing will calibrate.

    Args:
        documents: what will be judged.
        crossfitted: how many references will have been cross-fitted on them.
        detect: settings.

    Raises:
        MitigateError: see `calibration_kind`; or known spans are to be selected, and holdout documents hold too few.
    """
    kind = calibration_kind(documents, crossfitted=crossfitted, detect=detect)
    null = sum(len(document.spans) for document in documents if document.set == "holdout")
    if kind == "non_members" and detect.fdr is not None and detect.select == "known" and null < LEAST_NON_MEMBERS:
        raise MitigateError(NO_NULL)


def calibration_kind(documents: Documents, *, crossfitted: int, detect: Detect) -> Kind:
    """`shadows`, `non_members` or `none`: the best certainty that the material allows, if one is asked for.

    Raises:
        MitigateError: `detect.fdr` is set and there is neither.
    """
    if detect.fdr is None and not detect.calibrate:
        return "none"
    if crossfitted >= LEAST_REFERENCES:
        return "shadows"
    if sum(document.set == "holdout" for document in documents) >= LEAST_NON_MEMBERS:
        return "non_members"
    if detect.fdr is None:
        logger.warning(
            "calibration: fewer than %d cross-fitted references and %d holdout documents; scores stay uncalibrated",
            LEAST_REFERENCES,
            LEAST_NON_MEMBERS,
        )
        return "none"
    raise MitigateError(
        f"detect.fdr: a false discovery rate needs {LEAST_REFERENCES} or more cross-fitted references "
        f"(references.count: {LEAST_REFERENCES}; 8 are better), or {LEAST_NON_MEMBERS} documents of the set holdout, "
        "which the target never saw; or remove detect.fdr to select by the bare score"
    )


def _corrected(scored: ScoredDocuments, findings: Findings, signals: Mapping[str, np.ndarray]) -> Findings:
    """The spans with the larger of two false discovery rates: the references', and that of never-seen documents."""
    bare = [replace(row, q=None) for row in findings.rows]
    others, _ = false_discovery_by_non_members(scored, bare, signals)
    rows = [
        replace(row, q=None if row.q is None or other.q is None else max(row.q, other.q))
        for row, other in zip(findings.rows, others, strict=True)
    ]
    return replace(findings, rows=rows)
