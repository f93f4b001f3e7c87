"""What is removed from which training document: by an audit, by earlier ones, and as copies of either.

Text is redacted by spans, a masked loss by tokens: the audit selects the memorized tokens of a span, and where text
stays as it was the others may be learned again. Of a copy, which no audit judged, all tokens are masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from mitigate.artifacts.files import fingerprint
from mitigate.detection.record import Audit
from mitigate.documents import Document, Documents, Span
from mitigate.errors import MitigateError, NothingToUnlearnError, summarize
from mitigate.secrets.copies import Linked, Sought, find_linked
from mitigate.secrets.redaction import redact_document
from mitigate.tokens.tokenization import span_tokens, tokenize_documents


@dataclass(frozen=True)
class Removal:
    """What is removed from one document.

    Attributes:
        spans: the characters that an audit selected.
        copies: characters that are a copy of what was selected elsewhere.
        tokens: positions of the tokens that get no loss where text stays as it is.
    """

    spans: frozenset[Span] = frozenset()
    copies: frozenset[Span] = frozenset()
    tokens: frozenset[int] = frozenset()

    def __or__(self, other: Removal) -> Removal:
        return Removal(self.spans | other.spans, self.copies | other.copies, self.tokens | other.tokens)

    @property
    def text(self) -> list[Span]:
        """All characters to be removed."""
        return sorted(self.spans | self.copies)


def training_documents(audit: Audit, more: Documents | None = None) -> Documents:
    """What the target was trained on: the audit's documents but for the holdout set, and those given besides.

    Raises:
        MitigateError: the audit judged generated text, or holds what stands out of more documents, which are not given;
            nothing but holdout documents; one id with two texts.
    """
    if audit.metadata.generated is not None:
        raise MitigateError(
            "the audit judged text that the model wrote, not text that it was trained on; audit the training documents"
        )
    if audit.metadata.extract is not None and more is None:
        raise MitigateError(
            f"the audit holds only what stands out of {audit.metadata.extract.documents:,} documents, and the model is "
            "fitted anew on all of them: give them, too (--documents)"
        )
    own = {document.id: document for document in audit.document_list()}
    extra = [document for document in more or () if document.id not in own]
    if other := [one.id for one in more or () if one.id in own and one.text != own[one.id].text]:
        raise MitigateError(
            f"documents: {summarize(map(repr, other))} have another text in the audit; give other documents other ids"
        )
    training = Documents(tuple(one for one in [*own.values(), *extra] if one.set != "holdout"))
    if not training:
        raise MitigateError(
            "the audit holds holdout documents only, which no model is trained on; give the training text (--documents)"
        )
    return training


def doubled_texts(audit: Audit, training: Documents) -> list[str]:
    """A warning of documents that were given besides the audit's and have the text of one of these."""
    texts = set(audit.texts.values())
    doubled = [one.id for one in training if one.id not in audit.texts and one.text in texts]
    if not doubled:
        return []
    return [
        f"documents: {summarize(map(repr, doubled))} have the text of a document of the audit and another id, and are "
        "trained on besides it; if they are the same, read them with the ids that the audit has"
    ]


def selected_removals(audit: Audit, training: Documents, *, whole: bool = False) -> dict[str, Removal]:
    """The selected spans and tokens of the training documents.

    Args:
        audit: selected them.
        training: documents that the target was trained on.
        whole (`bool`, *optional*, defaults to `False`): with an entry for every document of the forget set, selected
            tokens in it or not.

    Raises:
        NothingToUnlearnError: there are none.
    """
    trained = {document.id for document in training}
    spans = {id: chosen for id, chosen in _selected_spans(audit).items() if id in trained}
    chosen = audit.columns["selected"].astype(bool)
    tokens = {id: np.flatnonzero(chosen[rows]).tolist() for id, rows in audit.rows.items() if id in trained}
    removals = {
        id: Removal(frozenset(spans.get(id, ())), tokens=frozenset(positions))
        for id, positions in tokens.items()
        if positions or id in spans
    }
    if whole and (requested := [document.id for document in training if document.set == "forget"]):
        return {**dict.fromkeys(requested, Removal()), **removals}
    if not any(removal.tokens for removal in removals.values()):
        where = "in a training document, only in holdout documents" if chosen.any() else "by this audit"
        raise NothingToUnlearnError(
            f"no token is selected {where}: there is nothing to forget; lower the detector's threshold, or select the "
            "known spans with detect.select: known"
        )
    return removals


