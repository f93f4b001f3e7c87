"""Which attacks `mitigate verify` makes, and how hard they are."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator

from mitigate.mistakes import Section
from mitigate.models.settings import Lora, Schedule

AttackName = Literal[
    "judges",
    "min_k",
    "twins",
    "forensic",
    "kept",
    "layers",
    "bfloat16",
    "int8",
    "nf4",
    "q4_0",
    "relearn_forgotten",
    "relearn_related",
    "relearn_retained",
    "relearn_plain",
    "true_prefix",
    "short_prefix",
    "without_cues",
    "reworded",
    "question",
    "instruction",
    "other_document",
    "own_prompts",
    "sampled",
    "continued",
    "difference",
    "half_way",
    "twice",
    "opposite",
]
ATTACKS: tuple[str, ...] = get_args(AttackName)


class Proof(Section):
    """Settings of a verification."""

    attacks: list[AttackName] = Field(
        default_factory=lambda: list(get_args(AttackName)), min_length=1, description="which attacks are made"
    )
    margin: float = Field(
        0.05, gt=0, le=0.5, description="how far above its control an attack may succeed: an AUC, or a share of values"
    )
    relearn: Schedule = Field(
        default_factory=lambda: Schedule(epochs=1, learning_rate=1e-3),
        description="how an attacker trains the model again",
    )
    lora: Lora = Field(default_factory=Lora, description="the adapter that an attacker trains")
    plain: str | None = Field(
        None, description="documents about nobody, a file, that relearn_plain trains on; default: invented prose"
    )
    twins: int = Field(8, ge=1, description="other people's values that twins puts in a value's place")
    short_prefix: int = Field(16, ge=1, description="tokens before a value that short_prefix and other_document keep")
    prompts: str | None = Field(
        None, description="a file of rows with a prompt and the value that it asks for: the prompts of own_prompts"
    )
    samples: int = Field(128, ge=1, description="draws of each value that sampled counts on; they are not made")
    continued_tokens: int = Field(128, ge=1, description="most tokens that continued writes of a document")
    most_values: int = Field(200, ge=1, description="values of each kind of document that extraction tries")

    tasks: list[str] = Field(
        default_factory=list, description="tasks of lm-eval that both models are measured by, such as hellaswag"
    )
    task_files: str | None = Field(None, description="a directory of task files, beside lm-eval's own")
    task_limit: int | None = Field(None, ge=1, description="only the first so many examples of each task")

    @field_validator("attacks")
    @classmethod
    def _once(cls, names: list[AttackName]) -> list[AttackName]:
        return list(dict.fromkeys(names))
