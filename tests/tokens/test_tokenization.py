from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from texts import byte_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mitigate.documents import Document, read_documents
from mitigate.errors import MitigateError
from mitigate.tokens.tokenization import TokenizedDocument, span_tokens, tokenize_documents, windows

DATA = Path(__file__).parents[3] / "shared" / "data"
EMOJI = "Zoë’s  héllo 🎉👩‍👧 call 555-0100\n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def tokenize(text: str, tokenizer: PreTrainedTokenizerFast, **keys: object) -> TokenizedDocument:
    return tokenize_documents([Document(id="d", text=text, **keys)], tokenizer)[0]


def test_tokens_carry_ids_offsets_and_what_is_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize("hello there", tokenizer)
    assert tokens.ids.tolist() == [0, *tokenizer("hello there", add_special_tokens=False)["input_ids"]]
    assert (tokens.ids.dtype, tokens.offsets.dtype, tokens.audited.dtype) == (np.int64, np.int32, np.bool_)
    assert tokens.offsets.tolist() == [[0, 0], [0, 5], [6, 11]]
    assert tokens.audited.tolist() == [False, True, True]


def test_without_a_special_token_in_front_the_first_token_is_not_scored() -> None:
    assert tokenize("hello there", byte_tokenizer(bos=False)).audited.tolist() == [False, True]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_spans_of_emoji_and_accents_map_to_their_characters(trim_offsets: bool) -> None:
    tokens = tokenize(EMOJI, byte_tokenizer(trim_offsets=trim_offsets))
    for piece in ("Zoë", "héllo", "🎉", "👩‍👧", "555-0100"):
        start = EMOJI.index(piece)
        covering = tokens.offsets[span_tokens(tokens.offsets, start, start + len(piece))]
        assert (covering[:, 0].min(), covering[:, 1].max()) == (start, start + len(piece))
    assert len(span_tokens(tokens.offsets, EMOJI.index("🎉"), EMOJI.index("🎉") + 1)) == 4
    assert {c for start, end in tokens.offsets for c in range(start, end)} >= {
        number for number, character in enumerate(EMOJI) if not character.isspace()
    }


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_only_tokens_of_white_space_alone_cover_white_space(trim_offsets: bool) -> None:
    tokens = tokenize(EMOJI, byte_tokenizer(trim_offsets=trim_offsets))
    covered = [EMOJI[start:end] for start, end in tokens.offsets[1:]]
    assert all(text and (text == text.strip() or not text.strip()) for text in covered)
    assert covered[-1] == "\n"
    assert tokens.audited[1:].all()


def test_the_documents_of_a_batch_do_not_change_each_other(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [Document(id=str(n), text="hello " * (n % 7 + 1), special_tokens=n % 3 > 0) for n in range(600)]
    together = tokenize_documents(documents, tokenizer)
    assert [tokens.id for tokens in together] == [document.id for document in documents]
    for number in (0, 1, 255, 256, 599):
        (alone,) = tokenize_documents([documents[number]], tokenizer)
        assert np.array_equal(alone.ids, together[number].ids)
        assert np.array_equal(alone.offsets, together[number].offsets)
        assert np.array_equal(alone.audited, together[number].audited)


def test_only_tokens_in_the_audited_ranges_are_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "hello there my friend, call me"
    start = text.index("my")
    tokens = tokenize(text, tokenizer, audited=((start, start + 9), (len(text) - 2, len(text))))
    scored = [text[first:last] for first, last in tokens.offsets[tokens.audited]]
    assert "".join(scored) == "myfriendme"


def test_special_tokens_of_a_rendered_chat_are_scored_inside_a_turn_only(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<|turn|>hello</s>there</s>"
    tokens = tokenize(text, tokenizer, special_tokens=False, audited=((8, 22),))
    assert tokens.ids[[0, 2, -1]].tolist() == [2, 1, 1], "none is added"
    scored = [text[start:end] for start, end in tokens.offsets[tokens.audited]]
    assert "".join(scored) == "hello</s>there"


def test_documents_without_a_token_to_score_are_named_together() -> None:
    documents = [Document(id="a", text="hello"), Document(id="b", text="hello there"), Document(id="c", text="x")]
    with pytest.raises(MitigateError, match=r"without a token to score: 'a', 'c'; a text that yields one token"):
        tokenize_documents(documents, byte_tokenizer(bos=False))


def test_a_tokenizer_that_knows_no_characters_is_refused() -> None:
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(MitigateError, match="SlowTokenizer does not tell which characters a token covers"):
        tokenize_documents([Document(id="a", text="x")], SlowTokenizer())  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [2, 3, 8, 17])
def test_windows_score_each_token_but_the_first_once(context: int) -> None:
    for length in range(80):
        for stride in (None, *range(1, context)):
            cut = windows(length, context=context, stride=stride)
            scored = [token for window in cut for token in range(window.score_from, window.end)]
            assert scored == list(range(1, length))
            assert all(window.start < window.score_from < window.end <= length for window in cut)
            assert all(window.end - window.start == min(context, length) for window in cut)
            step = stride or context // 2
            assert all(w.score_from - w.start >= context - step for w in cut[1:])


@pytest.mark.parametrize(
    ("context", "stride", "message"),
    [(1, None, "context: 1 tokens"), (8, 8, "stride: 8 is not between 1 and 7"), (8, 0, "stride: 0 is not between")],
)
def test_windows_that_leave_a_token_without_context_are_refused(context: int, stride: int | None, message: str) -> None:
    with pytest.raises(MitigateError, match=message):
        windows(100, context=context, stride=stride)


def test_span_tokens_are_those_that_share_a_character() -> None:
    offsets = np.array([[0, 0], [0, 3], [3, 3], [4, 6], [6, 7], [6, 7], [8, 9]], dtype=np.int32)
    assert span_tokens(offsets, 2, 7).tolist() == [1, 3, 4, 5]
    assert span_tokens(offsets, 3, 4).tolist() == []
    assert span_tokens(offsets, 6, 7).tolist() == [4, 5]


def test_a_real_tokenizer_covers_every_character_of_a_real_book() -> None:
    book, model = DATA / "pride_and_prejudice" / "chapters.jsonl", DATA / "stories260k"
    if not book.is_file() or not model.is_dir():
        pytest.skip("pride_and_prejudice or stories260k is not in the shared data folder")
    documents = read_documents(book)[:5]
    for document, tokens in zip(
        documents, tokenize_documents(documents, AutoTokenizer.from_pretrained(model)), strict=True
    ):
        covered = np.zeros(len(document.text), dtype=bool)
        for start, end in tokens.offsets:
            covered[start:end] = True
        assert all(covered[n] or character.isspace() for n, character in enumerate(document.text))
        assert tokens.audited[1:].mean() > 0.99