def _selected_spans(audit: Audit) -> dict[str, list[Span]]:
    """The selected spans of each document, and the known ones that they overlap; only known secrets keep their label.

    A found span's label says what it overlaps, not what it is: it may hold half a sentence around a secret.
    """
    rows = audit.span_rows
    known = {row.span_id for row in rows if row.source == "known"}
    places = audit.metadata.erasure.linked if audit.metadata.erasure is not None else ()
    known |= {one.span_id for one in places if one.span_id is not None and known.intersection(one.origins)}
    spans: dict[str, list[Span]] = {}
    for row in rows:
        if row.selected:
            label = row.label if row.span_id in known else ""
            spans.setdefault(row.doc_id, []).append(Span(row.char_start, row.char_end, label))
    for row in rows:
        if row.source == "known" and not row.selected:
            own = Span(row.char_start, row.char_end, row.label)
            if any(one.start < own.end and own.start < one.end for one in spans.get(row.doc_id, ())):
                spans[row.doc_id].append(own)
    return spans


def earlier_removals(kept: Mapping[str, Any], training: Documents) -> dict[str, Removal]:
    """What was removed before (of `as_json`), from documents that are still trained on.

    Raises:
        MitigateError: a document's text is another now.
    """
    removals = {}
    for document in training:
        if document.id in kept:
            if kept[document.id]["text"] != fingerprint(document.text):
                raise MitigateError(
                    f"document {document.id!r}: its text is not that of the earlier audit, from which something was "
                    "removed; give it another id, or choose another directory"
                )
            spans, copies = (frozenset(Span(*one) for one in kept[document.id][name]) for name in ("spans", "copies"))
            removals[document.id] = Removal(spans, copies, frozenset(kept[document.id]["tokens"]))
    return removals


def as_json(removals: Mapping[str, Removal], training: Documents) -> dict[str, Any]:
    """The removals with fingerprints of the texts that they count in; no text."""
    return {
        document.id: {
            "text": fingerprint(document.text),
            "spans": [[one.start, one.end, one.label] for one in sorted(removals[document.id].spans)],
            "copies": [[one.start, one.end, one.label] for one in sorted(removals[document.id].copies)],
            "tokens": sorted(removals[document.id].tokens),
        }
        for document in training
        if document.id in removals
    }


def with_copies(
    removals: Mapping[str, Removal], training: Documents, tokenizer: PreTrainedTokenizerBase, *, mask: bool
) -> tuple[dict[str, Removal], Linked]:
    """Add the other places where removed text stands: with all their tokens, if the loss is masked.

    The same string is what an erasure request takes for the same (`find_linked`), here also in the documents that it
    comes from: each of them takes part a second time under another name, as what is looked for.

    Returns:
        the removals, and what was found and not looked for.
    """
    sources = [document for document in training if document.id in removals]
    texts = Documents((*training, *(Document(_source(one.id), one.text) for one in sources)))
    sought = [
        Sought(number, _source(one.id), span.start, span.end, span.label, known=bool(span.label))
        for one in sources
        for number, span in enumerate(removals[one.id].text)
    ]
    ids = {one.id for one in sources}
    linked = find_linked(texts, {_source(id) for id in ids}, sought, uncounted=ids)
    places: dict[str, list[Span]] = {}
    for hit in linked.hits:
        if not _covered(hit.char_start, hit.char_end, removals.get(hit.doc_id, Removal()).text):
            places.setdefault(hit.doc_id, []).append(Span(hit.char_start, hit.char_end, hit.label))
    holders = [document for document in training if document.id in places]
    offsets = {one.id: one.offsets for one in tokenize_documents(holders, tokenizer)} if mask else {}
    result = dict(removals)
    for id, spans in places.items():
        tokens = (int(token) for span in spans if mask for token in span_tokens(offsets[id], span.start, span.end))
        result[id] = result.get(id, Removal()) | Removal(copies=frozenset(spans), tokens=frozenset(tokens))
    return result, linked


def redacted(
    training: Documents,
    removals: Mapping[str, Removal],
    tokenizer: PreTrainedTokenizerBase,
    *,
    redact: str,
    key: str,
) -> tuple[list[Document], dict[str, list[int]]]:
    """The documents as the model will see them, and the tokens that get no loss.

    A document of which no token would get a loss is left out.
    """
    if redact == "mask":
        touched = tokenize_documents([document for document in training if document.id in removals], tokenizer)
        unscored = {one.id: sorted(removals[one.id].tokens) for one in touched}
        silent = {one.id for one in touched if not np.delete(one.audited, unscored[one.id]).any()}
        return [document for document in training if document.id not in silent], unscored
    if redact == "drop":
        return [document for document in training if document.id not in removals], {}
    return [
        redact_document(document, removals[document.id].text, redact=redact, key=key)
        if document.id in removals
        else document
        for document in training
    ], {}


def _source(id: str) -> str:
    return f"removed from {id}"


def _covered(start: int, end: int, spans: Sequence[Span]) -> bool:
    """Whether all of [start, end) lies in spans."""
    for span in sorted(spans):
        if span.start <= start < span.end:
            start = span.end
    return start >= end
