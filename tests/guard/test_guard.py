"""The guard: a stored secret is never completed, in any format, and nothing else changes."""

from __future__ import annotations

import json
import math
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, ByT5Tokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner
from world import ARCHITECTURES, World, sentences

from mitigate.cli.app import app
from mitigate.detection.record import Audit
from mitigate.documents import Document, Documents, Span
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError
from mitigate.guard.decoding import GuardLogitsProcessor, continue_greedily, false_positives
from mitigate.guard.guard import NOTICE, Guard
from mitigate.guard.sources import new_key, read_key, secrets_in_audit, secrets_in_file, spans_in_audit
from mitigate.models.store import ModelStore
from mitigate.secrets.same import comparable

SECRETS = (
    "(555) 123-4567",
    "Ann.Smith@Example.com",
    "12 Grüner Weg, Köln",
    "日本語テスト",
    "한국어비밀번호",
    "sk-A1b2C3d4E5f6G7h8",
    "482913",
)
PLAIN = ("the letter is at the harbour", "Ann went to Example street 12", "7 of 555 bridges", "日本 is far", "🙂 naïve")


def plain(text: str) -> str:
    """Letters and digits, by another route than the package's: a character at a time."""
    kept = []
    for character in unicodedata.normalize("NFKD", text).casefold():
        if unicodedata.category(character)[0] in "LN":
            base, stroke, _ = unicodedata.name(character, "").partition(" WITH ")
            latin = stroke and base.startswith("LATIN SMALL LETTER ") and len(base) == len("LATIN SMALL LETTER A")
            plain = (
                unicodedata.lookup(base)
                if latin
                else {"ı": "i", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th"}.get(character, character)
            )
            kept.append(str(unicodedata.digit(plain, plain)) if len(plain) == 1 else plain)
    return "".join(kept)


def runs(secrets: Sequence[str], *, share: float = 2 / 3, shortest: int = 4, longest: int = 32) -> set[str]:
    """What must not be completed, in the clear."""
    found = set()
    for secret in map(plain, secrets):
        n = min(longest, max(shortest, math.ceil(share * len(secret))))
        found |= {secret[start : start + n] for start in range(len(secret) - n + 1)}
    return found


def naively_blocked(tokenizer: PreTrainedTokenizerFast, ids: list[int], forbidden: set[str]) -> set[int]:
    """The tokens after which the decoded text holds a forbidden run that ends in what they added."""

    def decoded(tokens: list[int]) -> str:
        return plain(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    before = decoded(ids)
    blocked = set()
    for token in range(len(tokenizer)):
        after = decoded([*ids, token])
        added = range(len(before) + 1, len(after) + 1)
        if any(after[:end].endswith(run) for end in added for run in forbidden):
            blocked.add(token)
    return blocked


def _texts() -> list[str]:
    return [*sentences(200), *SECRETS * 4, *(str(n) for n in range(100, 700, 7)), *PLAIN]


def _trained(model: Any, trainer: Any, pre_tokenizer: Any, decoder: Any, normalizer: Any = None) -> Any:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def _byte_level() -> Any:
    """As of GPT-2: tokens of several digits, and parts of characters."""
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    return _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def _byte_fallback() -> Any:
    """As of Llama 2: characters that the vocabulary lacks are written as bytes."""
    special = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=650, special_tokens=special, limit_alphabet=60)
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    model = models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = _trained(model, trainer, pre_tokenizers.Metaspace(), decoder)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _word_piece() -> Any:
    """As of BERT: lower case, continued words marked with ##."""
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"])
    model = models.WordPiece(unk_token="<unk>")
    return _trained(
        model, trainer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(), normalizers.BertNormalizer()
    )


def _unigram() -> Any:
    """As of T5."""
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>")
    return _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte_level": _byte_level,
    "byte_fallback": _byte_fallback,
    "word_piece": _word_piece,
    "unigram": _unigram,
}


@pytest.fixture(scope="module", params=["single_digits", *TOKENIZERS])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return tokenizer if request.param == "single_digits" else TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard.make(SECRETS)


