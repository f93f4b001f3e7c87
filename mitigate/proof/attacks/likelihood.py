"""How likely a value is to be drawn: computed, not drawn.

A value whose tokens have probabilities q_t under the distribution that is drawn from comes back in one draw with
probability q = Π q_t, and in at least one of k with 1 − (1 − q)^k (Hayes et al., arXiv 2410.19482). So one forward pass
tells for every k what k draws could only estimate.

What several values have before them is read once, where the model keeps what it read as keys and values.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import PartialState

from mitigate.generation.settings import Sampling
from mitigate.models.model import Model, kept_logits
from mitigate.runtime import gathered, progress, share_of
from mitigate.tokens.batches import Piece, collate, default_batch_tokens, grouped
from mitigate.verification.extraction_values import Secret

logger = logging.getLogger(__name__)
_SAME = 1e-3  # nats that a value read after a shared prefix may differ by from one read alone
_NOT_KEPT = (AttributeError, TypeError, ValueError, NotImplementedError)  # of models with another kind of cache


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
    size = default_batch_tokens(model.vocabulary_size, device=model.device, tables=2)
    state = PartialState()
    with model.active() as module, torch.inference_mode():
        families = _families(secrets) if _reads_after(module, secrets, sampling, model.device) else []
        together = {number for family in families for number in family}
        alone = [number for number in range(len(secrets)) if number not in together]
        batches = [(False, [[number] for number in batch]) for batch in _batches_alone(secrets, alone, size)]
        batches += [(True, batch) for batch in _batches_together(secrets, families, size)]
        mine = share_of(batches, state)
        found: list[tuple[int, float]] = []
        with progress(len(mine), description, unit="batch") as bar:
            for shared, batch in mine:
                numbers = [number for family in batch for number in family]
                read = _together if shared else _alone
                found += zip(numbers, read(module, secrets, batch, sampling, model.device), strict=True)
                bar.update()
    return np.array(gathered(found, state), dtype=float)


def _families(secrets: Sequence[Secret]) -> list[list[int]]:
    """Numbers of values with the same tokens before them, two at least, of which a last one is read with the values."""
    found: dict[bytes, list[int]] = {}
    for number, one in enumerate(secrets):
        if len(one.prefix) > 1:
            found.setdefault(np.asarray(one.prefix, dtype=np.int64).tobytes(), []).append(number)
    return [family for family in found.values() if len(family) > 1]


def _reads_after(module: torch.nn.Module, secrets: Sequence[Secret], sampling: Sampling, device: torch.device) -> bool:
    """Whether the model reads values after a shared prefix as it reads them alone: tried on the first ones."""
    families = _families(secrets)
    if not families or next(module.parameters()).dtype != torch.float32:  # else sums hang on the batch's shape
        return False
    first = families[:1]
    alone = _alone(module, secrets, [[number] for number in first[0]], sampling, device)
    try:
        together = _together(module, secrets, first, sampling, device)
    except _NOT_KEPT as error:
        logger.info("what stands before several values is read for each (%s)", type(error).__name__)
        return False
    return bool(np.allclose(alone, together, rtol=0, atol=_SAME))


def _batches_alone(secrets: Sequence[Secret], numbers: Sequence[int], size: int) -> list[list[int]]:
    return [
        [piece.document for piece in group]
        for group in grouped([_piece(secrets, n) for n in numbers], batch_tokens=size)
    ]


def _batches_together(secrets: Sequence[Secret], families: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    """Families with as many values and as many tokens before them, so many that their logits fit."""

    def shape(family: list[int]) -> tuple[int, int]:
        return len(secrets[family[0]].prefix), len(family)

    batches: list[list[list[int]]] = []
    for family in sorted(families, key=lambda one: (shape(one), max(len(secrets[n].tokens) for n in one))):
        tokens = max(len(secrets[number].tokens) for number in family)
        full = batches and (len(batches[-1]) + 1) * (len(family) * tokens + shape(family)[0]) > size
        if not batches or shape(batches[-1][0]) != shape(family) or full:
            batches.append([])
        batches[-1].append(family)
    return batches


def _piece(secrets: Sequence[Secret], number: int) -> Piece:
    one = secrets[number]
    ids = np.concatenate([one.prefix, one.tokens])
    return Piece(number, ids, np.arange(len(one.tokens)) + len(one.prefix), 0)


def _alone(
    module: torch.nn.Module,
    secrets: Sequence[Secret],
    batch: Sequence[Sequence[int]],
    sampling: Sampling,
    device: torch.device,
) -> list[float]:
    """log q of the values of families of one, each with all that stands before it."""
    read = collate([_piece(secrets, number) for [number] in batch]).to(device)
    logits = kept_logits(module, read.input_ids, read.attention_mask, read.keep)
    return _summed(logits, read.targets, read.row_piece, len(batch), sampling)


def _together(
    module: torch.nn.Module,
    secrets: Sequence[Secret],
    batch: Sequence[Sequence[int]],
    sampling: Sampling,
    device: torch.device,
) -> list[float]:
    """The same of families of one shape: what stands before each is read once, up to its last token."""
    prefixes = torch.from_numpy(np.stack([secrets[family[0]].prefix for family in batch]).astype(np.int64)).to(device)
    cache = module(input_ids=prefixes[:, :-1], use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(batch[0]))
    own = [(family, secrets[number]) for family in batch for number in family]
    longest = max(len(one.tokens) for _, one in own)
    ids = torch.zeros((len(own), longest), dtype=torch.long)
    there = torch.zeros((len(own), longest), dtype=torch.bool)
    for row, (_, one) in enumerate(own):
        ids[row, : len(one.tokens)] = torch.from_numpy(np.concatenate([one.prefix[-1:], one.tokens[:-1]]))
        there[row, : len(one.tokens)] = True
    ids, there = ids.to(device), there.to(device)
    before = torch.ones((len(own), prefixes.shape[1] - 1), dtype=torch.long, device=device)
    mask = torch.cat([before, there.long()], dim=1)
    logits = module(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits[there]
    targets = torch.from_numpy(np.concatenate([one.tokens for _, one in own]).astype(np.int64)).to(device)
    rows = torch.repeat_interleave(torch.arange(len(own), device=device), there.sum(1))
    return _summed(logits, targets, rows, len(own), sampling)


def _summed(
    logits: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, count: int, sampling: Sampling
) -> list[float]:
    """log q of each value: the sum over its tokens, which `rows` numbers by their values."""
    logits = logits.float() / sampling.temperature
    own = logits.gather(1, targets[:, None])[:, 0]
    kept = logits if sampling.top_k is None else logits.topk(min(sampling.top_k, logits.shape[1]), dim=1).values
    log_prob = own - kept.logsumexp(1)
    log_prob[own < kept.min(1).values] = -torch.inf
    total = torch.zeros(count, dtype=torch.float64, device=log_prob.device)
    return [float(one) for one in total.index_add_(0, rows, log_prob.double()).tolist()]
