"""What holds of every text: folding, stretches, windows, character offsets, and documents written and read again.

Hypothesis makes the texts; `make properties` tries many more of them than the suite does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from texts import byte_tokenizer, ranges_of, texts, written_texts

from mitigate.documents import Document, Span, read_documents
from mitigate.documents.written import write_jsonl
from mitigate.text.encoding import encode
from mitigate.text.folding import find_words, fold
from mitigate.text.stretches import joined, runs, widened
from mitigate.tokens.tokenization import span_tokens, tokenize_documents, windows, word_numbers

TOKENIZER = byte_tokenizer()
STRETCHES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda pair: (pair[0], sum(pair))))


@given(texts())
def test_folded_characters_stand_for_ranges_in_order_that_leave_out_only_what_folds_to_nothing(text: str) -> None:
    folded = fold(text)
    assert len(folded.text) == len(folded.starts) == len(folded.ends)
    places = list(zip(folded.starts, folded.ends, strict=True))
    assert all(0 <= start < end <= len(text) for start, end in places)
    assert places == sorted(places)
    assert all(one[1] <= other[0] or one == other for one, other in pairwise(places))
    covered = {at for start, end in places for at in range(start, end)}
    assert all(fold(text[at]).text == "" for at in range(len(text)) if at not in covered)


@given(texts())
def test_what_a_folded_character_stands_for_folds_to_it(text: str) -> None:
    folded = fold(text)
    for place in set(zip(folded.starts, folded.ends, strict=True)):
        own = [at for at in range(len(folded.text)) if (folded.starts[at], folded.ends[at]) == place]
        assert fold(text[slice(*place)]).text == "".join(folded.text[at] for at in own)


@given(texts(ascii_only=True))
def test_ascii_text_folds_as_text_with_other_characters_does(text: str) -> None:
    short, long = fold(text), fold(text + "é")
    size = len(short.text)
    assert (short.text, list(short.starts), list(short.ends)) == (
        long.text[:size],
        list(long.starts[:size]),
        list(long.ends[:size]),
    )


@given(texts(), texts(), texts())
def test_a_text_is_found_between_others_however_it_is_cased_and_spaced(left: str, wanted: str, right: str) -> None:
    sought = fold(" ".join(wanted.split())).text.strip()
    assume(sought)
    text = f"{left} {wanted.upper()}\n{right}"
    assume(fold(wanted.upper()).text.split() == sought.split())  # ŉ has no capital letter of its own
    found = list(find_words(fold(text), sought))
    assert found
    assert all(fold(text[start:end]).text.strip() == sought for start, end in found)


@given(st.lists(st.booleans()))
def test_runs_are_the_longest_stretches_that_are_true(mask: list[bool]) -> None:
    found = runs(mask)
    assert [any(start <= at < end for start, end in found) for at in range(len(mask))] == mask
    assert all(one[1] < other[0] for one, other in pairwise(found))


@given(STRETCHES, st.integers(0, 5))
def test_joined_stretches_cover_the_same_characters_and_the_gaps_that_may_be(
    stretches: list[tuple[int, int]], gap: int
) -> None:
    found = joined(stretches, gap=gap)
    covered = {at for start, end in stretches for at in range(start, end)}
    holes = {at for start, end in found for at in range(start, end)} - covered
    assert covered <= {at for start, end in found for at in range(start, end)}
    assert all(other[0] - one[1] > gap for one, other in pairwise(found))
    assert all(hole - before <= gap for hole in holes for before in [max(at for at in covered if at < hole)])


@given(STRETCHES, st.integers(0, 6))
def test_widened_stretches_are_the_characters_within_the_margin(stretches: list[tuple[int, int]], margin: int) -> None:
    length = 60
    found = widened(stretches, margin, length=length)
    near = {at for start, end in stretches for at in range(start - margin, end + margin) if 0 <= at < length}
    assert [at for start, end in found for at in range(start, end)] == sorted(near)


@given(st.integers(0, 400), st.integers(2, 80), st.data())
def test_each_token_is_scored_once_with_the_context_that_is_promised(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.none() | st.integers(1, context - 1))
    found = windows(length, context=context, stride=stride)
    scored = [token for window in found for token in range(window.score_from, window.end)]
    assert scored == list(range(1, length))
    assert all(0 <= window.start < window.score_from < window.end <= window.start + context for window in found)
    least = context - (context // 2 if stride is None else stride)
    assert all(window.score_from - window.start >= min(window.score_from, least) for window in found)


@given(written_texts(), st.data())
def test_offsets_are_the_characters_whose_bytes_a_token_holds(text: str, data: st.DataObject) -> None:
    audited = tuple(data.draw(ranges_of(text)))
    encoded = next(encode([text], TOKENIZER, special_tokens=True))
    pieces = [TOKENIZER.backend_tokenizer.id_to_token(int(token)) for token in encoded.ids[1:]]
    places = _places(text, pieces)
    reached = [any(start < high and low < end for low, high in audited or [(0, len(text))]) for start, end in places]
    assume(any(reached))
    tokens = tokenize_documents([Document("d", text, audited=audited)], TOKENIZER)[0]
    assert tokens.ids.tolist() == encoded.ids.tolist()
    assert tokens.offsets.tolist() == [[0, 0], *map(list, places)]
    assert tokens.audited.tolist() == [False, *reached]


@given(written_texts(), st.data())
def test_tokens_of_a_span_are_those_that_share_a_character_with_it(text: str, data: st.DataObject) -> None:
    offsets = tokenize_documents([Document("d", text)], TOKENIZER)[0].offsets
    start, end = data.draw(ranges_of(text, least=1))[0]
    naive = [n for n, (low, high) in enumerate(offsets) if set(range(low, high)) & set(range(start, end))]
    assert span_tokens(offsets, start, end).tolist() == naive


@given(written_texts())
def test_tokens_of_a_document_begin_in_the_words_that_hold_their_first_characters(text: str) -> None:
    offsets = tokenize_documents([Document("d", text)], TOKENIZER)[0].offsets
    numbers, words = word_numbers(offsets, text), text.split()
    assert numbers[0] == -1
    solid = [
        (n, start) for n, start in zip(numbers, offsets[:, 0], strict=True) if n >= 0 and not text[start].isspace()
    ]
    assert {number for number, _ in solid} == set(range(len(words)))
    assert all(len(text[: start + 1].split()) == number + 1 for number, start in solid)


@given(
    written_texts(),
    st.none() | st.sampled_from(["forget", "retain", "holdout"]),
    st.booleans(),
    st.text(st.characters(categories=["L", "M", "N", "P"]), max_size=6),
    st.data(),
)
def test_documents_are_read_back_as_they_were_written(
    out: Path, text: str, set_name: str | None, special_tokens: bool, name: str, data: st.DataObject
) -> None:
    spans = tuple(Span(start, end, name) for start, end in sorted(set(data.draw(ranges_of(text)))))
    audited = tuple(joined(data.draw(ranges_of(text))))
    document = Document("1", text, audited, spans, set_name, group=name, special_tokens=special_tokens)
    write_jsonl([document], out / "documents.jsonl")
    assert read_documents(out / "documents.jsonl").items == (document,)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for all the texts of a test."""
    return tmp_path_factory.mktemp("written")


def _places(text: str, pieces: Sequence[str]) -> list[tuple[int, int]]:
    """The characters that each token has bytes of, without white space at the edges; of white space alone, itself."""
    owners = [at for at, character in enumerate(text) for _ in character.encode()]
    places, byte = [], 0
    for piece in pieces:  # one character of a piece is one byte
        start, end = owners[byte], owners[byte + len(piece) - 1] + 1
        byte += len(piece)
        own = text[start:end]
        if own.strip():
            start, end = end - len(own.lstrip()), start + len(own.rstrip())
        places.append((start, end))
    assert byte == len(owners), "no byte of the text is in no token, none is in two"
    return places
