"""Invented people with secrets, and documents that hold them: the text whose leakage is known exactly.

`plant` randomizes membership. People are invented in pairs who share everything but their name and secrets, and a coin
decides which of the two is planted; the other is the never-trained twin, whose one document has the same template and
filler as the first of the planted person's. Nothing in the text tells a member from a twin: what a detector finds, it
has from the model.

No secret can be anyone's: each is drawn from a range that its issuer has set aside.

- phone: area code N9X, reserved by the North American numbering plan for its expansion, assigned to nobody
- SSN: area 900-999, never issued; group 01-49, so that it is no taxpayer number (ITIN) either, which have 50 and above
- card: 16 digits that begin 99: major industry 9 (national standards bodies) followed by a country code from 900, which
  ISO 3166 gives to no country. The check digit (Luhn) is valid on purpose: detectors of card numbers test it.
- email: domains under .example, .test and example.com, .net, .org, reserved by RFC 2606
- address: streets, towns and ZIP codes by Faker, combined at random
- api_key: the prefix of a payment provider's test keys, and fewer characters after it than the provider writes
- account: letters and digits in a form of our own
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from string import Formatter
from types import MappingProxyType

from faker import Faker

from mitigate.documents import Document, Documents, Span
from mitigate.errors import MitigateError, summarize
from mitigate.lab.registers import JOBS, PROSE, REGISTERS, SECRETS, WORDS

PEOPLE_PER_COUNT: Mapping[int, int] = MappingProxyType({0: 12, 1: 12, 2: 12, 4: 12, 8: 12, 16: 12})


@dataclass(frozen=True)
class Person:
    """Someone who does not exist. `secrets` maps each label of `SECRETS` to a string no other invented person has."""

    id: str
    name: str
    secrets: Mapping[str, str]
    city: str
    employer: str
    job: str

    @property
    def first(self) -> str:
        """The first name."""
        return self.name.split()[0]

    @property
    def last(self) -> str:
        """The last name."""
        return self.name.split()[-1]


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


def invent_people(count: int, *, seed: int | str, used: set[str] | None = None, prefix: str = "person") -> list[Person]:
    """Invent people with names and secrets of their own.

    Args:
        count: how many.
        seed: equal seeds give equal people, in every process.
        used (`set`, *optional*): names and secrets that are taken; those invented here are added to it. Pass one set to
            several calls to keep all their people apart.
        prefix (`str`, *optional*, defaults to `"person"`): of the ids, `person-0000` and so on.
    """
    if count < 0:
        raise MitigateError(f"invent_people: count is {count}; give 0 or more")
    source = _Source(f"people/{seed}", set() if used is None else used, side=0)
    return [source.person(f"{prefix}-{number:04d}") for number in range(count)]


def write_document(
    person: Person, *, register: str, template: int, rng: Random, id: str, labels: Sequence[str] | None = None
) -> Document:
    """Write a document (200 to 450 characters, as a rule) about a person, with the exact place of every secret in it.

    The same `rng` state gives the same words around another person's name and secrets: the choice of clauses and filler
    looks at no string of the person.

    Args:
        person: whose secrets; the document's group is `person.id`.
        register: a key of `REGISTERS`.
        template: which template of the register, from 0.
        rng: decides everything else.
        id: of the document.
        labels (`Sequence[str]`, *optional*, defaults to 2 to 4 at random): the 1 to 4 secrets to write, in any order.

    Raises:
        MitigateError: no such register, template or label.
    """
    style = REGISTERS.get(register)
    if style is None:
        raise MitigateError(f"write_document: no register {register!r}; there are {', '.join(REGISTERS)}")
    if not 0 <= template < len(style.templates):
        raise MitigateError(
            f"write_document: no template {template} in {register}; it has 0 to {len(style.templates) - 1}"
        )
    labels = _some_labels(rng) if labels is None else labels
    if not 1 <= len(set(labels)) == len(labels) <= 4 or not set(labels) <= set(SECRETS):
        raise MitigateError(
            f"write_document: labels are {', '.join(labels) or 'empty'}; "
            f"give 1 to 4 different ones of {', '.join(SECRETS)}"
        )
    pattern = style.templates[template]
    clauses = [rng.choice(style.clauses[label]) for label in rng.sample(list(labels), len(labels))]
    for slot, clause in enumerate([*clauses, "", "", ""][:4], start=1):
        pattern = pattern.replace(f"{{{slot}}}", clause)
    pattern = _tidy(_fill(pattern, style.filler, rng))
    words = {slot: rng.choice(options) for slot, options in WORDS.items()}
    facts = {
        "name": person.name,
        "first": person.first,
        "city": person.city,
        "employer": person.employer,
        "job": person.job,
        "a_job": _with_article(person.job),
    }
    text, spans = _render(pattern, words | facts, person.secrets)
    return Document(id=id, text=text, spans=spans, group=person.id)


def plant(
    *,
    seed: int | str,
    people_per_count: Mapping[int, int] = PEOPLE_PER_COUNT,
    forget_share: float = 1 / 3,
    used: set[str] | None = None,
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
        used (`set`, *optional*): as in `invent_people`.

    Raises:
        MitigateError: a negative count, or a share outside [0, 1].
    """
    if bad := [f"{copies}: {people}" for copies, people in people_per_count.items() if copies < 0 or people < 0]:
        raise MitigateError(f"plant: people_per_count has {summarize(bad)}; give numbers of 0 or more")
    if not 0 <= forget_share <= 1:
        raise MitigateError(f"plant: forget_share is {forget_share}; give a share from 0 to 1")
    rng = Random(f"plant/{seed}")
    taken: set[str] = set() if used is None else used
    planted = {copies: people for copies, people in sorted(people_per_count.items()) if copies > 0}
    pool = iter(invent_people(2 * sum(planted.values()) + people_per_count.get(0, 0), seed=f"plant/{seed}", used=taken))

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
        register, template = rng.choice(_WORDINGS)
        document = write_document(person, register=register, template=template, rng=rng, id=f"{person.id}-00")
        documents.append(replace(document, set="holdout"))
        people.append(person)
        copies_of[person.id] = 0
    rng.shuffle(documents)
    return Planting(documents=Documents(tuple(documents)), people=tuple(people), copies=copies_of, twins=twins)


