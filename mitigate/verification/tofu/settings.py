"""Settings of the TOFU benchmark: which questions are asked, and in what form."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from mitigate.documents.sources import Template, template_fields
from mitigate.mistakes import Section


def _has_question(template: str) -> str:
    return _with_field(template, "question")


def _has_answer(template: str) -> str:
    return _with_field(template, "answer")


def _with_field(template: str, wanted: str) -> str:
    if [name for _, name in template_fields(template) if name is not None] != [wanted]:
        raise ValueError(f"not a template of one field, {{{wanted}}}; got {template!r}")
    return template


class Tofu(Section):
    """Which questions are asked, and in what form. Files are TOFU's, relative to data.root."""

    forget: str = Field(description="questions on what is to be forgotten, such as forget05_perturbed.json")
    retain: str = Field("retain_perturbed.json", description="questions on what is to be retained")
    real_authors: str = Field("real_authors_perturbed.json", description="questions on authors who exist")
    world_facts: str = Field("world_facts_perturbed.json", description="questions on the world")
    prompt: Annotated[Template, AfterValidator(_has_question)] = Field(
        "Question: {question}\nAnswer: ", description="template before an answer, as in the text that was trained on"
    )
    completion: Annotated[Template, AfterValidator(_has_answer)] = Field(
        "{answer}", description="template of an answer; a greedy answer ends where the text after {answer} comes"
    )
    limit: int | None = Field(300, ge=1, description="ask only the first so many questions of each file; TOFU's is 300")
    questions_per_author: int = Field(
        20, ge=1, description="rows of one author, who follow one another, in forget and retain; for the intervals"
    )
    max_length: int = Field(200, ge=2, description="most tokens of a question with its greedy answer; TOFU's is 200")

    @property
    def answer_end(self) -> str:
        """The text that ends an answer; empty where the template has none."""
        literal, name = template_fields(self.completion)[-1]
        return literal if name is None else ""
