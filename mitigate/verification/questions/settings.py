"""Settings of questions: which rows are asked, and how an answer is scored."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from mitigate.documents.sources import DocumentSource
from mitigate.mistakes import Section


class QuestionSet(Section):
    """Rows with a prompt and the completion that is right, asked of the models before and after."""

    rows: DocumentSource = Field(description="the rows; needs prompt and completion; files are relative to data.root")
    score: Literal["exact", "rouge_l_recall", "rouge_l_f1"] = Field(
        "rouge_l_recall",
        description="exact: the answer is the completion, case aside; or ROUGE-L with stemmed words, recall or F1",
    )
    document: str | None = Field(
        None,
        description="a regular expression on ids whose first group rows share with the document that they ask about: "
        "the row has that document's set, and is left out where none is audited; null: the rows' own sets",
    )
    limit: int | None = Field(None, ge=1, description="ask only the first so many rows of each set")
    new_tokens: int = Field(256, ge=1, description="most tokens of an answer")
    end: str = Field("", description="text that ends an answer, beside the end token")

    @field_validator("rows")
    @classmethod
    def _completes(cls, rows: DocumentSource) -> DocumentSource:
        if rows.prompt is None or rows.completion is None:
            raise ValueError(
                "needs prompt and completion, for instance prompt: '{question}' and completion: '{answer}'"
            )
        return rows

    @field_validator("document")
    @classmethod
    def _has_a_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        if not groups:
            raise ValueError(f"needs a group, such as (.+)-question; got {pattern!r}")
        return pattern
