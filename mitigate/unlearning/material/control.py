"""Levels of text that the target never saw: where unlearning is to end, and what it must not fall below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mitigate.detection.record import Audit
from mitigate.detection.scores.token import clipped, typical
from mitigate.detection.spans.alike import never_seen_stretches

FEWEST_KNOWN_TOKENS = 100  # of never-seen secrets, to tell where such tokens lie
FEWEST_NEVER_SEEN = 20  # spans, to tell where such spans lie
_MOST_NEVER_SEEN = 400  # ... that are looked at while training goes on


@dataclass(frozen=True)
class Control:
    """How text that the target never saw looks beside the OUT references, token by token, in nats.

    Attributes:
        log_ratio: mean of log p_θ − log p̄, clipped to ±3 nats: 0 where the audit has no holdout documents.
        distance: mean of its absolute value: no two models agree wholly; None without holdout documents.
        typical: mean of ℓ − ℓ̃, clipped likewise, ℓ̃ being what one reference says on average: above 0 where the target
            was fitted for longer than its references, and predicts such text better than they do.
    """

    log_ratio: float
    distance: float | None
    typical: float = 0.0


def control_level(audit: Audit, chosen: np.ndarray | None = None) -> Control:
    """Where tokens are to end: at what the holdout documents' tokens that are like them look like.

    Holdout tokens are weighted so that their distribution over deciles of log p̄ is that of the chosen tokens: secrets
    by secrets, other tokens by other ones, where the holdout documents hold 100 tokens of known spans. What a model
    learned of how such documents are worded lifts other tokens of never-seen ones as well, and no secret.

    Args:
        audit: with or without holdout documents.
        chosen (*optional*, defaults to the selected tokens): (N,) bool.
    """
    columns = audit.columns
    ratio = clipped(columns["log_prob"] - columns["log_prob_out"])
    beyond = clipped(columns["log_prob"] - typical(audit.reference_log_probs))
    holdout = _holdout(audit) & ~np.isnan(ratio)
    selected = columns["selected"].astype(bool) if chosen is None else chosen
    if not holdout.any() or not selected.any():
        return Control(0.0, None)
    edges = np.quantile(columns["log_prob_out"][selected], np.linspace(0, 1, 11)[1:-1])
    stratum = np.digitize(columns["log_prob_out"], edges)
    known = _known(audit)
    if (holdout & known).sum() >= FEWEST_KNOWN_TOKENS:
        stratum = stratum + 10 * known
    levels = [
        (int((selected & (stratum == number)).sum()), holdout & (stratum == number))
        for number in range(20)
        if (holdout & (stratum == number)).sum() >= 10
    ]
    weight = sum(count for count, _ in levels)
    if not weight:
        return Control(0.0, None)

    def level(values: np.ndarray) -> float:
        return float(sum(count * values[alike].mean() for count, alike in levels) / weight)

    return Control(level(ratio), level(np.abs(ratio)), level(beyond))


@dataclass(frozen=True)
class TokenLevels:
    """Where each token is to end.

    Attributes:
        margin: (N,) nats above ℓ̄: the control level of tokens of its kind.
        typical: (N,) nats above ℓ̃ likewise.
    """

    margin: np.ndarray
    typical: np.ndarray


def token_levels(audit: Audit, chosen: np.ndarray, *, margin: float | None = None) -> TokenLevels:
    """The control level for secrets and for other tokens, each where there is enough never-seen text of its kind.

    Args:
        audit: with or without holdout documents.
        chosen: (N,) bool, the tokens to forget.
        margin (*optional*): instead of the control level over ℓ̄, for all tokens.
    """
    known = _known(audit)
    levels = TokenLevels(np.zeros(len(chosen)), np.zeros(len(chosen)))
    for kind in (known, ~known):
        level = control_level(audit, chosen & kind)
        levels.margin[kind] = level.log_ratio if margin is None else margin
        levels.typical[kind] = level.typical
    return levels


@dataclass(frozen=True)
class Limits:
    """Where never-seen spans lie, by mean log-ratio clipped to ±3 nats.

    A span to forget that ends below them stands out by how unlikely it is, one above them by how likely.

    Attributes:
        means: of each of them, 20 or more.
        low, high: their 1 % and 99 % quantiles; None under 100 of them.
    """

    means: np.ndarray
    low: float | None
    high: float | None

    @classmethod
    def of(cls, means: np.ndarray) -> Limits:
        """The limits of spans with these means."""
        low, high = np.quantile(means, [0.01, 0.99]).tolist() if len(means) >= 100 else (None, None)
        return cls(means, low, high)


def never_seen_numbers(audit: Audit) -> np.ndarray:
    """(N,) for each token the number of the never-seen span that it is in; -1 outside of them.

    They are the holdout documents' known spans, else stretches like those to forget. None where there are under 20; of
    many, those of evenly spread documents, 400 or a few more.
    """
    known = [span for span in audit.span_rows if audit.sets[span.doc_id] == "holdout" and span.source == "known"]
    places = [(span.doc_id, audit.rows_of(span)) for span in known]
    if not places:
        places = never_seen_stretches(audit, [span for span in audit.span_rows if span.selected])
    documents = list(dict.fromkeys(doc_id for doc_id, _ in places))
    kept = set(documents[:: max(1, len(places) // _MOST_NEVER_SEEN)])
    numbers = np.full(len(audit.tokens), -1)
    for number, (_, rows) in enumerate(place for place in places if place[0] in kept):
        numbers[rows] = number
    numbers[np.isnan(audit.columns["log_prob"]) | np.isnan(audit.columns["log_prob_out"])] = -1
    if len(np.unique(numbers[numbers >= 0])) < FEWEST_NEVER_SEEN:
        numbers[:] = -1
    return numbers


def known_numbers(audit: Audit) -> np.ndarray:
    """(N,) for each token the number of the known span that it is in; -1 outside of them."""
    numbers = np.full(len(audit.tokens), -1)
    for number, span in enumerate(span for span in audit.span_rows if span.source == "known"):
        numbers[audit.rows_of(span)] = number
    return numbers


def _known(audit: Audit) -> np.ndarray:
    """(N,) bool, tokens of known spans."""
    return known_numbers(audit) >= 0


def _holdout(audit: Audit) -> np.ndarray:
    holdout, sets = np.zeros(len(audit.tokens), dtype=bool), audit.sets
    for doc_id, rows in audit.rows.items():
        holdout[rows] = sets[doc_id] == "holdout"
    return holdout
