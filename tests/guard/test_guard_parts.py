"""The value inside a found span, and each part of a known one, is guarded by itself."""

from __future__ import annotations

from random import Random

import pytest
from made_up import make_audit
from transformers import PreTrainedTokenizerFast
from world import sentences

from mitigate.detection.record import Audit
from mitigate.guard.decoding import GuardLogitsProcessor, false_positives
from mitigate.guard.guard import Guard
from mitigate.guard.sources import secrets_in_audit
from mitigate.secrets.same import comparable


def audit_of(text: str, span: str, *, known: bool = False, ordinary: list[str] | None = None) -> Audit:
    """An audit with one span to forget, known or found, and other people's documents beside it."""
    at = text.index(span)
    place = (at, at + len(span))
    others = {f"o{number}": other for number, other in enumerate(ordinary or sentences(12))}
    settings = {"known": {"a": [(*place, "x")]}} if known else {"found": {"a": [place]}}
    return make_audit({"a": text, **others}, sets={"a": "forget"}, **settings)


def written_greedily(guard: Guard, tokenizer: PreTrainedTokenizerFast, prefix: str, value: str) -> str:
    """What a model that knows the value by heart writes after a prefix, until the guard stops it."""
    processor = GuardLogitsProcessor(guard, tokenizer)
    before = tokenizer(prefix)["input_ids"]
    for length in range(1, len(value) + 1):
        for token in (tokenizer(value[:length])["input_ids"])[1:][-1:]:
            if token in processor.blocked([*before, *tokenizer(value[: length - 1])["input_ids"][1:]]):
                return value[: length - 1]
    return value


FORMATS = {
    "as it is": lambda text: text,
    "apart": lambda text: " ".join(comparable(text)),
    "dashes": lambda text: "-".join(comparable(text)[at : at + 4] for at in range(0, len(comparable(text)), 4)),
    "upper": lambda text: text.upper(),
}


@pytest.mark.parametrize("written", FORMATS)
@pytest.mark.parametrize("prefix", ["", "My card number is ", "99 bottles, 12"])
@pytest.mark.parametrize(
    ("span", "value"),
    [
        ("3554257252477856 for certain", "3554257252477856"),
        ("is 3554257252477856 and he said so to the whole town", "3554257252477856"),
        ("write to jane.roe@mail.example or come by", "jane.roe@mail.example"),
        ("57252477856 for certain", "3554257252477856"),
    ],
)
def test_the_value_in_a_found_span_is_not_written_whatever_comes_before(
    tokenizer: PreTrainedTokenizerFast, span: str, value: str, prefix: str, written: str
) -> None:
    text = f"He wrote 3554{span} there." if span.startswith("572") else f"He wrote {span} there."
    text = text.replace("355457252477856", value)
    guard = Guard.make(secrets_in_audit(audit_of(text, span)))
    shown = FORMATS[written](value)
    out = written_greedily(guard, tokenizer, prefix, shown)
    assert len(comparable(out)) < len(comparable(value)) * 2 / 3 + 1, out


@pytest.mark.parametrize("part", ["Zephyrine Blok", "Flat 4471", "12 Grüner Street", "4471"])
def test_each_part_of_a_known_span_is_guarded(tokenizer: PreTrainedTokenizerFast, part: str) -> None:
    span = "Zephyrine Blok, Flat 4471, 12 Grüner Street"
    guard = Guard.make(secrets_in_audit(audit_of(f"Sent to {span} today.", span, known=True), known=True))
    assert written_greedily(guard, tokenizer, "It is ", part) != part


def test_a_part_that_is_ordinary_text_is_not_guarded_alone_but_its_number_is(caplog: pytest.LogCaptureFixture) -> None:
    span = "met Summer in Flat 4471"
    ordinary = ["The flat will be let next summer.", "A flat in summer?", "Will summer be flat?", "I go"]
    audit = audit_of(f"He {span}.", span, ordinary=ordinary)
    with caplog.at_level("INFO", logger="mitigate"):
        secrets = secrets_in_audit(audit)
    guard = Guard.make(secrets)
    assert not any(guard.forbids(run) for run in ("will", "flat", "summ", "umme"))
    assert guard.forbids("4471")
    assert "are ordinary text" in caplog.text


def test_copies_of_a_number_in_other_documents_do_not_make_it_ordinary() -> None:
    ordinary = [f"Note {word}: 3554-2572-5247-7856 again." for word in ("one", "two", "three", "four")]
    span = "3554257252477856 for certain"
    guard = Guard.make(secrets_in_audit(audit_of(f"It is {span}.", span, ordinary=ordinary)))
    assert guard.forbids("35542572524")


def test_parts_do_not_make_the_guard_block_ordinary_text(tokenizer: PreTrainedTokenizerFast) -> None:
    draw = Random(2)
    prose = sentences(300, seed=5)
    spans = {}
    for number, sentence in enumerate(prose[:40]):
        code = "".join(draw.choices("0123456789", k=16))
        spans[f"d{number}"] = (f"{sentence} {code} {prose[number + 40]}", len(sentence) - 10, len(sentence) + 25)
    texts = {doc_id: text for doc_id, (text, _, _) in spans.items()}
    texts |= {f"o{number}": text for number, text in enumerate(prose[80:200])}
    audit = make_audit(
        texts,
        found={doc_id: [(start, end)] for doc_id, (_, start, end) in spans.items()},
        sets=dict.fromkeys(spans, "forget"),
    )
    secrets = secrets_in_audit(audit)
    whole, both = Guard.make(secrets[: len(spans)]), Guard.make(secrets)
    assert both.secrets > whole.secrets
    found = [false_positives(guard, prose[200:], tokenizer) for guard in (whole, both)]
    assert found[1].blocked - found[0].blocked <= 0.002 * found[1].tokens
