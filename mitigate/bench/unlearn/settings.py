"""Settings of `mitigate bench unlearn`: its world, and what all of its runs share."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import Field, field_validator

from mitigate.bench.settings import HardSettings, ModelSettings
from mitigate.lab.settings import TinyModel
from mitigate.models.settings import Lora, Schedule
from mitigate.unlearning.objectives.names import OBJECTIVE_NAMES
from mitigate.unlearning.settings import Scope, Unlearn

METHODS = ("default", *OBJECTIVE_NAMES)
SCOPES: tuple[str, ...] = get_args(Scope)


class FineTuning(Schedule):
    """How every model of the benchmark is fine-tuned."""

    epochs: float = Field(20.0, gt=0, description="passes over the documents")
    learning_rate: float = Field(1.5e-3, gt=0, description="peak of a linear warm-up and cosine decay to a tenth")


class UnlearnWorldSettings(ModelSettings):
    """How the people and models of the unlearning benchmark are made."""

    base: TinyModel = Field(
        default_factory=lambda: TinyModel(  # smaller than the detector's: a seed is some 20 models and 90 runs
            vocabulary=2048,
            hidden_size=128,
            layers=4,
            heads=4,
            context=512,
            schedule=Schedule(epochs=2, learning_rate=3e-3, batch_size=16),
        ),
        description="the base, made from scratch",
    )
    forget: int = Field(60, ge=2, description="people to forget; half of them choose settings, half are measured")
    retain: int = Field(120, ge=1, description="people that the target keeps")
    holdout: int = Field(80, ge=1, description="people that no target saw")
    copies: dict[int, float] = Field(
        default_factory=lambda: {2: 0.1, 4: 0.04},
        description="invented people who have more than one document: number of documents: share of the people",
    )
    references: int = Field(8, ge=4, multiple_of=2, description="cross-fitted references of the audit; even")
    judges: int = Field(4, ge=2, multiple_of=2, description="cross-fitted references that only figures use; even")
    schedule: FineTuning = Field(default_factory=FineTuning, description="of every fine-tuned model")
    anchors: int = Field(120, ge=0, description="documents of prose that unlearning may hold still")
    prose: int = Field(80, ge=1, description="documents of prose on which only figures are measured")


class RunSettings(Unlearn):
    """`Unlearn` with a schedule for small models; what a run sets itself is not for the user to set."""

    learning_rate: float = Field(
        2e-3, gt=0, description="common rate; every method tries it times 1/3, 1 and 3, and beyond"
    )
    max_steps: int = Field(120, ge=1, description="steps of a run; token scope may stop earlier, at the control")
    check_every: int = Field(10, ge=1, description="steps between two looks at the selected spans")
    lora: Lora = Field(default_factory=lambda: Lora(rank=32, alpha=64), description="shape of the adapter")
    rounds: int = Field(1, ge=1, description="one, so that methods are compared on what one selection gives")

    @field_validator("objective", "scope", "stop_at_control", "merge")
    @classmethod
    def _not_to_be_set(cls, value: Any) -> Any:
        raise ValueError("the benchmark sets this itself; choose methods with --objectives and --scopes")


class UnlearnBenchSettings(UnlearnWorldSettings):
    """Settings of the world, and what all runs have in common."""

    unlearn: RunSettings = Field(default_factory=RunSettings, description="of every run; see `Unlearn`")


class HardRunSettings(RunSettings):
    """`Unlearn` with its own defaults, which are made for such models; what a run sets itself is not to be set."""

    learning_rate: float = Field(
        Unlearn.model_fields["learning_rate"].default,
        gt=0,
        description="common rate; every method tries it times 1/3, 1 and 3, and beyond",
    )
    max_steps: int = Field(
        Unlearn.model_fields["max_steps"].default,
        ge=1,
        description="steps of a run; token scope may stop earlier, at the control",
    )
    check_every: int = Field(
        Unlearn.model_fields["check_every"].default, ge=1, description="steps between two looks at the selected spans"
    )
    lora: Lora = Field(default_factory=Lora, description="shape of the adapter")
    rounds: int = Field(
        Unlearn.model_fields["rounds"].default, ge=1, description="of methods that stop at the control; else one"
    )


class HardUnlearnBenchSettings(HardSettings, UnlearnBenchSettings):
    """The hard world of the unlearning benchmark."""

    copies: dict[int, float] = Field(
        default_factory=dict,
        description="invented people who have more than one document: number of documents: share of the people",
    )
    schedule: FineTuning = Field(
        default_factory=lambda: FineTuning(learning_rate=1e-3),
        description="of every fine-tuned model; its epochs are those of `epochs`",
    )
    epochs: tuple[float, ...] = Field(
        (3.0, 5.0), min_length=1, description="passes over the documents, each a world of its own"
    )
    unlearn: HardRunSettings = Field(default_factory=HardRunSettings, description="of every run; see `Unlearn`")
