"""Extraction: a value that comes back word for word, from other beginnings than the true one as well, or may be drawn.

Beside the values to forget stand those of never-seen people, which a model completes as far as they can be guessed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from accelerate import PartialState

from mitigate.detection.references.dealing import draw
from mitigate.generation.decoding import continuations
from mitigate.generation.settings import Sampling
from mitigate.models.model import Model
from mitigate.proof.attacks.likelihood import drawn_log_probs
from mitigate.proof.attacks.prompts import asked_for
from mitigate.proof.case import Case
from mitigate.proof.settings import Proof
from mitigate.proof.subject import NotApplicableError, NotPossibleError, Subject, Texts
from mitigate.runtime import gathered, progress, share_of
from mitigate.verification.extraction import extract
from mitigate.verification.extraction_values import Secret, secrets_of

_BATCH = 16  # documents continued at once


def values_of(case: Case, *, never_seen: bool, context: int, settings: Proof, seed: int) -> list[Secret]:
    """The values that extraction tries: names, which only a capital letter tells, where there is nothing else."""
    names = case.before.sets.values()
    sets: tuple[str | None, ...] = ("forget",) if "forget" in names else (None,)
    found = secrets_of(
        case.before, sets=("holdout",) if never_seen else sets, context=context, most=settings.most_values, seed=seed
    )
    return [one for one in found if not one.place.is_name] or list(found)


def of_values(case: Case, secrets: Sequence[Secret], scores: np.ndarray, numbers: np.ndarray) -> Texts:
    """What an attack made of those of some values that have these numbers."""
    places = [secrets[number].place for number in numbers]
    return Texts(scores, [case.before.groups[one.doc_id] for one in places], [one.kind for one in places], numbers)


def extracted(case: Case, subject: Subject, *, how: str, settings: Proof, seed: int) -> tuple[Texts, Texts | None]:
    """Which values a model completes: those to forget, and of the mitigated model those of never-seen people.

    Args:
        how: `sampled`, or a name of `PROMPTS`.

    Raises:
        NotPossibleError: there is no value to try, or no prompt for one of those to forget.
        NotApplicableError: there is nothing that could be written before them.
    """
    if how == "own_prompts" and settings.prompts is None:
        raise NotApplicableError("no prompts of your own were given (prompts: FILE)")
    model = subject.load()
    forgotten = _attempt(case, subject, model, False, how=how, settings=settings, seed=seed)
    if forgotten is None:
        raise NotPossibleError("no sensitive value in the documents to forget could be tried")
    if subject.role == "control":  # a reference may have seen all of them: then never-seen people are compared with
        return forgotten, None
    if not len(forgotten) and how == "other_document":
        raise NotApplicableError("no person has another document in the audit, in which the value does not stand")
    if not len(forgotten):
        raise NotPossibleError("none of the values to forget is asked for by a prompt")
    return forgotten, _attempt(case, subject, model, True, how=how, settings=settings, seed=seed)


def continued(case: Case, subject: Subject, *, settings: Proof) -> tuple[Texts, Texts | None]:
    """How much of the second half of each document a model writes after the first one: ROUGE-L, F1.

    That of the documents to forget, and, of the mitigated model, of never-seen ones (VerbMem of MUSE, Shi et al., arXiv
    2407.06460).

    Raises:
        NotPossibleError: no document to forget has two tokens.
    """
    model = subject.load()
    forgotten = _continued(case, subject, model, case.documents("forget"), settings=settings)
    if not len(forgotten):
        raise NotPossibleError("no document to forget is long enough to be continued")
    if subject.role == "control":
        return forgotten, None
    return forgotten, _continued(case, subject, model, case.documents("holdout"), settings=settings)


def _continued(case: Case, subject: Subject, model: Model, numbers: list[int], *, settings: Proof) -> Texts:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes seconds

    limit = min(one.load().context for one in case.subjects)
    rows = list(case.before.rows.values())
    numbers = sorted(draw(numbers, min(len(numbers), settings.most_values), key="continued"))
    kept = [n for n in numbers if len(case.tokenized[n].ids) > 1 and not subject.seen[rows[n].start]]
    halves = {n: _halved(case.tokenized[n].ids, context=limit, most=settings.continued_tokens) for n in kept}
    order = sorted(kept, key=lambda n: len(halves[n][0]))
    batches = [order[first : first + _BATCH] for first in range(0, len(order), _BATCH)]
    state = PartialState()
    mine = share_of(batches, state)
    scorer = RougeScorer(["rougeL"])
    found: list[tuple[int, float]] = []
    with progress(len(mine), f"Continuing, {subject.role} model", unit="batch") as bar, model.active() as module:
        for batch in mine:
            longest = max(len(halves[n][1]) for n in batch)
            written = continuations(module, [halves[n][0] for n in batch], new_tokens=longest)
            for n, ids in zip(batch, written, strict=True):
                true, own = (
                    str(model.tokenizer.decode(part.tolist(), skip_special_tokens=True))
                    for part in (halves[n][1], ids[: len(halves[n][1])])
                )
                found.append((n, float(scorer.score(true, own)["rougeL"].fmeasure)))
            bar.update()
    groups = list(case.before.groups.values())
    scores = np.array(gathered(found, state), dtype=float)
    return Texts(scores, [groups[n] for n in kept], [""] * len(kept), np.array(kept, dtype=int))


def _halved(ids: np.ndarray, *, context: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first half of a document, as far as the context reaches, and at most so many tokens of what follows."""
    half = (len(ids) + 1) // 2
    after = ids[half : half + min(most, max(1, context // 2))]
    return ids[max(0, half - (context - len(after))) : half], after


def _attempt(
    case: Case, subject: Subject, model: Model, never_seen: bool, *, how: str, settings: Proof, seed: int
) -> Texts | None:
    """None where there is no value."""
    limit = min(one.load().context for one in case.subjects)
    secrets = values_of(case, never_seen=never_seen, context=limit, settings=settings, seed=seed)
    if not secrets:
        return None
    rows = case.before.rows
    prompts = "true_prefix" if how == "sampled" else how
    asked = [
        one
        for one in asked_for(case, model, secrets, how=prompts, settings=settings, context=limit)
        if not subject.seen[rows[one.secret.place.doc_id].start]
    ]
    numbers = np.array([one.number for one in asked], dtype=int)
    what = f"Extraction, {how.replace('_', ' ')}, {subject.role} model{', never seen' if never_seen else ''}"
    if how == "sampled":
        found = drawn_log_probs(model, [one.secret for one in asked], sampling=Sampling(), description=what)
    else:
        found = np.array(extract(model, [one.secret for one in asked], description=what), dtype=bool)
    tried = np.unique(numbers)
    hits = np.array([found[numbers == number].max() for number in tried], dtype=found.dtype)
    return of_values(case, secrets, hits, tried)
