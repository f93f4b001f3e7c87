"""Exposure: where a value ranks among others that could stand in its place (Carlini et al., arXiv 1802.08232).

The others are values of the same kind of never-seen people, so no format gives the true one away; for a never-seen
person's value, those of the other ones. No reference is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mitigate.detection.references.dealing import draw
from mitigate.documents import Document
from mitigate.generation.settings import Sampling
from mitigate.models.model import Model
from mitigate.proof.attacks.likelihood import drawn_log_probs
from mitigate.proof.attacks.prefixes import of_values, values_of
from mitigate.proof.attacks.prompts import value_of
from mitigate.proof.case import Case
from mitigate.proof.settings import Proof
from mitigate.proof.subject import NotPossibleError, Subject, Texts
from mitigate.secrets.same import comparable
from mitigate.tokens.tokenization import tokenize_documents
from mitigate.verification.extraction_values import Secret

_BEFORE = 32  # tokens before a value that a model reads
_WHOLE = Sampling(top_k=None)


def exposures(case: Case, subject: Subject, *, settings: Proof, seed: int) -> tuple[Texts, Texts]:
    """log2 of (twins + 1) over the rank of each value, in bits, of both kinds of people; ties count a half.

    Values of which there are too few of their kind, or that the model was trained on, are left out.

    Raises:
        NotPossibleError: none is left on a side.
    """
    model = subject.load()
    limit = min(one.load().context for one in case.subjects)
    both = [
        values_of(case, never_seen=never_seen, context=limit, settings=settings, seed=seed)
        for never_seen in (False, True)
    ]
    sides = []
    for values in both:
        tried = [
            (number, one, twins)
            for number, one in enumerate(values)
            if not subject.seen[case.before.rows[one.place.doc_id].start]
            and (twins := _twins(case, one, both[1], settings.twins)) is not None
        ]
        if not tried:
            raise NotPossibleError(
                f"no value has {settings.twins} others of its kind among the never-seen people's (twins: fewer)"
            )
        texts = [(one, text) for _, one, twins in tried for text in (value_of(case, one), *twins)]
        written = [_in_place(case, model, one, text) for one, text in texts]
        found = drawn_log_probs(model, written, sampling=_WHOLE, description=f"Twins, {subject.role} model")
        table = found.reshape(len(tried), settings.twins + 1)
        above = (table[:, 1:] > table[:, :1]).sum(1) + 0.5 * (table[:, 1:] == table[:, :1]).sum(1)
        bits = np.log2(settings.twins + 1) - np.log2(1 + above)
        sides.append(of_values(case, values, bits, np.array([number for number, _, _ in tried])))
    return sides[0], sides[1]


def _twins(case: Case, own: Secret, never_seen: Sequence[Secret], count: int) -> list[str] | None:
    """Other people's values of the same kind, drawn by a hash of where the value stands; None if there are too few."""
    group, value = case.before.groups[own.place.doc_id], comparable(value_of(case, own))
    pool: dict[str, str] = {}
    for one in never_seen:
        text = value_of(case, one)
        if one.place.kind == own.place.kind and case.before.groups[one.place.doc_id] != group:
            pool.setdefault(comparable(text), text)
    pool.pop(value, None)
    if len(pool) < count:
        return None
    texts = list(pool.values())
    return [texts[number] for number in draw(range(len(texts)), count, key=f"twins {own.place}")]


def _in_place(case: Case, model: Model, own: Secret, text: str) -> Secret:
    """A text in a value's place, after the last tokens before it; nothing stands behind it."""
    doc_id, start = own.place.doc_id, own.place.start
    before = case.before.texts[doc_id][:start]
    special = case.special_tokens[doc_id]
    document = Document(doc_id, before + text, audited=((start, start + len(text)),), special_tokens=special)
    [tokens] = tokenize_documents([document], model.tokenizer)
    places = np.flatnonzero(tokens.audited)
    first, last = int(places[0]), int(places[-1]) + 1
    room = model.context - (last - first)
    prefix = tokens.ids[max(0, first - min(_BEFORE, room)) : first]
    return Secret(own.place, prefix, tokens.ids[first:last], text)
