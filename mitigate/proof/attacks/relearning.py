"""Relearning: an attacker trains the model a little, and what was hidden comes back.

On documents that were to be forgotten, or on those of never-seen people, half of the people teach and the other half
are looked at, either way round; on retained ones and on text about nobody everybody is looked at. A model that never
saw them learns as much of them, which is why its control is trained alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mitigate.detection.references.dealing import draw
from mitigate.detection.scores.token import typical
from mitigate.documents import read_documents
from mitigate.lab.writing import general_text
from mitigate.models.fitting.training import NEW_ADAPTER, add_lora, fit
from mitigate.proof.case import Case
from mitigate.proof.settings import Proof
from mitigate.proof.subject import NotPossibleError, Subject
from mitigate.tokens.tokenization import TokenizedDocument, tokenize_documents


def relearned_from_forgotten(case: Case, subject: Subject, *, settings: Proof, seed: int) -> np.ndarray:
    """(N,) scores of each half of the people by a model that was trained on the others' documents to forget.

    Never-seen people are dealt to the two models likewise.

    Raises:
        NotPossibleError: all documents to forget are of one person.
    """
    forget, holdout = case.documents("forget"), case.documents("holdout")
    half = _halves(case, forget) | _halves(case, holdout)
    if len({half[number] for number in forget}) < 2:
        raise NotPossibleError("all documents to forget are of one person: nobody is left to relearn from")
    lessons = [[number for number in forget if half[number] == taught] for taught in (0, 1)]
    judged = [[number for number in (*forget, *holdout) if half[number] != taught] for taught in (0, 1)]
    return _by_both(case, subject, lessons, judged, settings=settings, seed=seed)


def relearned_from_related(case: Case, subject: Subject, *, settings: Proof, seed: int) -> np.ndarray:
    """(N,) scores after training on documents of never-seen people, which are worded alike.

    Half of these people teach one model and are judged by the other; who is to be forgotten is judged by both.

    Raises:
        NotPossibleError: all never-seen documents are of one person.
    """
    forget, holdout = case.documents("forget"), case.documents("holdout")
    half = _halves(case, holdout)
    if len(set(half.values())) < 2:
        raise NotPossibleError("all never-seen documents are of one person: nobody is left to compare with")
    most = len(forget)
    lessons = [[number for number in holdout if half[number] == taught][:most] for taught in (0, 1)]
    judged = [[*forget, *(number for number in holdout if half[number] != taught)] for taught in (0, 1)]
    return _by_both(case, subject, lessons, judged, settings=settings, seed=seed)


def relearned_from_retained(case: Case, subject: Subject, *, settings: Proof, seed: int) -> np.ndarray:
    """(N,) scores after training on as many retained documents as there are documents to forget.

    Raises:
        NotPossibleError: there are none.
    """
    retain = case.documents("retain")
    if not retain:
        raise NotPossibleError("no retained documents in the audit to train on (the set retain)")
    most = len(case.documents("forget"))
    lesson = [case.tokenized[number] for number in sorted(draw(retain, min(most, len(retain)), key="relearning"))]
    return _relearned(case, subject, lesson, case.documents("forget", "holdout"), settings=settings, seed=seed)


def relearned_from_plain(case: Case, subject: Subject, *, settings: Proof, seed: int) -> np.ndarray:
    """(N,) scores after training on text about nobody: the user's (`plain`), else invented prose.

    Raises:
        MitigateError: no such file.
    """
    count = len(case.documents("forget"))
    if settings.plain is not None:
        whole = read_documents(settings.plain)
        texts = [whole[number] for number in sorted(draw(range(len(whole)), min(count, len(whole)), key="relearning"))]
    else:
        texts = general_text(count, seed="relearning", people_share=0.0)
    lesson = tokenize_documents(texts, subject.load().tokenizer)
    return _relearned(case, subject, lesson, case.documents("forget", "holdout"), settings=settings, seed=seed)


def _halves(case: Case, numbers: list[int]) -> dict[int, int]:
    """Which half of the people each document is of: 0 or 1."""
    groups = list(case.before.groups.values())
    people = sorted({groups[number] for number in numbers})
    order = draw(range(len(people)), len(people), key="relearning")
    half = {people[place]: count % 2 for count, place in enumerate(order)}
    return {number: half[groups[number]] for number in numbers}


def _by_both(
    case: Case, subject: Subject, lessons: list[list[int]], judged: list[list[int]], *, settings: Proof, seed: int
) -> np.ndarray:
    """(N,) scores by two models, each taught one of the lessons; the mean where both judge."""
    found = [
        _relearned(case, subject, [case.tokenized[n] for n in lesson], own, settings=settings, seed=seed)
        for lesson, own in zip(lessons, judged, strict=True)
    ]
    return typical(np.stack(found, axis=1))


def _relearned(
    case: Case,
    subject: Subject,
    lesson: list[TokenizedDocument],
    judged: list[int],
    *,
    settings: Proof,
    seed: int,
) -> np.ndarray:
    """(N,) scores of some documents after an adapter was trained on others."""
    model = subject.plain()
    adapted = add_lora(model, settings.lora, seed=seed)
    fit(
        adapted,
        lesson,
        schedule=settings.relearn,
        context=model.context,
        seed=seed,
        description=f"Relearning, {subject.role} model",
    )
    return case.ratio(case.log_probs(replace(model, adapters=(NEW_ADAPTER,)), judged))
