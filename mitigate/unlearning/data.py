"""From an audit to the tasks of unlearning: which tokens are forgotten, with what weight, and what is held still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mitigate.detection.record import Audit
from mitigate.documents import Document, Documents, Span
from mitigate.errors import MitigateError
from mitigate.models.model import Model
from mitigate.secrets.redaction import replaced
from mitigate.tokens.batches import Piece, cut_pieces
from mitigate.tokens.tokenization import TokenizedDocument, span_tokens, tokenize_documents
from mitigate.unlearning.tasks import Task


@dataclass(frozen=True)
class UnlearningData:
    """All tasks of a run.

    Attributes:
        forget: with tokens to forget.
        hold: without, of the audit's own documents.
        extra: without, of the retain documents that were given besides.
        spans: number of spans to forget, over all tasks.
    """

    forget: Sequence[Task]
    hold: Sequence[Task]
    extra: Sequence[Task]
    spans: int


def unlearning_data(
    audit: Audit,
    model: Model,
    *,
    retain: Documents | None = None,
    scope: str = "token",
    weighting: str = "hard",
    anchors: bool = True,
    focus: float = 1.0,
    substitute: str | None = None,
    key: str = "",
) -> UnlearningData:
    """Cut an audit's documents, and others to hold still, into tasks.

    Windows are those of the audit: its log-probabilities had just this context.

    Args:
        audit: what to forget. Its retain documents (and those of no set) without anything selected are held.
        model: the model to be changed.
        retain (*optional*): more documents to hold.
        scope (`str`, *optional*, defaults to `token`): see `scope_tokens`.
        weighting (`str`, *optional*, defaults to `hard`): see `token_weights`.
        anchors (`bool`, *optional*, defaults to `True`): False leaves out every token that is not to be forgotten, and
            all text after the last that is.
        focus (`float`, *optional*, defaults to 1.0): weight of kept tokens that the audit found memorized.
        substitute (`str`, *optional*): `fake` or `placeholder`: also make documents with these in the secrets' place.
        key (`str`, *optional*): of the fakes.

    Raises:
        MitigateError: weights that the audit cannot give.
    """
    chosen = scope_tokens(audit, scope)
    columns, sets, documents = audit.columns, audit.sets(), {one.id: one for one in audit.document_list()}
    weight = token_weights(audit, chosen, weighting)
    kept_weight = np.where(columns["memorized"].astype(bool), focus, 1.0).astype(np.float32)
    used = ~np.isnan(audit.reference_log_probs)
    typical = np.nansum(audit.reference_log_probs, axis=1) / np.maximum(used.sum(axis=1), 1)
    touched = {doc_id for doc_id, rows in audit.rows.items() if chosen[rows].any()}
    tokenized = audit.tokenized()
    forget = [tokens for tokens in tokenized if tokens.id in touched]
    held = [tokens for tokens in tokenized if tokens.id not in touched and sets[tokens.id] in ("retain", None)]
    further = tokenize_documents(retain, model.tokenizer) if retain is not None else []
    windows: dict[str, Any] = {
        "context": min(audit.metadata.context, model.context),
        "stride": audit.metadata.detect.stride,
    }
    numbering = _Numbering(audit, scope=scope, substitute=substitute, key=key)
    tasks: list[Task] = []
    for piece in cut_pieces(forget, **windows):
        document = forget[piece.document]
        rows, at = audit.rows[document.id], piece.start + piece.scored
        selected = chosen[rows][at]
        if not anchors and not selected.any():
            continue
        spans = numbering.of_tokens(documents[document.id], document, chosen[rows])[at]
        task = Task(
            **_fields(piece),
            key=len(tasks),
            doc_id=document.id,
            selected=selected,
            weight=np.where(selected, weight[rows][at], kept_weight[rows][at]).astype(np.float32),
            before=np.where(selected, columns["log_prob"][rows][at], np.nan).astype(np.float32),
            out=np.where(selected, columns["log_prob_out"][rows][at], np.nan).astype(np.float32),
            typical=np.where(selected, typical[rows][at], np.nan).astype(np.float32),
            span=np.where(selected, spans, -1),
        )
        tasks.append(task if anchors else task.only(selected))
    number = len(tasks)
    if substitute is not None:
        made = numbering.substitutes([documents[document.id] for document in forget], model)
        partners: dict[int, list[Task]] = {}
        for piece in cut_pieces([one for one, _ in made], **windows):
            spans = made[piece.document][1][piece.start + piece.scored]
            doc_id = made[piece.document][0].id
            task = _blank(piece, key=number, doc_id=doc_id, span=spans, substitute=True)
            number += 1
            for span in np.unique(spans):
                partners.setdefault(int(span), []).append(task)
        tasks = [_with_partners(task, partners) for task in tasks]
    kept: dict[str, list[Task]] = {"hold": [], "extra": []}
    for name, texts in (("hold", held), ("extra", further)) if anchors else ():
        for piece in cut_pieces(texts, **windows):
            doc_id = texts[piece.document].id
            task = _blank(piece, key=number, doc_id=doc_id, span=np.full(len(piece.scored), -1))
            if name == "hold":
                task = replace(task, weight=kept_weight[audit.rows[doc_id]][piece.start + piece.scored])
            kept[name].append(task)
            number += 1
    return UnlearningData(tasks, kept["hold"], kept["extra"], numbering.count)


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


class _Numbering:
    """Numbers of the spans to forget: of the selected ones (with substitutes: of what is replaced), or of documents."""

    def __init__(self, audit: Audit, *, scope: str, substitute: str | None, key: str) -> None:
        self.scope, self.substitute, self.key = scope, substitute, key
        self.count = 0
        self.spans: dict[str, list[Span]] = {}
        for row in audit.spans.to_pylist():
            if row["selected"]:
                one = Span(row["char_start"], row["char_end"], row["label"] or "")
                self.spans.setdefault(row["doc_id"], []).append(one)
        self._numbers: dict[str, list[tuple[int, Span, Span | None]]] = {}
        self._uncovered: dict[str, int] = {}

    def _of_document(self, document: Document) -> list[tuple[int, Span, Span | None]]:
        """(number, characters, characters of the substitute) of a document's spans."""
        if document.id not in self._numbers:
            spans = sorted(self.spans[document.id])
            pairs: list[tuple[Span, Span | None]] = [(span, None) for span in spans]
            if self.substitute is not None:
                pairs = list(replaced(document, spans, redact=self.substitute, key=self.key)[1])
            first, step = self.count, int(self.scope == "token")
            self._numbers[document.id] = [(first + step * n, old, new) for n, (old, new) in enumerate(pairs)]
            self.count += len(pairs) if self.scope == "token" else 1
        return self._numbers[document.id]

    def of_tokens(self, document: Document, tokens: TokenizedDocument, chosen: np.ndarray) -> np.ndarray:
        """(T,) number of each token's span; -1 outside of them. Chosen tokens that no replacement covers are a span."""
        numbered = self._of_document(document)
        if self.scope == "sequence":
            return np.full(len(tokens.ids), numbered[0][0])
        numbers = np.full(len(tokens.ids), -1)
        for number, old, _ in reversed(numbered):
            numbers[span_tokens(tokens.offsets, old.start, old.end)] = number
        uncovered = chosen & (numbers < 0)
        if uncovered.any():
            numbers[uncovered] = self._uncovered.setdefault(document.id, self.count)
            self.count = max(self.count, self._uncovered[document.id] + 1)
        return numbers

    def substitutes(self, documents: Sequence[Document], model: Model) -> list[tuple[TokenizedDocument, np.ndarray]]:
        """The documents with substitutes, what is to be learned as their audited tokens; and each token's span."""
        assert self.substitute is not None
        changed = [
            replaced(document, sorted(self.spans[document.id]), redact=self.substitute, key=self.key)[0]
            for document in documents
        ]
        made = []
        for document, tokens in zip(documents, tokenize_documents(changed, model.tokenizer), strict=True):
            numbered = self._of_document(document)
            if self.scope == "sequence":
                made.append((tokens, np.full(len(tokens.ids), numbered[0][0])))
                continue
            numbers = np.full(len(tokens.ids), -1)
            for number, _, new in reversed(numbered):
                assert new is not None
                numbers[span_tokens(tokens.offsets, new.start, new.end)] = number
            made.append((replace(tokens, audited=tokens.audited & (numbers >= 0)), numbers))
        return made


def _with_partners(task: Task, partners: Mapping[int, Sequence[Task]]) -> Task:
    own = {id(one): one for span in np.unique(task.span[task.selected]) for one in partners.get(int(span), ())}
    return replace(task, partners=tuple(own.values()))


def _blank(piece: Piece, *, key: int, doc_id: str, span: np.ndarray, substitute: bool = False) -> Task:
    """A task without tokens to forget."""
    none = np.zeros(len(piece.scored), dtype=np.float32)
    return Task(
        **_fields(piece),
        key=key,
        doc_id=doc_id,
        selected=none.astype(bool),
        weight=none + 1,
        before=none,
        out=none,
        typical=none,
        span=span,
        substitute=substitute,
    )


def _fields(piece: Piece) -> dict[str, Any]:
    return {name: getattr(piece, name) for name in ("document", "ids", "scored", "start")}
