"""What is to be forgotten: of each document of an audit, the facts about its tokens that unlearning needs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from mitigate.detection.record import Audit
from mitigate.detection.scores.token import typical
from mitigate.documents import Document, Span
from mitigate.errors import MitigateError
from mitigate.tokens.tokenization import TokenizedDocument
from mitigate.unlearning.material.control import known_numbers, token_levels

FACTS = ("selected", "weight", "before", "out", "typical", "margin", "known")


@dataclass(frozen=True, eq=False)
class DocumentFacts:
    """One document of an audit and its T tokens.

    Attributes:
        document: with its text.
        tokens: its ids, offsets and which are audited.
        spans: the selected spans, in order.
        selected: (T,) bool, to be forgotten.
        weight: (T,) float32, of a token among those to forget, or among those to keep.
        before: (T,) float32, ℓ⁰ of the tokens to forget, NaN elsewhere.
        out: (T,) float32, ℓ̄ of these and of all tokens of known spans, NaN elsewhere.
        typical: (T,) float32, ℓ̃ of the tokens to forget: the mean of the OUT references' log-probabilities, and how far
            above it never-seen tokens of its kind lie.
        margin: (T,) float32, how far above ℓ̄ these lie.
        known: (T,) number of the known span that it is in, over all documents; -1 outside of them.
    """

    document: Document
    tokens: TokenizedDocument
    spans: tuple[Span, ...]
    selected: np.ndarray
    weight: np.ndarray
    before: np.ndarray
    out: np.ndarray
    typical: np.ndarray
    margin: np.ndarray
    known: np.ndarray

    def at(self, positions: np.ndarray) -> dict[str, Any]:
        """The facts about some of its tokens, by name."""
        return {name: getattr(self, name)[positions] for name in FACTS}


def document_facts(
    audit: Audit, *, scope: str, weighting: str, focus: float, margin: float | None = None
) -> list[DocumentFacts]:
    """The table of what is to be forgotten, documents in the audit's order.

    Args:
        audit: what to forget.
        scope: see `scope_tokens`.
        weighting: see `token_weights`.
        focus: weight of kept tokens that the audit found memorized.
        margin (*optional*): see `token_levels`.

    Raises:
        MitigateError: weights that the audit cannot give.
    """
    columns = audit.columns
    selected = scope_tokens(audit, scope)
    kept = np.where(columns["memorized"].astype(bool), focus, 1.0)
    weight = np.where(selected, token_weights(audit, selected, weighting), kept).astype(np.float32)
    levels = token_levels(audit, selected, margin=margin)
    alone = typical(audit.reference_log_probs) + levels.typical
    before, alone, above = (
        np.where(selected, values, np.nan).astype(np.float32) for values in (columns["log_prob"], alone, levels.margin)
    )
    known = known_numbers(audit)
    out = np.where(selected | (known >= 0), columns["log_prob_out"], np.nan).astype(np.float32)
    spans: dict[str, list[Span]] = defaultdict(list)
    for span in audit.span_rows:
        if span.selected:
            spans[span.doc_id].append(Span(span.char_start, span.char_end, span.label))
    facts = []
    for document, tokens in zip(audit.document_list(), audit.tokenized(), strict=True):
        rows = audit.rows[document.id]
        own = (values[rows] for values in (selected, weight, before, out, alone, above, known))
        facts.append(DocumentFacts(document, tokens, tuple(sorted(spans[document.id])), *own))
    return facts


def scope_tokens(audit: Audit, scope: str) -> np.ndarray:
    """(N,) bool, the tokens to forget.

    Args:
        scope: `token`: those that the audit selected; `sequence`: every audited token of the documents that hold any.
    """
    selected = audit.columns["selected"].astype(bool)
    if scope == "token":
        return selected
    whole = np.zeros_like(selected)
    for rows in audit.rows.values():
        whole[rows] = selected[rows].any() & ~np.isnan(audit.columns["log_prob"][rows])
    return whole


def token_weights(audit: Audit, chosen: np.ndarray, weighting: str) -> np.ndarray:
    """(N,) weights of the tokens to forget; those of `probability` and `entropy` have mean 1 over the chosen ones.

    Args:
        audit: gives the signals.
        chosen: (N,) bool.
        weighting: `hard`: 1. `probability`: the calibrated probability that the token is memorized. `entropy`: its
            entropy under the OUT references, so that what anyone could guess counts little.

    Raises:
        MitigateError: probabilities of an audit that has none.
    """
    if weighting == "hard":
        return np.ones(len(chosen))
    if weighting == "entropy":
        weight = np.maximum(audit.columns["entropy_out"].astype(np.float64), 0)
    else:
        log_odds = audit.columns["log_odds"].astype(np.float64)
        if np.isnan(log_odds[chosen]).any():
            raise MitigateError(
                "unlearn.weighting: probability needs an audit with calibrated tokens; audit with detect.fdr or "
                "detect.calibrate: true, and with four or more cross-fitted references"
            )
        weight = 1 / (1 + np.exp(-log_odds))
    return weight / max(1e-12, float(weight[chosen].mean()))