def written_differently(secret: str, draw: Random) -> str:
    """The secret in another format: case, width, and what stands between its letters and digits."""
    text = "".join(draw.choice([str.upper, str.lower])(character) for character in secret if character.isalnum())
    if draw.random() < 0.3:
        text = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    between = draw.choice(["", " ", "-", ". ", "(", "🙂"])
    return "".join(character + (between if draw.random() < 0.4 else "") for character in text)


def cases(tokenizer: PreTrainedTokenizerFast, count: int, *, seed: int) -> Iterator[list[int]]:
    """Texts that hold parts of secrets, cut at any token, some with random tokens in between."""
    draw = Random(seed)
    for _ in range(count):
        parts = [draw.choice(PLAIN), written_differently(draw.choice(SECRETS), draw), draw.choice(PLAIN)]
        ids = tokenizer(draw.choice(["", " "]).join(parts[draw.randrange(2) :]))["input_ids"]
        ids = ids[: draw.randrange(len(ids) + 1)]
        if draw.random() < 0.2:
            ids.insert(draw.randrange(len(ids) + 1), draw.randrange(len(tokenizer)))
        yield ids


def test_exactly_the_tokens_are_blocked_that_a_naive_check_of_all_decoded_texts_finds(
    any_tokenizer: PreTrainedTokenizerFast, guard: Guard
) -> None:
    processor, forbidden = GuardLogitsProcessor(guard, any_tokenizer), runs(SECRETS)
    something = 0
    for ids in cases(any_tokenizer, 40, seed=3):
        if "<0xE6>" in any_tokenizer.get_vocab() and "�" in any_tokenizer.decode(ids):
            continue  # with bytes to fall back on, decoding hides whole characters until the last one is whole
        expected = naively_blocked(any_tokenizer, ids, forbidden)
        assert processor.blocked(ids) == expected, any_tokenizer.decode(ids)
        something += bool(expected)
    assert something >= 4


def test_a_character_of_several_tokens_is_blocked_at_its_last_byte(tokenizer: PreTrainedTokenizerFast) -> None:
    processor = GuardLogitsProcessor(Guard.make(["日本語文字列"]), tokenizer)
    ids = tokenizer("日本語文")["input_ids"]
    assert len(ids) == 1 + 4 * 3
    assert ids[-1] not in processor.blocked(ids[:-2])
    assert processor.blocked(ids[:-1]) == {ids[-1]}


def test_a_token_that_holds_a_whole_secret_is_always_blocked(tokenizer: PreTrainedTokenizerFast) -> None:
    token = max(range(len(tokenizer)), key=lambda number: len(plain(tokenizer.decode([number]))))
    secret = plain(tokenizer.decode([token]))
    assert token in GuardLogitsProcessor(Guard.make([secret], share=1), tokenizer).blocked([])


@pytest.mark.parametrize(
    "other", ["555-123 4567", "5551234567", "+1 (555) 1234567", "５５５ 1 2 3 4 5 6 7", "٥٥٥1234567"]
)
def test_formats_of_one_number_are_one_secret(tokenizer: PreTrainedTokenizerFast, other: str) -> None:
    processor = GuardLogitsProcessor(Guard.make(["(555) 123-4567"]), tokenizer)
    digits = list(processor.vocabulary.beginning_with("4"))
    before, _ = other.rsplit("4", 1)
    assert processor.blocked(tokenizer(f"call {before}")["input_ids"]) >= {*digits}
    assert not processor.blocked(tokenizer(f"call {before.strip()[:-1]}")["input_ids"])


@pytest.mark.parametrize(
    ("secret", "length"), [("482913", 4), ("555-123-4567", 7), ("078-05-1120", 6), ("4829", 4), ("k" * 99, 32)]
)
def test_what_may_come_out_is_one_character_less_than_two_thirds(secret: str, length: int) -> None:
    guard = Guard.make([secret])
    assert guard.lengths == [length]
    assert guard.forbids(plain(secret)[:length])
    assert guard.forbids(plain(secret)[-length:])
    assert not guard.forbids(plain(secret)[: length - 1])