def general_text(count: int, *, seed: int | str, people_share: float = 0.6) -> list[Document]:
    """Ordinary text to train a base model on from scratch, so that only the planted secrets are news to it.

    A share of the documents are of the five registers, about throwaway people with secrets of like formats; the rest is
    prose without anyone's data (weather, minutes, stories, ...). A throwaway person's name and secrets are never a
    planted person's, whatever the seeds: a hash of the string decides to which of the two worlds it belongs.

    Args:
        count: number of documents; none has a set.
        seed: equal seeds give equal bytes.
        people_share (`float`, *optional*, defaults to 0.6): chance that a document is about a throwaway person.
    """
    if count < 0 or not 0 <= people_share <= 1:
        raise MitigateError(
            f"general_text: count {count}, people_share {people_share}; give 0 or more, and a share 0 to 1"
        )
    rng = Random(f"general/{seed}")
    source = _Source(f"general/{seed}", set(), side=1)
    documents = []
    for number in range(count):
        id = f"general-{number:05d}"
        if rng.random() < people_share:
            register, template = rng.choice(_WORDINGS)
            person = source.person(id)
            documents.append(write_document(person, register=register, template=template, rng=rng, id=id))
        else:
            documents.append(Document(id=id, text=_write_prose(rng)))
    return documents


_WORDINGS = tuple((name, number) for name, style in REGISTERS.items() for number in range(len(style.templates)))

# Stand-ins for a person's strings where length matters: a length taken from the strings themselves would let a secret
# decide which filler follows it, and a twin's text would differ from its member's in more than the secrets.
_TYPICAL_LENGTH = {"name": 15, "first": 7, "city": 14, "employer": 17, "job": 10, "a_job": 12, "phone": 14, "email": 28}
_TYPICAL_LENGTH |= {"ssn": 11, "card": 19, "address": 46, "api_key": 28, "account": 12}

_DOMAINS = tuple(f"{name}.{zone}" for name in ("harbor", "northmail", "inbox", "post") for zone in ("example", "test"))
_DOMAINS += ("example.com", "example.net", "example.org")
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_KEY_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


