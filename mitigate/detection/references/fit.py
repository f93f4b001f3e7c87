"""How closely the references were fitted, beside the target: one that was fitted less calls everything memorized.

A document's score is what the target knows of it more than models that never saw it. That is memorization only if these
models were trained as the target was. Cross-fitted references show whether they were: each has documents of its own, on
which its loss can be held against the target's, which was trained on the same documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mitigate.detection.metadata import Fit
from mitigate.detection.references.dealing import draw, trained_documents
from mitigate.detection.signals.compute import compute_signals
from mitigate.detection.signals.pairings import Pairing
from mitigate.detection.spans.scored import ReferenceMembership
from mitigate.documents import Documents
from mitigate.models.model import Model
from mitigate.tokens.tokenization import TokenizedDocument

_MOST_DOCUMENTS = 100
LEAST_DIFFERENCE = 0.15  # nats a token that references may fit their own documents less or more closely than the target
LEAST_SHARE = 0.5  # and of what training on a document gives: references that gain half of it are no match
RATE_SHARE = 0.25  # of that, by which references may fit less before their error rates are not the target's


def reference_fit(
    target: Model,
    references: Sequence[Model],
    documents: Documents,
    tokenized: Sequence[TokenizedDocument],
    membership: ReferenceMembership,
    signals: Mapping[str, np.ndarray],
    *,
    settings: Mapping[str, Any],
) -> Fit | None:
    """Loss of the target and of references on documents that both were trained on, and of references that were not.

    Over at most 100 of the documents that the target was trained on, drawn by a hash, each with one reference that was
    trained on it and the OUT references of its audit; means over all their tokens.

    Args:
        target: the model under audit.
        references: the references.
        documents, tokenized: what is judged.
        membership: which references saw what.
        signals: of the audit, over the tokens of all documents.
        settings: `context`, `stride` and `batch_tokens` of the audit.

    Returns:
        the losses; None without cross-fitted references.
    """
    known = {document.id for document in trained_documents(documents)}
    members = [number for number, one in enumerate(documents) if membership.trained[number] and one.id in known]
    if not members:
        return None
    chosen = sorted(draw(members, _MOST_DOCUMENTS, key="fit"))
    pairings = [
        Pairing(number, 1 + draw(membership.trained[number], 1, key=documents[number].id)[0]) for number in chosen
    ]
    fitted = compute_signals(
        [target, *references],
        pairings,
        documents=tokenized,
        log_probs_only=True,
        description="References' fit",
        **settings,
    )
    ends = np.cumsum([0, *(len(own.ids) for own in tokenized)])
    rows = np.concatenate([np.arange(ends[number], ends[number + 1]) for number in chosen])
    per_reference = signals["log_prob_references"][rows]
    judged = ~np.isnan(per_reference)
    untrained = np.nansum(per_reference, axis=1)[judged.any(axis=1)] / judged.sum(axis=1)[judged.any(axis=1)]
    return Fit(
        documents=len(chosen),
        target=_loss(signals["log_prob"][rows]),
        trained=_loss(fitted["log_prob"]),
        untrained=_loss(untrained),
    )


def fit_warning(fit: Fit | None) -> str | None:
    """A sentence about references that were fitted less or more closely than the target; None where they match.

    They match if their loss on documents of their own is within 0.15 nats a token of the target's on these, or if the
    difference is at most half of what training on a document gives.
    """
    if fit is None:
        return None
    difference = fit.trained - fit.target
    gained = max(fit.untrained - min(fit.trained, fit.target), 0.0)
    if abs(difference) <= max(LEAST_DIFFERENCE, LEAST_SHARE * gained):
        return None
    how, harm, remedy = (
        ("less", "so they call memorized what the target only learned better", "raise")
        if difference > 0
        else ("more", "so they may hide what the target memorized", "lower")
    )
    return (
        f"the references fit {how} closely than the target: on documents that both were trained on, their loss is "
        f"{fit.trained:.2f} nats a token, the target's {fit.target:.2f} (references that never saw them: "
        f"{fit.untrained:.2f}), {harm}; {remedy} references.schedule (epochs, learning_rate) to what the target was "
        "trained with"
    )


def rate_warning(fit: Fit | None) -> str | None:
    """A sentence about references whose error rates are not the target's; None where they are, or on the safe side.

    A false discovery rate is read from references that stand in for the target. A target that was fitted longer finds
    more in text that it never saw than they do; one that was fitted less finds less (docs/benchmarks.md, "Targets that
    were fitted longer than their references").
    """
    if fit is None:
        return None
    if fit.trained - fit.target <= RATE_SHARE * max(fit.untrained - fit.target, 0.0):
        return None
    return (
        f"false discovery rates of these references do not hold for this target: on documents that both were trained "
        f"on, their loss is {fit.trained:.2f} nats a token, the target's {fit.target:.2f} (references that never saw "
        f"them: {fit.untrained:.2f})"
    )


def _loss(log_prob: np.ndarray) -> float:
    return round(-float(np.nanmean(log_prob)), 4)
