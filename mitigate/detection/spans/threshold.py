"""From token scores to spans of characters: threshold on a windowed score, join small gaps, snap to whole words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mitigate.detection.settings import SpanRule
from mitigate.text.stretches import joined, runs
from mitigate.tokens.tokenization import span_tokens


@dataclass(frozen=True)
class FoundSpan:
    """A stretch of memorized text: characters and tokens, both half-open; score in nats, mean over its tokens."""

    char_start: int
    char_end: int
    token_start: int
    token_end: int
    score: float


def windowed(score: np.ndarray, *, window: int) -> np.ndarray:
    """Centred moving average over the tokens that have a score; NaN where a token has none.

    Args:
        score: (T,) with NaN for tokens without a score.
        window: tokens; the ends of a document average over what is there.
    """
    known = ~np.isnan(score)
    kernel = np.ones(window)
    total = _same(np.where(known, score, 0.0), kernel)
    count = _same(known.astype(float), kernel)
    return np.where(known, total / np.maximum(count, 1.0), np.nan)


def find_spans(score: np.ndarray, *, offsets: np.ndarray, text: str, rule: SpanRule) -> list[FoundSpan]:
    """Memorized spans of one document.

    A token is in when its windowed score reaches the threshold. Tokens at a span's edges that are in only through
    their neighbours (own score at or below zero) are trimmed; then close spans are joined and words completed.

    Args:
        score: (T,) token scores, NaN where there is none.
        offsets: (T, 2) characters of the tokens.
        text: the document.
        rule: threshold, window, gap, least length.
    """
    above = windowed(score, window=rule.window) >= rule.threshold
    stretches = []
    for start, end in runs(above):
        own = np.flatnonzero(score[start:end] > 0)
        if own.size:
            stretches.append((start + int(own[0]), start + int(own[-1]) + 1))
    spans = []
    for start, end in joined(stretches, gap=rule.gap):
        inside = offsets[start:end][offsets[start:end, 1] > offsets[start:end, 0]]  # special tokens have no characters
        char_start, char_end = whole_words(text, int(inside[:, 0].min()), int(inside[:, 1].max()))
        tokens = span_tokens(offsets, char_start, char_end)
        if tokens.size >= rule.min_tokens:
            mean = float(np.nanmean(score[tokens]))
            spans.append(FoundSpan(char_start, char_end, int(tokens[0]), int(tokens[-1]) + 1, mean))
    return _merged(spans, score, offsets)


def whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """Grow [start, end) until it does not cut a word (a run of letters and digits) at either edge."""
    while 0 < start < len(text) and text[start].isalnum() and text[start - 1].isalnum():
        start -= 1
    while 0 < end < len(text) and text[end].isalnum() and text[end - 1].isalnum():
        end += 1
    return start, end


def _merged(spans: Sequence[FoundSpan], score: np.ndarray, offsets: np.ndarray) -> list[FoundSpan]:
    """Completing words can make two spans touch; they become one."""
    result: list[FoundSpan] = []
    for span in spans:
        if result and span.char_start <= result[-1].char_end:
            last = result.pop()
            start, end = last.char_start, max(last.char_end, span.char_end)
            tokens = span_tokens(offsets, start, end)
            mean = float(np.nanmean(score[tokens]))
            span = FoundSpan(start, end, int(tokens[0]), int(tokens[-1]) + 1, mean)
        result.append(span)
    return result


def _same(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Centred convolution as long as `values`, also where the kernel is longer."""
    start = (len(kernel) - 1) // 2
    return np.convolve(values, kernel)[start : start + len(values)]
