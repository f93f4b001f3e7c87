"""One definition of the same secret: masking, linking, guard and redaction find the same spellings."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from made_up import REPORT, Page, changed, make_audit

from mitigate.documents import Document, Documents, Span
from mitigate.errors import MitigateError
from mitigate.guard.decoding import completes
from mitigate.guard.guard import Guard
from mitigate.reporting.masking import BULLET, Mask
from mitigate.retraining.removals import Removal, with_copies
from mitigate.secrets.copies import Sought, find_linked
from mitigate.secrets.redaction import fake
from mitigate.secrets.same import Comparable, Finder, comparable, core, same
from mitigate.verification.compare import Comparison


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("555-123-4567", "(555) 123 4567", True),
        ("555-123-4567", "5551234567", True),
        ("+1 555 123 4567", "555-123-4567", True),
        ("1-555-123-4567", "+15551234567", True),
        ("0555 1234567", "555-123-4567", True),
        ("+49 (0)30 1234567", "030/1234567", True),
        ("0049 30 1234567", "+49 30 1234567", True),
        ("+420 601 234 567", "601234567", True),
        ("５５５－１２３－４５６７", "٥٥٥ ١٢٣ ٤٥٦٧", True),
        ("5551234", "95551234", False),
        ("5551234", "15551234", False),
        ("4111 1111 1111 1111", "1111 1111 1111", False),
        ("482913", "0482913", False),
        ("José Ñandú", "JOSE NANDU", True),
        ("Jose\u0301\u200b Nan\u0303du", "José\u00a0\n Ñandú", True),
        ("Łukasz Øster", "lukasz oster", True),
        ("QX-7741-ZEPHYR-0092", "qx 7741 zephyr 0092", True),
        ("Ann Lee", "Ann Leigh", False),
        ("रामा", "रमा", False),
        ("--", "()", False),
    ],
)
def test_two_strings_are_the_same_secret_either_way_round(one: str, other: str, are_same: bool) -> None:
    assert same(one, other) == same(other, one) == are_same


@pytest.mark.parametrize("number", ["4111111111111111", "1234", "QX1234567", "000000000"])
def test_what_is_no_number_that_is_dialled_keeps_its_digits(number: str) -> None:
    assert core(number) in ("", comparable(number))


def test_places_are_those_of_the_text_and_compare_alike() -> None:
    draw = Random(0)
    characters = [chr(code) for code in (*range(0x20, 0x250), *range(0x300, 0x370), 0x200B, 0xFB03, 0x0935, 0x093E)]
    for _ in range(300):
        text = "".join(draw.choices(characters, k=14))
        read, cut = Comparable(text), draw.randrange(15)
        assert read.characters == comparable(text) == comparable(text[:cut]) + comparable(text[cut:])
        assert len(read.gaps) == len(read.characters)
        for place, character in enumerate(read.characters):
            start, end = read.original(place, place + 1)
            assert character in comparable(text[start:end])
            assert not any(map(comparable, text[start + 1 : end])), "one letter and its accents"


def test_the_finder_finds_what_a_naive_search_of_all_stretches_finds() -> None:
    draw = Random(1)
    secrets = ["555-123-4567", "Ann Lee", "0171 234 5678", "AKIA-9F3K", "12 Elm St"]
    for _ in range(60):
        pieces = [draw.choice([*secrets, "and", "x", "5551234567", "+49171 2345678", "ann", "1", "AKIA9F3K"])]
        pieces += [draw.choice([*secrets, "elm", "0", "lee"]) for _ in range(3)]
        text = "".join(piece + draw.choice([" ", "\n", "", ", ", "-"]) for piece in pieces)
        edges = [0, *(m.start() for m in re.finditer(r"(?<![^\W_])[^\W_]|(?<=[^\W_])(?=[\W_]|$)", text)), len(text)]
        naive = {
            secret
            for start in edges
            for end in edges
            for secret in secrets
            if end > start and same(text[start:end], secret)
        }
        assert {secret for _, _, secret in Finder(secrets).places(text)} == naive, text


# --- masking, linking, guard and redaction alike ---------------------------------------------------------------------


def random_secret(draw: Random) -> str:
    digits = "".join(draw.choices("0123456789", k=10))
    word = "".join(draw.choices("bcdfghklmnprstvw", k=8))
    return draw.choice(
        [
            f"{draw.randrange(2, 10)}{digits[:2]}-{digits[2:5]}-{digits[5:9]}",
            f"+49 {draw.randrange(2, 9)}{digits[:2]} {digits[2:]}",
            f"{word[:2].upper()}-{digits[:4]}-{word[2:].upper()}-{digits[4:8]}",
            f"{word[:4].title()} {word[4:].title()}",
            f"{word[:4]}.{word[4:]}@mail{digits[:2]}.example",
        ]
    )


def another_format(secret: str, draw: Random) -> str:
    """The secret with other separators, case, width, accents or dialling."""
    number = not any(map(str.isalpha, secret))
    digits = core(secret) if number else ""
    characters = draw.choice([digits, digits, comparable(secret)]) if number else comparable(secret)
    between = draw.choice(["", " ", "-", ".", "\n", "\u00a0", " - ", "\u200b"])
    every = draw.choice([1, 2, 3, 4])
    text = "".join(
        character + (between if (place + 1) % every == 0 and place + 1 < len(characters) else "")
        for place, character in enumerate(draw.choice([str.upper, str.lower])(characters))
    )
    if draw.random() < 0.25:
        text = "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalnum() else c for c in text)
    elif draw.random() < 0.25:
        text = "".join(unicodedata.normalize("NFC", c + "\u0301") if c in "aeioucns" else c for c in text)
    if number and characters == digits and not between.strip():
        text = draw.choice(["", "0", "+49" if secret.startswith("+49") else "+1"]) + text
    return text


@pytest.mark.parametrize("seed", range(40))
def test_a_secret_in_another_format_is_found_by_mask_links_guard_and_redaction(seed: int) -> None:
    draw = Random(seed)
    secret = random_secret(draw)
    other = another_format(secret, draw)
    assert same(secret, other)
    own, text = f"Here: {secret}.", f"again <{other}> it stands"
    place = (text.index("<") + 1, text.index(">"))

    audit = make_audit({"a": own, "b": text}, known={"a": [(6, 6 + len(secret), "x")]})
    hidden = Mask([audit]).hidden(text, doc_id="b")
    letters = [at for at in range(*place) if comparable(text[at])][-len(core(secret) or comparable(secret)) :]
    assert hidden[letters].all(), (secret, other)
    assert not hidden[: place[0]].any()

    documents = Documents((Document("a", own), Document("b", text)))
    linked = find_linked(documents, {"a"}, [Sought(0, "a", 6, 6 + len(secret), "x", known=True)])
    assert [hit.doc_id for hit in linked.hits] == ["b"], (secret, other)

    assert completes(Guard.make([secret]), "", comparable(other))

    removals = {"a": Removal(frozenset({Span(6, 6 + len(secret), "x")}))}
    [copy] = with_copies(removals, documents, None, mask=False)[0]["b"].copies  # type: ignore[arg-type]
    own_fake, copy_fake = fake(secret, "key"), fake(text[copy.start : copy.end], "key")
    assert not same(own_fake, secret)
    if core(secret) and core(secret) == core(other):
        assert core(own_fake) == core(copy_fake)
    elif not core(secret) and other.isascii():
        assert comparable(own_fake) == comparable(copy_fake)


# --- masking ----------------------------------------------------------------------------------------------------------


def masked(texts: dict[str, str], **settings: Any) -> dict[str, str]:
    """The texts as a masked report would draw them."""
    mask = Mask([make_audit(texts, **settings)])
    hidden = {doc_id: mask.hidden(text, doc_id=doc_id) for doc_id, text in texts.items()}
    return {
        doc_id: "".join(BULLET if hide else char for char, hide in zip(text, hidden[doc_id], strict=True))
        for doc_id, text in texts.items()
    }


@pytest.mark.parametrize(
    ("secret", "written"),
    [
        ("555-123-4567", "(555) 123 4567"),
        ("555-123-4567", "5551234567"),
        ("555-123-4567", "tel+15551234567"),
        ("QX-7741-ZEPHYR-0092", "QX7741ZEPHYR0092"),
        ("QX-7741-ZEPHYR-0092", "qx 7741 zephyr 0092"),
        ("4111 1111 1111 1111", "4111-1111-1111-1111"),
        ("Ann Lee-Smith", "ann  lee\n smith"),
        ("Zephyrine Blok", "ZE\u0301PHYRINE \u200bBlok"),
    ],
)
def test_the_masked_report_masks_a_secret_in_another_format(secret: str, written: str) -> None:
    text = f"and {written} here"
    shown = masked({"a": f"It is {secret}.", "b": text}, known={"a": [(6, 6 + len(secret), "")]})
    assert shown["a"] == "It is " + BULLET * len(secret) + "."
    letters = [at for at, character in enumerate(text) if comparable(character) and 4 <= at < 4 + len(written)]
    visible = "".join(comparable(shown["b"][at]) for at in letters)
    assert visible in ("", "tel", "tel1", "1")
    assert shown["b"].startswith("and ")
    assert shown["b"].endswith(" here")


def test_a_value_that_nobody_named_is_masked_in_every_text() -> None:
    values = ["jane.roe@mail.example", "+44 20 7946 0958", "sk-A1b2C3d4E5f6G7h8I9j0", "12 Harbour Street", "Jane Roe"]
    shown = masked({f"d{n}": f"Please note {value} today" for n, value in enumerate(values)})
    assert list(shown.values()) == [f"Please note {BULLET * len(value)} today" for value in values]


def test_what_was_found_in_half_of_all_documents_is_ordinary_but_a_number_in_it_is_not() -> None:
    thanks = "Thank you for writing to Harbour Support, 482913 is ours"
    texts = {f"d{n}": f"{n} said so. {thanks}!" for n in range(30)} | {f"e{n}": "Nothing." for n in range(30)}
    at = texts["d0"].index("Thank")
    shown = masked(texts, found={"d0": [(at, at + len(thanks))]})
    assert shown["d0"] == "0 said so. " + BULLET * len(thanks) + "!", "in its own place it is masked"
    assert shown["d7"] == "7 said so. " + thanks.replace("482913", BULLET * 6) + "!"
    known = masked(texts, known={"d0": [(at, at + len(thanks), "")]})
    assert BULLET * len(thanks) in known["d7"], "what is known as a secret is never ordinary"
    one_person = {f"d{n}": text for n, text in enumerate(list(texts.values())[:8])}
    assert BULLET * len(thanks) in masked(one_person, found={"d0": [(at, at + len(thanks))]})["d7"]


def test_only_what_is_shown_of_a_long_document_is_searched_and_a_secret_at_its_edge_is_masked() -> None:
    secret = "482913-117-QX"
    text = f"{'x ' * 4000}{secret}{' y' * 4000}"
    at = text.index(secret)
    mask = Mask([make_audit({"a": f"It is {secret}.", "b": text}, known={"a": [(6, 6 + len(secret), "")]})])
    hidden = mask.hidden(text, doc_id="b", within=[(at + 5, at + 50)])
    assert hidden[at : at + len(secret)].all()
    assert hidden.sum() == len(secret)


def test_ids_and_notes_are_masked_and_a_masked_id_says_which_document_it_is() -> None:
    texts = {"a": "It is Ann Lee.", "ticket of ANN  lee": "Hello.", "jane@mail.example": "Hi.", "doc-000123": "Ho."}
    mask = Mask([make_audit(texts, known={"a": [(6, 13, "")]})])
    assert mask.text("ticket of ANN  lee") == f"ticket of {BULLET * 8} (document 2)"
    assert mask.text("jane@mail.example") == BULLET * 17 + " (document 3)"
    assert mask.text("doc-000123") == "doc-000123"
    assert mask.text("about annlee") == f"about {BULLET * 6}"


def test_many_secrets_are_found_by_an_index_in_long_texts() -> None:
    numbers = np.random.default_rng(0).integers(10**9, 10**10, size=5_000)
    finder = Finder([f"{number:010d}" for number in numbers.tolist()], loose=True)
    text = "Some words without any number in them. " * 2000 + f"{numbers[7]:010d}"
    assert [text[start:end] for start, end, _ in finder.places(text)] == [str(numbers[7])]


# --- the page and the JSON --------------------------------------------------------------------------------------------

SECRET = "QX-7741-ZEPHYR-0092"


def comparison(text: str) -> Comparison:
    """A report on a secret that stands in ids, labels, notes and the recipe too, in other formats."""
    other = "qx 7741 zephyr 0092"
    texts = {"a": f"The key is {SECRET}, thanks.", f"about {other}": "Also QX7741ZEPHYR0092 and jane@mail.example."}
    audit = make_audit(
        texts, known={"a": [(11, 11 + len(SECRET), "key")]}, found={"a": [(4, 11)]}, sets={"a": "forget"}
    )
    report = changed(
        name=f"Case {other}",
        text=text,
        notes=[f"Note {other}", "jane@mail.example was asked"],
        skipped=[f"x:1: {SECRET}"],
        recipe={"forget": {"ids": [f"about {other}"]}, "data": {"documents": [{"where": {other: "x"}}]}},
        unlearn=None,
    )
    report["leakage"]["after"] = None
    return Comparison(report, audit, None)


@pytest.mark.parametrize("text", ["none", "masked"])
def test_neither_page_nor_json_holds_a_secret_in_any_format(tmp_path: Path, text: str) -> None:
    comparison(text).save(tmp_path / "report")
    for name in ("report.html", "report.json"):
        written = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert "qx7741zephyr0092" not in comparable(written)
        assert "janemailexample" not in comparable(written)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert ("thanks" in page) == (text == "masked")
    assert bool(Page(page).sides) == (text == "masked")
    saved = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert saved["fingerprints"] == REPORT["fingerprints"]
    assert saved["leakage"]["before"] == REPORT["leakage"]["before"]
    assert f"about {BULLET * 19} (document 2)" in page


def test_all_text_is_shown_only_where_it_is_asked_for() -> None:
    made = comparison("all")
    assert SECRET in made.html()
    assert SECRET not in Comparison({**made.report, "text": "masked"}, made.before, None).html()
    with pytest.raises(MitigateError, match="'some' is not one of none, masked, all"):
        Comparison({**made.report, "text": "some"}, made.before, None).html()
    with pytest.raises(MitigateError, match="no heat map; text is masked or all"):
        made.before.show(text="none")
