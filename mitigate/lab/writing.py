"""Documents about invented people in five registers, and prose without anyone's data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from string import Formatter

from mitigate.documents import Document, Span
from mitigate.errors import MitigateError
from mitigate.lab.people import PeopleSource, Person
from mitigate.lab.registers import PROSE, REGISTERS, SECRETS, WORDS

WORDINGS = tuple((name, number) for name, style in REGISTERS.items() for number in range(len(style.templates)))

# Stand-ins for a person's strings where length matters: a length taken from the strings themselves would let a secret
# decide which filler follows it, and a twin's text would differ from its member's in more than the secrets.
_TYPICAL_LENGTH = {"name": 15, "first": 7, "city": 14, "employer": 17, "job": 10, "a_job": 12, "phone": 14, "email": 28}
_TYPICAL_LENGTH |= {"ssn": 11, "card": 19, "address": 46, "api_key": 28, "account": 12}


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
    labels = some_labels(rng) if labels is None else labels
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
    source = PeopleSource(f"general/{seed}", side=1)
    documents = []
    for number in range(count):
        id = f"general-{number:05d}"
        if rng.random() < people_share:
            register, template = rng.choice(WORDINGS)
            person = source.person(id)
            documents.append(write_document(person, register=register, template=template, rng=rng, id=id))
        else:
            documents.append(Document(id=id, text=_write_prose(rng)))
    return documents


def some_labels(rng: Random) -> list[str]:
    """The labels of 2 to 4 secrets, at random."""
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
