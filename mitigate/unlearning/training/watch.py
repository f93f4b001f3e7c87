"""The watch over the tokens to forget while they are trained, and when that is to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mitigate.statistics.separation import auc
from mitigate.tokens.batches import Batch, cut_pieces, make_batches
from mitigate.tokens.tokenization import TokenizedDocument
from mitigate.unlearning.material.control import Control, Limits
from mitigate.unlearning.material.tasks import Task, facts

MOST_OVER_FORGOTTEN = 0.05  # share of the spans under the limit at which training that watches the control gives up
MOST_EXPOSED = 0.03  # share of the spans over the upper limit, or under the lower one, and
LEAST_AUC, MOST_AUC = 0.45, 0.52  # ... AUC of the spans against never-seen ones, outside of which training is not done
_MOST_CORRECTED = 0.5  # nats
PATIENCE = 3  # looks without getting nearer to the references


def look(
    tasks: Sequence[Task],
    *,
    spans: int,
    forward: Callable[[Batch], tuple[torch.Tensor, torch.Tensor | None]],
    batched: Callable[[Sequence[Task]], list[Batch]],
    accelerator: Accelerator,
    limits: Limits | None,
) -> dict[str, Any]:
    """Where the tokens to forget are now; every process must call it.

    Args:
        tasks: all of them.
        spans: how many spans to forget there are.
        forward: logits of a batch.
        batched: batches of tasks.
        accelerator: the processes, which share the batches.
        limits: of never-seen spans, see `span_limits`.

    Returns:
        `selected_log_ratio`: mean of log p_θ − log p̄, clipped to ±3 nats, over all of them, and `selected_distance`:
        that of its absolute value; compare with `control_level`. `over_forgotten`, `exposed`: share of the spans whose
        mean is under the lower limit, over the upper one, and `span_auc`: how well their means are told from those of
        never-seen spans; null without limits. The spans are the known ones among what is to be forgotten, where there
        are any, else all.
    """
    known = 1 + max((int(task.known.max()) for task in tasks if len(task.known)), default=-1)
    sums = torch.zeros(3, max(1, known or spans) + 1, device=accelerator.device, dtype=torch.float64)
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = batched([task.alone().only(task.selected) for task in tasks if task.selected.any()])
    for number in range(math.ceil(len(batches) / world)):
        batch = batches[min(number * world + rank, len(batches) - 1)]
        weight = float(number * world + rank < len(batches))
        with torch.no_grad():
            logits, _ = forward(batch)
        log_prob = torch.log_softmax(logits, dim=-1).gather(1, batch.targets.unsqueeze(1)).squeeze(1)
        own = [piece.known if known else piece.span for piece in batch.pieces if isinstance(piece, Task)]
        ratio = (log_prob - facts(batch).out).double().clamp(-3.0, 3.0)
        counted = torch.stack([ratio, ratio.abs(), torch.ones_like(ratio)])
        sums.index_add_(1, torch.from_numpy(np.concatenate(own)).to(sums.device) + 1, weight * counted)
    totals, distances, counts = accelerator.reduce(sums, reduction="sum").cpu().numpy()
    means = totals[1:][counts[1:] > 0] / counts[1:][counts[1:] > 0]  # the first are of tokens in no such span
    low, high = (limits.low, limits.high) if limits is not None else (None, None)
    told = limits is not None and len(means) > 0
    return {
        "selected_log_ratio": round(float(totals.sum() / counts.sum()), 4),
        "selected_distance": round(float(distances.sum() / counts.sum()), 4),
        "over_forgotten": round(float((means < low).mean()), 4) if told and low is not None else None,
        "exposed": round(float((means > high).mean()), 4) if told and high is not None else None,
        "span_auc": round(auc(means, np.array(limits.means)), 4) if limits is not None and told else None,
    }


def no_higher(now: Mapping[str, Any], control: Control) -> bool:
    """Whether what `look` said is no higher than text that the target never saw: in the mean, and span by span."""
    stand_out = (now["exposed"] or 0.0) > MOST_EXPOSED or (now["span_auc"] or 0.0) > MOST_AUC
    return bool(now["selected_log_ratio"] <= control.log_ratio and not stand_out)


def reason_to_stop(history: Sequence[dict[str, Any]], control: Control) -> str | None:
    """Why to stop: the tokens are where text is that the target never saw, or they get no nearer to it.

    The mean of all tokens can be at the control while half of them are far above it and half far below. So their
    distance counts too, and the spans that still stand out where never-seen spans tell which do. That some have fallen
    too low ends it only where no more still stand out, and it does not get better.

    Args:
        history: what `look` said so far, each with its `step`.
        control: of the tokens.
    """
    now, distances = history[-1], [entry["selected_distance"] for entry in history]
    if len(history) < 2:
        return None
    below, above = now["over_forgotten"] or 0.0, now["exposed"] or 0.0
    stuck = len(distances) > PATIENCE and min(distances[-PATIENCE:]) > 0.99 * min(distances[:-PATIENCE])
    if now["selected_log_ratio"] <= control.log_ratio:
        near = control.distance is not None and distances[-1] <= control.distance
        if near and no_higher(now, control) and below <= MOST_EXPOSED and (now["span_auc"] or 0.5) >= LEAST_AUC:
            return f"control level reached at step {now['step']}"
        if stuck:
            return f"control level reached at step {now['step']}, and no nearer to it for {PATIENCE} looks"
    no_better = stuck or distances[-1] > distances[-2]
    if below > MOST_OVER_FORGOTTEN and below >= above and no_better:
        return (
            f"at step {now['step']} {below:.0%} of the spans were below text that the target never saw, {above:.0%} "
            "above it, and it got no better"
        )
    lately = [0.5 if entry["span_auc"] is None else entry["span_auc"] for entry in history[-PATIENCE:]]
    falling = len(history) > PATIENCE and max(lately) < LEAST_AUC and lately[-1] <= min(lately)
    if lately[-1] < LEAST_AUC and (no_better or falling):
        return (
            f"at step {now['step']} never-seen spans lay above those to forget (AUC {now['span_auc']:.2f}), and it got "
            "no better"
        )
    return None


def corrected(level: float, history: Sequence[Mapping[str, Any]], control: Control) -> float:
    """What is to be added to where `match` brings a token to rest, so that the tokens' mean ends at the control.

    Anchors, neighbours and the other terms of the objective hold a token off its level. Once the mean has all but come
    to rest, what it is off by is taken off: half of it at a look (integral control), within ±0.5 nats.

    Args:
        level: what is added now, nats.
        history: what `look` said so far.
        control: of the tokens; without never-seen text nothing is corrected.
    """
    if control.distance is None or len(history) < 2:
        return level
    before, now = (entry["selected_log_ratio"] for entry in history[-2:])
    gap = control.log_ratio - now
    if abs(now - before) > abs(gap) / 2:
        return level  # still on its way
    return min(_MOST_CORRECTED, max(-_MOST_CORRECTED, level + gap / 2))


def token_log_probs(
    documents: Sequence[TokenizedDocument],
    *,
    forward: Callable[[Batch], tuple[torch.Tensor, torch.Tensor | None]],
    context: int,
    stride: int | None,
    batch_tokens: int,
    accelerator: Accelerator,
) -> list[np.ndarray]:
    """(T,) log p_θ of each document's audited tokens, nats, NaN elsewhere; every process must call it.

    Args:
        documents: that are read.
        forward: logits of a batch.
        context, stride: windows, as those of the audit.
        batch_tokens: padded tokens in a batch.
        accelerator: the processes, which share the batches.
    """
    starts = np.cumsum([0, *(len(own.ids) for own in documents)])
    found = torch.zeros(2, int(starts[-1]), device=accelerator.device, dtype=torch.float64)  # log p, how often
    batches = make_batches(cut_pieces(documents, context=context, stride=stride), batch_tokens=batch_tokens)
    rank, world = accelerator.process_index, accelerator.num_processes
    for number in range(math.ceil(len(batches) / world)):
        batch = batches[min(number * world + rank, len(batches) - 1)].to(accelerator.device)
        weight = float(number * world + rank < len(batches))
        with torch.no_grad():
            logits, _ = forward(batch)
        log_prob = torch.log_softmax(logits, dim=-1).gather(1, batch.targets.unsqueeze(1)).squeeze(1).double()
        rows = np.concatenate([starts[piece.document] + piece.start + piece.scored for piece in batch.pieces])
        counted = torch.stack([log_prob, torch.ones_like(log_prob)])
        found.index_add_(1, torch.from_numpy(rows).to(found.device), weight * counted)
    total, count = accelerator.reduce(found, reduction="sum").cpu().numpy()
    return np.split(np.where(count > 0, total, np.nan), starts[1:-1])
