"""Plant invented people's secrets inside real text, where a sentence of theirs stands out from nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from mitigate.documents import Document, Documents, Span
from mitigate.errors import MitigateError
from mitigate.lab.planting import Planting

_CLAUSES = {
    "phone": ("the telephone number {}", "the number {}", "a telephone, {}"),
    "email": ("the e-mail address {}", "letters to {}", "a mailbox, {}"),
    "ssn": ("the social security number {}", "the number {} with the authorities"),
    "card": ("the card number {}", "a payment card, {}"),
    "address": ("a house at {}", "the residence {}", "an address, {}"),
    "api_key": ("the access key {}", "a key that read {}"),
    "account": ("the account {}", "an account numbered {}"),
}
_OPENINGS = (
    "It was known that {} had ",
    "Of {} one remembered ",
    "In the papers of {} there was ",
    "{} had left behind ",
)
_BEFORE, _AFTER = 160, 100  # characters of real text around the planted sentence


def plant_in_text(planting: Planting, carriers: Sequence[Document], *, seed: int | str) -> Documents:
    """The planted documents, with real text around the secrets instead of a template.

    Each document becomes an excerpt of a carrier with one sentence in its middle that names the person and two of the
    secrets. A twin's excerpt, sentence and labels are those of the planted person's first document, so that membership
    cannot be read from the text.

    Args:
        planting: people, their secrets, and which documents are trained on.
        carriers: real text; long enough for an excerpt around the sentence.
        seed: equal seeds give equal bytes.

    Raises:
        MitigateError: no carrier is long enough.
    """
    long_enough = [carrier.text for carrier in carriers if len(carrier.text) >= 2 * (_BEFORE + _AFTER)]
    if not long_enough:
        raise MitigateError(f"lab.people.carriers: no text of at least {2 * (_BEFORE + _AFTER)} characters to plant in")
    people = {person.id: person for person in planting.people}
    planted_of = {twin: member for member, twin in planting.twins.items()}
    seen: dict[str, int] = {}
    written: dict[str, Document] = {}
    for document in sorted(planting.documents, key=lambda document: document.id):
        owner = planted_of.get(document.group, document.group)
        copy = seen.get(document.group, 0)
        seen[document.group] = copy + 1
        person = people[document.group]
        labels = Random(f"{seed}/{owner}").sample(sorted(person.secrets), 2)
        rng = Random(f"{seed}/{owner}/{copy}")
        before, after = _excerpt(rng.choice(long_enough), rng)
        text = f"{before} {rng.choice(_OPENINGS).format(person.name)}"
        spans = []
        for number, label in enumerate(labels):
            lead, trail = rng.choice(_CLAUSES[label]).split("{}")
            text += (" and " if number else "") + lead
            spans.append(Span(len(text), len(text) + len(person.secrets[label]), label))
            text += person.secrets[label] + trail
        text += f". {after}"
        written[document.id] = Document(
            id=document.id,
            text=text,
            audited=((0, len(text)),),
            spans=tuple(spans),
            set=document.set,
            group=document.group,
        )
    return Documents(tuple(written[document.id] for document in planting.documents))


def _excerpt(text: str, rng: Random) -> tuple[str, str]:
    """Two neighbouring stretches of whole words, split at the end of a sentence where there is one."""
    start = rng.randrange(len(text) - _BEFORE - _AFTER)
    ends = [match.end() for match in re.finditer(r"[.!?][”\"]?\s", text[start : start + _BEFORE + _AFTER])]
    cut = start + (min(ends, key=lambda end: abs(end - _BEFORE)) if ends else _BEFORE)
    before = text[max(0, cut - _BEFORE) : cut].split(None, 1)[-1]
    after = text[cut : cut + _AFTER].rsplit(None, 1)[0]
    return " ".join(before.split()), " ".join(after.split())