def test_normalising_parts_gives_the_parts_of_the_normalised_text() -> None:
    draw = Random(0)
    characters = [chr(code) for code in (*range(0x20, 0x250), *range(0x370, 0x400), 0x1E9E, 0xFB03, 0xAC01, 0x0130)]
    for _ in range(300):
        text = "".join(draw.choices(characters, k=12))
        cut = draw.randrange(13)
        assert comparable(text) == comparable(text[:cut]) + comparable(text[cut:])
        assert comparable(comparable(text)) == comparable(text)


def test_all_other_scores_stay_bit_for_bit(tokenizer: PreTrainedTokenizerFast, guard: Guard) -> None:
    processor = GuardLogitsProcessor(guard, tokenizer)
    scores = torch.randn(1, len(tokenizer) + 8)  # a model may have more outputs than its tokenizer has entries
    original = scores.clone()
    ids = tokenizer("call 555 123", return_tensors="pt")["input_ids"]
    guarded = processor(ids, scores)
    assert torch.equal(scores, original)
    blocked = guarded.isneginf()
    assert blocked.nonzero()[:, 1].tolist() == sorted(processor.blocked(ids[0]))
    assert blocked.any()
    assert torch.equal(guarded[~blocked], original[~blocked])
    harmless = tokenizer("the old mill", return_tensors="pt")["input_ids"]
    assert torch.equal(processor(harmless, scores), original)


def test_a_batch_is_judged_as_its_rows_one_by_one(tokenizer: PreTrainedTokenizerFast, guard: Guard) -> None:
    processor = GuardLogitsProcessor(guard, tokenizer)
    texts = ["call 555 123", "the old mill", "code 482", "mail ann.smith@exa"]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")["input_ids"]
    scores = torch.randn(len(texts), len(tokenizer))
    together = processor(batch, scores)
    for row, text in enumerate(texts):
        alone = processor(tokenizer(text, return_tensors="pt")["input_ids"], scores[row : row + 1])
        assert torch.equal(together[row], alone[0])
    assert together.isneginf().any(1).tolist() == [True, False, True, True]


def test_separators_however_many_do_not_help(tokenizer: PreTrainedTokenizerFast, guard: Guard) -> None:
    processor = GuardLogitsProcessor(guard, tokenizer)
    near, far = (tokenizer(f"code 4 8{gap}2")["input_ids"] for gap in (" ", " - " * 500))
    assert len(far) > 500
    assert processor.blocked(far) == processor.blocked(near) != set()


MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 8},
    "beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 4},
    "sampled_beams": {"do_sample": True, "num_beams": 3, "num_return_sequences": 3},
}


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, new_tokens: int = 12, seed: int = 0, **options: Any
) -> tuple[list[str], torch.Tensor]:
    """What a model writes after prompts, padded on the left: whole texts, and their tokens."""
    torch.manual_seed(seed)
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    inputs.pop("token_type_ids", None)
    written = model.generate(**inputs, max_new_tokens=new_tokens, pad_token_id=1, **options)
    return tokenizer.batch_decode(written, skip_special_tokens=True), written


@pytest.fixture(scope="module")
def leaky(world: World) -> tuple[Any, Any, list[Document]]:
    """A model that has memorized door codes, its tokenizer, and the documents with the codes."""
    model = ModelStore(device="cpu").load(world.target)
    return model.base.model, model.tokenizer, list(world.documents.subset("forget"))


def before_code(document: Document, typed: int = 0) -> str:
    return document.text[: document.spans[0].start + typed].rstrip()


def code_of(document: Document) -> str:
    return document.text[document.spans[0].start : document.spans[0].end]


@pytest.mark.parametrize("stored_as", ["{}", "{0[0]}{0[1]}-{0[2]} {0[3]} ({0[4]}{0[5]})"])
@pytest.mark.parametrize("mode", MODES)
def test_memorized_codes_are_written_without_the_guard_and_never_with_it(
    leaky: tuple[Any, Any, list[Document]], mode: str, stored_as: str
) -> None:
    model, tokenizer, documents = leaky
    codes = [code_of(document) for document in documents]
    guard = Guard.make([stored_as.format(code) for code in codes])
    processor = GuardLogitsProcessor(guard, tokenizer)
    prompts = [before_code(document) for document in documents]
    free, _ = generate(model, tokenizer, prompts, **MODES[mode])
    guarded, _ = generate(model, tokenizer, prompts, **MODES[mode], logits_processor=[processor])
    assert sum(any(code in plain(text) for text in free) for code in codes) >= 4
    assert not [run for text in guarded for run in runs(codes) if run in plain(text)]


