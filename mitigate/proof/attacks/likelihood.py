"""How likely a value is to be drawn: computed, not drawn.

A value whose tokens have probabilities q_t under the distribution that is drawn from comes back in one draw with
probability q = Π q_t, and in at least one of k with 1 − (1 − q)^k (Hayes et al., arXiv 2410.19482). So one forward pass
tells for every k what k draws could only estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import PartialState

from mitigate.generation.settings import Sampling
from mitigate.models.model import Model, kept_logits
from mitigate.runtime import gathered, progress, share_of
from mitigate.tokens.batches import Piece, collate, default_batch_tokens, grouped
from mitigate.verification.extraction_values import Secret


def drawn_log_probs(model: Model, secrets: Sequence[Secret], *, sampling: Sampling, description: str) -> np.ndarray:
    """(n,) log q of each value after its prefix, nats; −inf where a token is never drawn.

    In the tokens in which the document spells it: other spellings, which a model seldom writes, would add to it.

    Args:
        model: who is drawn from.
        secrets: values with what is written before them.
        sampling: temperature and top k; with top p, by which the rest would depend on each draw, nothing is computed.
        description: of the progress bar.
    """
    assert sampling.temperature > 0
    assert sampling.top_p == 1
    pieces = [
        Piece(number, np.concatenate([one.prefix, one.tokens]), np.arange(len(one.tokens)) + len(one.prefix), 0)
        for number, one in enumerate(secrets)
    ]
    size = default_batch_tokens(model.vocabulary_size, device=model.device, tables=2)
    state = PartialState()
    mine = share_of(grouped(pieces, batch_tokens=size), state)
    found: list[tuple[int, float]] = []
    with progress(len(mine), description, unit="batch") as bar, model.active() as module, torch.inference_mode():
        for batch in (collate(group).to(model.device) for group in mine):
            logits = kept_logits(module, batch.input_ids, batch.attention_mask, batch.keep).float()
            logits /= sampling.temperature
            own = logits.gather(1, batch.targets[:, None])[:, 0]
            kept = logits if sampling.top_k is None else logits.topk(min(sampling.top_k, logits.shape[1]), dim=1).values
            log_prob = own - kept.logsumexp(1)
            log_prob[own < kept.min(1).values] = -torch.inf
            total = torch.zeros(len(batch.pieces), dtype=torch.float64, device=log_prob.device)
            total.index_add_(0, batch.row_piece, log_prob.double())
            found += [(piece.document, value) for piece, value in zip(batch.pieces, total.tolist(), strict=True)]
            bar.update()
    return np.array(gathered(found, state), dtype=float)
