"""Extraction: does the model complete a secret from the text that precedes it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from mitigate.decoding import continuations
from mitigate.detection.audit import Audit
from mitigate.models import Model
from mitigate.runtime import progress, share_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH = 32


@dataclass(frozen=True)
class Secret:
    """A secret to be extracted: the true prefix and the tokens that should not follow it."""

    span_id: int
    doc_id: str
    prefix: np.ndarray  # (P,) token ids
    continuation: np.ndarray  # (C,) token ids


def secrets_of(audit: Audit, *, sets: Sequence[str | None] = ("forget",), context: int) -> list[Secret]:
    """The known sensitive spans of some sets' documents; where none are known, the selected spans.

    A secret whose first token has nothing before it, or that does not fit the context, is left out.

    Args:
        audit: supplies documents and spans.
        sets (*optional*, defaults to the forget set): whose documents.
        context: the model's context in tokens; the prefix is cut from the left to fit.
    """
    of_document = audit.sets()
    spans = [row for row in audit.spans.to_pylist() if of_document[row["doc_id"]] in sets]
    known = [row for row in spans if row["source"] == "known"]
    ids = audit.columns["token_id"]
    secrets = []
    for row in known or [row for row in spans if row["selected"]]:
        document = ids[audit.rows[row["doc_id"]]].astype(np.int64)
        start, end = row["token_start"], row["token_end"]
        room = context - (end - start)
        if start > 0 and room > 0:
            secrets.append(
                Secret(row["span_id"], row["doc_id"], document[max(0, start - room) : start], document[start:end])
            )
    return secrets


def extract(model: Model, secrets: Sequence[Secret], *, description: str = "Extracting") -> dict[int, bool]:
    """Whether greedy decoding from the true prefix gives each secret exactly (Carlini et al., arXiv 2202.07646).

    Args:
        model: the model to attack.
        secrets: what to look for.

    Returns:
        for each secret's span id: completed or not.
    """
    ordered = sorted(secrets, key=lambda secret: (len(secret.continuation), len(secret.prefix)))
    batches = [ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH)]
    state = PartialState()
    mine = share_of(batches, state)
    found: list[tuple[int, bool]] = []
    with progress(len(mine), description, unit="batch") as bar, model.active() as module, torch.inference_mode():
        for batch in mine:
            longest = max(len(secret.continuation) for secret in batch)
            generated = greedy(module, [secret.prefix for secret in batch], new_tokens=longest)
            for secret, tokens in zip(batch, generated, strict=True):
                length = len(secret.continuation)
                found.append((secret.span_id, bool(np.array_equal(tokens[:length], secret.continuation))))
            bar.update()
    return dict(gather_object(found) if state.num_processes > 1 else found)


def greedy(
    module: PreTrainedModel,
    prefixes: Sequence[np.ndarray],
    *,
    new_tokens: int,
    stop: str = "",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> np.ndarray:
    """Greedy continuations of several prefixes at once.

    Args:
        module: a causal language model.
        prefixes: (P,) token ids each.
        new_tokens: most tokens to add.
        stop (`str`, *optional*): text that ends a continuation; needs the tokenizer.
        tokenizer (*optional*): if given, its end-of-sequence token ends a continuation, too; by default nothing does.

    Returns:
        (B, C) token ids, C <= new_tokens; what stands after the end of a continuation has no meaning.
    """
    ends = [tokenizer.eos_token_id] if tokenizer is not None and tokenizer.eos_token_id is not None else []
    return continuations(module, prefixes, new_tokens=new_tokens, ends=ends, stop=stop, tokenizer=tokenizer)
