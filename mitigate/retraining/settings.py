"""Settings of exact unlearning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mitigate.documents import DocumentSource
from mitigate.mistakes import Section
from mitigate.models.settings import Lora, Method, Schedule

Redaction = Literal["mask", "placeholder", "fake", "drop"]
Combination = Literal["mixture", "sum"]


class RetrainSettings(Section):
    """Exact unlearning: the model fitted anew from its base, without what the audit selected."""

    redact: Redaction = Field(
        "mask",
        description="mask: no loss on the selected tokens; placeholder: [PHONE]; fake: another number of that format; "
        "drop: leave the documents to forget out",
    )
    documents: list[DocumentSource] = Field(
        default_factory=list, description="further text that the target was trained on, besides data.documents"
    )
    copies: bool | None = Field(
        None,
        description="remove the selected text wherever else it stands, too; default: yes, but after an erasure request "
        "what this says of linked",
    )
    method: Method | None = Field(None, description="null: as the lab's target or the references")
    lora: Lora | None = Field(None, description="shape of the adapters; null: likewise")
    schedule: Schedule | None = Field(None, description="null: likewise; best as the target's")
    shards: int = Field(1, ge=1, description="adapters on disjoint documents; forgetting more later fits only theirs")
    combine: Combination = Field(
        "mixture",
        description="shards as one model: mixture, or sum: a plain adapter, poor in what is rare",
    )


def sharding_mistake(method: str, shards: int) -> str:
    """What is wrong with a number of shards; empty where nothing is."""
    if shards > 1 and method == "full":
        return "method: full fits a whole model, and shards are adapters over one base; use lora with shards"
    return ""
