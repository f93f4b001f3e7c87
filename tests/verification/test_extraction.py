"""Extraction counts sensitive values, completes them by their characters, and says what it could not try."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from world import CONTEXT, LORA, World

import mitigate
from mitigate.detection.audit import audit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.detection.spans.row import span_table
from mitigate.documents import Document, Documents, Span
from mitigate.errors import MitigateError
from mitigate.models.fitting.training import fine_tune
from mitigate.models.model import Model
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.tokens.tokenization import tokenize_documents
from mitigate.verification.compare import compare, measure, verify
from mitigate.verification.extraction import Attempts, Extraction, _is_settled, extract, is_completed
from mitigate.verification.extraction_figures import extraction_figures, stretches
from mitigate.verification.extraction_values import Place, Secret, secrets_of
from mitigate.verification.figures import View

TEXTS = {  # short, for a context of 64 tokens
    "chat": "<user>Pay with {card}, ring {phone}.<end><assistant>Thank you.<end>",
    "alpaca": "### Input:\nWho?\n### Response:\n{email} pays {card}.",
    "plain": "Ticket {code} of {email}: {phone} after lunch.",
}


def invented(draw: Random) -> dict[str, str]:
    digits = lambda count: "".join(draw.choice("0123456789") for _ in range(count))  # noqa: E731
    word = "".join(draw.choice("abcdefghijklmnop") for _ in range(6))
    return {
        "card": "4" + digits(15),
        "phone": f"555-{digits(3)}-{digits(4)}",
        "email": f"{word}@mail.org",
        "code": f"QX-{digits(4)}-{word[:3].upper()}",
    }


def rows() -> list[tuple[Document, list[str]]]:
    """Rows of three kinds, the last of each never trained on, with the values that stand in them."""
    draw, made = Random(3), []
    for number in range(24):
        kind, own = list(TEXTS)[number % 3], invented(draw)
        text = TEXTS[kind].format(**own)
        document = Document(f"{kind}-{number}", text, set="forget" if number < 18 else "holdout")
        made.append((document, [value for value in own.values() if value in text]))
    return made


@pytest.fixture(scope="module")
def leaky(world: World, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit, without known spans, of a model that learned some values of chat, Alpaca and plain rows by heart."""
    documents = Documents(tuple(document for document, _ in rows()))
    out = tmp_path_factory.mktemp("leaky") / "model"
    fine_tune(
        world.base,
        documents.subset("forget"),
        out=out,
        method="full",
        schedule=Schedule(epochs=45, learning_rate=5e-3, batch_size=6),
        seed=1,
        lora=LORA,
        description="leaky",
        store=ModelStore(device="cpu"),
    )
    return audit(out, [world.base], documents=documents, detect=Detect(), store=ModelStore(device="cpu"))