class _Source:
    """Draws people whose names and secrets are new, and on one side of a fixed split of all strings."""

    def __init__(self, seed: str, used: set[str], *, side: int) -> None:
        self._rng = Random(seed)
        self._faker = Faker("en_US", use_weighting=False)
        self._faker.seed_instance(self._rng.getrandbits(64))
        self._used = used
        self._side = side

    def person(self, id: str) -> Person:
        name = self._new(lambda: f"{self._faker.first_name()} {self._faker.last_name()}")
        drawers: dict[str, Callable[[], str]] = {
            "phone": self._phone,
            "email": lambda: self._email(name),
            "ssn": self._ssn,
            "card": self._card,
            "address": self._address,
            "api_key": lambda: "sk_test_" + "".join(self._rng.choices(_KEY_CHARACTERS, k=20)),
            "account": lambda: f"{self._letters(2)}-{self._digits(4)}-{self._digits(4)}",
        }
        secrets = {label: self._new(drawers[label]) for label in SECRETS}
        city, employer = self._faker.city(), self._faker.company()
        return Person(id=id, name=name, secrets=secrets, city=city, employer=employer, job=self._rng.choice(JOBS))

    def _new(self, draw: Callable[[], str]) -> str:
        while True:
            value = draw()
            if value not in self._used and hashlib.sha256(value.encode()).digest()[0] % 2 == self._side:
                self._used.add(value)
                return value

    def _phone(self) -> str:
        area = f"{self._rng.randint(2, 9)}9{self._digits(1)}"
        exchange, line = f"{self._rng.randint(2, 9)}{self._digits(2)}", self._digits(4)
        return self._rng.choice(
            (f"({area}) {exchange}-{line}", f"{area}-{exchange}-{line}", f"{area}.{exchange}.{line}")
        )

    def _email(self, name: str) -> str:
        # Four digits after the name: an address that follows from the name would be guessed, not remembered.
        first, last = (re.sub("[^a-z]", "", part.lower()) for part in (name.split()[0], name.split()[-1]))
        handle = self._rng.choice((f"{first}.{last}", f"{first[0]}_{last}", f"{last}{first[0]}", f"{last}.{first}"))
        return f"{handle}{self._digits(4)}@{self._rng.choice(_DOMAINS)}"

    def _ssn(self) -> str:
        return f"9{self._digits(2)}-{self._rng.randint(1, 49):02d}-{self._rng.randint(1, 9999):04d}"

    def _card(self) -> str:
        digits = "99" + self._digits(13)
        digits += str(-luhn(digits + "0") % 10)
        return " ".join(digits[at : at + 4] for at in range(0, 16, 4))

    def _address(self) -> str:
        house, unit = self._rng.randint(1000, 9999), self._rng.choice(("", f" Apt. {self._rng.randint(10, 99)}"))
        state = self._faker.state_abbr(include_territories=False, include_freely_associated_states=False)
        return f"{house} {self._faker.street_name()}{unit}, {self._faker.city()}, {state} {self._faker.zipcode()}"

    def _digits(self, count: int) -> str:
        return "".join(self._rng.choices("0123456789", k=count))

    def _letters(self, count: int) -> str:
        return "".join(self._rng.choices(_LETTERS, k=count))


def luhn(digits: str) -> int:
    """The Luhn sum of a string of digits; a card number is well-formed if it is divisible by 10."""
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled)


def _write_pair(member: Person, twin: Person, *, copies: int, rng: Random) -> tuple[list[Document], Document]:
    """The member's documents, no wording twice while there are others, and the twin's: worded as the first."""
    labels = _some_labels(rng)
    wordings: list[tuple[str, int]] = []
    while len(wordings) < copies:
        wordings += rng.sample(_WORDINGS, min(len(_WORDINGS), copies - len(wordings)))
    states = [rng.getrandbits(64) for _ in wordings]

    def write(person: Person, number: int) -> Document:
        register, template = wordings[number]
        id = f"{person.id}-{number:02d}"
        return write_document(
            person, register=register, template=template, rng=Random(states[number]), id=id, labels=labels
        )

    return [write(member, number) for number in range(copies)], write(twin, 0)


def _some_labels(rng: Random) -> list[str]:
    return rng.sample(SECRETS, rng.randint(2, 4))


def _fill(pattern: str, sentences: Sequence[str], rng: Random) -> str:
    """Put sentences in `{0}` slots, at random ones first, until the text is long enough; empty the others."""
    pieces = pattern.split("{0}")
    fresh = rng.sample(sentences, len(sentences))
    enough = rng.randint(240, 370)
    filled = [""] * (len(pieces) - 1)
    length = _typical_length(pattern)
    for slot in rng.sample(range(len(filled)), len(filled)):
        if length < enough:
            filled[slot] = fresh.pop()
            length += _typical_length(filled[slot])
    return pieces[0] + "".join(text + piece for text, piece in zip(filled, pieces[1:], strict=True))


def _typical_length(pattern: str) -> int:
    pattern = pattern.replace("{0}", "")
    return sum(
        len(text) + (_TYPICAL_LENGTH.get(field, 9) if field else 0) for text, field, _, _ in Formatter().parse(pattern)
    )


def _tidy(pattern: str) -> str:
    """Remove the spaces and lines that empty slots leave behind."""
    lines = (re.sub(r"(?<=\S) {2,}", " ", line).rstrip() for line in pattern.split("\n"))
    return "\n".join(line for line in lines if line)


def _render(pattern: str, words: Mapping[str, str], secrets: Mapping[str, str]) -> tuple[str, tuple[Span, ...]]:
    """Replace the fields of a pattern, keeping the character range of each secret."""
    text, spans = "", []
    for literal, field, _, _ in Formatter().parse(pattern):
        text += literal
        if field is None:
            continue
        if field in secrets:
            spans.append(Span(start=len(text), end=len(text) + len(secrets[field]), label=field))
        text += secrets[field] if field in secrets else words[field]
    return text, tuple(spans)


def _write_prose(rng: Random) -> str:
    sentences = PROSE[rng.choice(tuple(PROSE))]
    enough = rng.randint(200, 380)
    text = ""
    for pattern in rng.sample(sentences, len(sentences)):
        if len(text) >= enough:
            break
        written = ""
        for literal, field, _, _ in Formatter().parse(pattern):
            word = "" if field is None else rng.choice(WORDS[field.removeprefix("a_")])
            written += literal + (_with_article(word) if field and field.startswith("a_") else word)
        text += (" " if text else "") + written[0].upper() + written[1:]
    return text


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
