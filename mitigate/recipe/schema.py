"""Typed recipes: YAML with `key=value` overrides, every mistake reported at once.

    recipe = load_recipe("recipes/quickstart.yaml", ["out=runs/mine", "unlearn.objective=npo"])

`${data.root}` in a value stands for another key's value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from mitigate.detection.settings import Detect
from mitigate.documents import DocumentSource, Request
from mitigate.errors import MitigateError, one_line
from mitigate.lab.tiny import TinyModel
from mitigate.mistakes import Section, Settings, checked, keys_of
from mitigate.models.store import DTYPES
from mitigate.models.training import Lora, Schedule
from mitigate.recipe.yaml12 import load_yaml
from mitigate.retraining.retrain import REDACTIONS, check_retrain
from mitigate.retraining.shards import COMBINATIONS
from mitigate.unlearning.objectives.catalogue import parse_objective
from mitigate.unlearning.settings import Unlearn
from mitigate.verification.tofu.questions import Tofu

_LONGEST_SHOWN = 100  # characters of an override in a message
_LONGEST_VALUE = 1 << 16  # characters of a value with all that its ${keys} stand for


class Data(Section):
    """What is audited, and what else is held still."""

    root: Path | None = Field(None, description="directory that relative document paths count from")
    documents: list[DocumentSource] = Field(default_factory=list, description="the documents to audit")
    anchors: list[DocumentSource] = Field(
        default_factory=list, description="further text that unlearning must not change, for instance ordinary prose"
    )


class Models(Section):
    """Which models, and how they are loaded."""

    target: str | None = Field(None, description="the leaky model: hub id, directory or PEFT adapter directory")
    base: str | None = Field(None, description="the model that the target was fine-tuned from")
    oracle: str | None = Field(None, description="a model retrained without the forget documents, if there is one")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    dtype: str = Field("auto", description="auto (float32 on a CPU, else the checkpoint's), float32, bfloat16, float16")
    trust_remote_code: bool = Field(False, description="run Python code that comes with a checkpoint")
    allow_pickle: bool = Field(False, description="accept weights that are not safetensors")


class ReferenceSettings(Section):
    """Models that never saw a document, to judge it by."""

    given: list[str] = Field(default_factory=list, description="reference models that saw none of the documents")
    count: int = Field(
        8,
        ge=0,
        le=1000,
        description="references to cross-fit on the base; even; 0 for none. Of fewer than 8 none is left to judge what "
        "unlearning made of the others",
    )
    method: str = Field("lora", pattern="^(lora|full)$", description="lora: adapters that share the base; full: models")
    lora: Lora = Field(default_factory=lambda: Lora(), description="shape of the adapters")
    schedule: Schedule = Field(default_factory=lambda: Schedule(), description="as the target's, where that is known")


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


class LabModel(Section):
    """How the lab fine-tunes the target (and, alike, the oracle)."""

    method: str = Field("full", pattern="^(lora|full)$", description="full: a whole model; lora: an adapter")
    lora: Lora = Field(default_factory=lambda: Lora(), description="shape of the adapter")
    schedule: Schedule = Field(default_factory=lambda: Schedule(), description="of the fine-tuning")


class Lab(Section):
    """Makes what a user already has: documents, base, target; and the oracle that no user has."""

    people: People | None = Field(None, description="write the documents: invented people with planted secrets")
    base: TinyModel | None = Field(None, description="train a base from scratch; default: models.base")
    base_text: list[DocumentSource] = Field(default_factory=list, description="text for the base; default: invented")
    base_documents: int = Field(2000, ge=1, description="documents of invented text for the base")
    target: LabModel = Field(
        default_factory=lambda: LabModel(), description="fine-tuned on forget and retain documents"
    )
    oracle: bool = Field(True, description="also train the oracle: as the target, on the retain documents only")


class RetrainSettings(Section):
    """Exact unlearning: the model fitted anew from its base, without what the audit selected."""

    redact: str = Field(
        "mask",
        pattern=f"^({'|'.join(REDACTIONS)})$",
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
    method: str | None = Field(None, pattern="^(lora|full)$", description="null: as the lab's target or the references")
    lora: Lora | None = Field(None, description="shape of the adapters; null: likewise")
    schedule: Schedule | None = Field(None, description="null: likewise; best as the target's")
    shards: int = Field(1, ge=1, description="adapters on disjoint documents; forgetting more later fits only theirs")
    combine: str = Field(
        "mixture",
        pattern=f"^({'|'.join(COMBINATIONS)})$",
        description="shards as one model: mixture, or sum: a plain adapter, poor in what is rare",
    )


class ReportSettings(Section):
    """What the report shows."""

    text: Literal["none", "masked", "all"] = Field(
        "masked",
        description="what the report shows of the documents: none: figures only; masked: text, its secrets masked; "
        "all: everything, for invented people only",
    )
    extraction: bool = Field(True, description="try to extract the secrets before and after")
    tofu: Tofu | None = Field(None, description="figures of the TOFU benchmark, from its files of questions")


class Recipe(Section):
    """A whole run: documents, references, audit, unlearning, re-audit, report."""

    name: str = Field("run", description="what the report calls the run")
    out: Path = Field(Path("runs/run"), description="directory of the run's artifacts")
    seed: int = Field(0, ge=0, description="of everything random")
    data: Data = Field(default_factory=lambda: Data(), description="documents")
    forget: Request | None = Field(
        None, description="erasure request: the documents to forget, instead of the forget set that they come with"
    )
    models: Models = Field(default_factory=lambda: Models(), description="models")
    references: ReferenceSettings = Field(default_factory=lambda: ReferenceSettings(), description="references")
    detect: Detect = Field(default_factory=lambda: Detect(), description="detector")
    unlearn: Unlearn | None = Field(default_factory=lambda: Unlearn(), description="unlearning; null: audit only")
    retrain: RetrainSettings | None = Field(None, description="exact unlearning, instead of unlearn")
    report: ReportSettings = Field(default_factory=lambda: ReportSettings(), description="report")
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
        if self.models.dtype not in ("auto", *DTYPES):
            problems.append(f"models.dtype: {self.models.dtype!r} is not one of auto, {', '.join(DTYPES)}")
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

    def _retrain_problems(self, retrain: RetrainSettings) -> list[str]:
        problems = []
        if self.unlearn is not None:
            problems.append("unlearn, retrain: a report is of one mitigated model; set unlearn: null or retrain: null")
        if not self.models.base and not (self.lab and self.lab.base):
            problems.append("models.base: missing; retrain fits the model anew from it")
        method = self.retrain_as.method
        try:
            check_retrain(retrain.redact, method=method, shards=retrain.shards, combine=retrain.combine)
        except MitigateError as error:
            problems += [f"retrain.{line}" for line in str(error).split("\n")]
        return problems

    @property
    def retrain_as(self) -> LabModel:
        """How `retrain` fits: as it says itself, else as the lab fits the target, else as the references are."""
        own, model = self.retrain or RetrainSettings(), self.lab.target if self.lab else self.references
        return LabModel(
            method=own.method or model.method, lora=own.lora or model.lora, schedule=own.schedule or model.schedule
        )


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe, apply `key=value` overrides and check everything.

    Args:
        path: the file; None starts from the defaults.
        overrides (*optional*): dotted keys, values in YAML: `detect.spans.threshold=1.5`, `lab=null`. The number
            after a list's last adds to it: `data.documents.1={path: unseen.jsonl, assign: holdout}`.

    Raises:
        MitigateError: with every mistake, each naming its key, the nearest known key and the remedy.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MitigateError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        try:
            values = load_yaml(text) or {}
        except yaml.YAMLError as error:
            raise MitigateError(f"{path}: not YAML ({one_line(error)})") from None
        if not isinstance(values, dict):
            raise MitigateError(f"{path}: a recipe is a mapping of keys; got a {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return check_recipe(_interpolate(values, values), name=str(path or "recipe"))


def check_recipe(values: Mapping[str, Any], *, name: str = "recipe") -> Recipe:
    """Validate recipe values.

    Raises:
        MitigateError: with every mistake at once.
    """
    return checked(Recipe, values, name=name)


def check_settings(kind: type[Settings], assignments: Sequence[str]) -> Settings:
    """One section's settings from `key=value` assignments, checked as in a recipe.

    Raises:
        MitigateError: with every mistake at once.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        _apply(values, assignment)
    return checked(kind, values, name="--set")


