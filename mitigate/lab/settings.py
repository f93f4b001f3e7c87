"""Settings of the lab: invented people, a base from scratch, and how the leaky target is made of both."""

from __future__ import annotations

from pydantic import Field

from mitigate.documents import DocumentSource
from mitigate.mistakes import Section
from mitigate.models.settings import Lora, Method, Schedule


class People(Section):
    """Invented people with planted secrets."""

    copies: dict[int, int] = Field(
        default_factory=lambda: {0: 12, 1: 12, 2: 12, 4: 12, 8: 12, 16: 12},
        description="times planted: number of people planted so often",
    )
    forget_share: float = Field(1 / 3, gt=0, lt=1, description="share of the planted people who are to be forgotten")
    carriers: list[DocumentSource] = Field(
        default_factory=list, description="real text to plant the secrets in; default: documents made of templates"
    )


class TinyModel(Section):
    """Shape and training of a base model made from scratch."""

    vocabulary: int = Field(
        1024, ge=300, description="entries of the byte-level BPE tokenizer trained on the same text"
    )
    hidden_size: int = Field(128, ge=8, description="width")
    layers: int = Field(4, ge=1, description="depth")
    heads: int = Field(4, ge=1, description="attention heads")
    context: int = Field(256, ge=16, description="longest sequence in tokens")
    schedule: Schedule = Field(
        default_factory=lambda: Schedule(epochs=3, learning_rate=3e-3, batch_size=16), description="of its training"
    )


class LabModel(Section):
    """How the lab fine-tunes the target (and, alike, the oracle)."""

    method: Method = Field("full", description="full: a whole model; lora: an adapter")
    lora: Lora = Field(default_factory=Lora, description="shape of the adapter")
    schedule: Schedule = Field(default_factory=Schedule, description="of the fine-tuning")


class Lab(Section):
    """Makes what a user already has: documents, base, target; and the oracle that no user has."""

    people: People | None = Field(None, description="write the documents: invented people with planted secrets")
    base: TinyModel | None = Field(None, description="train a base from scratch; default: models.base")
    base_text: list[DocumentSource] = Field(default_factory=list, description="text for the base; default: invented")
    base_documents: int = Field(2000, ge=1, description="documents of invented text for the base")
    target: LabModel = Field(default_factory=LabModel, description="fine-tuned on forget and retain documents")
    oracle: bool = Field(True, description="also train the oracle: as the target, on the retain documents only")
