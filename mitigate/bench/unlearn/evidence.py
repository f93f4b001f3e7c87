"""What the figures of `mitigate bench unlearn` are computed from: every model's log-probabilities on the same tokens.

The target, the oracles and the judges are scored once a seed, an unlearned model once a run. All figures are pure
functions of these arrays, see `figures`. N tokens of the people's documents in order, M of prose; a token
without a score (a document's first) is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mitigate.artifacts.files import new_file
from mitigate.bench.unlearn.world import UnlearnWorld
from mitigate.detection.signals.compute import token_signals
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.models.store import ModelStore
from mitigate.tokens.tokenization import TokenizedDocument, span_tokens, tokenize_documents


@dataclass(frozen=True)
class ModelLogProbs:
    """What one model says.

    Attributes:
        log_prob: (N,) nats.
        first: (N,) bool, whether the token is the model's likeliest: greedy decoding from the true prefix completes a
            secret exactly where this holds for all its tokens.
        prose: (M,) log-probabilities of the prose, nats.
    """

    log_prob: np.ndarray
    first: np.ndarray
    prose: np.ndarray

    def save(self, path: Path) -> None:
        """Write the arrays (no text)."""
        with new_file(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, log_prob=self.log_prob, first=self.first, prose=self.prose)

    @classmethod
    def load(cls, path: Path) -> ModelLogProbs:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["log_prob"], arrays["first"], arrays["prose"])


class KnownSecret(NamedTuple):
    """A known span: rows [first, last) among the N, whose, and whether it has a prefix to be extracted from."""

    first: int
    last: int
    person: int
    role: str
    extractable: bool


@dataclass(frozen=True)
class UnlearnEvidence:
    """One seed's tokens and what target, oracles and judges say about them.

    Attributes:
        tokenized, prose: documents whose tokens are scored.
        person: (N,) index of the person (group) whose document it is.
        role: (N,) `validation` or `test` (the two halves of the forget people), `retain`, `holdout`.
        secret: (N,) bool, tokens of known spans.
        secrets: the known spans of which every token is scored.
        prose_document: (M,) index of the document.
        before: the target.
        document_oracles, token_oracles: two of each.
        judges: (N,) log p̄ of the judges that never saw the document, nats.
    """

    tokenized: Sequence[TokenizedDocument]
    prose: Sequence[TokenizedDocument]
    person: np.ndarray
    role: np.ndarray
    secret: np.ndarray
    secrets: Sequence[KnownSecret]
    prose_document: np.ndarray
    before: ModelLogProbs
    document_oracles: tuple[ModelLogProbs, ...]
    token_oracles: tuple[ModelLogProbs, ...]
    judges: np.ndarray

    def rows(self, *roles: str, secret: bool | None = None) -> np.ndarray:
        """(n,) the scored tokens of some roles; of secrets, of all but secrets, or all."""
        chosen = np.isin(self.role, roles) & ~np.isnan(self.before.log_prob)
        if secret is not None:
            chosen &= self.secret == secret
        return np.flatnonzero(chosen)


def gather_evidence(world: UnlearnWorld, *, device: str = "auto") -> UnlearnEvidence:
    """Score a world's documents and prose with target, oracles and judges.

    Raises:
        MitigateError: a known secret without a token of its own.
    """
    store = ModelStore(device=device)
    target = store.load(world.target)
    tokenized = tokenize_documents(world.documents, target.tokenizer)
    prose = tokenize_documents(world.prose, target.tokenizer)
    lengths = [len(own.ids) for own in tokenized]
    _, people = np.unique([document.group for document in world.documents], return_inverse=True)
    roles = [_role(world, document.group, document.set) for document in world.documents]
    judged = token_signals(
        target,
        [store.load(path) for path in world.judges.paths],
        documents=tokenized,
        out_references=world.judges.out_for(world.documents),
        description="Judges",
    )
    before = measure_model(world.target, tokenized, prose, device=device)
    secret, secrets = _secrets(world.documents, tokenized, people, roles)
    if not any(found.role in ("validation", "test") for found in secrets):
        raise MitigateError("no secret of the people to forget can be scored; give documents with longer known spans")
    return UnlearnEvidence(
        tokenized=tokenized,
        prose=prose,
        person=np.repeat(people, lengths),
        role=np.repeat(np.array(roles), lengths),
        secret=secret,
        secrets=secrets,
        prose_document=np.repeat(np.arange(len(prose)), [len(own.ids) for own in prose]),
        before=before,
        document_oracles=tuple(measure_model(p, tokenized, prose, device=device) for p in world.document_oracles),
        token_oracles=tuple(measure_model(p, tokenized, prose, device=device) for p in world.token_oracles),
        judges=judged["log_prob_out"],
    )


def measure_model(
    source: str | Path,
    tokenized: Sequence[TokenizedDocument],
    prose: Sequence[TokenizedDocument],
    *,
    device: str = "auto",
) -> ModelLogProbs:
    """Score the tokens with one model, from its directory.

    Raises:
        MitigateError: no model there, or its logits are NaN.
    """
    model = ModelStore(device=device).load(source)
    signals = token_signals(model, [], documents=[*tokenized, *prose], description="Measuring")
    people = sum(len(own.ids) for own in tokenized)
    return ModelLogProbs(
        signals["log_prob"][:people], signals["rank"][:people] == 1, np.asarray(signals["log_prob"][people:])
    )


def _role(world: UnlearnWorld, group: str, set_name: str | None) -> str:
    if set_name == "forget":
        return "test" if group in world.test else "validation"
    assert set_name is not None
    return set_name


def _secrets(
    documents: Documents, tokenized: Sequence[TokenizedDocument], people: np.ndarray, roles: Sequence[str]
) -> tuple[np.ndarray, list[KnownSecret]]:
    """(N,) whether a token belongs to a known span, and the spans."""
    secret = np.zeros(sum(len(own.ids) for own in tokenized), dtype=bool)
    secrets = []
    start = 0
    for document, own, person, role in zip(documents, tokenized, people, roles, strict=True):
        for span in document.spans:
            tokens = span_tokens(own.offsets, span.start, span.end)
            secret[start + tokens] = True
            scored = tokens[own.audited[tokens]]
            if scored.size:
                whole = len(scored) == len(tokens) and int(tokens[0]) > 0
                secrets.append(
                    KnownSecret(start + int(scored[0]), start + int(scored[-1]) + 1, int(person), role, whole)
                )
        start += len(own.ids)
    return secret, secrets
