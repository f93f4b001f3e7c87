"""The guard at work: which tokens would complete a secret, in decoding and in given text.

    model.generate(**inputs, logits_processor=[GuardLogitsProcessor(guard, tokenizer)])

A forbidden run of n characters ends in a token: j of them stand before it, n - j are the beginning of its text. Either
the j hold the run's head or the n - j hold its tail, so hashes of halves rule out nearly everything: those of token
texts once, those of the text's end as it grows. What remains is settled by the hash of the whole run, so that exactly
the tokens that would complete one are blocked.
"""

from __future__ import annotations

import codecs
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.generation.decoding import continuations, end_ids
from mitigate.guard.guard import Guard, head_length, tail_length
from mitigate.guard.vocabulary import Vocabulary
from mitigate.models.model import Model
from mitigate.secrets.same import comparable
from mitigate.statistics.intervals import Figure, share
from mitigate.tokens.tokenization import tokenize_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEMBERED = 1 << 16  # answers about recent text that are kept


class GuardLogitsProcessor(LogitsProcessor):
    """Gives -inf to each token that would complete a guarded secret, and leaves all other scores as they are.

    It looks at the whole text, prompt included: a secret that the user began is not completed either. It keeps no
    state, so rows, beams and several calls of `generate` may share it. Special tokens count as no text.

    Args:
        guard: what must not be completed.
        tokenizer: of the model; a fast one.

    Raises:
        MitigateError: a slow tokenizer; in use, other processors that left only tokens that are blocked.
    """

    def __init__(self, guard: Guard, tokenizer: PreTrainedTokenizerBase) -> None:
        self.guard = guard
        self.vocabulary = Vocabulary(tokenizer)
        self._always, self._ends = self._token_ends()
        self._completions = lru_cache(_REMEMBERED)(self._find)
        self._has_head = lru_cache(_REMEMBERED)(partial(guard.holds, "heads"))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores with -inf where a token is blocked.

        Args:
            input_ids: (B, T) the text so far.
            scores: (B, V) of the next token.
        """
        places = [(row, token) for row, ids in enumerate(input_ids.cpu()) for token in sorted(self.blocked(ids))]
        if not places:
            return scores
        guarded = scores.clone()
        guarded[tuple(torch.tensor(places).T)] = -torch.inf
        if bool(guarded.isneginf().all(-1).any()):
            raise MitigateError(
                "guard: every token that the other logits processors allow would complete a secret; "
                "let them allow the end of the text (eos) as well"
            )
        return guarded

    def blocked(self, ids: torch.Tensor | Sequence[int]) -> set[int]:
        """The tokens that may not follow a text.

        Args:
            ids: (T,) tokens of the text.
        """
        vocabulary, lengths = self.vocabulary, self.guard.lengths
        before, pending = vocabulary.end_of(ids, characters=lengths[-1] - 1)
        found = set(self._always)
        for n, missing in self._ends:
            if n - missing <= len(before):
                found.update(self._completions(n, before[missing - n :]))
        for n in lengths:
            head = head_length(n)
            for known in range(max(head, n - vocabulary.longest), min(n - 1, len(before)) + 1):
                start = len(before) - known
                if self._has_head(n, before[start : start + head]):
                    found.update(self._completions(n, before[start:]))
        if pending:  # tokens that go on with a character's bytes have another text than they have alone
            found.difference_update(vocabulary.continuing)
            for token in vocabulary.continuing:
                text = comparable((pending + vocabulary.bytes[token]).decode(errors="ignore"))
                if text and completes(self.guard, before, text):
                    found.add(token)
        return found

    def _find(self, n: int, before: str) -> list[int]:
        """The tokens whose text begins with what is missing of a run of n characters, after its head or less."""
        missing = n - len(before)
        candidates = self._ends.get((n, missing)) or self.vocabulary.beginnings[missing]
        ends = self.guard.completing(before, candidates, length=n)
        return [token for end in ends for token in self.vocabulary.beginning_with(end)]

    def _token_ends(self) -> tuple[frozenset[int], dict[tuple[int, int], list[str]]]:
        """Tokens that hold a whole run; and for (n, i) the beginnings of i characters that may end a run of n."""
        guard, vocabulary = self.guard, self.vocabulary
        always: set[int] = set()
        ends: dict[tuple[int, int], list[str]] = defaultdict(list)
        for n in guard.lengths:
            tail, known = tail_length(n), {}
            for length, beginnings in vocabulary.beginnings.items():
                for beginning in beginnings if length >= tail else ():
                    part = beginning[-tail:]
                    if part not in known:
                        known[part] = guard.holds("tails", n, part)
                    if known[part] and length < n:
                        ends[n, length].append(beginning)
                    elif known[part] and guard.forbids(beginning[-n:]):
                        always.update(vocabulary.beginning_with(beginning))
        return frozenset(always), ends


@dataclass(frozen=True)
class FalsePositives:
    """How much of given text a guard would have blocked.

    Attributes:
        tokens: how many there are, special ones not counted.
        blocked: how many of them would have completed a forbidden run.
        documents: how many there are.
        blocked_documents: ids of those with a blocked token.
    """

    tokens: int
    blocked: int
    documents: int
    blocked_documents: tuple[str, ...]

    @property
    def rate(self) -> Figure:
        """Share of tokens blocked, with its exact (Clopper-Pearson) interval."""
        return share(self.blocked, self.tokens)

    @property
    def per_1000(self) -> Figure:
        """Tokens blocked of 1,000."""
        return Figure(*(None if value is None else 1000 * value for value in self.rate))

    @property
    def document_rate(self) -> Figure:
        """Share of documents with a blocked token, with its exact interval."""
        return share(len(self.blocked_documents), self.documents)


def false_positives(
    guard: Guard, documents: Documents | Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> FalsePositives:
    """How many tokens of ordinary text the guard would have blocked, each after the text as it stands.

    Args:
        guard: the guard.
        documents: text without secrets; what is blocked in text that does hold them is no false positive.
        tokenizer: of the model.

    Raises:
        MitigateError: a slow tokenizer, or a document without a token.
    """
    if not isinstance(documents, Documents):
        documents = Documents(tuple(Document(f"text-{number}", text) for number, text in enumerate(documents, start=1)))
    vocabulary = Vocabulary(tokenizer)
    tokens = blocked = 0
    touched: list[str] = []
    for document in tokenize_documents(documents, tokenizer):
        decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        before, stopped = "", 0
        for token in document.ids.tolist():
            text = comparable(decoder.decode(vocabulary.bytes[token]))
            tokens += token not in vocabulary.special
            stopped += completes(guard, before, text)
            before = (before + text)[-guard.lengths[-1] :]
        blocked += stopped
        if stopped:
            touched.append(document.id)
    return FalsePositives(tokens, blocked, len(documents), tuple(touched))


def completes(guard: Guard, before: str, text: str) -> bool:
    """Whether a forbidden run ends in `text`, which follows `before`; both normalised."""
    whole = before + text
    return any(
        guard.holds("heads", n, whole[end - n : end - n + head_length(n)]) and guard.forbids(whole[end - n : end])
        for end in range(len(before) + 1, len(whole) + 1)
        for n in guard.lengths
        if n <= end
    )


def continue_greedily(model: Model, prompt: str, *, max_tokens: int, guard: GuardLogitsProcessor | None = None) -> str:
    """What a model writes after a prompt, taking the likeliest token each time, whatever its generation_config says.

    Args:
        model: writes.
        prompt: as it stands, without a chat template.
        max_tokens: most tokens to write.
        guard (*optional*): stands in between.

    Raises:
        MitigateError: no room for the prompt and what follows in the model's context.
    """
    inputs = model.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False, verbose=False)
    length = int(inputs["input_ids"].shape[1])
    if length + max_tokens > model.context:
        raise MitigateError(
            f"{model.name}: a prompt of {length} tokens and {max_tokens} more do not fit its context of "
            f"{model.context}; shorten the prompt or lower max_tokens"
        )
    with model.active() as module:
        [written] = continuations(
            module,
            [inputs["input_ids"][0].numpy()],
            new_tokens=max_tokens,
            ends=end_ids(module, model.tokenizer),
            processors=LogitsProcessorList([guard] if guard else []),
        )
    return str(model.tokenizer.decode(written.tolist(), skip_special_tokens=True))
