"""Terms of the loss that do not change while it falls, computed once and kept: p_0 of the model before, p̄.

Kept on the CPU, the likeliest entries of each distribution (see `distributions`). No second model computes: p_0 is
the model with the new adapter off, or, where its own weights are trained, what it said before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from mitigate.detection.audit import load_audited
from mitigate.detection.record import Audit
from mitigate.models.inside.lens import Lens
from mitigate.models.model import Model, kept_logits
from mitigate.models.store import ModelStore
from mitigate.runtime import progress
from mitigate.tokens.batches import Batch, default_batch_tokens
from mitigate.unlearning.material.tasks import Task, micro_batches
from mitigate.unlearning.objectives.distributions import Kept, keep_likeliest

Forward = Callable[[Batch], tuple[torch.Tensor, torch.Tensor | None]]  # -> float32 (N, V) logits, (N, D) hidden or None


@dataclass(frozen=True)
class Before:
    """What the model before unlearning said at n kept tokens; None where nobody asks."""

    distribution: Kept | None
    hidden: torch.Tensor | None  # (n, D)
    log_prob: torch.Tensor | None  # (n,)


class BeforeTerms:
    """p_0 at the tokens of tasks, computed when a task is first met.

    Args:
        forward: the model's forward.
        before: a context in which it is the model before unlearning.
        needs: of `distribution`, `hidden`, `log_prob`.
        entries: likeliest entries that are kept of each distribution.
        batch_tokens: padded tokens in one forward.
        device: of the model.
    """

    def __init__(
        self,
        forward: Forward,
        before: Callable[[], AbstractContextManager[None]],
        *,
        needs: frozenset[str],
        entries: int,
        batch_tokens: int,
        device: torch.device,
    ) -> None:
        self.forward, self.before, self.needs = forward, before, needs
        self.entries, self.batch_tokens, self.device = entries, batch_tokens, device
        self.most: Callable[[int], int] = lambda count: count
        self._kept: dict[int, Before] = {}

    def fill(self, tasks: Sequence[Task], *, description: str | None = None) -> None:
        """Compute what is missing; with a description, under a progress bar.

        Where processes hold the weights in shards, `most` gives the largest of their numbers of batches, and every one
        takes part in as many forward passes.

        Args:
            tasks: one at least.
        """
        if not self.needs:
            return
        wanted = {task.key: task for one in tasks for task in (one, *one.partners) if task.key not in self._kept}
        batches = self._batches(list(wanted.values()))
        if missing := self.most(len(batches)) - len(batches):
            batches += self._batches(tasks[:1])[:1] * missing
        with progress(len(batches) if description else 0, description or "", unit="batch") as bar:
            for batch in batches:
                with self.before(), torch.no_grad():
                    logits, hidden = self.forward(batch)
                log_probs = torch.log_softmax(logits, dim=-1)
                distribution = log_prob = None
                if "distribution" in self.needs:
                    distribution = keep_likeliest(log_probs, batch.targets, entries=self.entries).cpu()
                if "log_prob" in self.needs:
                    log_prob = log_probs.gather(1, batch.targets.unsqueeze(1)).squeeze(1).cpu()
                for number, piece in enumerate(batch.pieces):
                    assert isinstance(piece, Task)
                    rows = (batch.row_piece == number).cpu()
                    self._kept[piece.key] = Before(
                        distribution.rows(rows) if distribution is not None else None,
                        hidden[rows.to(hidden.device)].cpu() if hidden is not None else None,
                        log_prob[rows] if log_prob is not None else None,
                    )
                bar.update()

    def _batches(self, tasks: Sequence[Task]) -> list[Batch]:
        alone = [task.alone() for task in tasks]
        return micro_batches(alone, batch_tokens=self.batch_tokens, device=self.device)

    def of(self, batch: Batch) -> Before:
        """At a batch's N kept tokens, in its row order and on its device; its tasks must have been filled in."""
        if not self.needs:
            return Before(None, None, None)
        parts = [self._kept[piece.key] for piece in batch.pieces if isinstance(piece, Task)]
        device = batch.targets.device
        distributions = [part.distribution for part in parts if part.distribution is not None]
        hidden = [part.hidden for part in parts if part.hidden is not None]
        log_probs = [part.log_prob for part in parts if part.log_prob is not None]
        return Before(
            Kept.joined(distributions).to(device) if distributions else None,
            torch.cat(hidden).to(device) if hidden else None,
            torch.cat(log_probs).to(device) if log_probs else None,
        )


