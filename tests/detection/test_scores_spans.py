"""Scores are the formulas they name; spans cover the characters that were memorized, whole words, nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from mitigate.detection.scores import token as scores
from mitigate.detection.settings import SpanRule
from mitigate.detection.spans.row import SpanRow, span_rows, span_table
from mitigate.detection.spans.threshold import FoundSpan, find_spans, whole_words, windowed
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.tokens.tokenization import TokenizedDocument, span_tokens, tokenize_documents

NAN = float("nan")


@pytest.fixture
def signals() -> dict[str, np.ndarray]:
    """Signals of two invented positions over a vocabulary of 6, after a first token without any."""
    rng = np.random.default_rng(0)
    p, p_out = (rng.dirichlet(np.full(6, 5.0), size=2) for _ in range(2))
    tokens = [2, 5]
    ratio = np.log(p / p_out)
    mean, mean_ratio = (p * np.log(p)).sum(1), (p_out * ratio).sum(1)
    columns = {
        "log_prob": np.log(p[[0, 1], tokens]),
        "log_prob_out": np.log(p_out[[0, 1], tokens]),
        "entropy": -mean,
        "log_prob_std": np.sqrt((p * (np.log(p) - mean[:, None]) ** 2).sum(1)),
        "log_ratio": ratio[[0, 1], tokens],
        "kl": (p_out * np.log(p_out / p)).sum(1),
        "log_ratio_variance": (p_out * (ratio - mean_ratio[:, None]) ** 2).sum(1),
    }
    return {name: np.append(NAN, column) for name, column in columns.items()}


def test_scores_equal_their_formulas(signals: dict[str, np.ndarray]) -> None:
    for position in (1, 2):
        s = {name: float(column[position]) for name, column in signals.items()}
        expected = {
            "loss": s["log_prob"],
            "log_ratio": s["log_prob"] - s["log_prob_out"],
            "log_ratio_clipped": max(-3.0, min(3.0, s["log_prob"] - s["log_prob_out"])),
            "informia": s["log_ratio"] + s["kl"],
            "informia_no_kl": s["log_ratio"],
            "informia_z": (s["log_ratio"] + s["kl"]) / math.sqrt(s["log_ratio_variance"]),
            "min_k_pp": (s["log_prob"] + s["entropy"]) / s["log_prob_std"],
        }
        assert expected.keys() == scores.TOKEN_SCORES.keys()
        for name, value in expected.items():
            assert scores.token_scores(signals, name)[position] == pytest.approx(value, rel=1e-9), name


def test_a_token_without_signals_has_no_score(signals: dict[str, np.ndarray]) -> None:
    for name in scores.TOKEN_SCORES:
        assert np.isnan(scores.token_scores(signals, name)).tolist() == [True, False, False], name


def test_every_score_grows_with_the_targets_probability(signals: dict[str, np.ndarray]) -> None:
    surer = {**signals, "log_prob": signals["log_prob"] + 0.1, "log_ratio": signals["log_ratio"] + 0.1}
    for name in scores.TOKEN_SCORES:
        assert (scores.token_scores(surer, name) > scores.token_scores(signals, name))[1:].all(), name


def test_scores_of_a_target_that_is_sure_of_everything_are_finite() -> None:
    certain = np.zeros(1)
    assert np.isfinite(scores.min_k_pp(certain, certain, certain)).all()
    assert np.isfinite(scores.informia_z(certain, certain, certain)).all()


def test_one_token_cannot_carry_a_clipped_span() -> None:
    assert scores.clipped(np.array([-9.0, NAN, 1.0, 9.0])).tolist()[2:] == [1.0, 3.0]
    assert scores.clipped(np.array([9.0]), limit=5).tolist() == [5.0]


def test_document_scores_leave_out_tokens_without_a_score() -> None:
    score = np.array([NAN, 4.0, -1.0, 3.0, 2.0, -2.0])
    assert scores.mean(score) == pytest.approx(6 / 5)
    assert scores.min_k(score, share=0.4) == pytest.approx((-2 - 1) / 2)
    assert scores.min_k(score, share=0.01) == -2
    assert math.isnan(scores.mean(score[:1]))
    assert math.isnan(scores.min_k(score[:1]))


def test_an_unknown_score_is_refused_with_the_known_ones() -> None:
    with pytest.raises(MitigateError, match=r"'informa' is not one of informia, .*min_k_pp"):
        scores.token_scores({}, "informa")


@pytest.mark.parametrize("window", [1, 2, 3, 5, 50])
def test_the_windowed_score_is_the_mean_of_the_scored_neighbours(window: int) -> None:
    rng = np.random.default_rng(window)
    score = np.where(rng.random(30) < 0.2, NAN, rng.normal(size=30))
    got = windowed(score, window=window)
    for position, value in enumerate(score):
        if math.isnan(value):
            assert math.isnan(got[position])
        else:
            first = position - window // 2
            around = score[max(0, first) : max(0, first + window)]
            assert got[position] == pytest.approx(np.nanmean(around))


def words(text: str) -> np.ndarray:
    """Offsets of the words of a text, after a special token."""
    offsets, position = [(0, 0)], 0
    for word in text.split():
        start = text.index(word, position)
        position = start + len(word)
        offsets.append((start, position))
    return np.array(offsets, dtype=np.int32)


def found(text: str, score: list[float], offsets: np.ndarray | None = None, **rule: float) -> list[FoundSpan]:
    settings = SpanRule.model_validate({"threshold": 1.0, "window": 1, "gap": 0, "min_tokens": 1, **rule})
    offsets = words(text) if offsets is None else offsets
    return find_spans(np.array(score), offsets=offsets, text=text, rule=settings)


def test_a_span_is_the_stretch_above_the_threshold_with_its_mean_score() -> None:
    [span] = found("call me on 555 0199 now", [NAN, 0, 0, 0.5, 3, 5, 0.9])
    assert span == FoundSpan(char_start=11, char_end=19, token_start=4, token_end=6, score=4.0)


def test_spans_that_are_close_are_joined_and_others_are_not() -> None:
    text, score = "a1 b2 c3 d4 e5 f6", [NAN, 2, 0, 0, 2, 0, 2]
    assert [(s.char_start, s.char_end) for s in found(text, score, gap=0)] == [(0, 2), (9, 11), (15, 17)]
    assert [(s.char_start, s.char_end) for s in found(text, score, gap=1)] == [(0, 2), (9, 17)]
    assert [(s.char_start, s.char_end) for s in found(text, score, gap=2)] == [(0, 17)]


def test_edges_that_are_in_only_through_their_neighbours_are_trimmed() -> None:
    [span] = found("aa bb cc dd ee", [NAN, -0.5, 9, 9, -0.5, -0.5], window=3)
    assert (span.char_start, span.char_end) == (3, 8)


def test_spans_shorter_than_the_rule_asks_are_dropped() -> None:
    assert len(found("aa bb cc dd", [NAN, 5, 0, 5, 5], min_tokens=2)) == 1


def test_half_a_word_becomes_the_whole_word() -> None:
    text = "id AB12CD34, done"
    offsets = np.array([(0, 0), (0, 2), (3, 5), (5, 7), (7, 9), (9, 11), (11, 12), (13, 17)])
    [span] = found(text, [NAN, 0, 0, 5, 5, 0, 0, 0], offsets)
    assert text[span.char_start : span.char_end] == "AB12CD34"
    assert (span.token_start, span.token_end) == (2, 6)
    assert span.score == pytest.approx(10 / 4)
    assert whole_words(text, 5, 7) == (3, 11)
    assert whole_words(text, 3, 12) == (3, 12)


def test_halves_of_one_word_become_one_span() -> None:
    offsets = np.array([(0, 0), (0, 3), (3, 6), (6, 9), (9, 12)])
    [span] = found("abcdefghijkl", [NAN, 5, 0, 0, 5], offsets)
    assert (span.char_start, span.char_end, span.score) == (0, 12, 2.5)


def test_a_special_token_inside_a_span_does_not_move_its_edges() -> None:
    text = "hello there 555 </s> 0199 bye"
    offsets = words(text)
    offsets[4] = (0, 0)  # special tokens have no characters
    [span] = found(text, [NAN, 0, 0, 5, NAN, 5, 0], offsets, gap=1)
    assert text[span.char_start : span.char_end] == "555 </s> 0199"


def test_nothing_above_the_threshold_gives_no_span() -> None:
    assert found("aa bb", [NAN, 0.5, 0.5]) == []
    assert found("aa bb", [NAN, NAN, NAN]) == []


@pytest.mark.parametrize("secret", ["José Ñandú", "🙂🎉", "naïve 🙂 café", "中文密码", "e\u0301te\u0301"])
def test_spans_map_to_the_right_characters_of_accents_and_emoji(
    tokenizer: PreTrainedTokenizerFast, secret: str
) -> None:
    text = f"The word is {secret} at noon."
    [tokens] = tokenize_documents(Documents((Document("d", text),)), tokenizer)
    start = text.index(secret)
    inside = span_tokens(tokens.offsets, start, start + len(secret))
    score = np.where(tokens.audited, 0.0, NAN)
    score[inside] = 5.0
    [span] = found(text, list(score), tokens.offsets, min_tokens=2)
    assert text[span.char_start : span.char_end] == secret
    assert (span.token_start, span.token_end) == (inside[0], inside[-1] + 1)


@pytest.fixture
def mixed(tokenizer: PreTrainedTokenizerFast) -> TokenizedDocument:
    text = "Zoë pays 1234-5678 🙂🙂 at the   old mill;\n\tcafé №42 </s> «naïve» ok 中文 x"
    [tokens] = tokenize_documents(Documents((Document(text, text),)), tokenizer)
    return tokens


def test_found_spans_are_disjoint_ordered_and_of_whole_words_whatever_the_scores(mixed: TokenizedDocument) -> None:
    text, rng = mixed.id, np.random.default_rng(0)
    for _ in range(300):
        score = np.where(mixed.audited, rng.normal(scale=2, size=len(mixed.ids)), NAN)
        rule = SpanRule(
            threshold=float(rng.normal()),
            window=int(rng.integers(1, 8)),
            gap=int(rng.integers(0, 4)),
            min_tokens=int(rng.integers(1, 4)),
        )
        spans = find_spans(score, offsets=mixed.offsets, text=text, rule=rule)
        for before, after in itertools.pairwise(spans):
            assert before.char_end <= after.char_start
            assert before.token_end <= after.token_start
        for span in spans:
            assert 0 <= span.char_start < span.char_end <= len(text)
            assert whole_words(text, span.char_start, span.char_end) == (span.char_start, span.char_end)
            covered = span_tokens(mixed.offsets, span.char_start, span.char_end)
            assert (span.token_start, span.token_end) == (covered[0], covered[-1] + 1)
            assert len(covered) >= rule.min_tokens
            assert span.score == pytest.approx(np.nanmean(score[covered]))


def test_a_span_row_comes_back_from_its_table_as_it_was() -> None:
    certain = SpanRow(0, "a", 3, 9, 1, 4, "phone", "found", 0.5, probability=0.75, q=0.25, selected=True)
    rows = [certain, SpanRow(1, "b", 0, 2, 1, 2, "", "linked", -2.0)]
    table = span_table(rows)
    assert span_rows(table) == rows
    assert table.column_names == [field.name for field in dataclasses.fields(SpanRow)]
    assert span_rows(span_table([])) == []
