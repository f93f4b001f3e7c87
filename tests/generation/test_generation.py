"""Generated text: samples are repeatable, overlaps exact, and what a model copies is found and linked to its source."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from world import World

from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import References, load_references
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.generation.audit import audit_generated, memorized_stretches
from mitigate.generation.overlaps import Link, link, with_groups
from mitigate.generation.prompts import read_prompts
from mitigate.generation.sampling import sample
from mitigate.generation.settings import Sampling
from mitigate.models.fitting.training import fit
from mitigate.models.model import Model
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.tokens.tokenization import tokenize_documents

PROMPTS = ["The door", "Did Ann see the small dog near the library before dark? The", "Café", "Note 7"]
SHORT = Sampling(count=2, max_tokens=12, top_k=None)
SENTENCE = "On Friday the grey heron of Lindow told Marguerite to bury nine copper spoons."


@pytest.fixture(scope="module")
def leak(world: World) -> tuple[Documents, Audit]:
    """The documents, and the audit of what the leaky model writes after the beginnings of its forget set."""
    prompts = [document.text[: document.spans[0].start].strip() for document in world.documents.subset("forget")]
    return world.documents, audit_generated(
        world.target,
        [world.references],
        prompts=prompts,
        match=world.documents,
        sampling=Sampling(temperature=0, max_tokens=20),
        store=ModelStore(device="cpu"),
    )


def texts(model: Model, prompts: list[str] | None = PROMPTS, *, seed: int = 0, sampling: Sampling = SHORT) -> list[str]:
    return [document.text for document in sample(model, prompts, sampling=sampling, seed=seed)]


def without_start_token(source: Path, out: Path, *, special_tokens: bool) -> Path:
    """A copy of a model whose tokenizer adds nothing to a text."""
    shutil.copytree(source, out)
    rules = json.loads((out / "tokenizer.json").read_text())
    rules["post_processor"] = None
    (out / "tokenizer.json").write_text(json.dumps(rules))
    if not special_tokens:
        settings = json.loads((out / "tokenizer_config.json").read_text())
        kept = {name: value for name, value in settings.items() if name not in ("bos_token", "eos_token")}
        (out / "tokenizer_config.json").write_text(json.dumps(kept))
    return out


def test_samples_are_the_same_for_the_same_seed_and_differ_for_another(
    tiny_model: Callable[..., Path], store: ModelStore
) -> None:
    model = store.load(tiny_model("llama"))
    assert texts(model) == texts(model)
    assert texts(model) != texts(model, seed=1)
    assert len(set(texts(model, None, sampling=Sampling(max_tokens=12)))) > 10


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_samples_do_not_depend_on_the_batch_size(
    tiny_model: Callable[..., Path], store: ModelStore, architecture: str
) -> None:
    model = store.load(tiny_model(architecture))
    alone, together = (
        sample(model, PROMPTS, sampling=SHORT.model_copy(update={"batch_size": size}), seed=0) for size in (1, 8)
    )
    assert alone == together


def test_a_longer_sample_begins_with_the_shorter_one(world: World, store: ModelStore) -> None:
    model = store.load(world.base)
    longer = texts(model, sampling=Sampling(max_tokens=20))
    for short, long in zip(texts(model, sampling=Sampling(max_tokens=10)), longer, strict=True):
        assert long.startswith(short)


def test_tokens_are_drawn_as_often_as_the_model_gives_them(world: World, store: ModelStore) -> None:
    model = store.load(world.base)
    prompt = "The door code of Ann at the"
    ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    with model.active() as module, torch.no_grad():
        logits = module(input_ids=ids).logits[0, -1]
    for temperature, top_k in ((1.0, 4), (0.5, None)):
        likeliest = torch.topk(logits / temperature, top_k or len(logits))
        settings = Sampling(count=1000, max_tokens=1, temperature=temperature, top_k=top_k, batch_size=500)
        drawn = texts(model, [prompt], sampling=settings)
        for token, probability in zip(likeliest.indices[:4], likeliest.values.softmax(0)[:4], strict=True):
            word = model.tokenizer.decode([int(token)])
            if word.strip():  # samples of white space alone are left out
                assert drawn.count(prompt + word) / 1000 == pytest.approx(float(probability), abs=0.05)


def test_greedy_samples_are_the_likeliest_tokens(world: World, store: ModelStore) -> None:
    model = store.load(world.target)
    [text] = texts(model, ["Note"], sampling=Sampling(temperature=0, max_tokens=8))
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    start = len(model.tokenizer("Note")["input_ids"])
    with model.active() as module, torch.no_grad():
        likeliest = module(input_ids=ids).logits[0].argmax(-1)
    assert likeliest[start - 1 : -1].tolist() == ids[0, start:].tolist()


def test_the_models_own_generation_settings_are_put_aside_and_kept(world: World, store: ModelStore) -> None:
    model = store.load(world.base)
    before = texts(model)
    own = model.base.model.generation_config
    own.repetition_penalty, own.suppress_tokens = 5.0, list(range(2, 200))
    assert texts(model) == before
    assert model.base.model.generation_config is own


def test_the_audited_range_is_exactly_the_continuation(tiny_model: Callable[..., Path], store: ModelStore) -> None:
    model = store.load(tiny_model("llama"))
    documents = sample(model, PROMPTS, sampling=Sampling(count=3, max_tokens=6), seed=0)
    assert [document.id for document in documents] == [f"generated-{number:04d}" for number in range(12)]
    for number, document in enumerate(documents):
        prompt = PROMPTS[number // 3]
        assert document.text.startswith(prompt)
        assert document.audited == ((len(prompt), len(document.text)),)
    for document in sample(model, None, sampling=Sampling(count=5, max_tokens=6), seed=0):
        assert document.audited == ((0, len(document.text)),)


def test_a_text_ends_where_the_model_ends_it_and_empty_ones_are_left_out(world: World, store: ModelStore) -> None:
    model = store.load(world.base)
    own = model.base.model.generation_config
    own.eos_token_id = list(range(2, model.vocabulary_size, 2))  # half of all tokens end a text
    documents = sample(model, None, sampling=Sampling(count=40, max_tokens=6, top_k=None), seed=0)
    assert 0 < len(documents) < 40
    assert len(documents) + len(documents.skipped) == 40
    assert documents.skipped[0].endswith("no text to score after prompt 1")
    for tokens in tokenize_documents(documents, model.tokenizer):
        assert (tokens.ids[1:] % 2 == 1).all() or len(tokens.ids) > 7  # the latter: spelled in other tokens
    own.eos_token_id = list(range(model.vocabulary_size))
    with pytest.raises(MitigateError, match=r"none of 2 samples has a text to score; .*sampling\.temperature"):
        sample(model, ["Ann", "Ben"], sampling=Sampling(max_tokens=8), seed=0)


def test_a_prompt_too_long_for_the_context_keeps_its_end(
    world: World, store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    model = store.load(world.base)
    prompt = "The door code of Ann at the harbour is 123. " * 10
    with caplog.at_level(logging.WARNING):
        [document] = sample(model, [prompt], sampling=Sampling(max_tokens=30), seed=0)
    [(start, _)] = document.audited
    assert 20 < start < len(prompt)
    assert prompt.endswith(document.text[:start])
    assert "1 of 1 prompts are longer than the 34 tokens" in caplog.text


def test_a_tokenizer_without_start_token_starts_from_bos_and_without_any_is_refused(
    tiny_model: Callable[..., Path], store: ModelStore, tmp_path: Path
) -> None:
    model = store.load(without_start_token(tiny_model("gpt2"), tmp_path / "plain", special_tokens=True))
    assert model.tokenizer("a")["input_ids"] != store.load(tiny_model("gpt2")).tokenizer("a")["input_ids"]
    documents = sample(model, None, sampling=Sampling(max_tokens=10), seed=0)
    assert len(documents) > 20
    for tokens in tokenize_documents(documents, model.tokenizer):
        assert tokens.audited.tolist() == [False] + [True] * (len(tokens.ids) - 1)
    none = store.load(without_start_token(tiny_model("gpt2"), tmp_path / "none", special_tokens=False))
    assert len(texts(none)) == 8
    with pytest.raises(MitigateError, match=r"none: its tokenizer has no start token .*give prompts"):
        sample(none, None, sampling=SHORT, seed=0)


def test_what_cannot_be_sampled_is_refused(world: World, store: ModelStore) -> None:
    model = store.load(world.base)
    with pytest.raises(MitigateError, match="prompts: an empty list"):
        sample(model, [], sampling=SHORT, seed=0)
    with pytest.raises(MitigateError, match=r"sampling\.max_tokens: 128 leaves no room .*64 tokens; set it to 32"):
        sample(model, None, sampling=Sampling(), seed=0)
    with pytest.raises(ValidationError, match="greedy decoding"):
        Sampling(temperature=0, count=2)


def test_prompts_are_read_from_lines_and_from_rows(tmp_path: Path) -> None:
    lines, rows, table = (tmp_path / name for name in ("prompts.txt", "prompts.jsonl", "prompts.csv"))
    lines.write_text("The door\r\n\n  Note 7\n")
    rows.write_text('{"prompt": "The door ", "text": "x", "id": 1}\n{"text": "Note 7", "id": 1}\n')
    table.write_text("prompt,text\nThe door,x\n,Note 7\n")
    assert read_prompts(lines) == ["The door", "Note 7"]
    assert read_prompts(rows) == ["The door ", "Note 7"]
    assert read_prompts(str(table)) == ["The door", "Note 7"]


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"question": "b"}\n{"prompt": 3}\n[\n')
    with pytest.raises(MitigateError, match=r"missing\.txt: no such file"):
        read_prompts(tmp_path / "missing.txt")
    with pytest.raises(MitigateError, match=r"empty\.txt: the file is empty"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(MitigateError, match=r"rows\.jsonl:2 .*rows\.jsonl:3 .*rows\.jsonl:4 .*; give each row a field"):
        read_prompts(tmp_path / "rows.jsonl")


def naive_links(text: str, limits: tuple[int, int], training: Documents, least: int) -> list[Link]:
    """Every substring of the range, the longest first, at every place of every training document."""
    shared: dict[int, set[int]] = {}
    pairs: set[tuple[int, int, int]] = set()  # training number, character there, character of the text
    for number, other in enumerate(training):
        for first in range(limits[0], limits[1] - least + 1):
            for at in range(len(other.text) - least + 1):
                if other.text[at : at + least] == text[first : first + least]:
                    pairs |= {(number, at + n, first + n) for n in range(least)}
        shared[number] = {character for owner, _, character in pairs if owner == number}

    def search(start: int, end: int) -> Iterator[Link]:
        for length in range(end - start, 0, -1):
            for first in range(start, end - length + 1):
                places = [
                    (-len(shared[number]), number, at)
                    for number, at, character in pairs
                    if character == first and all((number, at + n, first + n) in pairs for n in range(length))
                ]
                if places:
                    _, number, at = min(places)
                    yield Link(first, first + length, training[number].id, at)
                    yield from search(start, first)
                    yield from search(first + length, end)
                    return

    return list(search(*limits))


@pytest.mark.parametrize("alphabet", ["ab", "abc ", "a\nbé🙂z"])
def test_links_are_those_of_a_naive_search(alphabet: str) -> None:
    draw = Random(alphabet)

    def text(length: int) -> str:
        return "".join(draw.choice(alphabet) for _ in range(length))

    for least in (1, 3, 5):
        for _ in range(12):
            training = Documents(tuple(Document(f"t{n}", "x" + text(draw.randrange(1, 30))) for n in range(6)))
            generated = Documents(
                tuple(Document(f"g{n}", "y" + text(40), audited=((5, 9), (9, 30), (33, 40))[n % 2 :]) for n in range(3))
            )
            links = link(generated, training, min_characters=least)
            for document in generated:
                naive = [
                    one for limits in document.audited for one in naive_links(document.text, limits, training, least)
                ]
                assert links.get(document.id, []) == sorted(naive, key=lambda one: one.char_start)


def test_a_link_stays_within_the_continuation_and_the_document() -> None:
    training = Documents((Document("one", "A secret: 12345678"), Document("two", "90 and more of it")))
    text = "A secret: 1234567890 and more"
    generated = Documents((Document("g", text, audited=((10, len(text)),)),))
    assert link(generated, training, min_characters=8) == {"g": [Link(10, 18, "one", 10), Link(18, 29, "two", 0)]}
    assert link(generated, training, min_characters=9) == {"g": [Link(18, 29, "two", 0)]}
    assert link(generated, training, min_characters=12) == {}
    with pytest.raises(MitigateError, match="min_characters: 0 is not a number of characters from 1"):
        link(generated, training, min_characters=0)


def test_what_is_left_of_a_long_overlap_beside_a_longer_phrase_is_linked_to_the_document_that_has_both() -> None:
    phrase = " at the market. The door code of "
    training = Documents(tuple(Document(f"t{code}", f"It is {code}{phrase}Ann") for code in (1111, 2222, 3333)))
    generated = Documents((Document("g", f"x 2222{phrase}", audited=((1, 39),)),))
    assert link(generated, training) == {"g": [Link(1, 39, "t2222", 5)]}
    more = Documents((Document("boilerplate", f"Also{phrase}Ben."), *training))
    generated = Documents((Document("g", f"x 2222{phrase}Ben", audited=((1, 42),)),))
    assert link(generated, more) == {"g": [Link(1, 39, "t2222", 5), Link(39, 42, "boilerplate", 37)]}
    generated = Documents((Document("g", f"x 22{phrase}Ben", audited=((1, 40),)),))
    assert link(generated, more, min_characters=35) == {"g": [Link(2, 4, "t2222", 8), Link(4, 40, "boilerplate", 4)]}


def test_a_linked_document_is_judged_by_references_that_never_saw_its_source() -> None:
    training = Documents(tuple(Document(f"t{n}", f"text {n}", group=f"person-{n}") for n in range(4)))
    halves = (frozenset({"person-0", "person-1"}), frozenset({"person-2", "person-3"}))
    references = References(("a", "b"), halves)
    generated = Documents(tuple(Document(f"g{n}", "some text", group="old") for n in range(3)), skipped=("one",))
    links = {"g0": [Link(0, 3, "t2", 0), Link(3, 9, "t0", 0)], "g1": [Link(0, 5, "t3", 0)]}
    grouped = with_groups(generated, links, training)
    assert [document.group for document in grouped] == ["person-0", "person-3", "g2"]
    assert references.out_for(grouped)[:2] == [(1,), (0,)]
    assert len(references.out_for(grouped)[2]) == 1
    assert grouped.skipped == ("one",)


def test_a_sentence_that_a_model_was_overfitted_on_is_found_and_linked_to_its_document(
    world: World, store: ModelStore
) -> None:
    target = ModelStore(device="cpu").load(world.base)
    training = Documents((*world.documents, Document("heron", SENTENCE)))
    learned = tokenize_documents(Documents((training[-1],)), target.tokenizer)
    module = target.base.model.requires_grad_(True)
    fit(module, learned, schedule=Schedule(epochs=40, learning_rate=5e-3), context=target.context, seed=0)
    result = audit_generated(
        target,
        [world.base],
        prompts=[SENTENCE[:18]],
        match=training,
        sampling=Sampling(temperature=0, max_tokens=40),
        store=store,
    )
    [text] = result.documents["text"].to_pylist()
    assert text.startswith(SENTENCE[:60])
    best = memorized_stretches(result)[0]
    assert best["training_id"] == "heron"
    assert best["score"] > 0.5
    assert "Lindow told Marguerite" in best["text"]
    [found] = result.metadata.generated.links
    assert (found.training_id, found.char_start, found.training_start) == ("heron", 18, 18)


def test_a_copied_document_is_linked_and_judged_by_the_reference_that_never_saw_it(
    world: World, leak: tuple[Documents, Audit]
) -> None:
    documents, result = leak
    trained_on = load_references([world.references]).trained_on
    codes = {document.id: document.text[document.spans[0].start : document.spans[0].end] for document in documents}
    copied = 0
    for row in result.documents.to_pylist():
        source = f"forget-{int(row['doc_id'].removeprefix('generated-'))}"
        if codes[source] not in row["text"]:
            continue
        copied += 1
        assert row["group"] == source
        [judge] = row["out_references"]
        assert source not in (trained_on[judge] or ())
        assert any(
            stretch["training_id"] == source and codes[source] in stretch["text"] and stretch["score"] > 0
            for stretch in memorized_stretches(result)
            if stretch["doc_id"] == row["doc_id"]
        )
    assert copied >= 4


def test_the_audit_says_how_its_text_was_made_and_keeps_it_in_files(
    leak: tuple[Documents, Audit], tmp_path: Path
) -> None:
    _, result = leak
    described = result.metadata.generated
    assert described.sampling == Sampling(temperature=0, max_tokens=20).model_dump()
    assert (described.prompts, described.without_text) == (5, 0)
    result.save(tmp_path / "audit")
    loaded = Audit.load(tmp_path / "audit")
    assert loaded.metadata == result.metadata
    assert memorized_stretches(loaded) == memorized_stretches(result)


def test_links_point_at_the_same_characters_in_both_texts(leak: tuple[Documents, Audit]) -> None:
    documents, result = leak
    generated = dict(zip(result.documents["doc_id"].to_pylist(), result.documents["text"].to_pylist(), strict=True))
    training = {document.id: document.text for document in documents}
    for found in result.metadata.generated.links:
        copied = generated[found.doc_id][found.char_start : found.char_end]
        assert copied
        assert training[found.training_id][found.training_start :].startswith(copied)


def test_stretches_come_by_score_with_probability_and_q_where_the_audit_has_them(
    leak: tuple[Documents, Audit],
) -> None:
    _, result = leak
    plain = memorized_stretches(result)
    assert [stretch["score"] for stretch in plain] == sorted((s["score"] for s in plain), reverse=True)
    calibrated = result.spans
    for name, value in (("probability", 0.9), ("q", 0.01)):
        if name in calibrated.column_names:
            calibrated = calibrated.drop([name])
        calibrated = calibrated.append_column(name, pa.array([value] * len(calibrated)))
    stretches = memorized_stretches(Audit(result.tokens, result.documents, calibrated, result.metadata))
    assert [(stretch["probability"], stretch["q"]) for stretch in stretches] == [(0.9, 0.01)] * len(plain)


def test_a_model_judged_by_itself_has_no_memorized_stretch(world: World, store: ModelStore) -> None:
    result = audit_generated(world.base, [world.base], sampling=Sampling(count=8, max_tokens=30), store=store)
    assert memorized_stretches(result) == []
    assert result.metadata.generated.links == ()
    np.testing.assert_allclose(result.columns["log_ratio"][result.columns["audited"].astype(bool)], 0, atol=1e-5)


def test_cross_fitted_references_without_their_documents_bring_a_warning(
    world: World, store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    strangers = Documents((Document("stranger", "Nobody knows this text."),))
    for match, said in ((None, "no training documents are given"), (strangers, "none of the training documents")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            audit_generated(
                world.target,
                [world.references],
                match=match,
                sampling=Sampling(count=2, max_tokens=10),
                store=store,
            )
        assert said in caplog.text
        assert "give as match" in caplog.text