class OutTerms:
    """What the OUT references say at the tokens to forget, gathered reference by reference.

    `out` is p̄, the mean of their probabilities, `typical` p̃, their normalized geometric mean; `lens` the mean of what
    their middle layers say of the token.

    References that share the target's base are switched to; of others one at a time is in memory.

    Args:
        audit: names the references, and which of them never saw which document.
        tasks: with tokens to forget.
        kinds: of `out`, `typical`, `lens`.
        store: holds the target.
        entries: likeliest entries that are kept.

    Raises:
        NoLensError: a reference whose layers cannot be read.
    """

    def __init__(
        self,
        audit: Audit,
        tasks: Sequence[Task],
        *,
        kinds: frozenset[str],
        store: ModelStore,
        entries: int,
    ) -> None:
        table = audit.documents
        used = dict(zip(table["doc_id"].to_pylist(), table["out_references"].to_pylist(), strict=True))
        alone = [task.alone().only(task.selected) for task in tasks if task.selected.any()]
        totals: dict[str, dict[int, torch.Tensor]] = {kind: {} for kind in sorted(kinds)}
        with progress(len(audit.metadata.references), "References' distributions", unit="reference") as bar:
            for number, audited in enumerate(audit.metadata.references):
                judged = [task for task in alone if number in used[task.doc_id]]
                if judged:
                    own = store if store.holds(audited.source) else store.fresh()
                    [reference] = load_audited([audited], store=own)
                    _add(totals, judged, reference)
                bar.update()
        read = totals.get("lens", {})
        self._lens = {task.key: read[task.key] / len(used[task.doc_id]) for task in alone if read}
        distributions = [kind for kind in totals if kind != "lens"]
        self._kept: dict[str, dict[int, Kept]] = {kind: {} for kind in distributions}
        for task in alone:
            tokens, count = torch.from_numpy(task.ids[task.scored]), len(used[task.doc_id])
            for kind in distributions:
                total = totals[kind].pop(task.key)
                mean = total - math.log(count) if kind == "out" else torch.log_softmax(total / count, dim=-1)
                self._kept[kind][task.key] = keep_likeliest(mean, tokens, entries=entries).cpu()

    def of(self, batch: Batch, kind: str) -> Kept | None:
        """At a batch's tokens to forget, in its row order and on its device; None if it has none, or nobody asked."""
        kept = self._kept.get(kind, {})
        parts = [kept[p.key] for p in batch.pieces if isinstance(p, Task) and p.key in kept]
        return Kept.joined(parts).to(batch.targets.device) if parts else None

    def lens(self, batch: Batch) -> torch.Tensor | None:
        """(n, depths) at a batch's tokens to forget, as `of`."""
        parts = [self._lens[p.key] for p in batch.pieces if isinstance(p, Task) and p.key in self._lens]
        return torch.cat(parts).to(batch.targets.device) if parts else None


def _add(totals: dict[str, dict[int, torch.Tensor]], tasks: Sequence[Task], reference: Model) -> None:
    """Add a reference's (n, V) probabilities (`out`, in log space) or log-probabilities (`typical`).

    Of `lens` add what its middle layers say, (n, depths).
    """
    batch_tokens = default_batch_tokens(reference.vocabulary_size, device=reference.device)
    for batch in micro_batches(tasks, batch_tokens=batch_tokens, device=reference.device):
        with torch.no_grad(), reference.active() as module:  # not in inference mode: it may share weights in shards
            lens = Lens.of(module).reading(batch.keep, batch.targets) if "lens" in totals else nullcontext()
            with lens as said:
                logits = kept_logits(module, batch.input_ids, batch.attention_mask, batch.keep)
            log_probs = torch.log_softmax(logits.float(), dim=-1)
        found = dict.fromkeys(totals, log_probs.cpu())
        if said is not None:
            said.check(log_probs.gather(1, batch.targets[:, None])[:, 0], name=reference.name)
            found["lens"] = said.log_probs.cpu()
        counts = [len(piece.scored) for piece in batch.pieces]
        for kind, summed in totals.items():
            add = torch.logaddexp if kind == "out" else torch.add
            for piece, rows in zip(batch.pieces, found[kind].split(counts), strict=True):
                assert isinstance(piece, Task)
                earlier = summed.get(piece.key)
                summed[piece.key] = rows.clone() if earlier is None else add(earlier, rows)
