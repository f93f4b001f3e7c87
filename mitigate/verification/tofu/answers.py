"""Ask a model TOFU's questions: how likely each answer is to it, and what it answers by itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from mitigate.detection.signals.compute import token_log_probs
from mitigate.models.model import Model
from mitigate.tokens.tokenization import tokenize_documents
from mitigate.verification.questions.answers import greedy_answers, prompt_of, scorer
from mitigate.verification.tofu.questions import Question
from mitigate.verification.tofu.settings import Tofu


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
    longest = min(settings.max_length, model.context)
    prompts = [prompt_of(tokenized[start])[1 - longest :] for start in bounds[:-1]]
    room = [longest - len(prompt) for prompt in prompts]
    answers = greedy_answers(model, prompts, most=room, end=settings.answer_end, description=description)
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


def rouge_l_recall(answers: Sequence[str], given: Sequence[str]) -> list[float]:
    """ROUGE-L recall of given answers: longest common subsequence of stemmed words / words of the true answer."""
    score = scorer("rouge_l_recall")
    return [score(true, own) for true, own in zip(answers, given, strict=True)]
