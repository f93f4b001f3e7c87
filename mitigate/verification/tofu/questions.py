"""The questions of the TOFU benchmark (Maini et al., arXiv 2401.06121): which files, and how a row becomes text.

A row of TOFU's `*_perturbed` files has a `question`, its `answer`, a `paraphrased_answer`, and in `perturbed_answer` a
list of wrong ones in the same words. Of real authors and world facts nothing is paraphrased: there the answer itself
is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitigate.documents import Document, Documents, DocumentSource
from mitigate.documents.rows.reader import Row, read_rows
from mitigate.documents.sources import template_fields
from mitigate.errors import MitigateError, summarize
from mitigate.verification.tofu.settings import Tofu

PARAPHRASED = ("forget", "retain")  # question sets that have a paraphrased answer
QUESTION_SETS = (*PARAPHRASED, "real_authors", "world_facts")


@dataclass(frozen=True)
class Question:
    """One question and what may be said to it, as text that a model reads.

    Attributes:
        id: `set-row`.
        set: one of `QUESTION_SETS`.
        cluster: questions on one author share it.
        answer: the true answer, bare.
        prompt: what comes before an answer.
        completions: the filled template of the true answer, of its paraphrase and of the wrong answers, in this order.
    """

    id: str
    set: str
    cluster: str
    answer: str
    prompt: str
    completions: tuple[str, ...]

    def documents(self) -> list[Document]:
        """Prompt and completion as one document for each completion, of which the completion is scored."""
        return [
            Document(
                id=f"{self.id}-{number}",
                text=self.prompt + completion,
                audited=((len(self.prompt), len(self.prompt + completion)),),
            )
            for number, completion in enumerate(self.completions)
        ]


def read_questions(settings: Tofu, *, root: Path | None = None) -> list[Question]:
    """All questions, set by set, in the files' order.

    Args:
        settings: names the files.
        root (*optional*): folder that relative paths start from; default: the current one.

    Raises:
        MitigateError: a file is missing, or rows lack a field (all in one message, each with its file and row).
    """
    questions: list[Question] = []
    problems: list[str] = []
    for set_name in QUESTION_SETS:
        source = DocumentSource(path=getattr(settings, set_name))
        for number, row in enumerate(read_rows(source, root=root)):
            if number == settings.limit:
                break
            mistakes = [row.problem] if row.problem else _mistakes(row.values, paraphrased=set_name in PARAPHRASED)
            problems += [f"{row.where}: {mistake}" for mistake in mistakes]
            if not mistakes:
                questions.append(_question(row, number, set_name, settings))
    if problems:
        raise MitigateError(
            f"report.tofu: rows that are no questions of TOFU ({summarize(problems, most=10)}); give its files "
            "whose names end in _perturbed"
        )
    return questions


def unfamiliar(questions: Sequence[Question], documents: Documents) -> list[str]:
    """Notes on the forget and retain questions that, with their answers, are no documents of that set.

    A model trained on the documents never saw them in this form: another template, or a smaller part of TOFU.
    """
    notes = []
    for name in PARAPHRASED:
        known = {document.text for document in documents.subset(name)}
        own = [question for question in questions if question.set == name]
        if strange := sum(question.prompt + question.completions[0] not in known for question in own):
            notes.append(
                f"TOFU: {strange} of {len(own)} {name} questions are, with prompt and completion as report.tofu forms "
                f"them, no document of the set {name}: the models were not trained on them as they are asked."
            )
    return notes


def _mistakes(values: Mapping[str, Any], *, paraphrased: bool) -> list[str]:
    texts = ["question", "answer", *(["paraphrased_answer"] if paraphrased else [])]
    wrong = [name for name in texts if not _is_text(values.get(name))]
    others = values.get("perturbed_answer")
    if not isinstance(others, list) or not others or not all(map(_is_text, others)):
        wrong.append("perturbed_answer")
    kinds = {"perturbed_answer": "list of texts"}
    return [f"no {kinds.get(name, 'text')} in field {name!r}" for name in wrong]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _question(row: Row, number: int, set_name: str, settings: Tofu) -> Question:
    values = row.values
    author = number // settings.questions_per_author if set_name in PARAPHRASED else number
    right = values["paraphrased_answer" if set_name in PARAPHRASED else "answer"]
    return Question(
        id=f"{set_name}-{number + 1}",
        set=set_name,
        cluster=f"{set_name}-{author}",
        answer=values["answer"],
        prompt=_filled(settings.prompt, values["question"]),
        completions=tuple(
            _filled(settings.completion, text) for text in (values["answer"], right, *values["perturbed_answer"])
        ),
    )


def _filled(template: str, text: str) -> str:
    return "".join(literal + (text if name is not None else "") for literal, name in template_fields(template))
