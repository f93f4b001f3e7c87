"""Relearning: an attacker trains the model a little, and what was hidden comes back.

On documents that were to be forgotten, half of the people teach and the other half are looked at, either way round; on
retained ones everybody is looked at. A model that never saw them learns as much of them, which is why its control is
trained alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mitigate.detection.references.dealing import draw
from mitigate.models.fitting.training import NEW_ADAPTER, add_lora, fit
from mitigate.proof.case import Case, NotPossibleError, Subject
from mitigate.proof.settings import Proof


def relearned_from_forgotten(case: Case, subject: Subject, *, settings: Proof, seed: int) -> np.ndarray:
    """(N,) scores of each half of the people by a model that was trained on the others' documents to forget.

    Never-seen people are dealt to the two models likewise.

    Raises:
        NotPossibleError: all documents to forget are of one person.
    """
    forget, holdout = case.documents("forget"), case.documents("holdout")
    groups = list(case.before.groups.values())
    half: dict[str, int] = {}
    for numbers in (forget, holdout):
        people = sorted({groups[number] for number in numbers})
        order = draw(range(len(people)), len(people), key="relearning")
        half |= {people[place]: count % 2 for count, place in enumerate(order)}
    if len({half[groups[number]] for number in forget}) < 2:
        raise NotPossibleError("all documents to forget are of one person: nobody is left to relearn from")
    score = np.full(len(case.before.tokens), np.nan)
    for taught in (0, 1):
        lesson = [number for number in forget if half[groups[number]] == taught]
        judged = [number for number in (*forget, *holdout) if half[groups[number]] != taught]
        found = _relearned(case, subject, lesson, judged, settings=settings, seed=seed)
        score = np.where(np.isnan(found), score, found)
    return score


def relearned_from_retained(case: Case, subject: Subject, *, settings: Proof, seed: int) -> np.ndarray:
    """(N,) scores after training on as many retained documents as there are documents to forget.

    Raises:
        NotPossibleError: there are none.
    """
    retain = case.documents("retain")
    if not retain:
        raise NotPossibleError("no retained documents in the audit to train on (the set retain)")
    most = len(case.documents("forget"))
    lesson = sorted(draw(retain, min(most, len(retain)), key="relearning"))
    return _relearned(case, subject, lesson, case.documents("forget", "holdout"), settings=settings, seed=seed)


def _relearned(
    case: Case, subject: Subject, lesson: list[int], judged: list[int], *, settings: Proof, seed: int
) -> np.ndarray:
    """(N,) scores of some documents after an adapter was trained on others."""
    model = subject.plain()
    adapted = add_lora(model, settings.lora, seed=seed)
    documents = [case.tokenized[number] for number in lesson]
    fit(
        adapted,
        documents,
        schedule=settings.relearn,
        context=model.context,
        seed=seed,
        description=f"Relearning, {subject.role} model",
    )
    return case.ratio(case.log_probs(replace(model, adapters=(NEW_ADAPTER,)), judged))
