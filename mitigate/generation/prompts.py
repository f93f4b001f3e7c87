"""Prompts from files: what a model is to continue."""

from __future__ import annotations

from pathlib import Path

from mitigate.documents.rows.reader import Row, read_rows
from mitigate.documents.sources import DocumentSource
from mitigate.errors import MitigateError, summarize


def read_prompts(path: str | Path) -> list[str]:
    """Prompts from a text file (each line that is not blank) or from rows (JSONL, CSV, ...): `prompt`, else `text`.

    Raises:
        MitigateError: the file is missing or empty, or rows (all named) have neither field.
    """
    prompts: list[str] = []
    problems: list[str] = []
    for row in read_rows(DocumentSource(path=str(path))):
        is_text_file = row.number == 0
        if is_text_file:
            prompts += [line.strip() for line in row.values["text"].split("\n") if line.strip()]
        elif (prompt := _prompt_of(row)) is not None:
            prompts.append(prompt)
        else:
            problems.append(f"{row.where} ({row.problem or 'no text in a field prompt or text'})")
    if problems:
        raise MitigateError(
            f"{path}: rows without a prompt: {summarize(problems)}; give each row a field prompt (or text), or make it "
            "a text file (.txt) with one prompt a line"
        )
    return prompts


def _prompt_of(row: Row) -> str | None:
    values = (row.values.get("prompt"), row.values.get("text"))
    return next((value for value in values if isinstance(value, str) and value.strip()), None)
