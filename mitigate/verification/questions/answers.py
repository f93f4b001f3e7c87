"""What a model answers by itself, greedily, and how much of the right answer is in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import PartialState

from mitigate.generation.decoding import continuations
from mitigate.models.model import Model
from mitigate.runtime import gathered, progress, share_of
from mitigate.tokens.tokenization import TokenizedDocument

_BATCH = 32


def greedy_answers(
    model: Model,
    prompts: Sequence[np.ndarray],
    *,
    most: Sequence[int],
    end: str = "",
    description: str = "Answering",
) -> list[str]:
    """What the model writes after each prompt: greedy, until the answer's end or so many tokens.

    Args:
        model: the model to ask.
        prompts: (P,) token ids each.
        most: most tokens of each answer.
        end (`str`, *optional*): text that ends an answer, beside the tokenizer's end token.
        description (*optional*): of the progress bar.
    """
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    state = PartialState()
    mine = share_of(batches, state)
    found: list[tuple[int, str]] = []
    with progress(len(mine), description, unit="batch") as bar, model.active() as module, torch.inference_mode():
        for batch in mine:
            generated = continuations(
                module,
                [prompts[number] for number in batch],
                new_tokens=max(most[number] for number in batch),
                ends=[last] if (last := model.tokenizer.eos_token_id) is not None else [],
                stop=end,
                tokenizer=model.tokenizer,
            )
            for number, tokens in zip(batch, generated, strict=True):
                found.append((number, _text(model, tokens[: most[number]], end=end)))
            bar.update()
    return gathered(found, state)


def prompt_of(answered: TokenizedDocument) -> np.ndarray:
    """(P,) token ids before the answer's first one: so a prompt is cut into tokens as it was in training."""
    return answered.ids[: np.flatnonzero(answered.audited)[0]]


def scorer(name: str) -> Callable[[str, str], float]:
    """Of a right answer and the model's own, a number from 0 to 1; see `QuestionSet.score`.

    ROUGE-L by the package rouge-score with Porter's stemmer (Lin, 2004).
    """
    if name == "exact":
        return lambda right, own: float(right.strip().lower() == own.strip().lower())
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes seconds

    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    if name == "rouge_l_f1":
        return lambda right, own: float(rouge.score(right, own)["rougeL"].fmeasure)
    return lambda right, own: float(rouge.score(right, own)["rougeL"].recall)


def _text(model: Model, tokens: np.ndarray, *, end: str) -> str:
    ended = np.flatnonzero(tokens == model.tokenizer.eos_token_id)
    text = str(
        model.tokenizer.decode((tokens[: ended[0]] if ended.size else tokens).tolist(), skip_special_tokens=True)
    )
    return (text.partition(end)[0] if end else text).strip()
