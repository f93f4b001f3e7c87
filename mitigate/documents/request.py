"""An erasure request: which documents are to be forgotten, named by id, by a text they hold, or by fields of a row.

The recipe keys alone; `mitigate.documents.erasure` finds the documents that a request names.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mitigate.documents.sources import Where


def _as_text(value: object) -> object:
    """YAML reads an id or a telephone number as a number, if it does not begin with 0."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _searchable(text: str) -> str:
    from mitigate.text.folding import fold, in_word  # loads numpy, which settings without such a text do without

    if not any(map(in_word, fold(text).text)):
        raise ValueError(f"no letter or digit to look for; got {text!r}")
    return text


Id = Annotated[str, BeforeValidator(_as_text)]
Wanted = Annotated[str, BeforeValidator(_as_text), AfterValidator(_searchable)]


class Request(BaseModel):
    """Which documents are to be forgotten: those that any id or text names, and those that meet all of `where`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: list[Id] = Field(default_factory=list, description="ids of documents, exact")
    contains: list[Wanted] = Field(
        default_factory=list,
        description="texts, such as a name, that stand in the document as whole words; case and white space ignored",
    )
    where: Where = Field(
        default_factory=dict,
        description="fields of the document's row, as in a source's where; all must hold",
    )
    linked: bool = Field(
        True, description="forget the same secrets in other documents too; false: list the places and leave them"
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Request:
        if not (self.ids or self.contains or self.where):
            raise ValueError("an empty request selects nothing; give ids, contains or where")
        return self
