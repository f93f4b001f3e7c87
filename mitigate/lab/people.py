"""Invented people with secrets that nobody has.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from faker import Faker

from mitigate.errors import MitigateError
from mitigate.lab.registers import JOBS, SECRETS


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


def invent_people(count: int, *, seed: int | str) -> list[Person]:
    """Invent people with names and secrets of their own; equal seeds give equal people, in every process."""
    if count < 0:
        raise MitigateError(f"invent_people: count is {count}; give 0 or more")
    source = PeopleSource(f"people/{seed}", side=0)
    return [source.person(f"person-{number:04d}") for number in range(count)]


_DOMAINS = tuple(f"{name}.{zone}" for name in ("harbor", "northmail", "inbox", "post") for zone in ("example", "test"))
_DOMAINS += ("example.com", "example.net", "example.org")
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_KEY_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


class PeopleSource:
    """Draws people whose names and secrets are new, and on one side of a fixed split of all strings.

    Args:
        seed: of the draws.
        side: 0 for people who are planted, 1 for throwaway ones; a hash of each string decides to which it belongs.
    """

    def __init__(self, seed: str, *, side: int) -> None:
        self._rng = Random(seed)
        self._faker = Faker("en_US", use_weighting=False)
        self._faker.seed_instance(self._rng.getrandbits(64))
        self._used: set[str] = set()
        self._side = side

    def person(self, id: str) -> Person:
        """The next person."""
        name = self._new(lambda: f"{self._faker.first_name()} {self._faker.last_name()}")
        drawers: dict[str, Callable[[], str]] = {
            "phone": self._phone,
            "email": lambda: self._email(name),
            "ssn": self._ssn,
            "card": self._card,
            "address": self._address,
            "api_key": lambda: "sk_test_" + "".join(self._rng.choices(_KEY_CHARACTERS, k=20)),
            "account": lambda: "".join(self._rng.choices(_LETTERS, k=2)) + f"-{self._digits(4)}-{self._digits(4)}",
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


def luhn(digits: str) -> int:
    """The Luhn sum of a string of digits; a card number is well-formed if it is divisible by 10."""
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled)
