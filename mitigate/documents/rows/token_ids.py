"""Rows of token ids, as trainers keep them: the text that gives these ids again, and what of it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mitigate.documents.sources import is_missing
from mitigate.errors import MitigateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOT_TRAINED = -100  # the label that cross-entropy leaves out


def text_of(
    values: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str, tuple[tuple[int, int], ...], bool]:
    """The text of a row of token ids.

    Args:
        values: `input_ids`; where they are there, `labels` (the id, or −100 for a token without a loss), the masks
            `completion_mask` and `assistant_masks` (1: with a loss) and `attention_mask` (0: padding).
        tokenizer: that made the ids.

    Returns:
        text, half-open character ranges that were trained on (none: all of it), and whether special tokens are still to
        be added.

    Raises:
        MitigateError: no tokenizer, or a slow one; lists that do not fit together; nothing trained on; or ids that the
            text which they decode to does not give again.
    """
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        raise MitigateError("input_ids need the fast tokenizer that made them; pass the target's, or give the text")
    ids, trained = _checked(values, len(tokenizer))
    for text, special_tokens in _candidates(ids, tokenizer):
        encoded = tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True, verbose=False)
        if encoded["input_ids"] == ids:
            return text, _ranges(trained, encoded["offset_mapping"]), special_tokens
    raise MitigateError(
        "input_ids: the text that they decode to gives other ids: they are of another tokenizer, or were cut inside a "
        "word (packed); give the target's own tokenizer, or the text that they were made from"
    )


def _checked(values: Mapping[str, Any], vocabulary: int) -> tuple[list[int], list[bool]]:
    """The ids without padding, and which of them were trained on."""
    ids = values["input_ids"]
    if not all(type(id) is int and 0 <= id < vocabulary for id in ids):
        raise MitigateError(f"input_ids: not whole numbers from 0 to {vocabulary - 1}, the tokenizer's last id")
    trained = [True] * len(ids)
    for name in ("labels", "completion_mask", "assistant_masks", "attention_mask"):
        column = values.get(name)
        if is_missing(column):
            continue
        if not isinstance(column, list) or len(column) != len(ids):
            raise MitigateError(f"{name}: not a list as long as input_ids ({len(ids)})")
        if name == "labels":
            if any(label not in (_NOT_TRAINED, id) for label, id in zip(column, ids, strict=True)):
                raise MitigateError(
                    "labels: other than input_ids where they are not -100 (shifted by one, perhaps); give those of the "
                    "same places"
                )
            trained = [label != _NOT_TRAINED for label in column]
        elif name == "attention_mask":
            kept = [place for place, seen in enumerate(column) if seen]
            ids, trained = [ids[place] for place in kept], [trained[place] for place in kept]
        else:
            trained = [before and bool(flag) for before, flag in zip(trained, column, strict=True)]
    if not any(trained[1:]):  # the first token is predicted from nothing
        raise MitigateError("labels: no token was trained on; leave the row out")
    return ids, trained


def _candidates(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """Texts that may give the ids again, and whether the tokenizer is to add special tokens to them."""
    special = set(tokenizer.all_special_ids)
    first = next((place for place, id in enumerate(ids) if id not in special), len(ids))
    last = next((place for place in range(len(ids), first, -1) if ids[place - 1] not in special), first)
    before, middle, after = (
        str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)) if part else ""
        for part in (ids[:first], ids[first:last], ids[last:])
    )
    whole = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    candidates = [(middle, True), (whole, False), (before + middle + after, False)]
    return [(text, added) for text, added in candidates if text.strip()]


def _ranges(trained: Sequence[bool], offsets: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Characters of each run of trained tokens; tokens without characters (added ones) break no run."""
    if all(flag for flag, (start, end) in zip(trained, offsets, strict=True) if start < end):
        return ()
    ranges: list[tuple[int, int]] = []
    goes_on = False
    for flag, (start, end) in zip(trained, offsets, strict=True):
        if start == end:
            continue
        if flag and goes_on:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        elif flag:
            ranges.append((start, end))
        goes_on = flag
    return tuple(ranges)
