"""The watch over the tokens to forget while they are trained, and when that is to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mitigate.statistics.separation import auc
from mitigate.tokens.batches import Batch, cut_pieces, make_batches
from mitigate.tokens.tokenization import TokenizedDocument
from mitigate.unlearning.material.control import Control, Limits
from mitigate.unlearning.material.tasks import Task, facts, tasks_in

MOST_OVER_FORGOTTEN = 0.05  # share of the spans under the limit at which training that watches the control gives up
MOST_EXPOSED = 0.03  # share of the spans over the upper limit, or under the lower one, and
LEAST_AUC, MOST_AUC = 0.45, 0.52  # ... AUC of the spans against never-seen ones, outside of which training is not done
_MOST_CORRECTED = 1.0  # nats
LAST_NATS = 0.15  # above the control, from where it is nearly there
_STUCK = 0.95  # of the way that was left three looks ago is left still
_TRIMMED = 0.25  # share of what the mean is off by
PATIENCE = 3  # looks without getting nearer to the references


def look(
    tasks: Sequence[Task],
    *,
    spans: int,
    never_seen: Sequence[Task] = (),
    forward: Callable[[Batch], tuple[torch.Tensor, torch.Tensor | None]],
    batched: Callable[[Sequence[Task]], list[Batch]],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Where the tokens to forget are now, beside never-seen ones; every process must call it.

    Never-seen text is read anew each time: what takes the secrets away may move it as well, and an attacker sees it as
    it is then.

    Args:
        tasks: with tokens to forget, all of them.
        spans: how many spans to forget there are.
        never_seen (*optional*): tasks of never-seen spans.
        forward: logits of a batch.
        batched: batches of tasks.
        accelerator: the processes, which share the batches.

    Returns:
        `selected_log_ratio`: mean of log p_θ − log p̄, clipped to ±3 nats, over all of them, and `selected_distance`:
        that of its absolute value; compare with `control_level`. `over_forgotten`, `exposed`: share of the spans whose
        mean is under the lower limit of never-seen ones, over the upper one, and `span_auc`: how well their means are
        told from those of never-seen spans; null without these. `never_seen_moved`: how far the mean log-ratio of
        never-seen spans' tokens has moved since the audit, nats. The spans are the known ones that hold a token to
        forget, all tokens of each, as an attacker reads them, where there are any; else all spans to forget.
    """
    read = {"forward": forward, "batched": batched, "accelerator": accelerator}
    known = np.unique(np.concatenate([np.zeros(0, dtype=int), *(task.known[task.selected] for task in tasks)]))
    known = known[known >= 0]  # that hold a token to forget
    if len(known):
        places = [np.where(np.isin(task.known, known), np.searchsorted(known, task.known), -1) for task in tasks]
    else:
        places = [task.span for task in tasks]
    watched = [
        replace(task.alone(), span=place).only(task.selected | (place >= 0))
        for task, place in zip(tasks, places, strict=True)
        if (task.selected | (place >= 0)).any()
    ]
    (total, distance, count), means = _read(watched, spans=len(known) or spans, **read)
    found: dict[str, Any] = {
        "selected_log_ratio": round(total / count, 4),
        "selected_distance": round(distance / count, 4),
        **dict.fromkeys(("over_forgotten", "exposed", "span_auc")),
        "never_seen_moved": 0.0,
    }
    if not never_seen:
        return found
    (total, _, count), unseen = _read(never_seen, spans=1 + max(int(task.span.max()) for task in never_seen), **read)
    limits = Limits.of(unseen)
    before = np.concatenate([np.clip(task.before - task.out, -3.0, 3.0)[task.selected] for task in never_seen])
    found["never_seen_moved"] = round(total / count - float(before.mean(dtype=np.float64)), 4)
    if len(means):
        found["span_auc"] = round(auc(means, limits.means), 4)
        if limits.low is not None:
            found["over_forgotten"] = round(float((means < limits.low).mean()), 4)
            found["exposed"] = round(float((means > limits.high).mean()), 4)
    return found


def _read(
    tasks: Sequence[Task],
    *,
    spans: int,
    forward: Callable[[Batch], tuple[torch.Tensor, torch.Tensor | None]],
    batched: Callable[[Sequence[Task]], list[Batch]],
    accelerator: Accelerator,
) -> tuple[list[float], np.ndarray]:
    """Clipped log-ratios now: of selected tokens the sum, that of absolute values, and how many; each span's mean."""
    of_all = torch.zeros(3, device=accelerator.device, dtype=torch.float64)
    of_spans = torch.zeros(2, 1 + spans, device=accelerator.device, dtype=torch.float64)  # the first: of no span
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = batched(tasks)
    for number in range(math.ceil(len(batches) / world)):
        batch = batches[min(number * world + rank, len(batches) - 1)]
        weight = float(number * world + rank < len(batches))
        with torch.no_grad():
            logits, _ = forward(batch)
        log_prob = torch.log_softmax(logits, dim=-1).gather(1, batch.targets.unsqueeze(1)).squeeze(1)
        known = facts(batch)
        ratio = (log_prob - known.out).double().clamp(-3.0, 3.0)
        counted = torch.stack([ratio, ratio.abs(), torch.ones_like(ratio)])
        of_all += weight * counted[:, known.selected].sum(dim=1)
        own = torch.from_numpy(np.concatenate([task.span for task in tasks_in(batch)])).to(ratio.device)
        of_spans.index_add_(1, own + 1, weight * counted[::2])
    totals, (sums, counts) = (accelerator.reduce(one, reduction="sum").cpu().numpy() for one in (of_all, of_spans))
    sums, counts = sums[1:], counts[1:]
    return totals.tolist(), sums[counts > 0] / counts[counts > 0]


