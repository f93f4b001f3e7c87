"""Extraction: does the model complete what is sensitive from the text that precedes it?

What is sensitive and counts, `extraction_values` says.

A value is completed if greedy decoding from all the text before it (as far as the context reaches) writes its
characters exactly: Carlini et al., arXiv 2202.07646, Definition 3.1, with the true prefix in place of a prefix of k
tokens. Characters are compared, not token ids: what follows the value may be merged into its last token, and what
stands before it into its first, which then must come back, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState

from mitigate.errors import MitigateError
from mitigate.generation.decoding import continuations
from mitigate.models.model import Model
from mitigate.runtime import gathered, progress, share_of
from mitigate.verification.extraction_values import Place, Secret

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA = 4
_MOST_ROWS, _MOST_TOKENS = 64, 16_384  # of a batch
_PART = "\ufffd"  # what a decoder writes for the first bytes of a character
_BEFORE = 8  # tokens decoded before a continuation, since many decoders treat the start of a text in another way


@dataclass(frozen=True)
class Attempts:
    """Which values several models completed.

    Attributes:
        places: of the values that were tried.
        completed: model (`before`, `after`, `oracle`) -> whether it completed each.
        total, untried: as of `Secrets`.
    """

    places: tuple[Place, ...]
    completed: Mapping[str, tuple[bool, ...]]
    total: int
    untried: Mapping[str, int]


@dataclass(frozen=True)
class Extraction:
    """What extraction found: among the values to forget, and among those of documents never trained on.

    Attributes:
        forget: values of the forget documents.
        never_seen: values of the holdout documents, the control; None without such documents or values.
    """

    forget: Attempts
    never_seen: Attempts | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, without any text."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], *, where: str = "extraction") -> Extraction:
        """What `as_json` gave, as it is read from a file.

        Raises:
            MitigateError: another shape, for instance of an older version.
        """
        try:
            if saved["schema"] != SCHEMA:
                raise ValueError(f"schema {saved['schema']!r}")
            never_seen = saved["never_seen"]
            return cls(_attempts(saved["forget"]), _attempts(never_seen) if never_seen is not None else None)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MitigateError(
                f"{where}: not the extraction that this version saves ({type(error).__name__}: {error}); "
                "delete it and run the stage measured again"
            ) from None


def extract(model: Model, secrets: Sequence[Secret], *, description: str = "Extracting") -> list[bool]:
    """Whether greedy decoding from its prefix writes each value exactly.

    Args:
        model: the model to attack.
        secrets: what to look for, from `secrets_of`.
        description (*optional*): of the progress bar.

    Returns:
        for each secret, in order: completed or not.
    """
    state = PartialState()
    mine = share_of(_batches(secrets, context=model.context), state)
    found: list[tuple[int, bool]] = []
    with progress(len(mine), description, unit="batch") as bar, model.active() as module:
        for numbers in mine:
            batch = [secrets[number] for number in numbers]
            longest = max(_new_tokens(secret, model.context) for secret in batch)
            generated = continuations(
                module,
                [secret.prefix for secret in batch],
                new_tokens=longest,
                settled=partial(_is_settled, model.tokenizer, batch),
            )
            for number, secret, tokens in zip(numbers, batch, generated, strict=True):
                found.append(
                    (number, is_completed(model.tokenizer, secret, tokens[: _new_tokens(secret, model.context)]))
                )
            bar.update()
    return gathered(found, state)


def is_completed(tokenizer: PreTrainedTokenizerBase, secret: Secret, generated: np.ndarray) -> bool:
    """Whether what a model wrote after a value's prefix begins with the value, in whatever tokens.

    Args:
        tokenizer: of the model.
        secret: the value.
        generated: (C,) token ids.
    """
    if np.array_equal(generated[: len(secret.tokens)], secret.tokens):
        return True
    return _written(tokenizer, secret, generated).startswith(secret.text)


def _is_settled(
    tokenizer: PreTrainedTokenizerBase, secrets: Sequence[Secret], number: int, generated: np.ndarray
) -> bool:
    """Whether one of some values is completed, or can no longer be, whatever follows."""
    secret = secrets[number]
    if np.array_equal(generated, secret.tokens[: len(generated)]):
        return len(generated) >= len(secret.tokens)
    text = _written(tokenizer, secret, generated).rstrip(_PART)
    return not secret.text.startswith(text)


def _written(tokenizer: PreTrainedTokenizerBase, secret: Secret, generated: np.ndarray) -> str:
    """What a model wrote after a value's prefix, without white space before it."""
    before = secret.prefix[-_BEFORE:].tolist()
    known, whole = (
        str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for ids in (before, before + generated.tolist())
    )
    if not whole.startswith(known):
        known, whole = "", str(tokenizer.decode(generated.tolist(), clean_up_tokenization_spaces=False))
    return whole[len(known) :].lstrip()


def _batches(secrets: Sequence[Secret], *, context: int) -> list[list[int]]:
    """Numbers of secrets of like length, so many that rows with their padding fit the limits."""
    order = sorted(range(len(secrets)), key=lambda number: (len(secrets[number].prefix), len(secrets[number].tokens)))
    batches: list[list[int]] = []
    new = 0
    for number in order:
        secret = secrets[number]
        new = max(new, _new_tokens(secret, context))
        width = len(secret.prefix) + new  # the longest prefix comes last
        full = batches and (len(batches[-1]) == _MOST_ROWS or (len(batches[-1]) + 1) * width > _MOST_TOKENS)
        if not batches or full or width > context:
            batches.append([])
            new = _new_tokens(secret, context)
        batches[-1].append(number)
    return batches


def _new_tokens(secret: Secret, context: int) -> int:
    """How many to write: half as many more than the value has, since a model may spell it in others."""
    own = len(secret.tokens)
    return min(own + max(2, own // 2), context - len(secret.prefix))


def _attempts(saved: Mapping[str, Any]) -> Attempts:
    attempts = Attempts(
        tuple(Place(**place) for place in saved["places"]),
        {model: tuple(map(bool, found)) for model, found in saved["completed"].items()},
        int(saved["total"]),
        {reason: int(count) for reason, count in saved["untried"].items()},
    )
    if any(len(found) != len(attempts.places) for found in attempts.completed.values()):
        raise ValueError("values and results differ in number")
    return attempts