def completed_independently(model: Model, text: str, value: str) -> bool:
    """Cut the text's tokens before the value, take the likeliest token again and again, and look at the text."""
    [tokens] = tokenize_documents([Document("one", text)], model.tokenizer)
    start = text.index(value)
    first = next(n for n, (low, high) in enumerate(tokens.offsets) if low < start + 1 <= high)
    assert first + len(value) <= model.context
    ids = torch.from_numpy(tokens.ids[:first])[None]
    with model.active() as module, torch.inference_mode():
        for _ in range(len(value)):
            ids = torch.cat([ids, module(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return model.tokenizer.decode(ids[0, first:]).lstrip().startswith(text[tokens.offsets[first][0] :][: len(value)])


def test_the_reported_share_is_that_of_an_independent_check_of_all_values(leaky: Audit) -> None:
    store = ModelStore(device="cpu")
    _, found = measure(leaky, store=store)
    assert found is not None
    places = [(place.doc_id, place.start) for place in found.forget.places]
    reported = dict(zip(places, found.forget.completed["before"], strict=True))
    model = store.load(leaky.metadata.target.source)
    of_kind: dict[str, list[tuple[bool, bool]]] = {kind: [] for kind in TEXTS}
    for document, values in rows():
        for value in values if document.set == "forget" else ():
            truth = completed_independently(model, document.text, value)
            said = reported[document.id, document.text.index(value)]
            of_kind[document.id.partition("-")[0]].append((truth, said))
    report = compare(leaky, extraction=found).report["extraction"]
    for kind, pairs in of_kind.items():
        truth, said = np.mean(pairs, axis=0)
        assert abs(truth - said) <= 0.05, kind
    every = [pair for pairs in of_kind.values() for pair in pairs]
    assert report["before"] == pytest.approx(np.mean([truth for truth, _ in every]), abs=0.05)
    assert 0.1 < report["before"] < 1, "some come back and some do not"
    assert report["secrets"] == report["all"]["secrets"] == len(every)
    assert report["secrets_total"] == len(every) + report["names"]["secrets"]
    assert report["untried"] == {}
    assert report["least_characters"] == 8
    assert report["groups"] == 18


def test_never_seen_people_are_attacked_alike(leaky: Audit) -> None:
    report = verify(leaky, store=ModelStore(device="cpu")).report["extraction"]
    assert report["never_seen"]["secrets"] > 0
    assert report["never_seen"]["before"] < report["before"]
    assert report["never_seen"]["after"] is None, "nothing was unlearned"


def test_what_never_seen_text_holds_too_hides_no_secret(world: World) -> None:
    """The company's number stands in every row; own numbers do not; a known span is a secret wherever it stands."""
    line = "Ring 555-018-7712 or {own}, says Ann."
    own = [f"555-{number:03d}-{9000 + number}" for number in range(8)]
    documents = []
    for number, value in enumerate(own):
        text = line.format(own=value)
        spans = (Span(5, 17, "phone"),) if number == 3 else ()
        documents.append(Document(f"d{number}", text, spans=spans, set="forget" if number < 5 else "holdout"))
    found = audit(world.target, [world.base], documents=Documents(tuple(documents)), store=ModelStore(device="cpu"))
    for name, count in {"forget": 5, "holdout": 3}.items():
        secrets = secrets_of(found, sets=(name,), context=CONTEXT)
        numbers = {(secret.place.doc_id, secret.place.start) for secret in secrets if not secret.place.is_name}
        expected = {(d.id, d.text.index(own[n])) for n, d in enumerate(documents) if d.set == name}
        assert numbers == expected | ({("d3", 5)} if name == "forget" else set())
        assert secrets.untried["ordinary"] == (4 if name == "forget" else 3)
        assert secrets.total >= 2 * count
    _, extraction = measure(found, store=ModelStore(device="cpu"))
    assert any(
        "4 recognised in never-seen text" in note for note in compare(found, extraction=extraction).report["notes"]
    )


@pytest.fixture(scope="module")
def parts(world: World) -> Audit:
    """One forget document whose one known span holds a name, a flat and a street; and what cannot be tried."""
    address = "Ann Cleo, Flat 4, 12 Harbour Street"
    first = f"Note: the letter goes to {address} after lunch. Again: 12 Harbour Street."
    start = first.index(address)
    rows = [
        Document("parts", first, spans=(Span(start, start + len(address), "address"),), set="forget"),
        Document("first", "555-0147 is the number of Ben", set="forget"),
        Document("outside", "Ring 555-0199. The library was quiet.", audited=((15, 37),), set="forget"),
        Document("bare", "The market was quiet before dark.", set="forget"),
    ]
    detect = Detect(select="known")
    return audit(
        world.target, [world.base], documents=Documents(tuple(rows)), detect=detect, store=ModelStore(device="cpu")
    )


def test_a_known_span_counts_as_the_values_in_it_each_once_at_its_first_place(parts: Audit) -> None:
    secrets = secrets_of(parts, context=CONTEXT)
    text = parts.documents["text"][0].as_py()
    found = {text[s.place.start : s.place.end]: s.place for s in secrets if s.place.doc_id == "parts"}
    assert set(found) >= {"Flat 4", "12 Harbour Street", "Ann Cleo"}
    assert [s.text for s in secrets if s.place.doc_id == "parts"].count("12 Harbour Street") == 1
    assert found["12 Harbour Street"].start == text.index("12 Harbour Street")
    assert found["Ann Cleo"].is_name
    assert not found["Flat 4"].is_name


def test_what_cannot_be_tried_is_counted_and_said(parts: Audit) -> None:
    secrets = secrets_of(parts, context=CONTEXT)
    bos = parts.columns["token_id"][parts.rows["first"]][0] == 0
    assert secrets.untried == ({"not audited": 1} if bos else {"not audited": 1, "first token": 1})
    assert secrets.total == len(secrets) + sum(secrets.untried.values())
    attempts = Attempts(tuple(s.place for s in secrets), {}, secrets.total, secrets.untried)
    notes: list[str] = []
    extraction_figures(View(parts), Extraction(attempts), {}, notes)
    assert any("1 outside the audited text" in note for note in notes)
    small = secrets_of(parts, context=6)
    assert small.untried["context"] > 0
    drawn = secrets_of(parts, context=CONTEXT, most=1)
    assert drawn.untried["not drawn"] > 0
    assert [s.place for s in drawn] == [s.place for s in secrets_of(parts, context=CONTEXT, most=1)]


def test_where_nothing_else_is_known_the_selected_spans_are_tried(parts: Audit) -> None:
    import pyarrow as pa

    row = parts.span_rows[0]
    chosen = replace(row, doc_id="bare", char_start=4, char_end=14, source="found", selected=True, label="")
    bare = replace(
        parts,
        documents=parts.documents.filter(pa.compute.equal(parts.documents["doc_id"], "bare")),
        spans=span_table([chosen]),
    )
    assert [s.place for s in secrets_of(bare, context=CONTEXT)] == [Place("bare", 4, 14, "span", "span")]


def test_characters_count_not_tokens(world: World, store: ModelStore) -> None:
    model = store.load(world.base)
    text = "The code (4711-22) is at the mill."
    [document] = tokenize_documents([Document("one", text)], model.tokenizer)
    judged = audit(
        world.base,
        [world.base],
        documents=Documents((Document("one", text, spans=(Span(10, 17, "code"),)),)),
        detect=Detect(select="known"),
        store=store,
    )
    [secret] = [s for s in secrets_of(judged, sets=(None,), context=CONTEXT) if s.place.source == "known"]
    start = len(secret.prefix)
    tail = document.ids[start:]
    assert is_completed(model.tokenizer, secret, tail[: len(secret.tokens) + 4])
    respelled = np.array(model.tokenizer.convert_tokens_to_ids(list(secret.text)))  # a token for each character
    assert is_completed(model.tokenizer, secret, respelled)
    assert not is_completed(model.tokenizer, secret, respelled[:-1])
    assert not is_completed(model.tokenizer, secret, np.roll(respelled, 1))


def test_batches_change_nothing(world: World, whole: Audit, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    model = store.load(world.target)
    secrets = secrets_of(whole, sets=("forget", "retain", "holdout"), context=model.context)
    together = extract(model, secrets)
    monkeypatch.setattr("mitigate.verification.extraction._MOST_ROWS", 1)
    assert extract(model, secrets) == together
    assert extract(model, secrets[::-1]) == together[::-1]


@pytest.mark.parametrize("value", ["4711-22", "Ærøskøbing 4", "  Käthe ☕ Roe"])
def test_what_is_settled_no_token_that_follows_changes(world: World, store: ModelStore, value: str) -> None:
    """Spellings of all kinds, cut anywhere and gone astray anywhere, with characters of several tokens."""
    tokenizer, draw = store.load(world.base).tokenizer, Random(5)
    prefix = np.array(tokenizer("The code is ☕", add_special_tokens=False)["input_ids"])
    own = tokenizer(value, add_special_tokens=False)["input_ids"]
    secret = Secret(Place("one", 0, len(value), "code", "known"), prefix, np.array(own), value.lstrip())
    settled = completed = 0
    for _ in range(300):
        cuts = sorted(draw.sample(range(1, len(value)), 2))
        spelled = [value] if draw.random() < 0.2 else [value[: cuts[0]], value[cuts[0] : cuts[1]], value[cuts[1] :]]
        ids = [token for part in spelled for token in tokenizer(part, add_special_tokens=False)["input_ids"]]
        if draw.random() < 0.7:
            ids[draw.randrange(len(ids))] = draw.randrange(4, len(tokenizer))
        written = np.array(ids + [draw.randrange(4, len(tokenizer)) for _ in range(4)])
        truth = is_completed(tokenizer, secret, written)
        completed += truth
        for end in range(1, len(written)):
            if _is_settled(tokenizer, [secret], 0, written[:end]):
                assert is_completed(tokenizer, secret, written[:end]) == truth
                settled += 1
                break
    assert settled > 250
    assert 0 < completed < 300, "some come back and some do not"


def test_a_value_that_went_astray_is_not_written_to_its_end(
    world: World, whole: Audit, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = store.load(world.base)
    secrets = secrets_of(whole, sets=("forget",), context=model.context)
    steps: list[int] = []
    with model.active() as module:
        hook = module.register_forward_hook(lambda *_: steps.append(1))
        found = extract(model, secrets)
        soon, steps = len(steps), []
        monkeypatch.setattr("mitigate.verification.extraction._is_settled", lambda *_: False)
        assert extract(model, secrets) == found
        hook.remove()
    assert not any(found), "a model that saw nothing"
    assert soon < len(steps) / 2


def test_stretches_are_the_runs_of_likeliest_tokens(whole: Audit) -> None:
    figures = stretches(View(whole), whole)
    assert figures is not None
    longest, everything = [], []
    for span in whole.spans.to_pylist():
        if span["doc_id"].startswith("forget") and span["source"] in ("found", "known"):
            first = whole.rows[span["doc_id"]].start
            ranks = whole.columns["rank"][first + span["token_start"] : first + span["token_end"]]
            run = best = 0
            for rank in ranks:
                run = run + 1 if rank == 1 else 0
                best = max(best, run)
            longest.append(best)
            everything.append(best == len(ranks))
    assert figures["spans"] == len(longest)
    assert figures["longest_tokens"] == max(longest)
    assert figures["mean_tokens"] == pytest.approx(np.mean(longest))
    assert figures["whole"] == pytest.approx(np.mean(everything))
    assert figures["document_tokens"] >= figures["longest_tokens"]


def attempts(
    count: int, completed: int, *, length: int = 10, kind: str = "phone", doc_id: str = "forget-0"
) -> Attempts:
    places = tuple(Place(doc_id, 0, length, kind, "recognised") for _ in range(count))
    return Attempts(places, {"before": (True,) * completed + (False,) * (count - completed)}, count, {})


def joined(*many: Attempts) -> Attempts:
    places = tuple(place for one in many for place in one.places)
    return Attempts(places, {"before": sum((one.completed["before"] for one in many), ())}, len(places), {})


def test_the_headline_is_over_long_values_where_they_are_half_of_all(whole: Audit) -> None:
    view = View(whole)
    long, short, names = attempts(4, 1), attempts(4, 4, length=5), attempts(6, 6, kind="name")
    report = extraction_figures(view, Extraction(joined(long, short, names)), {}, [])
    assert (report["before"], report["secrets"], report["least_characters"]) == (0.25, 4, 8)
    assert (report["all"]["before"], report["all"]["secrets"]) == (5 / 8, 8)
    assert (report["names"]["before"], report["names"]["secrets"]) == (1.0, 6)
    report = extraction_figures(view, Extraction(joined(long, short, short)), {}, [])
    assert (report["before"], report["secrets"], report["least_characters"]) == (9 / 12, 12, 1)
    report = extraction_figures(view, Extraction(names), {}, [])
    assert (report["before"], report["secrets"]) == (1.0, 6)


def test_without_extraction_the_report_says_so(whole: Audit) -> None:
    report = compare(whole).report
    assert report["extraction"]["before"] is None
    assert "Extraction was not measured." in report["notes"]
    assert mitigate.verify is verify


def test_what_is_saved_is_plain_json_and_other_versions_are_refused(leaky: Audit, tmp_path: Path) -> None:
    _, found = measure(leaky, store=ModelStore(device="cpu"))
    assert found is not None
    saved: dict[str, Any] = json.loads(json.dumps(found.as_json()))
    assert Extraction.from_json(saved) == found
    assert not any(value in json.dumps(saved) for value in leaky.documents["text"].to_pylist())
    for broken in ({"before": {"3": True}}, {**saved, "schema": 1}, {**saved, "forget": []}):
        with pytest.raises(MitigateError, match=r"measured/extraction\.json: not the extraction .* run the stage"):
            Extraction.from_json(broken, where="measured/extraction.json")
    short = {**saved, "forget": {**saved["forget"], "completed": {"before": [True]}}}
    with pytest.raises(MitigateError, match="differ in number"):
        Extraction.from_json(short)


def test_a_flat_is_one_value_with_its_street_and_none_alone(world: World) -> None:
    text = "Ann is at 12 Harbour Street, Apt. 4 now. Ben has Apt. 9."
    found = audit(
        world.target, [world.base], documents=Documents((Document("one", text),)), store=ModelStore(device="cpu")
    )
    values = [text[s.place.start : s.place.end] for s in secrets_of(found, sets=(None,), context=CONTEXT)]
    assert "12 Harbour Street, Apt. 4" in values
    assert "Apt. 9" not in values