def control_now(now: Mapping[str, Any], control: Control) -> float:
    """The control's log-ratio, moved as never-seen text has moved since the audit."""
    return control.log_ratio + float(now["never_seen_moved"])


def no_higher(now: Mapping[str, Any], control: Control) -> bool:
    """Whether what `look` said is no higher than text that the target never saw: in the mean, and span by span."""
    stand_out = (now["exposed"] or 0.0) > MOST_EXPOSED or (now["span_auc"] or 0.0) > MOST_AUC
    return bool(now["selected_log_ratio"] <= control_now(now, control) and not stand_out)


def off(now: Mapping[str, Any]) -> tuple[float, float]:
    """How far the tokens are from text that the target never saw, to compare looks by; the least is nearest.

    Returns:
        how far the spans are out of what `reason_to_stop` takes for the control level, in shares and AUC together; and
        the tokens' distance, nats.
    """
    auc_now = now["span_auc"]
    outside = 0.0 if auc_now is None else max(0.0, LEAST_AUC - auc_now, auc_now - MOST_AUC)
    outside += sum(max(0.0, (now[share] or 0.0) - MOST_EXPOSED) for share in ("exposed", "over_forgotten"))
    return round(outside, 4), now["selected_distance"]


def reason_to_stop(history: Sequence[dict[str, Any]], control: Control) -> str | None:
    """Why to stop: the tokens are where text is that the target never saw, or they get no nearer to it.

    The mean of all tokens can be at the control while half of them are far above it and half far below. So their
    distance counts too, and the spans that still stand out where never-seen spans tell which do. Once they have come
    down, they may fall too low and be lifted again (see `corrected`), so that alone ends nothing.

    Args:
        history: what `look` said so far, each with its `step`.
        control: of the tokens.
    """
    now = history[-1]
    if len(history) < 2:
        return None
    below, above = now["over_forgotten"] or 0.0, now["exposed"] or 0.0
    told = 0.5 if now["span_auc"] is None else now["span_auc"]
    arrived = now["selected_log_ratio"] <= control_now(now, control)
    near = control.distance is not None and now["selected_distance"] <= control.distance
    if arrived and near and no_higher(now, control) and below <= MOST_EXPOSED and told >= LEAST_AUC:
        return f"control level reached at step {now['step']}"
    fallen = below > MOST_OVER_FORGOTTEN and below >= above
    if not (arrived or fallen or told < LEAST_AUC) or not _no_nearer(history):
        return None
    if fallen:
        return (
            f"at step {now['step']} {below:.0%} of the spans were below text that the target never saw, {above:.0%} "
            "above it, and it got no better"
        )
    if told < LEAST_AUC:
        return (
            f"at step {now['step']} never-seen spans lay above those to forget (AUC {told:.2f}), and it got no better"
        )
    return f"control level reached at step {now['step']}, and no nearer to it for {PATIENCE} looks"


def _no_nearer(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether none of the last looks was nearer than the nearest before them, and the newest comes no nearer either.

    Nearer by 1 % at least, where distance tells.
    """
    if len(history) <= PATIENCE:
        return False
    (outside_before, distance_before), (outside, distance) = map(off, history[-2:])
    if outside < outside_before or distance < 0.99 * distance_before:
        return False
    least, least_distance = min(map(off, history[:-PATIENCE]))
    return min(map(off, history[-PATIENCE:])) >= (least, 0.99 * least_distance)


def corrected(trim: float, history: Sequence[Mapping[str, Any]], control: Control) -> float:
    """What is to be added to a token's logit where `match` and `consensus` end, so that the mean ends at the control.

    Anchors and neighbours hold a token off its level. What the mean is off by is taken off, a quarter of it at a look
    (integral control), within ±1 nat; but not before it has come down, or is stuck on the way, nor while it comes
    nearer so fast that it will be there by itself.

    Args:
        trim: what is added now, nats.
        history: what `look` said so far.
        control: of the tokens; without never-seen text nothing is corrected.
    """
    if control.distance is None or len(history) < 2:
        return trim
    before, now = (entry["selected_log_ratio"] for entry in history[-2:])
    gaps = [control_now(entry, control) - entry["selected_log_ratio"] for entry in history]
    stuck = len(gaps) > PATIENCE and abs(gaps[-1]) > _STUCK * abs(gaps[-1 - PATIENCE])
    if max(gaps) < -LAST_NATS and not stuck:
        return trim
    if (now - before) * gaps[-1] > 0 and abs(now - before) > abs(gaps[-1]) / 4:
        return trim
    return min(_MOST_CORRECTED, max(-_MOST_CORRECTED, trim + _TRIMMED * gaps[-1]))


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
