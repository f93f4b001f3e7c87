"""What a recipe may say: one class a section, and what of it must fit together. `mitigate.recipe.loading` reads it.

Nothing heavy is imported here or below (no torch, no pyarrow), so that a mistyped key is answered at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from mitigate.detection.settings import Detect, ReferenceSettings
from mitigate.documents import DocumentSource, Request
from mitigate.errors import MitigateError
from mitigate.lab.settings import Lab, LabModel
from mitigate.mistakes import Section
from mitigate.models.settings import Models, Schedule
from mitigate.reporting.settings import ShownText
from mitigate.retraining.settings import RetrainSettings, sharding_mistake
from mitigate.unlearning.objectives.names import parse_objective
from mitigate.unlearning.settings import Unlearn
from mitigate.verification.questions.settings import QuestionSet
from mitigate.verification.tofu.settings import Tofu


class Data(Section):
    """What is audited, and what else is held still."""

    root: Path | None = Field(None, description="directory that relative document paths count from")
    documents: list[DocumentSource] = Field(default_factory=list, description="the documents to audit")
    anchors: list[DocumentSource] = Field(
        default_factory=list, description="further text that unlearning must not change, for instance ordinary prose"
    )


class ReportSettings(Section):
    """What the report shows."""

    text: ShownText = Field(
        "masked",
        description="what the report shows of the documents: none: figures only; masked: text, its secrets masked; "
        "all: everything, for invented people only",
    )
    extraction: bool = Field(True, description="try to extract the secrets before and after")
    tofu: Tofu | None = Field(None, description="figures of the TOFU benchmark, from its files of questions")
    questions: dict[str, QuestionSet] = Field(
        default_factory=dict, description="rows with a prompt and the right completion, asked of all models; by name"
    )


class Recipe(Section):
    """A whole run: documents, references, audit, unlearning, re-audit, report."""

    name: str = Field("run", description="what the report calls the run")
    out: Path = Field(Path("runs/run"), description="directory of the run's artifacts")
    seed: int = Field(0, ge=0, description="of everything random")
    data: Data = Field(default_factory=Data, description="documents")
    forget: Request | None = Field(
        None, description="erasure request: the documents to forget, instead of the forget set that they come with"
    )
    models: Models = Field(default_factory=Models, description="models")
    references: ReferenceSettings = Field(default_factory=ReferenceSettings, description="references")
    detect: Detect = Field(default_factory=Detect, description="detector")
    unlearn: Unlearn | None = Field(default_factory=Unlearn, description="unlearning; null: audit only")
    retrain: RetrainSettings | None = Field(None, description="exact unlearning, instead of unlearn")
    report: ReportSettings = Field(default_factory=ReportSettings, description="report")
    lab: Lab | None = Field(None, description="make documents and models first; null: use yours")

    @model_validator(mode="before")
    @classmethod
    def _retrain_stands_for_unlearn(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("retrain") is not None:
            return {"unlearn": None, **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = []
        if self.lab is None and not self.models.target:
            problems.append("models.target: missing; give the model to audit (hub id or directory)")
        if self.lab is not None and (self.models.target or self.models.oracle):
            problems.append("models.target, models.oracle: the lab makes them; remove these keys or set lab: null")
        if self.lab is not None and (self.lab.base is None) == (self.models.base is None):
            problems.append("lab.base, models.base: give exactly one: a base to train from scratch, or one that exists")
        if not self.data.documents and not (self.lab and self.lab.people):
            problems.append("data.documents: missing; give at least one source with a path")
        if self.lab and self.lab.people and self.data.documents:
            problems.append("data.documents: lab.people writes the documents; remove one of the two")
        if self.references.count % 2:
            problems.append(
                f"references.count: {self.references.count} is odd; each document is in half of the references"
            )
        if not self.references.count and not self.references.given:
            problems.append("references: none; set references.count (needs models.base) or list references.given")
        if self.references.count and not self.models.base and not (self.lab and self.lab.base):
            problems.append(
                "models.base: missing; cross-fitted references are trained on it (or set references.count: 0)"
            )
        problems += self._frozen_problems()
        if self.unlearn is not None:
            try:
                parse_objective(self.unlearn.objective)
            except MitigateError as error:
                problems.append(str(error))
        if self.retrain is not None:
            problems += self._retrain_problems(self.retrain)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _frozen_problems(self) -> list[str]:
        """All weights of a model that is loaded quantized, or over several devices, cannot be trained."""
        trained: dict[str, str | None] = {
            "references.method": self.references.method if self.references.count else None
        }
        trained["unlearn.method"] = self.unlearn.method if self.unlearn is not None else None
        trained["retrain.method"] = self.retrain_as.method if self.retrain is not None else None
        trained["lab.target.method"] = self.lab.target.method if self.lab is not None else None
        given = {"load_in": self.models.load_in, "device_map": self.models.device_map}
        return [
            f"{key}: {method}: weights in models.{name}: {value} are not trained; take lora"
            for name, value in given.items()
            for key, method in trained.items()
            if value is not None and method in ("full", "last_layers")
        ]

    def _retrain_problems(self, retrain: RetrainSettings) -> list[str]:
        problems = []
        if self.unlearn is not None:
            problems.append("unlearn, retrain: a report is of one mitigated model; set unlearn: null or retrain: null")
        if not self.models.base and not (self.lab and self.lab.base):
            problems.append("models.base: missing; retrain fits the model anew from it")
        if mistake := sharding_mistake(self.retrain_as.method, retrain.shards):
            problems.append(f"retrain.{mistake}")
        if self.lab is None and retrain.schedule is None and self.references.schedule == "auto":
            problems.append(
                "retrain.schedule: missing, and references.schedule is auto, which needs the text that is removed; "
                "give the schedule that the target was trained with: retrain.schedule.epochs=3"
            )
        return problems

    @property
    def retrain_as(self) -> LabModel:
        """How `retrain` fits: as it says itself, else as the lab fits the target, else as the references are."""
        own, model = self.retrain or RetrainSettings(), self.lab.target if self.lab else self.references
        schedule = own.schedule or (model.schedule if model.schedule != "auto" else Schedule())
        return LabModel(method=own.method or model.method, lora=own.lora or model.lora, schedule=schedule)
