"""What holds of every secret: sameness, where it is found, redaction, fakes, masks, and what a heat map shows.

Hypothesis makes the texts; `make properties` tries many more of them than the suite does.
"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st
from made_up import Page, make_audit
from texts import ranges_of, texts, written_texts

from mitigate.documents import Document, Span
from mitigate.reporting.heat_map import build_heat_map
from mitigate.reporting.masking import BULLET, Mask, visible
from mitigate.reporting.page import heat_map
from mitigate.secrets.redaction import fake, replaced
from mitigate.secrets.same import Comparable, Finder, comparable, same

SEPARATORS = st.lists(
    st.sampled_from(["", " ", "-", ".", "\n", "\u200b", "  ", "/", "\u2060-"]), min_size=1, max_size=5
)
LABELS = st.sampled_from(["", "", "phone", "e-mail", "ward №7"])
NUMBERS = st.text(st.sampled_from("0123456789"), min_size=7, max_size=12)
WORDS = st.lists(st.text(st.sampled_from("abcdeéßøñжλ5٣７"), min_size=1, max_size=7), min_size=1, max_size=3).map(
    " ".join
)
SECRETS = st.one_of(NUMBERS, WORDS)


def rewritten(secret: str, separators: list[str], *, upper: bool) -> str:
    """The secret with other separators between its letters and digits, in capitals or as it is."""
    own = [character for character in secret if comparable(character)]
    text = "".join(one + separators[at % len(separators)] for at, one in enumerate(own[:-1])) + own[-1]
    return text.upper() if upper else text


@given(texts(), texts())
def test_what_is_compared_of_a_text_is_that_of_its_parts_with_their_places(one: str, other: str) -> None:
    assert comparable(one + other) == comparable(one) + comparable(other)
    read = Comparable(one + other)
    assert read.characters == comparable(one + other)
    places = [read.original(at, at + 1) for at in range(len(read.characters))]
    assert all(
        character in comparable((one + other)[slice(*place)])
        for character, place in zip(read.characters, places, strict=True)
    )
    assert all(first[0] <= second[0] and first[1] <= second[1] for first, second in pairwise(places))


@given(texts(), texts())
def test_sameness_is_mutual_and_a_secret_is_the_same_as_itself(one: str, other: str) -> None:
    assert same(one, other) == same(other, one)
    assert same(one, one) == bool(comparable(one))


@given(SECRETS, SEPARATORS, st.booleans())
def test_a_secret_in_another_format_is_the_same(secret: str, separators: list[str], upper: bool) -> None:
    assert same(secret, rewritten(secret, separators, upper=upper))


@given(NUMBERS, st.sampled_from(["+1", "001", "+44", "0049", "+998"]), SEPARATORS)
def test_a_number_with_its_country_code_is_the_same(number: str, code: str, separators: list[str]) -> None:
    assume(number[0] not in "01")
    assume(10 <= len(code.lstrip("+0")) + len(number) <= 15)
    assert same(f"{code} {rewritten(number, separators, upper=False)}", number)


@given(SECRETS, SEPARATORS, st.booleans(), texts(), texts())
def test_a_secret_is_found_in_another_format_between_other_texts(
    secret: str, separators: list[str], upper: bool, left: str, right: str
) -> None:
    written = rewritten(secret, separators, upper=upper)
    text = f"{left} {written} {right}"
    for loose in (False, True):
        places = [(start, end) for start, end, _ in Finder([secret], loose=loose).places(text)]
        start = len(left) + 1
        assert any(low <= start and start + len(written) <= high for low, high in places)


@given(SECRETS, texts(most=60))
def test_what_is_found_for_a_secret_is_the_same_secret(secret: str, text: str) -> None:
    text = f"{text}{secret} {text}"
    assert all(same(text[start:end], found) for start, end, found in Finder([secret]).places(text))


@given(written_texts(), st.data(), st.sampled_from(["placeholder", "fake"]))
def test_redaction_can_be_undone_with_what_it_says_it_replaced(text: str, data: st.DataObject, redact: str) -> None:
    spans = [Span(start, end, data.draw(LABELS)) for start, end in data.draw(ranges_of(text, least=1))]
    known = tuple(Span(start, end) for start, end in data.draw(ranges_of(text)))
    audited = tuple(data.draw(ranges_of(text)))
    document = Document("d", text, audited, known)
    changed, pairs = replaced(document, spans, redact=redact, key="k")
    assert _outside(text, [old for old, _ in pairs]) == _outside(changed.text, [new for _, new in pairs])
    parts, at = [], 0
    for old, new in pairs:
        parts += [changed.text[at : new.start], text[old.start : old.end]]
        at = new.end
    assert "".join([*parts, changed.text[at:]]) == text
    gone = {at for old, _ in pairs for at in range(old.start, old.end)}
    assert len(changed.spans) == sum(not {*range(span.start, span.end)} <= gone for span in known)
    assert len(changed.audited) == len(document.audited)  # a range outside the text would be refused


@given(written_texts(), st.data(), st.sampled_from(["placeholder", "fake"]))
def test_no_letter_or_digit_of_a_span_is_left_where_it_stood(text: str, data: st.DataObject, redact: str) -> None:
    spans = [Span(start, end, data.draw(LABELS)) for start, end in data.draw(ranges_of(text, least=1))]
    _, pairs = replaced(Document("d", text), spans, redact=redact, key="k")
    gone = {at for old, _ in pairs for at in range(old.start, old.end)}
    asked = {at for span in spans for at in range(span.start, span.end)}
    assert gone <= asked
    assert not any(comparable(text[at]) for at in asked - gone)


@given(SECRETS, SEPARATORS, st.text(max_size=5))
def test_a_fake_is_another_secret_of_the_same_format_and_the_same_in_every_spelling(
    secret: str, separators: list[str], key: str
) -> None:
    made = fake(secret, key)
    assert not same(made, secret)
    written = rewritten(secret, separators, upper=False)
    other = fake(written, key)
    if made == "[REDACTED]":
        assert other == made
        return
    assert comparable(other) == comparable(made)
    assert [(one.isdigit(), one.isalpha(), one.isupper()) for one in made] == [
        (one.isdigit(), one.isalpha(), one.isupper()) for one in secret
    ]
    assert all(one == new for one, new in zip(written, other, strict=True) if not comparable(one))


@given(SECRETS, SEPARATORS, st.booleans(), texts(), texts())
def test_no_character_of_a_known_secret_is_shown_in_any_document_or_format(
    secret: str, separators: list[str], upper: bool, left: str, right: str
) -> None:
    assume(len(comparable(secret)) >= 4)
    written = rewritten(secret, separators, upper=upper)
    own, elsewhere = f"{left} {secret} {right}", f"{right} {written} {left}"
    at = len(left) + 1
    audit = make_audit({"a": own, "b": elsewhere}, known={"a": [(at, at + len(secret), "")]})
    mask = Mask([audit])
    assert mask.hidden(own, doc_id="a")[at : at + len(secret)].all()
    start = len(right) + 1
    assert mask.hidden(elsewhere, doc_id="b")[start : start + len(written)].all()
    assert mask.text(elsewhere)[start : start + len(written)] == BULLET * len(written)


@given(written_texts(), st.data())
def test_a_heat_map_shows_the_text_it_was_given_with_a_bullet_for_each_hidden_character(
    text: str, data: st.DataObject
) -> None:
    offsets = sorted(data.draw(ranges_of(text, most=8)))
    known, found = data.draw(ranges_of(text)), data.draw(ranges_of(text))
    audit = make_audit(
        {"a": text}, offsets={"a": offsets}, known={"a": [(*place, "") for place in known]}, found={"a": found}
    )
    assert Page(heat_map(audit, text="all")).sides == [visible(text)]
    hidden = Mask([audit]).hidden(text, doc_id="a")
    assert all(hidden[start:end].all() for start, end in (*known, *found))
    shown = [BULLET if hide else visible(one) for one, hide in zip(text, hidden, strict=True)]
    assert Page(heat_map(audit, text="masked")).sides == ["".join(shown)]


@given(written_texts(most=60), st.data())
def test_every_character_of_a_document_is_in_one_piece_of_its_heat_map(text: str, data: st.DataObject) -> None:
    offsets = sorted(data.draw(ranges_of(text, least=1, most=8)))
    audit = make_audit({"a": text}, offsets={"a": offsets}, found={"a": data.draw(ranges_of(text))})
    [view] = build_heat_map(audit, mask=Mask([audit], text="all")).documents
    pieces = [piece for run in view.runs for piece in run.pieces]
    assert "".join(piece.text for piece in pieces) == text
    inside, at = {at for start, end in offsets for at in range(start, end)}, 0
    for piece in pieces:
        assert bool(piece.title) == ("t" in piece.kinds.split()) == ({*range(at, at + len(piece.text))} <= inside)
        at += len(piece.text)


def _outside(text: str, spans: list[Span]) -> list[str]:
    """What stands before, between and behind spans."""
    edges = [0, *(edge for span in spans for edge in (span.start, span.end)), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
