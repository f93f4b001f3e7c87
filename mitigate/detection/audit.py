"""Audit a model, and audit what was made of it again: every token's signals and scores, the spans found.

    result = audit("my-model", ["references"], documents="train.jsonl")
    result.save("audit"); Audit.load("audit").show()

What they return says `mitigate.detection.record`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mitigate import __version__
from mitigate.artifacts.provenance import origin_of
from mitigate.detection.assessment import Assessment, assess_again, assess_documents, eligible_sets, is_kept
from mitigate.detection.coverage import coverage, warn_of_gaps
from mitigate.detection.metadata import AuditedModel, AuditMetadata
from mitigate.detection.record import Audit
from mitigate.detection.references.checks import check_references
from mitigate.detection.references.crossfit import References, load_references
from mitigate.detection.references.fit import fit_warning
from mitigate.detection.settings import Detect
from mitigate.detection.signals.log_probs import check_log_probs
from mitigate.detection.spans.linked import sought_in, with_linked
from mitigate.detection.spans.row import span_table
from mitigate.detection.spans.scored import ReferenceMembership
from mitigate.detection.tables import document_table, token_table
from mitigate.documents import Document, Documents, Request, read_documents
from mitigate.documents.erasure import apply_request
from mitigate.errors import MitigateError
from mitigate.models.compatible import check_tokenizers
from mitigate.models.directory import model_fingerprint
from mitigate.models.model import Model, check_same_tokenizer
from mitigate.models.store import ModelStore
from mitigate.runtime import library_versions
from mitigate.secrets.copies import find_linked
from mitigate.tokens.rules import tokenizer_fingerprint

logger = logging.getLogger(__name__)


def audit(
    target: str | Path | Model,
    references: References | str | Path | Sequence[str | Path],
    *,
    documents: str | Path | Documents,
    detect: Detect | None = None,
    store: ModelStore | None = None,
    forget: Request | None = None,
    seed: int = 0,
) -> Audit:
    """Score every token of the documents and find the memorized spans.

    Args:
        target: the model under audit: hub id, directory, adapter directory, or a loaded model.
        references: models that never saw the documents, or directories made by `mitigate references`: one or several.
        documents: what to judge: a file, a hub data set, or documents read before.
        detect (*optional*): score, temperature and span rule.
        store (*optional*): loads the models; settles device and number format.
        forget (*optional*): an erasure request, which makes the forget set; the secrets of its documents are looked for
            in all others. Its `where` needs documents that are read here, or were read with `mark`. Spans are selected
            in the forget set, or everywhere outside retain and holdout if no document belongs to a forget set.
        seed (`int`, *optional*, defaults to 0): recorded with the audit.

    Raises:
        MitigateError: no reference, a reference with another tokenizer, no OUT reference for a document, NaN logits, an
            erasure request that selects nothing.
    """
    auditor = Auditor.of(target, references, detect=detect, store=store, seed=seed)
    if not isinstance(documents, Documents):
        mark = forget.where if forget else None
        documents = read_documents(documents, tokenizer=auditor.target.tokenizer, mark=mark)
    return auditor.audit(apply_request(documents, forget) if forget is not None else documents)


@dataclass(frozen=True)
class Auditor:
    """A target and its references, which are loaded once, and how they judge documents.

    Attributes:
        target: the model under audit.
        references: who judges, and what each was trained on.
        detect: score, temperature and span rule.
        store: loads the models.
        seed: recorded with an audit.
    """

    target: Model
    references: References
    detect: Detect
    store: ModelStore
    seed: int

    @classmethod
    def of(
        cls,
        target: str | Path | Model,
        references: References | str | Path | Sequence[str | Path],
        *,
        detect: Detect | None,
        store: ModelStore | None,
        seed: int,
    ) -> Auditor:
        """With the target loaded; arguments as of `audit`.

        Raises:
            MitigateError: no reference, or one with another tokenizer.
        """
        store = store or ModelStore()
        references = references if isinstance(references, References) else load_references(references)
        given = {f"reference {number}": path for number, path in enumerate(references.paths)}
        check_tokenizers(target.source if isinstance(target, Model) else target, given, store=store)
        model = target if isinstance(target, Model) else store.load(target)
        return cls(model, references, detect or Detect(), store, seed)

    @cached_property
    def judges(self) -> list[Model]:
        """The references, loaded.

        Raises:
            MitigateError: one has another vocabulary, or a setting asks for what a server does not tell.
        """
        models = [self.store.load(path) for path in self.references.paths]
        check_log_probs(self.target, models, self.detect)
        for model in models:
            check_same_tokenizer(self.target, model)
        return models

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return min(self.detect.context or self.target.context, *(one.context for one in (self.target, *self.judges)))

    def audit(
        self, documents: Documents, *, controls: Sequence[Document] = (), sets: Iterable[str | None] | None = None
    ) -> Audit:
        """Score every token of the documents and find the memorized spans.

        Args:
            documents: what to judge.
            controls (*optional*): others that only calibrate: what is found in them is not told.
            sets (*optional*): those of all documents, where these are a part of them.

        Raises:
            MitigateError: no OUT reference for a document, NaN logits.
        """
        model, detect, judged = self.target, self.detect, documents
        if controls:
            documents = Documents((*judged.items, *controls))
        membership = ReferenceMembership(
            out=self.references.out_for(documents),
            trained=self.references.trained_for(documents),
            crossfitted=self.references.crossfitted,
        )
        eligible = eligible_sets(documents.sets if sets is None else sets)
        assessed = assess_documents(model, self.judges, documents, membership, detect=detect, eligible=eligible)
        warnings = check_references(
            assessed.signals,
            documents,
            assessed.tokenized,
            names=[reference.name for reference in self.judges],
            crossfitted=membership.crossfitted,
            vocabulary=model.vocabulary_size,
        )
        warnings += [warning] if (warning := fit_warning(assessed.fit)) else []
        warnings += assessed.warnings
        for warning in warnings:
            logger.warning("%s", warning)
        if controls:
            assessed, membership = assessed.first(len(judged)), membership.first(len(judged))
        settings = {"kind": self.references.kind, "detect": detect, "seed": self.seed, "warnings": tuple(warnings)}
        settings |= {"erasure": None, "fit": assessed.fit}
        identities = [_identity(reference) for reference in self.judges]
        result = _assemble(model, identities, judged, membership, assessed, context=self.context, settings=settings)
        warn_of_gaps(result.metadata.coverage, judged, assessed.tokenized)
        if documents.erasure is None:
            return result
        linked = find_linked(documents, documents.erasure.doc_ids, sought_in(result.span_rows))
        return with_linked(result, documents.erasure, linked)


def reaudit(
    before: Audit, target: str | Path | Model, *, store: ModelStore | None = None, references_again: bool = False
) -> Audit:
    """Audit a mitigated model as `before` audited the leaky one: same documents, references, settings and spans.

    What the references said of each token is in the audit, so they are run again only where the score or the
    calibration needs their whole distributions beside the target's, or where that is asked for. Where they are not,
    `kl`, `log_ratio_variance` and `informia` are null.

    Args:
        before: the earlier audit; its spans are scored again, not found anew.
        target: the mitigated model, for instance the adapter directory that `unlearn` made.
        store (*optional*): loads the models.
        references_again (`bool`, *optional*, defaults to `False`): run them again in any case.

    Raises:
        MitigateError: a reference is no longer what it was, or the model has another tokenizer.
    """
    store = store or ModelStore()
    model = target if isinstance(target, Model) else store.load(target)
    before.check_tokenizer(model.tokenizer, name=model.name, store=store)
    documents, membership = before.document_list(), before.membership
    if is_kept(before, model) and not references_again:
        check_audited(before.metadata.references, store=store)
        assessed = assess_again(before, model)
    else:
        reference_models = load_audited(before.metadata.references, store=store)
        for reference in reference_models:
            check_same_tokenizer(model, reference)
        assessed = assess_documents(
            model,
            reference_models,
            documents,
            membership,
            detect=before.metadata.detect,
            eligible=eligible_sets(documents.sets),
            given=before.span_rows,
        )
    kept = ("kind", "detect", "seed", "warnings", "erasure", "fit")
    settings = {name: getattr(before.metadata, name) for name in kept} | {"again": before.fingerprint}
    context = min(before.metadata.context, model.context)
    again = _assemble(
        model, before.metadata.references, documents, membership, assessed, context=context, settings=settings
    )
    marks = {name: again.tokens.column_names.index(name) for name in ("memorized", "selected")}
    tokens = again.tokens  # which tokens were memorized, and which were chosen, is the earlier audit's finding
    for name, place in marks.items():
        tokens = tokens.set_column(place, name, before.tokens[name])
    return replace(again, tokens=tokens)


def load_audited(audited: Sequence[AuditedModel], *, store: ModelStore) -> list[Model]:
    """Load models that an audit names, and make sure that they are still what was audited.

    Raises:
        MitigateError: a model changed since.
    """
    models = [store.load(one.source, name=one.name) for one in audited]
    for one, model in zip(audited, models, strict=True):
        _check_unchanged(one, model.fingerprint)
    return models


def check_audited(audited: Sequence[AuditedModel], *, store: ModelStore) -> None:
    """Make sure, without loading them, that models which an audit names are still what was audited.

    Raises:
        MitigateError: a model is missing or changed since.
    """
    for one in audited:
        store.check(one.source)
        _check_unchanged(one, model_fingerprint(one.source, base=store.base))


def _check_unchanged(audited: AuditedModel, fingerprint: str) -> None:
    """Refuse a model whose fingerprint is no longer what an audit says.

    Raises:
        MitigateError: it changed.
    """
    if fingerprint != audited.fingerprint:
        raise MitigateError(f"{audited.source}: not the model that the audit used (it changed since); audit again")


def _assemble(
    model: Model,
    references: Sequence[AuditedModel],
    documents: Documents,
    membership: ReferenceMembership,
    assessed: Assessment,
    *,
    context: int,
    settings: Mapping[str, Any],
) -> Audit:
    return Audit(
        tokens=token_table(
            assessed.tokenized,
            assessed.signals,
            assessed.spans,
            score=assessed.score,
            log_odds=assessed.log_odds,
            memorized=assessed.memorized,
        ),
        documents=document_table(documents, out_references=membership.out, in_references=membership.trained),
        spans=span_table(assessed.spans),
        kept=assessed.kept,
        metadata=AuditMetadata(
            target=_identity(model),
            origin=origin_of(model.source, fingerprint=model.fingerprint),
            references=tuple(references),
            crossfitted=tuple(membership.crossfitted),
            tokenizer=tokenizer_fingerprint(model.tokenizer),
            documents=documents.fingerprint,
            skipped=documents.skipped,
            coverage=coverage(documents, assessed.tokenized),
            context=context,
            calibration=assessed.calibration,
            code=__version__,
            versions=library_versions(),
            **settings,
        ),
    )


def _identity(model: Model) -> AuditedModel:
    return AuditedModel(name=model.name, source=model.source, fingerprint=model.fingerprint)
