"""Settings of `mitigate bench verify`: a world of unlearning, and the attacks."""

from __future__ import annotations

from pydantic import Field

from mitigate.bench.settings import HardSettings
from mitigate.bench.unlearn.settings import FineTuning, HardRunSettings, RunSettings, UnlearnWorldSettings
from mitigate.proof.settings import Proof


class VerifyBenchSettings(UnlearnWorldSettings):
    """The world, smaller than that of `bench unlearn`, and the attacks."""

    forget: int = Field(40, ge=2, description="people to forget")
    retain: int = Field(40, ge=1, description="people that the target keeps")
    holdout: int = Field(80, ge=1, description="people that no target saw")
    copies: dict[int, float] = Field(
        default_factory=dict,
        description="invented people who have more than one document: number of documents: share of the people",
    )
    judges: int = Field(2, ge=2, multiple_of=2, description="cross-fitted references of `bench unlearn`; unused here")
    anchors: int = Field(40, ge=0, description="documents of prose that unlearning may hold still")
    prose: int = Field(2, ge=1, description="documents of prose of `bench unlearn`; unused here")
    unlearn: RunSettings = Field(
        default_factory=lambda: RunSettings(learning_rate=6e-3, max_steps=200),
        description="of the default, and of cheats that are unlearned; see `Unlearn`",
    )
    proof: Proof = Field(default_factory=Proof, description="the attacks; see `mitigate verify`")


class HardVerifyBenchSettings(HardSettings, VerifyBenchSettings):
    """The hard world of the same."""

    schedule: FineTuning = Field(
        default_factory=lambda: FineTuning(learning_rate=1e-3),
        description="of every fine-tuned model; its epochs are those of `epochs`",
    )
    unlearn: HardRunSettings = Field(
        default_factory=HardRunSettings, description="of the default, and of cheats that are unlearned; see `Unlearn`"
    )
    epochs: tuple[float, ...] = Field(
        (5.0,), min_length=1, description="passes over the documents, each a world of its own"
    )
