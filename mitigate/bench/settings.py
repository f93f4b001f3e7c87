"""Settings of the benchmarks: the models that are trained for them, the worlds that are made, the sizes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mitigate.errors import MitigateError
from mitigate.lab.settings import TinyModel
from mitigate.mistakes import Section, Settings
from mitigate.models.settings import Lora, Method, Schedule


class ModelSettings(Section):
    """The base of a benchmark, and how models are fine-tuned from it."""

    method: Method = Field("full", description="full: whole models; lora: adapters")
    lora: Lora = Field(default_factory=Lora, description="shape of the adapters")
    base: TinyModel = Field(
        default_factory=lambda: TinyModel(
            vocabulary=2048,
            hidden_size=192,
            layers=5,
            heads=6,
            context=512,
            schedule=Schedule(epochs=2, learning_rate=3e-3, batch_size=16),
        ),
        description="the base, made from scratch",
    )
    base_documents: int = Field(5000, ge=100, description="documents of invented text that the base is trained on")


class WorldSettings(ModelSettings):
    """How the documents and models of a detector benchmark are made."""

    models: int = Field(8, ge=4, description="models of the detector: each a target, a shadow and a reference; even")
    truth_models: int = Field(4, ge=2, description="further models, for the counterfactual truth alone; even")
    people: dict[int, int] = Field(
        default_factory=lambda: {0: 60, 1: 170, 2: 40, 4: 15, 8: 6, 16: 3},
        description="lab people: documents that hold a person's secrets: number of people",
    )
    schedule: Schedule | None = Field(
        None, description="of every model; default: 10 epochs of invented people, 20 of a file without copies"
    )

    def check_references(self, references: int) -> None:
        """Refuse a number of OUT references that half of the models cannot give.

        Raises:
            MitigateError: `references` is under 1, or above half of the models less one.
        """
        if not 1 <= references <= self.models // 2 - 1:
            raise MitigateError(
                f"references: {references} OUT references of {self.models} models; a document has {self.models // 2} "
                f"models that never saw it, one of them may be the target: give 1 to {self.models // 2 - 1}, "
                "or more models"
            )


class HardSettings(ModelSettings):
    """What a hard world is: adapters over a pretrained base, few epochs, each secret in one document."""

    method: Method = Field("lora", description="full: whole models; lora: adapters")
    epochs: tuple[float, ...] = Field(
        (1.0, 3.0, 5.0), min_length=1, description="passes over the documents, each a world of its own"
    )

    @model_validator(mode="after")
    def _epochs_are_said_once(self) -> Self:
        schedule = getattr(self, "schedule", None)
        if isinstance(schedule, Schedule) and "epochs" in schedule.model_fields_set:
            raise ValueError("schedule.epochs: the hard world has several; set epochs: [1, 3, 5]")
        return self

    def of(self, kind: type[Settings], epochs: float) -> Settings:
        """The settings of one number of epochs."""
        own = {name: getattr(self, name) for name in kind.model_fields}
        return kind.model_construct(**own | {"schedule": own["schedule"].model_copy(update={"epochs": epochs})})


class HardWorldSettings(HardSettings, WorldSettings):
    """The hard world of a detector benchmark."""

    people: dict[int, int] = Field(
        default_factory=lambda: {0: 60, 1: 240},
        description="lab people: documents that hold a person's secrets: number of people",
    )
    schedule: Schedule = Field(
        default_factory=lambda: Schedule(learning_rate=1e-3, batch_size=8),
        description="of every model; its epochs are those of `epochs`",
    )


Shape = Literal["tiny", "gpt2", "1b"]
Part = Literal["audit", "step", "processes", "memory"]  # of what is measured
SHAPES: dict[str, dict[str, object]] = {
    "tiny": {},
    "gpt2": {
        **{"model.vocabulary": 50_257, "model.hidden_size": 768, "model.layers": 12, "model.heads": 12},
        **{"model.context": 1024, "tokens": 2000},
    },
    "1b": {
        **{"model.vocabulary": 128_256, "model.hidden_size": 2048, "model.layers": 16, "model.heads": 32},
        **{"model.context": 1024, "tokens": 30_000, "turns": 2},
    },
}
"""Shapes of `mitigate bench speed`, as settings: GPT-2 small's, and that of a Llama of about a billion parameters."""


class SpeedSettings(Section):
    """Sizes of the measurement."""

    model: TinyModel = Field(
        default_factory=lambda: TinyModel(vocabulary=16_000, hidden_size=128, layers=4, heads=4, context=256),
        description="shape of the model; its schedule is not used",
    )
    tokens: int = Field(20_000, ge=600, description="of the documents on which audits are timed")
    documents: list[int] = Field(
        default_factory=lambda: [300, 3000, 30_000], min_length=2, description="of the audits whose memory is measured"
    )
    turns: int = Field(3, ge=1, description="times that each way to audit is timed, after one that is not")
    forget: int = Field(8, ge=1, description="documents with tokens to forget")
    retain: int = Field(8, ge=1, description="documents to hold still")
    batch_size: int = Field(4, ge=1, description="documents of each kind in a step")
    kept_entries: int = Field(256, ge=8, description="as for `Unlearn`; the whole vocabulary makes the losses equal")
    lora: Lora = Field(default_factory=Lora, description="shape of the adapter")