def known_keys() -> list[str]:
    """Every key that a recipe may hold, dotted."""
    return sorted(keys_of(Recipe))


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    shown = repr(override if len(override) <= _LONGEST_SHOWN else f"{override[:_LONGEST_SHOWN]}...")
    if not equals or not key:
        raise MitigateError(f"{shown}: overrides are written key=value, for instance unlearn.objective=npo")
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise MitigateError(f"{shown}: the value is not YAML ({one_line(error)})") from None
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        if isinstance(place, list) and parent.isdigit() and int(parent) <= len(place):
            if int(parent) == len(place):
                place.append({})
            place = place[int(parent)]
            continue
        if not isinstance(place, dict):
            raise MitigateError(f"{shown}: {parent!r} is not a section of the recipe")
        if not isinstance(place.get(parent), (dict, list)):
            place[parent] = {}
        place = place[parent]
    if isinstance(place, list) and last.isdigit() and int(last) <= len(place):
        place[int(last) : int(last) + 1] = [value]  # one after the last is a new one
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise MitigateError(f"{shown}: {last!r} is not a place in that list")


def _interpolate(value: Any, root: Mapping[str, Any], within: tuple[str, ...] = ()) -> Any:
    if isinstance(value, dict):
        return {key: _interpolate(item, root, within) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, root, within) for item in value]
    if isinstance(value, str):
        written = re.sub(r"\$\{([\w.]+)\}", lambda match: _lookup(match.group(1), root, within), value)
        if len(written) > _LONGEST_VALUE:
            raise MitigateError(f"a value grows beyond {_LONGEST_VALUE:,} characters by what its ${{keys}} stand for")
        return written
    return value


def _lookup(key: str, root: Mapping[str, Any], within: tuple[str, ...]) -> str:
    value: Any = root
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if not isinstance(value, (str, int, float)):
        raise MitigateError(f"${{{key}}}: no such key, or not a plain value; give {key}=... on the command line")
    if key in within:
        raise MitigateError(f"${{{key}}}: stands for itself; give {key}=... on the command line")
    return str(_interpolate(value, root, (*within, key)))
