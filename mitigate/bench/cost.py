"""What a benchmark will cost, told before it starts, from a forward pass that is timed here."""

from __future__ import annotations

import math
import time

from mitigate.documents import Documents
from mitigate.models.fitting.gradients import document_losses
from mitigate.models.store import ModelStore
from mitigate.runtime import process_state
from mitigate.tokens.tokenization import tokenize_documents

TRAINING = 3.5  # forward passes that a training step on an adapter costs
_TIMED = 16  # documents of the forward pass


def time_of(passes: float, documents: Documents, *, base: str, device: str) -> str:
    """About how long so many forward passes of a document take, over all processes, in words.

    Args:
        passes: of one document each.
        documents: such as they are; the first ones are read.
        base: the model.
        device: where it is.
    """
    model = ModelStore(device=device).load(base)
    some = tokenize_documents(documents[:_TIMED], model.tokenizer)
    document_losses(model.base.model, some, model=model)  # the first pass also loads and compiles
    started = time.monotonic()
    document_losses(model.base.model, some, model=model)
    each = (time.monotonic() - started) / len(some)
    minutes = math.ceil(passes * each / process_state(device).num_processes / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