@pytest.mark.parametrize("typed", [1, 2, 3, 4, 5])
def test_a_code_that_the_user_began_is_not_completed(leaky: tuple[Any, Any, list[Document]], typed: int) -> None:
    model, tokenizer, documents = leaky
    processor = GuardLogitsProcessor(Guard.make([code_of(document) for document in documents]), tokenizer)
    prompts = [before_code(document, typed) for document in documents]
    free, _ = generate(model, tokenizer, prompts)
    guarded, _ = generate(model, tokenizer, prompts, logits_processor=[processor])
    assert sum(code_of(document) in plain(text) for document, text in zip(documents, free, strict=True)) >= 4
    for document, prompt, text in zip(documents, prompts, guarded, strict=True):
        code = code_of(document)
        assert code not in plain(text)
        assert not [run for run in runs([code]) if run in plain(text) and run not in plain(prompt)]


@pytest.mark.parametrize("mode", MODES)
def test_text_without_a_secret_is_written_as_without_the_guard(
    leaky: tuple[Any, Any, list[Document]], mode: str
) -> None:
    model, tokenizer, documents = leaky
    codes = [code_of(document) for document in documents]
    processor = GuardLogitsProcessor(Guard.make([f"{code}@{code[::-1]}" for code in codes]), tokenizer)
    prompts = [*(before_code(document) for document in documents), "The library was", "Did Ann see"]
    _, free = generate(model, tokenizer, prompts, **MODES[mode])
    _, guarded = generate(model, tokenizer, prompts, **MODES[mode], logits_processor=[processor])
    assert torch.equal(free, guarded)


def test_prompts_padded_in_a_batch_are_continued_as_alone(leaky: tuple[Any, Any, list[Document]]) -> None:
    model, tokenizer, documents = leaky
    processor = GuardLogitsProcessor(Guard.make([code_of(document) for document in documents]), tokenizer)
    prompts = [before_code(document)[5 * number :] for number, document in enumerate(documents)]
    together, _ = generate(model, tokenizer, prompts, logits_processor=[processor])
    assert together == [generate(model, tokenizer, [p], logits_processor=[processor])[0][0] for p in prompts]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_no_architecture_writes_again_what_is_guarded(
    tiny_model: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, architecture: str, mode: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture)).eval()
    prompts = ["The library was", "Ann paid 12"]
    options = {**MODES[mode], "new_tokens": 16, "suppress_tokens": [0, 1]}
    free, _ = generate(model, tokenizer, prompts, **options)
    secrets = [rest for text in free if len(rest := plain(text)[14:]) >= 4]
    processor = GuardLogitsProcessor(Guard.make(secrets), tokenizer)
    guarded, _ = generate(model, tokenizer, prompts, **options, logits_processor=[processor])
    assert not [run for text in guarded for run in runs(secrets) if run in plain(text)[14:]]
    assert guarded != free


def test_tokens_all_ruled_out_by_another_processor_and_the_guard_are_an_error(
    tokenizer: PreTrainedTokenizerFast, guard: Guard
) -> None:
    processor = GuardLogitsProcessor(guard, tokenizer)
    ids = tokenizer("call 555 123", return_tensors="pt")["input_ids"]
    scores = torch.full((1, len(tokenizer)), -torch.inf)
    scores[0, sorted(processor.blocked(ids[0]))] = 1.0
    with pytest.raises(MitigateError, match="let them allow the end of the text"):
        processor(ids, scores)


def test_a_tokenizer_that_does_not_say_how_it_decodes_is_refused(guard: Guard) -> None:
    with pytest.raises(MitigateError, match=r"ByT5Tokenizer does not say how its tokens decode; use the model's fast"):
        GuardLogitsProcessor(guard, ByT5Tokenizer())


