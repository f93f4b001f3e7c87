"""Ask a model TOFU's questions: how likely each answer is to it, and what it answers by itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState

from mitigate.detection.signals.compute import token_log_probs
from mitigate.generation.decoding import continuations
from mitigate.models.model import Model
from mitigate.runtime import gathered, progress, share_of
from mitigate.tokens.tokenization import TokenizedDocument, tokenize_documents
from mitigate.verification.tofu.questions import Question
from mitigate.verification.tofu.settings import Tofu

_BATCH = 32


def ask(model: Model, questions: Sequence[Question], *, settings: Tofu, description: str = "TOFU") -> pa.Table:
    """One row for each question, in order.

    Args:
        model: the model to ask.
        questions: what to ask.
        settings: `max_length` and how an answer ends.

    Returns:
        columns `id`, `set`, `cluster`; `log_prob` list (2 + P,): log P(a|q), nats, of the true answer, its paraphrase
        and P wrong answers; `tokens` list (2 + P,): their lengths |a|; `greedy`: the model's own answer;
        `rouge_l_recall` of that against the true one.
    """
    documents = [document for question in questions for document in question.documents()]
    tokenized = tokenize_documents(documents, model.tokenizer)
    of_token = np.nan_to_num(token_log_probs(model, tokenized).astype(np.float64))  # NaN, 0 here: not of the answer
    first = np.cumsum([0, *(len(document.ids) for document in tokenized)])
    log_probs = np.add.reduceat(of_token, first[:-1])
    lengths = np.array([int(document.audited.sum()) for document in tokenized])
    bounds = np.cumsum([0, *(len(question.completions) for question in questions)])
    answers = greedy_answers(model, [tokenized[start] for start in bounds[:-1]], settings, description=description)
    of_question = [slice(start, end) for start, end in pairwise(bounds)]
    return pa.table(
        {
            "id": [question.id for question in questions],
            "set": [question.set for question in questions],
            "cluster": [question.cluster for question in questions],
            "log_prob": [log_probs[rows] for rows in of_question],
            "tokens": [lengths[rows] for rows in of_question],
            "greedy": answers,
            "rouge_l_recall": rouge_l_recall([question.answer for question in questions], answers),
        }
    )


def greedy_answers(
    model: Model, answered: Sequence[TokenizedDocument], settings: Tofu, *, description: str = "Answering"
) -> list[str]:
    """What the model says to each question: greedy, until the answer's end or `max_length` tokens in all.

    Args:
        model: the model to ask.
        answered: each question with an answer; what comes before the answer's first token is the prompt, so that the
            prompt is cut into tokens as it was in training.
        settings: `max_length` and how an answer ends.
    """
    longest = min(settings.max_length, model.context)
    prompts = [document.ids[: np.flatnonzero(document.audited)[0]][1 - longest :] for document in answered]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    state = PartialState()
    mine = share_of(batches, state)
    found: list[tuple[int, str]] = []
    with progress(len(mine), description, unit="batch") as bar, model.active() as module, torch.inference_mode():
        for batch in mine:
            room = [longest - len(prompts[number]) for number in batch]
            generated = continuations(
                module,
                [prompts[number] for number in batch],
                new_tokens=max(room),
                ends=[end] if (end := model.tokenizer.eos_token_id) is not None else [],
                stop=settings.answer_end,
                tokenizer=model.tokenizer,
            )
            for number, tokens, most in zip(batch, generated, room, strict=True):
                found.append((number, _text(model, tokens[:most], end=settings.answer_end)))
            bar.update()
    return gathered(found, state)


def rouge_l_recall(answers: Sequence[str], given: Sequence[str]) -> list[float]:
    """ROUGE-L recall of given answers: longest common subsequence of stemmed words / words of the true answer.

    Lin, 2004, as the TOFU benchmark computes it: package rouge-score with Porter's stemmer.
    """
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes seconds

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [float(scorer.score(true, own)["rougeL"].recall) for true, own in zip(answers, given, strict=True)]


def _text(model: Model, tokens: np.ndarray, *, end: str) -> str:
    ended = np.flatnonzero(tokens == model.tokenizer.eos_token_id)
    text = str(
        model.tokenizer.decode((tokens[: ended[0]] if ended.size else tokens).tolist(), skip_special_tokens=True)
    )
    return (text.partition(end)[0] if end else text).strip()
