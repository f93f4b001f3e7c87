"""What unlearning works on: pieces to forget and to hold still, and the fixed facts about their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mitigate.batches import Batch, Piece, cut_pieces, make_batches
from mitigate.detection.audit import Audit, load_audited
from mitigate.detection.scores import clipped
from mitigate.detection.signals import out_log_probs
from mitigate.documents import Documents
from mitigate.models import Model, ModelStore
from mitigate.runtime import progress
from mitigate.tokenization import tokenize_documents


@dataclass(frozen=True)
class TokenFacts:
    """Fixed facts about a batch's kept tokens, in the batch's row order."""

    selected: torch.Tensor  # (N,) bool
    before: torch.Tensor  # (N,) ℓ⁰
    out: torch.Tensor  # (N,) ℓ̄


class UnlearningData:
    """Pieces to forget on, pieces to hold still, and the fixed per-token facts about them."""

    def __init__(
        self, audit: Audit, model: Model, retain: Documents | None, *, store: ModelStore, with_distribution: bool
    ) -> None:
        columns, sets = audit.columns, audit.sets()
        tokenized = audit.tokenized()
        touched = [columns["selected"][audit.rows[tokens.id]].any() for tokens in tokenized]
        held = [
            tokens
            for tokens, has in zip(tokenized, touched, strict=True)
            if not has and sets[tokens.id] in ("retain", None)
        ]
        extra = tokenize_documents(retain, model.tokenizer) if retain is not None else []
        self.forget_documents = [tokens for tokens, has in zip(tokenized, touched, strict=True) if has]
        detect = audit.metadata["detect"]  # windows as in the audit: its log-probabilities had just this context
        context = min(detect["context"] or model.context, model.context)
        self.forget = cut_pieces(self.forget_documents, context=context, stride=detect["stride"])
        self.hold = cut_pieces([*held, *extra], context=context, stride=detect["stride"])
        rows = [audit.rows[tokens.id] for tokens in self.forget_documents]
        self._facts = [
            {
                "selected": columns["selected"][r].astype(bool),
                "before": columns["log_prob"][r],
                "out": columns["log_prob_out"][r],
            }
            for r in rows
        ]
        self.control = control_level(audit)
        self._distribution: dict[tuple[int, int], torch.Tensor] = {}
        self._vocabulary_size = model.vocabulary_size if with_distribution else None
        if with_distribution:
            self._store_distribution(audit, store)

    def facts(self, batch: Batch, forget: Sequence[bool]) -> TokenFacts:
        """What is known about the rows of a batch; rows of retain pieces are not selected."""
        parts: dict[str, list[np.ndarray]] = {"selected": [], "before": [], "out": []}
        for piece, is_forget in zip(batch.pieces, forget, strict=True):
            at = piece.start + piece.scored
            facts = self._facts[piece.document] if is_forget else None
            parts["selected"].append(facts["selected"][at] if facts else np.zeros(len(at), dtype=bool))
            for name in ("before", "out"):
                parts[name].append(facts[name][at] if facts else np.zeros(len(at), dtype=np.float32))
        tensors = {
            name: torch.from_numpy(np.concatenate(arrays)).to(batch.targets.device) for name, arrays in parts.items()
        }
        return TokenFacts(**tensors)

    def selected_count(self, pieces: Sequence[Piece]) -> int:
        """Selected tokens in some of the forget pieces."""
        return int(sum(self._facts[p.document]["selected"][p.start + p.scored].sum() for p in pieces))

    def distribution(self, batch: Batch, forget: Sequence[bool]) -> torch.Tensor | None:
        """(N_selected, V) log p̄ of a batch's selected tokens, computed once before training."""
        if self._vocabulary_size is None:
            return None
        stored = [
            self._distribution[(piece.document, piece.start)]
            for piece, is_forget in zip(batch.pieces, forget, strict=True)
            if is_forget
        ]
        empty = torch.zeros((0, self._vocabulary_size))
        return torch.cat([empty, *stored]).to(batch.targets.device)

    def _store_distribution(self, audit: Audit, store: ModelStore) -> None:
        references = load_audited(audit.metadata["references"], store=store)
        used = dict(
            zip(audit.documents["doc_id"].to_pylist(), audit.documents["out_references"].to_pylist(), strict=True)
        )
        batches = make_batches(self.forget, batch_tokens=max(64, (1 << 26) // references[0].vocabulary_size))
        with progress(len(batches), "References' distributions", unit="batch") as bar:
            for batch in batches:
                out_of = [used[self.forget_documents[piece.document].id] for piece in batch.pieces]
                on_device = batch.to(references[0].device)
                log_mean = out_log_probs(references, on_device, used=out_of)
                selected = self.facts(on_device, [True] * len(batch.pieces)).selected
                for number, piece in enumerate(batch.pieces):
                    rows = selected & (on_device.row_piece == number)
                    self._distribution[(piece.document, piece.start)] = log_mean[rows].cpu().clone()
                bar.update()


def control_level(audit: Audit) -> float:
    """The level at which a selected token's log p_θ − log p̄ is that of text the target never saw, in nats.

    The mean log-ratio, clipped to ±3 nats, of the holdout documents' tokens that are as hard to predict as the selected
    ones: holdout tokens are weighted so that their distribution over deciles of log p̄ is that of the selected tokens.
    0 (the references' own level) where the audit has no holdout documents.
    """
    columns, sets = audit.columns, audit.sets()
    ratio = clipped(columns["log_prob"] - columns["log_prob_out"])
    holdout = np.zeros(len(ratio), dtype=bool)
    for doc_id, rows in audit.rows.items():
        holdout[rows] = sets[doc_id] == "holdout"
    holdout &= ~np.isnan(ratio)
    selected = columns["selected"].astype(bool)
    if not holdout.any() or not selected.any():
        return 0.0
    edges = np.quantile(columns["log_prob_out"][selected], np.linspace(0, 1, 11)[1:-1])
    stratum = np.digitize(columns["log_prob_out"], edges)
    levels = [
        (int((selected & (stratum == number)).sum()), float(ratio[holdout & (stratum == number)].mean()))
        for number in range(10)
        if (holdout & (stratum == number)).sum() >= 10
    ]
    weight = sum(count for count, _ in levels)
    return sum(count * level for count, level in levels) / weight if weight else 0.0
