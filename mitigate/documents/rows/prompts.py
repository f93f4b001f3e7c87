"""Rows of a question and its answer, in the prompts that the answers were trained behind.

The prompts are the published ones: Stanford Alpaca's (https://github.com/tatsu-lab/stanford_alpaca, as its data set's
own column `text` has it), Databricks' for Dolly (https://github.com/databrickslabs/dolly).
"""

from __future__ import annotations

from typing import Any

from mitigate.documents.rows.bodies import Body, Pair, Values
from mitigate.documents.rows.messages import history, is_long_chat
from mitigate.documents.sources import is_missing, is_scalar

_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_DOLLY = _ALPACA
_DOLLY_CONTEXT = _ALPACA.replace("\n\n### Response", "\n\nInput:\n{context}\n\n### Response")


def alpaca(values: Values) -> Body | None:
    """`instruction`, `input` where there is one, and `output`."""
    question = _joined(values["instruction"], values.get("input"))
    if is_long_chat(values):  # as LLaMA-Factory reads it
        return history(values, question, values["output"])
    return _prompted(values, "input", _ALPACA_INPUT, _ALPACA, "output")


def dolly(values: Values) -> Body | None:
    """`instruction`, `context` where there is one, and `response`."""
    return _prompted(values, "context", _DOLLY_CONTEXT, _DOLLY, "response")


def question(values: Values) -> Body | None:
    """`question` and `answer`."""
    return _prompted(values, None, "", "Question: {question}\nAnswer: ", "answer")


def query(values: Values) -> Body | None:
    """`query` and `response`."""
    if is_long_chat(values):  # as ms-swift and LLaMA-Factory read it
        return history(values, values["query"], values["response"])
    return _prompted(values, None, "", "{query}\n", "response")


def _prompted(values: Values, context: str | None, with_context: str, without: str, answer: str) -> Body | None:
    has_context = context is not None and not is_missing(values.get(context))
    template = with_context if has_context else without
    names = [name for name in ("instruction", "question", "query", context) if name and f"{{{name}}}" in template]
    if not all(is_scalar(values[name]) for name in (*names, answer)):
        return None
    # not str.format: braces in the text are the text's
    parts = template.split("{")
    filled = parts[0] + "".join(str(values[name]) + rest for name, rest in (part.split("}", 1) for part in parts[1:]))
    return Pair(filled, str(values[answer]), whole=True, rendered=True)


def _joined(first: Any, second: Any) -> Any:
    return first if is_missing(second) else f"{first}\n{second}"
