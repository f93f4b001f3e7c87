"""What was not looked at is counted and said; what a trainer cut off is a control; every character has its role."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import chat_templates
import numpy as np
import pytest
from conftest import TinyModelFactory
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner
from world import LORA, sentences

from mitigate.cli.app import app
from mitigate.detection.audit import audit
from mitigate.detection.coverage import coverage
from mitigate.detection.metadata import Unjudged
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import crossfit_references
from mitigate.detection.settings import Detect
from mitigate.documents import Document, Documents, DocumentSource, Request, Span, read_documents
from mitigate.documents.erasure import apply_request
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError
from mitigate.guard.vocabulary import Vocabulary
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.retraining.removals import training_documents
from mitigate.tokens.batches import cut_pieces
from mitigate.tokens.tokenization import tokenize_documents

PHONE = {"patterns": {"phone": r"555-\d{4}"}}
ROWS = [
    {"id": f"t{n}", "messages": [{"role": "user", "content": f"Hi, ticket. My phone is 555-{n:04d}"}, answer]}
    for n in range(12)
    for answer in [{"role": "assistant", "content": "Thank you, we will call."}]
]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def talk(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    own = copy.deepcopy(tokenizer)
    own.chat_template = chat_templates.ZEPHYR
    return own


def judged(documents: Documents, model: TinyModelFactory) -> Audit:
    store = ModelStore(device="cpu")
    return audit(
        str(model("llama")),
        [str(model("llama", seed=1))],
        documents=documents,
        detect=Detect(select="known"),
        store=store,
    )


# Coverage


def test_what_the_customer_says_is_judged_and_else_warned_of(
    tmp_path: Path, talk: PreTrainedTokenizerFast, tiny_model: TinyModelFactory, caplog: pytest.LogCaptureFixture
) -> None:
    source = DocumentSource(path=str(write(tmp_path / "chat.jsonl", ROWS)), spans=PHONE)
    found = judged(read_documents(source, tokenizer=talk), tiny_model)
    assert [row["selected"] for row in found.spans.to_pylist() if row["source"] == "known"] == [True] * 12
    covered = found.metadata.coverage
    assert (covered.known_spans, covered.known_spans_outside, covered.outside) == (12, 0, ())
    assert not [record for record in caplog.records if "known spans" in record.message]

    with caplog.at_level(logging.WARNING):
        left = read_documents(source.model_copy(update={"audit": "assistant"}), tokenizer=talk)
        covered = judged(left, tiny_model).metadata.coverage
    assert (covered.known_spans, covered.known_spans_outside) == (12, 12)
    text, start = left[3].text, left[3].text.index("555-0003")
    assert covered.outside[3] == Unjudged(
        doc_id="t3", char_start=start, char_end=start + 8, label="phone", reason="not audited"
    )
    assert "12 of 12 known spans are not, or not wholly, judged" in caplog.text
    said = sum(not character.isspace() for document in left for character in "Thank you, we will call.")
    assert covered.audited == said
    assert covered.characters == sum(not character.isspace() for document in left for character in document.text)
    assert "555-" in text


def test_recognised_values_outside_are_counted_beside_known_spans(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Write to ann@example.org or bob@example.org about it"
    documents = Documents((Document("a", text, audited=((0, 5),), spans=(Span(9, 24, "email"),)),))
    covered = coverage(documents, tokenize_documents(documents, tokenizer))
    assert (covered.known_spans_outside, covered.values_outside) == (1, 1)
    whole = Documents((replace(documents[0], audited=((0, len(text)),)),))
    assert coverage(whole, tokenize_documents(whole, tokenizer)).values_outside == 0


def test_a_known_span_at_the_first_token_needs_a_start_token(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    documents = Documents((Document("a", "Ann left the map.", spans=(Span(0, 3, "name"),)),))
    assert coverage(documents, tokenize_documents(documents, tokenizer)).outside == ()
    (place,) = coverage(documents, tokenize_documents(documents, bare)).outside
    assert (place.reason, place.char_start) == ("first token", 0)
    started = Documents((Document("a", "<s>Ann left the map.", spans=(Span(3, 6, "name"),)),))
    assert coverage(started, tokenize_documents(started, bare)).outside == (), "the remedy that the warning names"


# Roles of tokens


def naive_audited(text: str, tokenizer: PreTrainedTokenizerFast) -> list[bool]:
    """All tokens of the text but the first; what the tokenizer adds is none of it."""
    alone = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    before = next(n for n in range(len(whole)) if whole[n : n + len(alone)] == alone)
    return [n > 0 and before <= n < before + len(alone) for n in range(len(whole))]


@pytest.mark.parametrize("role", ["pad_token", "eos_token", "unk_token"])
@pytest.mark.parametrize("token", ["!", ".", "5"])
def test_ordinary_characters_are_judged_whatever_their_token_is_taken_for(
    role: str, token: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    own = copy.deepcopy(tokenizer)
    setattr(own, role, token)
    assert token in own.all_special_tokens
    text = "Door code 5! 515! At noon. Pin 55!5"
    (tokens,) = tokenize_documents([Document("a", text)], own)
    assert tokens.audited.tolist() == naive_audited(text, own)
    seen = {place for start, end in tokens.offsets[tokens.audited] for place in range(start, end)}
    assert seen >= {place for place, character in enumerate(text) if not character.isspace()}


def test_the_guard_reads_a_digit_that_is_the_padding_token(tokenizer: PreTrainedTokenizerFast) -> None:
    own = copy.deepcopy(tokenizer)
    own.pad_token = "5"
    vocabulary = Vocabulary(own)
    assert vocabulary.texts[own.pad_token_id] == "5"
    assert {own.bos_token_id, own.eos_token_id} <= vocabulary.special


def test_digits_that_a_tokenizer_does_not_know_are_judged() -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "code": 1, "<s>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    (tokens,) = tokenize_documents([Document("a", "code 4711 code 0815")], own)
    assert tokens.audited.tolist() == [False, True, True, True]


def test_a_secret_that_reads_like_a_special_token_is_judged(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "the key is A</s>B today"
    (tokens,) = tokenize_documents([Document("a", text)], tokenizer)
    assert tokenizer.eos_token_id in tokens.ids[tokens.audited]
    assert tokens.audited.tolist() == naive_audited(text, tokenizer)


@pytest.mark.parametrize("special_tokens", [True, False])
def test_a_text_that_begins_with_the_start_token_gets_no_second_one(
    special_tokens: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = tokenizer("Ann left the map.")["input_ids"]
    (tokens,) = tokenize_documents([Document("a", "<s>Ann left the map.", special_tokens=special_tokens)], tokenizer)
    assert tokens.ids.tolist() == plain
    assert tokens.audited.tolist() == [False] + [True] * (len(plain) - 1)


# Text beyond the trainer's cut


def long_texts(count: int, *, tail: str = "") -> list[dict]:
    return [
        {"id": f"d{n}", "text": " ".join(sentences(2, seed=n)) + (tail or " ".join(sentences(2, seed=100 + n)))}
        for n in range(count)
    ]


def test_a_cut_document_is_audited_before_the_cut_and_its_tail_beyond_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [*long_texts(3), {"id": "short", "text": "Ann lost a map."}]
    rows = [{**row, "spans": [{"start": 0, "end": len(row["text"]) - 3}]} for row in rows]
    source = DocumentSource(path=str(write(tmp_path / "d.jsonl", rows)))
    whole = {document.id: document for document in read_documents(source, tokenizer=tokenizer)}
    cut = read_documents(source.model_copy(update={"max_tokens": 20}), tokenizer=tokenizer)
    assert [d.id for d in cut] == ["d0", "d0-tail", "d1", "d1-tail", "d2", "d2-tail", "short"]
    tokens = {own.id: own for own in tokenize_documents(cut, tokenizer)}
    for id in ("d0", "d1", "d2"):
        (uncut,) = tokenize_documents([whole[id]], tokenizer)
        head, tail = tokens[id], tokens[f"{id}-tail"]
        assert head.ids.tolist() == tail.ids.tolist() == uncut.ids.tolist()
        assert np.flatnonzero(head.audited).tolist() == list(range(1, 20))
        assert (head.audited ^ tail.audited).tolist() == uncut.audited.tolist()
    sets = {document.id: (document.set, document.group, document.is_tail) for document in cut}
    assert sets["d0"] == (None, "d0", False)
    assert sets["d0-tail"] == ("holdout", "d0", True)
    uncut_coverage = coverage(Documents(tuple(whole.values())), tokenize_documents(list(whole.values()), tokenizer))
    expected = uncut_coverage.model_copy(update={"known_spans": sum(len(document.spans) for document in cut)})
    assert coverage(cut, [tokens[d.id] for d in cut]) == expected, "the two answer for all of the text, once"
    with pytest.raises(MitigateError, match="max_tokens counts tokens: give the tokenizer"):
        read_documents(source.model_copy(update={"max_tokens": 20}))
    asked = Request(ids=["d0"])
    assert apply_request(cut, asked).erasure.same_group == (), "a tail is no other document of that person"


def test_a_secret_that_was_trained_on_is_no_control_in_the_tail(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "The door code of Ann is 4711. " + " ".join(sentences(3, seed=1)) + " Codes: 4711 and 9052."
    path = write(tmp_path / "d.jsonl", [{"id": "a", "text": text}])
    source = DocumentSource(path=str(path), max_tokens=20, spans={"patterns": {"code": r"4711|9052"}})
    head, tail = read_documents(source, tokenizer=tokenizer)
    assert [text[span.start : span.end] for span in head.spans] == ["4711"]
    assert [text[span.start : span.end] for span in tail.spans] == ["9052"]
    judged = "".join(text[start:end] for start, end in tail.audited)
    assert text[tail.cut :].replace("4711", "") == judged


def test_references_are_trained_on_what_was_kept_and_judge_the_tail(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tiny_model: TinyModelFactory
) -> None:
    schedule = Schedule(epochs=2, learning_rate=1e-2, batch_size=4)
    made = []
    for name, tail in (("one", " The end."), ("two", " Nobody knows what else was written on it.")):
        path = write(tmp_path / f"{name}.jsonl", long_texts(4, tail=tail))
        documents = read_documents(DocumentSource(path=str(path), max_tokens=16), tokenizer=tokenizer)
        assert sum(document.is_tail for document in documents) == 4
        references = crossfit_references(
            tiny_model("llama"), documents, out=tmp_path / name, count=2, lora=LORA, schedule=schedule
        )
        made.append((documents, references))
    for number in range(2):
        weights = [
            (tmp_path / name / f"reference-{number}/adapter_model.safetensors").read_bytes() for name in ("one", "two")
        ]
        assert weights[0] == weights[1], "what lies beyond the cut has changed nothing"
    documents, references = made[1]
    result = audit(str(tiny_model("llama")), references, documents=documents, store=ModelStore(device="cpu"))
    out = dict(zip(result.documents["doc_id"].to_pylist(), result.documents["out_references"].to_pylist(), strict=True))
    assert all(out[f"d{n}-tail"] == out[f"d{n}"] for n in range(4)), "judged by those that did not read its beginning"
    assert result.document_list().items == documents.items
    trained = training_documents(result)
    assert [document.id for document in trained] == ["d0", "d1", "d2", "d3"]
    assert all(piece.scored.max() < 16 for piece in cut_pieces(tokenize_documents(trained, tokenizer), context=64))


def test_references_of_a_chat_learn_the_turns_that_are_judged(
    tmp_path: Path, talk: PreTrainedTokenizerFast, tiny_model: TinyModelFactory
) -> None:
    path = write(tmp_path / "chat.jsonl", ROWS[:4])
    schedule = Schedule(epochs=5, learning_rate=2e-2, batch_size=2)
    gain = {}
    for name in ("all", "assistant"):
        documents = read_documents(DocumentSource(path=str(path), audit=name), tokenizer=talk)
        references = crossfit_references(
            tiny_model("llama"), documents, out=tmp_path / name, count=2, lora=LORA, schedule=schedule
        )
        everything = read_documents(DocumentSource(path=str(path), audit=["user"]), tokenizer=talk)
        members = Documents(tuple(d for d in everything if d.group in (references.trained_on[0] or ())))
        result = audit(
            references.paths[0], [str(tiny_model("llama"))], documents=members, store=ModelStore(device="cpu")
        )
        gain[name] = float(np.nanmean(result.columns["log_prob"] - result.columns["log_prob_out"]))
    assert gain["all"] > gain["assistant"] + 1, "nats a token of the user's turns"


# Written out and read back


def test_chats_are_written_out_and_read_back_equal(
    tmp_path: Path, talk: PreTrainedTokenizerFast, tiny_model: TinyModelFactory
) -> None:
    write(tmp_path / "chat.jsonl", ROWS)
    model = tmp_path / "model"
    talk.save_pretrained(model)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "data: {documents: [{path: chat.jsonl, max_tokens: 30, audit: [user], spans: {patterns: {p: '555-.{4}'}}}]}\n"
        "models: {target: nowhere-to-be-found, base: nor-this}\n",
        encoding="utf-8",
    )
    options = [f"data.root={tmp_path}", "--tokenizer", str(model), "--out", str(tmp_path / "out.jsonl")]
    told = CliRunner().invoke(app, ["documents", str(recipe), *options])
    assert told.exit_code == 0, told.output
    source = DocumentSource(path=str(tmp_path / "chat.jsonl"), max_tokens=30, audit=["user"], spans=PHONE)
    wanted = [
        replace(d, spans=tuple(replace(s, label="p") for s in d.spans)) for d in read_documents(source, tokenizer=talk)
    ]
    assert any(document.is_tail for document in wanted)
    assert list(read_documents(tmp_path / "out.jsonl")) == wanted
    with pytest.raises(MitigateError, match="what is audited was written with the text; leave out replace and audit"):
        read_documents(DocumentSource(path=str(tmp_path / "out.jsonl"), audit="all"))


@pytest.mark.parametrize("written", [{}, {"audited": [[0]]}, {"audited": [[0, 3]], "special_tokens": 1, "cut": None}])
def test_a_written_row_that_was_changed_is_refused(tmp_path: Path, written: dict) -> None:
    path = write(tmp_path / "d.jsonl", [{"id": "a", "text": "hello", "mitigate": written}])
    with pytest.raises(MitigateError, match="mitigate: not as `mitigate documents` writes it"):
        read_documents(path)


def test_plain_documents_are_written_without_the_field(tmp_path: Path) -> None:
    write_jsonl([Document("a", "hello", group="g")], tmp_path / "d.jsonl")
    assert json.loads((tmp_path / "d.jsonl").read_text()) == {"id": "a", "text": "hello", "spans": [], "group": "g"}
