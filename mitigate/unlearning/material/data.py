"""From an audit to the tasks of unlearning: windows with tokens to forget, substitutes to learn, text to hold still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mitigate.detection.record import Audit
from mitigate.documents import Documents, Span
from mitigate.models.model import Model
from mitigate.secrets.redaction import replaced
from mitigate.tokens.batches import Piece, cut_pieces
from mitigate.tokens.tokenization import TokenizedDocument, span_tokens, tokenize_documents
from mitigate.unlearning.material.control import never_seen_numbers
from mitigate.unlearning.material.forgetting import DocumentFacts, document_facts
from mitigate.unlearning.material.tasks import Task


@dataclass(frozen=True)
class UnlearningData:
    """All tasks of a run.

    Attributes:
        forget: with tokens to forget.
        hold: without, of the audit's own documents.
        extra: without, of the retain documents that were given besides.
        never_seen: of the holdout documents; their spans, as `selected`, are watched beside those to forget.
        spans: number of spans to forget, over all tasks.
    """

    forget: Sequence[Task]
    hold: Sequence[Task]
    extra: Sequence[Task]
    never_seen: Sequence[Task]
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
    margin: float | None = None,
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
        margin (*optional*): see `token_levels`.

    Raises:
        MitigateError: weights that the audit cannot give.
    """
    facts = document_facts(audit, scope=scope, weighting=weighting, focus=focus, margin=margin)
    forget = [one for one in facts if one.selected.any()]
    held = [one for one in facts if not one.selected.any() and one.document.set in ("retain", None)]
    further = tokenize_documents(retain, model.tokenizer) if retain is not None else []
    windows: dict[str, Any] = {
        "context": min(audit.metadata.context, model.context),
        "stride": audit.metadata.detect.stride,
    }
    numbering = _Numbering(scope=scope, substitute=substitute, key=key)
    tasks: list[Task] = []
    for piece in cut_pieces([one.tokens for one in forget], **windows):
        own, at = forget[piece.document], piece.start + piece.scored
        selected = own.selected[at]
        if not anchors and not selected.any():
            continue
        spans = np.where(selected, numbering.of_tokens(own)[at], -1)
        task = Task(**_fields(piece), key=len(tasks), doc_id=own.document.id, span=spans, **own.at(at))
        tasks.append(task if anchors else task.only(selected))
    number = len(tasks)
    if substitute is not None:
        made = numbering.substitutes(forget, model)
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
    for name, texts in (("hold", [one.tokens for one in held]), ("extra", further)) if anchors else ():
        for piece in cut_pieces(texts, **windows):
            doc_id = texts[piece.document].id
            task = _blank(piece, key=number, doc_id=doc_id, span=np.full(len(piece.scored), -1))
            if name == "hold":
                task = replace(task, weight=held[piece.document].weight[piece.start + piece.scored])
            kept[name].append(task)
            number += 1
    never_seen = _never_seen_tasks(audit, windows, first=number)
    return UnlearningData(tasks, kept["hold"], kept["extra"], never_seen, numbering.count)


def _never_seen_tasks(audit: Audit, windows: Mapping[str, Any], *, first: int) -> list[Task]:
    """Windows of the holdout documents down to their never-seen spans; keys from `first`."""
    numbers = never_seen_numbers(audit)
    texts = [own for own in audit.tokenized() if (numbers[audit.rows[own.id]] >= 0).any()]
    tasks: list[Task] = []
    for piece in cut_pieces(texts, **windows):
        doc_id = texts[piece.document].id
        at = audit.rows[doc_id].start + piece.start + piece.scored
        task = _blank(piece, key=first + len(tasks), doc_id=doc_id, span=numbers[at])
        before, out = (audit.columns[name][at].astype(np.float32) for name in ("log_prob", "log_prob_out"))
        if (numbers[at] >= 0).any():
            tasks.append(replace(task, selected=numbers[at] >= 0, before=before, out=out).only(numbers[at] >= 0))
    return tasks


class _Numbering:
    """Numbers of the spans to forget: of the selected ones (with substitutes: of what is replaced), or of documents."""

    def __init__(self, *, scope: str, substitute: str | None, key: str) -> None:
        self.scope, self.substitute, self.key = scope, substitute, key
        self.count = 0
        self._numbers: dict[str, list[tuple[int, Span, Span | None]]] = {}
        self._uncovered: dict[str, int] = {}

    def _of_document(self, facts: DocumentFacts) -> list[tuple[int, Span, Span | None]]:
        """(number, characters, characters of the substitute) of a document's spans."""
        name = facts.document.id
        if name not in self._numbers:
            pairs: list[tuple[Span, Span | None]] = [(span, None) for span in facts.spans]
            if self.substitute is not None:
                pairs = list(replaced(facts.document, facts.spans, redact=self.substitute, key=self.key)[1])
            first, step = self.count, int(self.scope == "token")
            self._numbers[name] = [(first + step * n, old, new) for n, (old, new) in enumerate(pairs)]
            self.count += len(pairs) if self.scope == "token" else 1
        return self._numbers[name]

    def of_tokens(self, facts: DocumentFacts) -> np.ndarray:
        """(T,) number of each token's span; -1 outside of them. Chosen tokens that no replacement covers are a span."""
        numbered = self._of_document(facts)
        if self.scope == "sequence":
            return np.full(len(facts.tokens.ids), numbered[0][0])
        numbers = np.full(len(facts.tokens.ids), -1)
        for number, old, _ in reversed(numbered):
            numbers[span_tokens(facts.tokens.offsets, old.start, old.end)] = number
        uncovered = facts.selected & (numbers < 0)
        if uncovered.any():
            numbers[uncovered] = self._uncovered.setdefault(facts.document.id, self.count)
            self.count = max(self.count, self._uncovered[facts.document.id] + 1)
        return numbers

    def substitutes(self, forget: Sequence[DocumentFacts], model: Model) -> list[tuple[TokenizedDocument, np.ndarray]]:
        """The documents with substitutes, what is to be learned as their audited tokens; and each token's span."""
        assert self.substitute is not None
        changed = [replaced(one.document, one.spans, redact=self.substitute, key=self.key)[0] for one in forget]
        made = []
        for facts, tokens in zip(forget, tokenize_documents(changed, model.tokenizer), strict=True):
            numbered = self._of_document(facts)
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
        margin=none,
        known=np.full(len(piece.scored), -1),
        span=span,
        substitute=substitute,
    )


def _fields(piece: Piece) -> dict[str, Any]:
    return {name: getattr(piece, name) for name in ("document", "ids", "scored", "start")}
