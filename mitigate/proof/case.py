"""What a verification looks at: an audit, the model that was made of the audited one, and its control.

The control is a model that never saw the documents to forget: the oracle, or else one of the audit's references, on the
documents that it was not trained on. It goes through the same attack. What an attack gets out of it, it would get out
of a model that has nothing to give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mitigate.artifacts.provenance import Origin, origin_of
from mitigate.detection.panel import as_judged, teachers_of
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import References, load_references
from mitigate.detection.scores.token import clipped, typical
from mitigate.detection.signals.compute import token_log_probs, token_signals
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.models.directory import is_served, model_fingerprint
from mitigate.models.model import Model
from mitigate.models.store import ModelStore
from mitigate.proof.subject import Reading, Subject, Texts
from mitigate.tokens.tokenization import TokenizedDocument
from mitigate.verification.figures import View
from mitigate.verification.never_seen import means_of


@dataclass(frozen=True)
class Case:
    """A mitigated model with all that it is judged by.

    Attributes:
        before: the audit, by the references that were kept out of unlearning where some were.
        kept_out: whether none of those who judge taught; None where no reference taught anything.
        judges: references that judge in the place of the audit's, by fingerprint, and whether each was trained on
            documents to forget; empty where the audit's judge.
        origin: how the mitigated model was made, where that is recorded.
        mitigated: the model under attack.
        control: a model that never saw the documents to forget; None where there is none.
        control_is_oracle: it was trained for that, and is no reference.
        typical: (N,) mean log-probability of each token under the references that judge, the control aside; NaN where
            none does.
    """

    before: Audit
    kept_out: bool | None
    judges: Mapping[str, bool]
    origin: Origin | None
    mitigated: Subject
    control: Subject | None
    control_is_oracle: bool
    typical: np.ndarray

    @property
    def subjects(self) -> list[Subject]:
        """The mitigated model, and its control."""
        return [self.mitigated, *([self.control] if self.control is not None else [])]

    @cached_property
    def view(self) -> View:
        """The audit, cut the ways that figures need it."""
        return View(self.before)

    @cached_property
    def compared(self) -> str:
        """What is compared: `span_auc` (known spans), or `document_auc` where known spans are missing on a side."""
        both = all(len(self.view.places("span_auc", member=member)[0]) for member in (True, False))
        return "span_auc" if both else "document_auc"

    @cached_property
    def tokenized(self) -> list[TokenizedDocument]:
        """The audited documents."""
        return self.before.tokenized()

    @cached_property
    def special_tokens(self) -> dict[str, bool]:
        """Document -> whether it is read with the tokenizer's special tokens around it."""
        table = self.before.documents
        return dict(zip(table["doc_id"].to_pylist(), table["special_tokens"].to_pylist(), strict=True))

    @cached_property
    def group_number(self) -> dict[str, int]:
        """Group -> its number, which says nothing of its name."""
        return {group: number for number, group in enumerate(dict.fromkeys(self.before.groups.values()))}

    def documents(self, *sets: str) -> list[int]:
        """Numbers of the documents of some sets: `forget` (those to forget), `retain`, `holdout`."""
        names = self.before.sets
        return [
            number
            for number, doc_id in enumerate(self.before.rows)
            if any(self.view.is_forget(doc_id) if name == "forget" else names[doc_id] == name for name in sets)
        ]

    def log_probs(self, model: Model, numbers: Sequence[int] | None = None) -> np.ndarray:
        """(N,) log-probability of the tokens of some documents, NaN elsewhere.

        Args:
            model: who says it.
            numbers (*optional*): of the documents; by default those to forget and the never-seen ones.
        """
        numbers = self.documents("forget", "holdout") if numbers is None else numbers
        return self.scattered(token_log_probs(model, [self.tokenized[number] for number in numbers]), numbers)

    def signals(self, subject: Subject, numbers: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """The signals of a subject as it is served, each (N,), of some documents, as `log_probs`."""

        def read(numbers: Sequence[int]) -> dict[str, np.ndarray]:
            documents = [self.tokenized[number] for number in numbers]
            found = token_signals(subject.load(), [], documents=documents)
            return {name: self.scattered(column, numbers) for name, column in found.items() if column.ndim == 1}

        return self.once(subject, "signals", numbers, read)

    def once(
        self,
        subject: Subject,
        name: str,
        numbers: Sequence[int] | None,
        read: Callable[[Sequence[int]], Mapping[str, np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """A reading of a subject, each column (N,), of which only documents that were not read yet are read now.

        Args:
            subject: whose.
            name: of the reading.
            numbers: of the documents; None: those to forget and the never-seen ones.
            read: reads some documents, given by their numbers; NaN elsewhere.
        """
        numbers = self.documents("forget", "holdout") if numbers is None else numbers
        kept = subject.said.setdefault(name, Reading())
        if lacking := [number for number in numbers if number not in kept.numbers]:
            kept.add(read(lacking), lacking)
        asked = self.scattered(np.ones(sum(len(self.tokenized[number].ids) for number in numbers)), numbers)
        return {key: np.where(asked == 1, column, np.nan) for key, column in kept.columns.items()}

    def ratio(self, log_prob: np.ndarray) -> np.ndarray:
        """(N,) how far tokens lie above what the references say, nats, clipped; log p itself where none judges."""
        if np.isnan(self.typical).all():
            return log_prob
        return clipped(log_prob - self.typical)

    def sides(self, score: np.ndarray, subject: Subject) -> tuple[Texts, Texts]:
        """The texts to forget and the never-seen ones, by their mean scores."""
        known = np.where(subject.seen, np.nan, score)
        forgotten, never_seen = (
            texts.scored(means_of(known, places)) for places, texts in (self.texts("forget"), self.texts("holdout"))
        )
        return forgotten, never_seen

    def texts(self, which: str) -> tuple[np.ndarray, Texts]:
        """(n, 2) first and one past the last token row of the texts of a set that are compared, and these, unscored."""
        places, groups, kinds = self.view.labelled_in(self.compared, which)
        return places, Texts(np.full(len(places), np.nan), groups, kinds, np.arange(len(places)))

    def scattered(self, values: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        """(N,) values of the tokens of some documents, one after the other, in their places; NaN elsewhere."""
        column = np.full(len(self.before.tokens), np.nan, dtype=np.float64)
        rows = list(self.before.rows.values())
        if numbers:
            column[np.concatenate([np.arange(rows[n].start, rows[n].stop) for n in numbers])] = values
        return column


def make_case(
    before: Audit,
    mitigated: str | Path,
    *,
    oracle: str | Path | None,
    judges: References | str | Path | None = None,
    store: ModelStore,
) -> Case:
    """Settle who is attacked, who judges and what the control is.

    Args:
        before: the audit of the model as it was.
        mitigated: the model that was made of it.
        oracle (*optional*): a model that was trained without the documents to forget.
        judges (*optional*): references that judge in the place of the audit's.
        store: loads the models.

    Raises:
        MitigateError: a model is missing, or its tokenizer is another; nothing to compare with; judges that taught.
    """
    source = str(mitigated)
    if is_served(source):
        raise MitigateError(f"{source}: a server; a model whose weights are not at hand cannot be attacked")
    store.check(source)
    origin = origin_of(source, fingerprint=model_fingerprint(source, base=store.base))
    made = replace(before, metadata=before.metadata.model_copy(update={"origin": origin}))
    judged, _, kept_out = as_judged(before, made)
    seen = np.zeros(len(before.tokens), dtype=bool)
    subject = Subject("mitigated", source, store, seen)
    references = judged.reference_log_probs
    control = None
    if oracle is not None:
        store.check(str(oracle))
        control = Subject("control", str(oracle), store, seen)
    elif (number := _stand_in(before)) is not None:
        trained = [number in row for row in before.documents["in_references"].to_pylist()]
        lengths = [rows.stop - rows.start for rows in before.rows.values()]
        reference = before.metadata.references[number].source
        control = Subject("control", reference, store, np.repeat(np.array(trained, dtype=bool), lengths))
        references = np.delete(references, number, axis=1)
    case = Case(judged, kept_out, {}, origin, subject, control, oracle is not None, typical(references))
    for one in case.subjects:
        before.check_tokenizer(one.load().tokenizer, name=one.source, store=store)
    members, never_seen = (case.view.places(case.compared, member=member)[1] for member in (True, False))
    if not members or not never_seen:
        raise MitigateError(
            f"the audit has {len(members)} documents to forget and {len(never_seen)} that the model never saw; a proof "
            "compares them: audit some never-seen documents beside (the set holdout)"
        )
    return case if judges is None else _judged_by(case, judges)


def _judged_by(case: Case, judges: References | str | Path) -> Case:
    """The case as fresh references judge it, each of the documents that it was not trained on.

    Raises:
        MitigateError: one of them taught, or has another tokenizer; a document that all of them were trained on.
    """
    fresh = judges if isinstance(judges, References) else load_references(judges)
    store = case.mitigated.store
    names = tuple(model_fingerprint(path, base=store.base) for path in fresh.paths)
    teachers = teachers_of(case.origin)
    if taught := (teachers or set()) & set(names):
        raise MitigateError(
            f"--judges: {len(taught)} of {len(names)} references taught the model that they are to judge; give others: "
            "mitigate references --judges AUDIT"
        )
    numbers, documents = case.documents("forget", "holdout"), case.before.document_list()
    out = fresh.out_for(Documents(tuple(documents[number] for number in numbers)))
    trained = fresh.trained_for(Documents(tuple(documents[number] for number in case.documents("forget"))))
    found = np.full((len(case.before.tokens), len(names)), np.nan)
    for judge, path in enumerate(fresh.paths):
        model = (store if store.holds(path) else store.fresh()).load(path)
        case.before.check_tokenizer(model.tokenizer, name=path, store=store)
        if own := [number for number, who in zip(numbers, out, strict=True) if judge in who]:
            found[:, judge] = case.log_probs(model, own)
    kept_out = case.kept_out if case.origin is None or case.origin.by != "unlearn" else teachers is not None
    of = {name: any(judge in who for who in trained) for judge, name in enumerate(names)}
    return replace(case, kept_out=kept_out, judges=of, typical=typical(found))


def _stand_in(before: Audit) -> int | None:
    """The reference that was trained on fewest of the documents to compare; None where it judges none of a side."""
    view = View(before)
    trained = before.documents["in_references"].to_pylist()
    count = len(before.metadata.references)
    untrained = np.zeros((count, 2), dtype=int)
    for doc_id, known in zip(before.rows, trained, strict=True):
        side = 0 if view.is_forget(doc_id) else 1 if before.sets[doc_id] == "holdout" else None
        if side is not None:
            untrained[[number for number in range(count) if number not in known], side] += 1
    usable = [number for number in range(count) if untrained[number].min() > 0]
    served = {number for number in usable if is_served(before.metadata.references[number].source)}
    return max((n for n in usable if n not in served), key=lambda n: int(untrained[n].sum()), default=None)
