"""Sensitive values: what is sensitive by itself is found, ordinary text is left alone, whatever its form and length."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from mitigate.recognisers.values import Value, sensitive_values

DATA = Path(__file__).parents[3] / "shared" / "data"
FOUND = [  # text, the values in it
    ("My phone is 555-0147.", ["555-0147 phone"]),
    ("+44 20 7946 0958 or (020) 7946 0958", ["+44 20 7946 0958 phone", "(020) 7946 0958 phone"]),
    (
        "Ring 541-714-1388, 06 12 34 56 78 or ０９０-１２３４-５６７８",
        ["541-714-1388 phone", "06 12 34 56 78 phone", "０９０-１２３４-５６７８ phone"],
    ),
    ("3554257252477856 for certain", ["3554257252477856 card"]),
    ("3554-2572-5247-7856 until 04/28", ["3554-2572-5247-7856 card"]),
    ("Ann: 460-89-9847; Ben: QQ 12 34 56 C", ["460-89-9847 ssn", "QQ 12 34 56 C ssn"]),
    ("to DE89 3704 0044 0532 0130 00", ["DE89 3704 0044 0532 0130 00 iban"]),
    ("Ticket QX-7741-ZEPHYR-0092", ["QX-7741-ZEPHYR-0092 number"]),
    ("is it QX-7741-ZEPHYR-0092?", ["QX-7741-ZEPHYR-0092 code"]),
    ("ticket #4821, account 12-3456-78", ["4821 number", "12-3456-78 number"]),
    ("See [a\\_b@c.org](mailto:a_b@c.org)", ["a\\_b@c.org email", "a_b@c.org email"]),
    ("name=ann@example.org, O'Brien@x.ie.", ["ann@example.org email", "O'Brien@x.ie email"]),
    ("https://bob:hunter2@host.org/x", ["https://bob:hunter2@host.org/x url"]),
    ("GET /a?sig=abcdefghijkl&b=1", ["abcdefghijkl key"]),
    ("key sk-abcdefghij1234567890abcd", ["sk-abcdefghij1234567890abcd key"]),
    ("hash 9f86d081884c7d659a2feaa0c55ad015", ["9f86d081884c7d659a2feaa0c55ad015 key"]),
    ("The password is Tr0ub4dor&3.", ["Tr0ub4dor&3 password"]),
    ("The door code of Ann is 482913", ["482913 password"]),
    ("192.168.12.4 fe80::1ff:fe23:4567:890a", ["192.168.12.4 ip", "fe80::1ff:fe23:4567:890a ip"]),
    ("at 00:1A:2B:3C:4D:5E", ["00:1A:2B:3C:4D:5E mac"]),
    ("at 51.5074, -0.1278", ["51.5074, -0.1278 coordinates"]),
    ("born on 4 March 1985; DOB: 03/04/1985", ["4 March 1985 date of birth", "03/04/1985 date of birth"]),
    ("12 Harbour Street, Springfield, IL 62704", ["12 Harbour Street street address", "62704 postcode"]),
    ("Hauptstraße 12, 10115 Berlin", ["Hauptstraße 12 street address", "10115 postcode"]),
    ("12, rue de la Paix", ["12, rue de la Paix street address"]),
    ("Rua do Arenque 1634; ul. Długa 7/9", ["Rua do Arenque 1634 street address", "ul. Długa 7/9 street address"]),
    ("Flat 4, London NW1 6XE", ["Flat 4 unit", "NW1 6XE postcode"]),
]
ORDINARY = [
    "In 1984 200 men left; from 1914-1918, 1998/99 and the mid-1990s, COVID-19 and B-52s.",
    "It grew from 350 – 1380 km to 12 000 000, or 1.234.567, or 3.141593 on average; 6-4 6-3 7-5.",
    "On 2006-04-07 09:00:27 the password is required. My order 66 came. The token is used.",
    "Version 1.2.3 of the 3rd edition: page 12 of 345, 50 % in 12:34:56, 2010 Final Four run.",
]  # fmt: skip
LONG = {  # each would take hours, were any pattern to try all ways
    "letters": "a" * 30_000, "digits": "1" * 30_000, "spaced digits": "12 " * 8_000, "at": "@" * 8_000,
    "e-mail": "a@b." * 6_000, "dots": "a." * 10_000, "codes": "Aa1-" * 6_000, "colons": "ff:" * 8_000,
    "names": "Ab " * 8_000, "initials": "I. " * 8_000, "particles": "A de de " * 3_000, "cues": "password to " * 2_000,
    "accounts": "account 1 " * 3_000, "births": "born " * 5_000, "iban": "AB12 " * 5_000, "links": "a://" * 6_000,
    "streets": "12 N. Aa Aa Aa Aa " * 1_500, "rues": "12 rue de la " * 2_000, "ruas": "Rua de " * 3_000,
    "keys": "-----BEGIN PRIVATE KEY-----" * 800, "tokens": "eyJ" * 8_000, "queries": "?token=" * 4_000,
    "brackets": "(1" * 8_000, "spaces": " " * 20_000, "apostrophes": "O'" * 8_000, "accents": "É" * 20_000,
}  # fmt: skip


def shown(text: str, values: list[Value]) -> list[str]:
    return [f"{text[value.start : value.end]} {value.kind}" for value in values]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_what_is_sensitive_by_itself_is_found(text: str, expected: list[str]) -> None:
    assert shown(text, sensitive_values(text)) == expected
    inside = sensitive_values(text, spans=[(0, len(text))])
    assert set(sensitive_values(text)) <= set(inside), "what is found anywhere is found in a span as well"


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_numbers_and_words_are_left_alone(text: str) -> None:
    assert shown(text, sensitive_values(text)) == []


def test_names_units_and_short_numbers_are_found_in_spans_only() -> None:
    text = (
        "Customer: hi, I am Anna van der Berg, room 7, PIN 4821. Dr. J. K. Rowling met Élodie Müller-Straub. We left."
    )
    assert shown(text, sensitive_values(text)) == []
    assert shown(text, sensitive_values(text, spans=[(0, len(text))])) == [
        *("Anna van der Berg name", "room 7 unit", "PIN name", "4821 number"),
        *("J. K. Rowling name", "Élodie Müller-Straub name"),
    ]
    assert shown(text, sensitive_values(text, spans=[(0, 36)])) == ["Anna van der Berg name"]


@pytest.mark.parametrize("name", LONG)
def test_long_hostile_text_is_read_in_time_and_values_never_overlap(name: str) -> None:
    text = LONG[name]
    values = sensitive_values(text, spans=[(0, len(text))])
    assert all(0 <= value.start < value.end <= len(text) for value in values)
    assert all(first.end <= second.start for first, second in pairwise(values))


def test_sensitive_values_are_found_in_sentences_that_others_made() -> None:
    path = DATA / "presidio" / "synth_dataset_v2.json"
    if not path.is_file():
        pytest.skip("needs shared/data/presidio")
    recall: dict[str, list[bool]] = defaultdict(list)
    right: list[bool] = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        text, spans = row["full_text"], row["spans"]
        values = sensitive_values(text)
        covered = {place for value in values for place in range(value.start, value.end)}
        for span in spans:
            places = [place for place in range(span["start_position"], span["end_position"]) if text[place].isalnum()]
            recall[span["entity_type"]].append(sum(place in covered for place in places) >= 0.8 * len(places))
        right += [any(v.start < s["end_position"] and s["start_position"] < v.end for s in spans) for v in values]
    sure = ("CREDIT_CARD", "US_SSN", "IBAN_CODE", "EMAIL_ADDRESS", "PHONE_NUMBER", "IP_ADDRESS", "US_DRIVER_LICENSE")
    for kind in sure:
        assert sum(recall[kind]) / len(recall[kind]) >= 0.95, kind
    assert sum(recall["ZIP_CODE"]) / len(recall["ZIP_CODE"]) >= 0.55
    assert sum(recall["STREET_ADDRESS"]) / len(recall["STREET_ADDRESS"]) >= 0.35
    assert sum(right) / len(right) >= 0.98


def test_encyclopedia_text_holds_hardly_any_value() -> None:
    path = DATA / "wikitext2" / "test.txt"
    if not path.is_file():
        pytest.skip("needs shared/data/wikitext2")
    text = path.read_text(encoding="utf-8")[:250_000]
    assert len(sensitive_values(text)) / len(text.split()) * 1000 <= 0.2
