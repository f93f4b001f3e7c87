"""Extraction: does the model complete a secret from the text that precedes it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from mitigate.detection.audit import Audit
from mitigate.models import Model
from mitigate.runtime import progress, share_of

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
            generated = _greedy(module, batch, model.device)
            for secret, tokens in zip(batch, generated, strict=True):
                length = len(secret.continuation)
                found.append((secret.span_id, bool(np.array_equal(tokens[:length], secret.continuation))))
            bar.update()
    return dict(gather_object(found) if state.num_processes > 1 else found)


def _greedy(module: torch.nn.Module, batch: Sequence[Secret], device: torch.device) -> np.ndarray:
    """(B, C) greedy continuations, C = the longest that the batch needs."""
    longest = max(len(secret.prefix) for secret in batch)
    input_ids = torch.zeros((len(batch), longest), dtype=torch.long, device=device)
    attention_mask = torch.zeros_like(input_ids)
    for row, secret in enumerate(batch):  # left padding, so that all continue at the same column
        input_ids[row, longest - len(secret.prefix) :] = torch.from_numpy(secret.prefix)
        attention_mask[row, longest - len(secret.prefix) :] = 1
    generated = module.generate(  # type: ignore[operator]
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=max(len(secret.continuation) for secret in batch),
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return generated[:, longest:].cpu().numpy()