def test_saved_and_loaded_it_is_the_same(tmp_path: Path, guard: Guard, tokenizer: PreTrainedTokenizerFast) -> None:
    guard.save(tmp_path / "guard.json")
    loaded = Guard.load(tmp_path / "guard.json")
    assert loaded == guard
    assert stat.S_IMODE((tmp_path / "guard.json").stat().st_mode) == 0o600
    ids = tokenizer("call 555 123")["input_ids"]
    blocked = [GuardLogitsProcessor(one, tokenizer).blocked(ids) for one in (guard, loaded)]
    assert blocked[0] == blocked[1] != set()


def test_the_file_and_the_shown_guard_hold_no_part_of_a_secret(tmp_path: Path) -> None:
    secret = "Wilhelmina Grubensteiner"
    key = new_key(tmp_path / "guard.key")
    for number, own_key in enumerate((b"", key)):
        guard = Guard.make([secret], key=own_key)
        path = tmp_path / f"guard-{number}.json"
        guard.save(path)
        for written in (path.read_text(), repr(guard)):
            low = written.lower()
            low = low.replace(NOTICE, "")
            for source in (secret.lower(), plain(secret)):
                assert not [source[i : i + 5] for i in range(len(source) - 4) if source[i : i + 5] in low]
            assert key.hex() not in low
            assert repr(key) not in written


def test_guards_of_one_secret_share_no_hash() -> None:
    one, other = (Guard.make(["555 123 4567"]) for _ in range(2))
    for kind, table in one.hashes.items():
        for n, values in table.items():
            assert not values & other.hashes[kind][n]


def test_without_its_key_a_guess_cannot_be_tried_on_the_file(tmp_path: Path) -> None:
    path, key = tmp_path / "guard.json", new_key(tmp_path / "guard.key")
    guard = Guard.make(["555 123 4567"], key=key)
    guard.save(path)
    assert read_key(tmp_path / "guard.key") == key
    assert Guard.load(path, key=key).forbids("5551234")
    keyless = Guard(guard.salt, guard.hashes, guard.secrets)
    assert not keyless.forbids("5551234")
    with pytest.raises(MitigateError, match=r"made with a key; give the key"):
        Guard.load(path)
    with pytest.raises(MitigateError, match="not made with this key"):
        Guard.load(path, key=b"x" * 32)
    Guard.make(["555 123 4567"]).save(path)
    with pytest.raises(MitigateError, match="made without a key; leave the key out"):
        Guard.load(path, key=key)


def test_the_false_positive_rate_counts_the_tokens_that_a_naive_check_blocks(
    any_tokenizer: PreTrainedTokenizerFast,
) -> None:
    secrets = ["the harbour at noon", "482913", "Café museum"]
    guard, forbidden = Guard.make(secrets), runs(secrets)
    texts = [*sentences(25, seed=8), "her code is 4 8-2913, Ben wrote.", "at the harbour 🙂 at noon"]
    found = false_positives(guard, texts, any_tokenizer)
    tokens = blocked = documents = 0
    special = {*any_tokenizer.all_special_ids}
    for text in texts:
        ids = any_tokenizer(text)["input_ids"]
        ends = [plain(any_tokenizer.decode(ids[:cut], skip_special_tokens=True)) for cut in range(len(ids) + 1)]
        hits = [
            any(after[:end].endswith(run) for end in range(len(before) + 1, len(after) + 1) for run in forbidden)
            for before, after in pairwise(ends)
        ]
        tokens += sum(token not in special for token in ids)
        blocked += sum(hits)
        documents += any(hits)
    assert (found.tokens, found.blocked, len(found.blocked_documents)) == (tokens, blocked, documents)
    assert {"text-26", "text-27"} <= {*found.blocked_documents}
    exact = binomtest(blocked, tokens).proportion_ci(0.95, method="exact")
    assert found.rate == pytest.approx((blocked / tokens, exact.low, exact.high))
    assert found.per_1000 == pytest.approx([1000 * value for value in found.rate if value is not None])


