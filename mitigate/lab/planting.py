"""Documents that hold invented people's secrets a known number of times: the text whose leakage is known exactly.

`plant` randomizes membership. People are invented in pairs who share everything but their name and secrets, and a coin
decides which of the two is planted; the other is the never-trained twin, whose one document has the same template and
filler as the first of the planted person's. Nothing in the text tells a member from a twin: what a detector finds, it
has from the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType

from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError, summarize
from mitigate.lab.people import Person, invent_people
from mitigate.lab.writing import WORDINGS, some_labels, write_document

PEOPLE_PER_COUNT: Mapping[int, int] = MappingProxyType({0: 12, 1: 12, 2: 12, 4: 12, 8: 12, 16: 12})


@dataclass(frozen=True)
class Planting:
    """What `plant` did: the documents, and the truth about them.

    Attributes:
        documents: shuffled; set "forget" or "retain" is to be trained on, "holdout" never. Group is the person's id.
        people: planted people, their twins, and people planted 0 times.
        copies: person id -> how many training documents hold the person's secrets (0 for twins and the never planted).
        twins: planted person's id -> twin's id.
    """

    documents: Documents
    people: tuple[Person, ...]
    copies: Mapping[str, int]
    twins: Mapping[str, str]


def plant(
    *,
    seed: int | str,
    people_per_count: Mapping[int, int] = PEOPLE_PER_COUNT,
    forget_share: float = 1 / 3,
) -> Planting:
    """Plant people's secrets a known number of times, with membership decided by a coin.

    A person planted c times gets c different documents (register, template and filler differ, the 2 to 4 secrets stay),
    all "forget" or all "retain". The person's twin gets one "holdout" document, worded as the first of the c. People
    planted 0 times get one "holdout" document of their own.

    Args:
        seed: equal seeds give equal bytes.
        people_per_count (`Mapping[int, int]`, *optional*, defaults to 12 each of 0, 1, 2, 4, 8, 16):
            number of copies -> how many people are planted that often.
        forget_share (`float`, *optional*, defaults to 1/3): share of each count's planted people to be forgotten.

    Raises:
        MitigateError: a negative count, or a share outside [0, 1].
    """
    if bad := [f"{copies}: {people}" for copies, people in people_per_count.items() if copies < 0 or people < 0]:
        raise MitigateError(f"plant: people_per_count has {summarize(bad)}; give numbers of 0 or more")
    if not 0 <= forget_share <= 1:
        raise MitigateError(f"plant: forget_share is {forget_share}; give a share from 0 to 1")
    rng = Random(f"plant/{seed}")
    planted = {copies: people for copies, people in sorted(people_per_count.items()) if copies > 0}
    pool = iter(invent_people(2 * sum(planted.values()) + people_per_count.get(0, 0), seed=f"plant/{seed}"))

    documents: list[Document] = []
    people: list[Person] = []
    copies_of: dict[str, int] = {}
    twins: dict[str, str] = {}
    owed = 0.0  # forget people owed by earlier counts, so that small counts round to the right share overall
    for copies, number in planted.items():
        owed += forget_share * number
        forgotten = min(number, round(owed))
        owed -= forgotten
        sets = ["forget"] * forgotten + ["retain"] * (number - forgotten)
        rng.shuffle(sets)
        for chosen in sets:
            one = next(pool)
            other = replace(next(pool), city=one.city, employer=one.employer, job=one.job)
            member, twin = (one, other) if rng.random() < 0.5 else (other, one)
            written, shadow = _write_pair(member, twin, copies=copies, rng=rng)
            documents += [replace(document, set=chosen) for document in written]
            documents.append(replace(shadow, set="holdout"))
            people += [one, other]
            copies_of |= {member.id: copies, twin.id: 0}
            twins[member.id] = twin.id
    for person in pool:
        register, template = rng.choice(WORDINGS)
        document = write_document(person, register=register, template=template, rng=rng, id=f"{person.id}-00")
        documents.append(replace(document, set="holdout"))
        people.append(person)
        copies_of[person.id] = 0
    rng.shuffle(documents)
    return Planting(documents=Documents(tuple(documents)), people=tuple(people), copies=copies_of, twins=twins)


def _write_pair(member: Person, twin: Person, *, copies: int, rng: Random) -> tuple[list[Document], Document]:
    """The member's documents, no wording twice while there are others, and the twin's: worded as the first."""
    labels = some_labels(rng)
    wordings: list[tuple[str, int]] = []
    while len(wordings) < copies:
        wordings += rng.sample(WORDINGS, min(len(WORDINGS), copies - len(wordings)))
    states = [rng.getrandbits(64) for _ in wordings]

    def write(person: Person, number: int) -> Document:
        register, template = wordings[number]
        id = f"{person.id}-{number:02d}"
        return write_document(
            person, register=register, template=template, rng=Random(states[number]), id=id, labels=labels
        )

    return [write(member, number) for number in range(copies)], write(twin, 0)
