"""Everything that a benchmark of detectors reads from a world's models: pairings for every target, and the truth.

Each of the detector's models is a target in turn, judged by K of the others; for each target, the shadows among the
others are judged without it. Truth models take part in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.special import logsumexp

from mitigate import __version__
from mitigate.artifacts.files import fingerprint, new_file
from mitigate.bench.world import World
from mitigate.detection.calibration.shadows import PairedSignals, Shadow, deal_shadows, out_of
from mitigate.detection.signals.compute import compute_signals
from mitigate.detection.signals.pairings import Pairing
from mitigate.documents import Documents
from mitigate.models.directory import load_tokenizer, model_fingerprint
from mitigate.models.store import ModelStore
from mitigate.runtime import is_main
from mitigate.tokens.tokenization import TokenizedDocument, span_tokens, tokenize_documents, word_numbers


@dataclass(frozen=True)
class DetectEvidence:
    """Pairings of one seed's documents.

    Attributes:
        documents, tokenized: what is judged.
        groups: for each document the group that must not be split between folds or clusters; twins share one.
        member: (D, M) bool, which documents trained which of the detector's models.
        everything: all pairings, each once.
        log_probs: (document, model) -> (T,) log-probabilities; truth models come after the detector's.
        references: K, how many OUT references judge.
        truth_member: (D, truth models) bool.
    """

    documents: Documents
    tokenized: Sequence[TokenizedDocument]
    groups: Sequence[str]
    member: np.ndarray
    truth_member: np.ndarray
    everything: PairedSignals
    log_probs: dict[tuple[int, int], np.ndarray]
    references: int

    @cached_property
    def known(self) -> list[list[tuple[int, int]]]:
        """For each document, the token indices [start, end) of its known spans."""
        return [
            [(int(tokens[0]), int(tokens[-1]) + 1) for span in document.spans if (tokens := _scored(own, span)).size]
            for document, own in zip(self.documents, self.tokenized, strict=True)
        ]

    @cached_property
    def _place(self) -> dict[Pairing, int]:
        return {pairing: number for number, pairing in enumerate(self.everything.pairings)}

    def available(self, target: int) -> list[int]:
        """The models that serve as shadows and references for a target."""
        return [model for model in range(self.member.shape[1]) if model != target]

    def of_target(self, target: int) -> PairedSignals:
        """Every document judged with the target; a document with fewer than K OUT references is left out."""
        return self._take(target_pairings(self.member, target, self.references, self._keys))

    def of_reference(self, target: int) -> PairedSignals:
        """As `of_target`, but with one of the judging references in the target's place: a control without any truth."""
        pairings = target_pairings(self.member, target, self.references, self._keys)
        return self._take([Pairing(j.document, j.out[0], j.out) for j in pairings])

    def shadows(self, target: int) -> tuple[list[Shadow], PairedSignals]:
        """The shadows of a target, and their pairings."""
        dealt = deal_shadows(self.member, available=self.available(target), count=self.references, keys=self._keys)
        return dealt, self._take([shadow.pairing for shadow in dealt])

    def counterfactual(self, document: int) -> np.ndarray:
        """(T,) log of the mean probability under the truth models that never saw a document."""
        models = self.member.shape[1] + np.flatnonzero(~self.truth_member[document])
        log_probs = np.stack([self.log_probs[document, int(model)] for model in models])
        return logsumexp(log_probs, axis=0) - np.log(len(models))

    @cached_property
    def _keys(self) -> list[str]:
        return [document.id for document in self.documents]

    def _take(self, pairings: Sequence[Pairing]) -> PairedSignals:
        return self.everything.take([self._place[pairing] for pairing in pairings])


def gather(world: World, *, references: int, store: ModelStore, kept: Path | None = None) -> DetectEvidence:
    """Judge a world's documents.

    Args:
        world: documents and models.
        references: K, how many OUT references judge a document.
        store: loads the models.
        kept (*optional*): file of what the models said; read where it is of these models and documents, else written.
    """
    paths = (*world.models.paths, *world.truth.paths)
    tokenized = tokenize_documents(world.documents, load_tokenizer(paths[0]))
    keys = [document.id for document in world.documents]
    wanted: dict[Pairing, None] = {}
    for target in range(world.member.shape[1]):
        own = target_pairings(world.member, target, references, keys)
        available = [model for model in range(world.member.shape[1]) if model != target]
        dealt = deal_shadows(world.member, available=available, count=references, keys=keys)
        for pairing in (*own, *(shadow.pairing for shadow in dealt)):
            wanted[pairing] = None
        for pairing in own:
            wanted[Pairing(pairing.document, pairing.out[0], pairing.out)] = None
    plain = [Pairing(document, model) for document in range(len(tokenized)) for model in range(len(paths))]
    pairings = [*wanted, *plain]
    made_from = [
        *(__version__, world.documents.fingerprint, [model_fingerprint(path) for path in paths]),
        [[pairing.document, pairing.target, *pairing.out] for pairing in pairings],
    ]
    signals = _kept(kept, key=fingerprint(made_from))
    if signals is None:
        signals = compute_signals(
            [store.load(path) for path in paths],
            pairings,
            documents=tokenized,
            description=f"Judging {len(tokenized)} documents by {len(paths)} models",
        )
        if kept is not None and is_main():
            with new_file(kept) as temporary, temporary.open("wb") as stream:
                np.savez_compressed(stream, key=np.array(fingerprint(made_from)), **signals)  # type: ignore[arg-type]
    words = [word_numbers(own.offsets, of.text) for own, of in zip(tokenized, world.documents, strict=True)]
    everything = PairedSignals(pairings, signals, words)
    starts = everything.starts
    log_probs = {
        (pairing.document, pairing.target): signals["log_prob"][starts[n] : starts[n + 1]]
        for n, pairing in enumerate(pairings)
        if not pairing.out
    }
    return DetectEvidence(
        documents=world.documents,
        tokenized=tokenized,
        groups=[world.owner.get(document.group, document.group) for document in world.documents],
        member=world.member,
        truth_member=world.truth_member,
        everything=everything,
        log_probs=log_probs,
        references=references,
    )


def _kept(path: Path | None, *, key: str) -> dict[str, np.ndarray] | None:
    """The signals that were written under a key; None where there are none, or others."""
    if path is None or not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name != "key"} if arrays["key"] == key else None
    except (OSError, ValueError, KeyError, BadZipFile):  # cut short, or something else
        return None


def target_pairings(member: np.ndarray, target: int, references: int, keys: Sequence[str]) -> list[Pairing]:
    """Every document with `references` OUT references, judged with the target by these; see `out_of`."""
    available = [model for model in range(member.shape[1]) if model != target]
    pairings = []
    for document, key in enumerate(keys):
        out = out_of(member[document], available=available, count=references, key=key)
        if len(out) >= references:
            pairings.append(Pairing(document, target, tuple(sorted(out[:references]))))
    return pairings


def _scored(own: TokenizedDocument, span: object) -> np.ndarray:
    covered = span_tokens(own.offsets, span.start, span.end)  # type: ignore[attr-defined]
    return covered[own.audited[covered]]