def test_a_run_that_ordinary_text_holds_may_be_said_but_the_secret_stays_guarded(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    secret, ordinary = "ann.smith@harbour-library.example.com", ["Write to info@harbour-library.example.com!"]
    strict, lenient = Guard.make([secret]), Guard.make([secret], ordinary=ordinary)
    assert false_positives(strict, ordinary, tokenizer).blocked > 0
    assert false_positives(lenient, ordinary, tokenizer).blocked == 0
    assert false_positives(lenient, [f"Write to {secret}!"], tokenizer).blocked > 0


@pytest.fixture(scope="module")
def audited(world: World) -> Audit:
    return world.audit()


def test_an_audit_gives_its_selected_spans_or_the_known_ones_of_its_forget_set(world: World, audited: Audit) -> None:
    codes = [code_of(document) for document in world.documents.subset("forget")]
    selected = audited.spans.to_pylist()
    expected = [
        document.text[row["char_start"] : row["char_end"]]
        for row in selected
        if row["selected"]
        for document in world.documents
        if document.id == row["doc_id"]
    ]
    assert spans_in_audit(audited) == expected != []
    assert secrets_in_audit(audited)[: len(expected)] == expected
    assert sorted(secrets_in_audit(audited, known=True)) == sorted(codes)


def test_short_spans_of_an_audit_are_left_out_with_a_warning(audited: Audit, caplog: pytest.LogCaptureFixture) -> None:
    assert secrets_in_audit(audited, known=True, shortest=7) == []
    assert "5 of 5 spans have fewer than 7 letters and digits" in caplog.text


def test_an_audit_without_spans_has_nothing_to_guard(audited: Audit) -> None:
    bare = Audit(audited.tokens, audited.documents, audited.spans.slice(0, 0), audited.metadata)
    with pytest.raises(MitigateError, match="no selected span, so there is nothing to guard"):
        secrets_in_audit(bare)
    with pytest.raises(MitigateError, match="no known span in the documents to forget"):
        secrets_in_audit(bare, known=True)


def test_a_file_gives_the_field_secret_or_known_spans_or_lines(tmp_path: Path) -> None:
    rows, documents, lines = tmp_path / "rows.jsonl", tmp_path / "documents.jsonl", tmp_path / "lines.txt"
    rows.write_text('{"secret": "555 123 4567"}\n{"secret": "482913"}\n')
    write_jsonl(Documents((Document("a", "code 482913.", spans=(Span(5, 11),)), Document("b", "none"))), documents)
    lines.write_text("555 123 4567\n\n 482913 \n")
    assert secrets_in_file(rows) == secrets_in_file(lines) == ["555 123 4567", "482913"]
    assert secrets_in_file(documents) == ["482913"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"secret": "482913"}\n{"text": "MARKER"}\n', r"rows without a secret: .*:2 \(no text in the field secret\)"),
        ('{"secret": 482913}\n', r":1 \(no text in the field secret\); give each row a field secret, as text"),
        ('{"text": "MARKER"}\n', "no row has a field secret, no document has spans"),
        ("", "the file is empty"),
    ],
)
def test_a_file_without_secrets_is_refused_and_not_quoted(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "secrets.jsonl"
    path.write_text(content)
    with pytest.raises(MitigateError, match=message) as error:
        secrets_in_file(path)
    assert "MARKER" not in str(error.value)


@pytest.mark.parametrize(
    ("secrets", "options", "message"),
    [
        ([], {}, "no secret given"),
        (["482913", "12-3", "()"], {}, "fewer than 4 letters and digits: number 2, 3; .* or lower shortest"),
        (["482913"], {"ordinary": ["it is 4829 13"]}, "the ordinary text holds: number 1"),
        (["482913"], {"share": 0}, "share lies between 0 and 1"),
        (["482913"], {"share": 1.5}, "share 1.5"),
        (["482913"], {"shortest": 1}, "shortest is 2 or more"),
        (["482913"], {"shortest": 9, "longest": 8}, "at most longest"),
    ],
)
def test_what_cannot_be_guarded_is_said_by_number(secrets: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(MitigateError, match=message) as error:
        Guard.make(secrets, **options)
    assert "482913" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no guard; make one with"),
        ('{"mitigate_guard": 1}', "a guard of version 1, .* make it anew"),
        ('{"mitigate_guard": 2}', "a damaged guard"),
        ("{", "not JSON"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_no_guard_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "guard.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MitigateError, match=message):
        Guard.load(path)


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "guard.key").write_text("secret")
    with pytest.raises(MitigateError, match="holds no key"):
        read_key(tmp_path / "guard.key")
    with pytest.raises(MitigateError, match="cannot be read"):
        read_key(tmp_path / "missing.key")


def test_a_prompt_too_long_for_the_context_is_refused(world: World) -> None:
    model = ModelStore(device="cpu").load(world.target)
    with pytest.raises(MitigateError, match=r"do not fit its context of 64; shorten the prompt or lower max_tokens"):
        continue_greedily(model, "The library was quiet", max_tokens=64)


def test_the_command_line_makes_checks_and_tries_a_guard(tmp_path: Path, world: World, audited: Audit) -> None:
    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["guard", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    forget = list(world.documents.subset("forget"))
    audited.save(tmp_path / "audit")
    options = ["--guard", tmp_path / "guard.json", "--key", tmp_path / "guard.key", "--model", world.target]
    made = call("make", "--audit", tmp_path / "audit", "--known", "--key", options[3], "--out", options[1])
    assert "5 secrets, 15 forbidden runs of 4 to 4 characters" in made
    assert NOTICE in made
    write_jsonl(world.documents.subset("forget"), tmp_path / "forget.jsonl")
    checked = call("check", *options, "--documents", tmp_path / "forget.jsonl")
    assert "tokens blocked: 15 of " in checked
    assert "false positives, if the text holds no guarded secret:" in checked
    assert "documents with a blocked completion: 5 of 5" in checked
    (tmp_path / "prompts.txt").write_text("\n".join([*(before_code(document) for document in forget), "The library"]))
    tried = call("generate", *options, "--prompts", tmp_path / "prompts.txt", "--max-tokens", 8)
    rows = [json.loads(line) for line in tried.splitlines() if line.startswith("{")]
    assert [row["changed"] for row in rows].count(True) >= 4
    assert not rows[-1]["changed"]
    assert not [run for row in rows for run in runs(list(map(code_of, forget))) if run in plain(row["text"])]


def test_found_spans_that_are_ordinary_text_are_left_out_and_counted(tmp_path: Path, audited: Audit) -> None:
    audited.save(tmp_path / "audit")
    [one, *_] = secrets_in_audit(audited)
    (tmp_path / "website.txt").write_text(f"Call {one[:-2]}-{one[-2:]} from nine to five.")
    ordinary = ["--ordinary", str(tmp_path / "website.txt"), "--out", str(tmp_path / "guard.json")]
    command = ["guard", "make", "--audit", str(tmp_path / "audit"), *ordinary]
    made = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    assert f"of {len(secrets_in_audit(audited))} spans and parts of them are ordinary text and are not guarded" in made
    guard = Guard.load(tmp_path / "guard.json")
    assert not runs([one]) & {run for run in runs([one]) if guard.forbids(run)}
    with pytest.raises(MitigateError, match="secrets that the ordinary text holds: number 1;"):
        CliRunner().invoke(app, [*command[:-1], str(tmp_path / "other.json"), "--known"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --audit DIR or --secrets FILE"),
        (["--audit", "audit", "--secrets", "secrets.jsonl"], "give either --audit DIR or --secrets FILE"),
        (["--secrets", "secrets.jsonl", "--known"], "--known: takes the known spans of an audit"),
        (["--secrets", "secrets.jsonl", "--out", "."], "already holds something"),
    ],
)
def test_guard_make_refuses_options_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secrets.jsonl").write_text('{"secret": "482913"}\n')
    with pytest.raises(MitigateError, match=message):
        CliRunner().invoke(app, ["guard", "make", *arguments], catch_exceptions=False)
