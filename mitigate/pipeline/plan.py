"""What a recipe will cost on this machine, told before anything is spent: time, memory and disk of every stage.

    print(plan(load_recipe("recipes/finetuned.yaml", ["models.target=my-model", "models.base=its-base"])))

The models' own pace is measured (`mitigate.pipeline.probe`); the rest is counted: which model reads which text how
often. Nothing is written to the run's directory.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mitigate.detection.assessment import calibration_kind, compares_wholes
from mitigate.detection.references.crossfit import load_references
from mitigate.documents import Documents
from mitigate.lab.tiny import new_llama, train_tokenizer
from mitigate.models.adapters import is_adapter
from mitigate.pipeline.costs import Plan, PlannedStage
from mitigate.pipeline.inputs import Inputs
from mitigate.pipeline.lab import base_text, planted_documents
from mitigate.pipeline.probe import Probe, probe
from mitigate.recipe.schema import Recipe
from mitigate.runtime import memory_of, process_state
from mitigate.tokens.tokenization import TokenizedDocument, tokenize_documents
from mitigate.verification.compare import MOST_VALUES

EPOCHS_TO_GOAL = 6.0  # that references.schedule: auto takes: 4 are aimed at, up to 7 were seen
UNLEARNING = 1.3  # training steps' time that one of unlearning takes for as many tokens: what the model said before
_AUDIT_BYTES = 100  # a token, on disk, measured
_ENTRY_BYTES = 6  # of a kept entry of a distribution
_SHADOW_BYTES = 50  # of what is kept of a token under a shadow
_ADAM = 3  # tensors of a trained weight's size beside it: its gradient and two moments


def plan(recipe: Recipe) -> Plan:
    """Measure a model's pace on the recipe's documents, and count what its stages will do.

    Raises:
        MitigateError: models or documents that the recipe names are not there.
    """
    inputs = Inputs(recipe)
    inputs.check()
    invented = recipe.lab is not None and recipe.lab.people is not None
    documents = planted_documents(recipe) if invented else inputs.audited
    state = process_state(recipe.models.device)
    references = recipe.references
    with _model_directory(inputs) as source:
        store = inputs.store()
        model = store.load(source)
        tokenized = tokenize_documents(documents, model.tokenizer)
        found = probe(
            model,
            tokenized,
            method=references.method if references.count else "lora",
            lora=references.lora,
            batch_size=references.schedule.batch_size if references.schedule != "auto" else 8,
            batch_tokens=recipe.detect.batch_tokens,
        )
        stages = _Stages(inputs, documents, tokenized, found, processes=state.num_processes).all()
        device = store.device
    place = next(path for path in (recipe.out.absolute(), *recipe.out.absolute().parents) if path.is_dir())
    return Plan(
        documents=len(documents),
        tokens=sum(len(own.ids) for own in tokenized),
        spans=sum(len(document.spans) for document in documents),
        device=str(device),
        processes=state.num_processes,
        parameters=found.parameters,
        stages=tuple(stages),
        memory_there=memory_of(device),
        disk_there=shutil.disk_usage(place).free,
    )


@contextmanager
def _model_directory(inputs: Inputs) -> Iterator[str]:
    """The base, else the target; for a lab that makes its base, one of that shape with random weights."""
    recipe = inputs.recipe
    if recipe.lab is None or recipe.lab.base is None:
        yield recipe.models.base or inputs.target
        return
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = train_tokenizer([one.text for one in base_text(recipe)], vocabulary=recipe.lab.base.vocabulary)
        new_llama(len(tokenizer), recipe.lab.base, seed=recipe.seed).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        yield directory


class _Stages:
    """Counts what each stage of a recipe does."""

    def __init__(
        self,
        inputs: Inputs,
        documents: Documents,
        tokenized: Sequence[TokenizedDocument],
        found: Probe,
        *,
        processes: int,
    ) -> None:
        self.inputs, self.recipe, self.found, self.processes = inputs, inputs.recipe, found, processes
        self.documents = documents
        self.lengths = {own.id: len(own.ids) for own in tokenized}
        self.tokens = sum(self.lengths.values())
        crossfitted, given = self.recipe.references.count, 0
        if self.recipe.references.given:
            more = load_references(self.recipe.references.given)
            crossfitted, given = crossfitted + len(more.crossfitted), len(more.paths) - len(more.crossfitted)
        self.references, self.judging = crossfitted + given, crossfitted // 2 + given
        kind = calibration_kind(documents, crossfitted=crossfitted, detect=self.recipe.detect)
        self.models_a_token = 1 + (self.references if kind == "shadows" else self.judging)
        detect = self.recipe.detect
        self.models_again = 1 if detect.kept_entries or not compares_wholes(detect, kind) else self.models_a_token
        self.kept_bytes = _ENTRY_BYTES * detect.kept_entries
        if detect.kept_entries and kind == "shadows":
            self.kept_bytes = 2 * self.kept_bytes + _SHADOW_BYTES * crossfitted
        self.whole_models = self._whole_models()

    def all(self) -> list[PlannedStage]:
        """The stages, in the order of the run."""
        recipe = self.recipe
        stages = self._lab() if recipe.lab is not None else []
        if recipe.references.count:
            stages.append(self._fit_references())
        stages.append(self._audit())
        if recipe.unlearn is not None:
            stages.append(self._unlearn())
        if recipe.retrain is not None:
            stages.append(self._retrain())
        if recipe.unlearn is not None or recipe.retrain is not None:
            stages.append(self._reaudit())
        stages.append(self._verify())
        return stages

    # What is counted

    def _whole_models(self) -> int:
        """Models that an audit holds at once, besides adapters that share one of them."""
        recipe = self.recipe
        target_is_adapter = recipe.models.target is not None and is_adapter(recipe.models.target)
        lab_adapter = recipe.lab is not None and recipe.lab.target.method == "lora"
        own = 0 if recipe.references.count and (target_is_adapter or lab_adapter) else 1
        fitted = recipe.references.count if recipe.references.method == "full" else int(recipe.references.count > 0)
        return max(1, own + fitted + sum(not is_adapter(path) for path in recipe.references.given))

    def _of_sets(self, *sets: str | None) -> int:
        return sum(self.lengths[one.id] for one in self.documents if one.set in sets)

    def _model_bytes(self, method: str) -> int:
        return self.found.weights if method == "full" else 4 * self.found.trained

    def _training_memory(self, method: str) -> int:
        """Of one model in training, as measured; of a whole one where an adapter was, with what it needs besides."""
        measured = self.recipe.references.method if self.recipe.references.count else "lora"
        more = _ADAM * self.found.weights if method == "full" and measured != "full" else 0
        return self.found.training_peak + more

    def _trained(self, name: str, work: str, tokens: float, *, method: str, models: int = 1) -> PlannedStage:
        """Models fitted to so many tokens in all, epochs counted."""
        shared = min(self.processes, models) if models > 1 else 1  # each process trains models of its own
        disk = models * self._model_bytes(method)
        return PlannedStage(
            name, work, tokens, tokens * self.found.training / shared, self._training_memory(method), disk
        )

    def _lab(self) -> list[PlannedStage]:
        recipe, stages = self.recipe, []
        lab = recipe.lab
        assert lab is not None
        if lab.base is not None:
            text = base_text(recipe)
            each = self.tokens / max(1, sum(len(one.text) for one in self.documents))  # tokens a character
            tokens = lab.base.schedule.epochs * each * sum(len(one.text) for one in text)
            work = f"a base from scratch on {len(text):,} documents, {lab.base.schedule.epochs:g} epochs"
            stages.append(self._trained("lab.base", work, tokens, method="full"))
        for name, sets in (("target", ("forget", "retain")), *([("oracle", ("retain",))] if lab.oracle else [])):
            epochs = lab.target.schedule.epochs
            tokens = epochs * self._of_sets(*sets)
            work = f"fitted to the {' and '.join(sets)} documents, {epochs:g} epochs"
            stages.append(self._trained(f"lab.{name}", work, tokens, method=lab.target.method))
        return stages

    def _fit_references(self) -> PlannedStage:
        settings = self.recipe.references
        kind = "adapters" if settings.method == "lora" else "models"
        if settings.schedule == "auto":
            epochs = EPOCHS_TO_GOAL
            until = f"until it knows them as the target does (about {epochs:g} epochs)"
        else:
            epochs = settings.schedule.epochs
            until = f"{epochs:g} epochs"
        work = f"{settings.count} {kind}, each on half of the documents, {until}"
        tokens = settings.count * epochs * self.tokens / 2
        return self._trained("references", work, tokens, method=settings.method, models=settings.count)

    def _audit(self) -> PlannedStage:
        work = f"{self.models_a_token} of {1 + self.references} models read each token, and how well the references fit"
        tokens = self.tokens * (self.models_a_token + self.judging / 2)
        return self._scored("audit", work, tokens, kept=self.kept_bytes, alone=False)

    def _reaudit(self) -> PlannedStage:
        alone = self.models_again == 1
        read = "the new model reads each token" if alone else f"{self.models_again} models read each token"
        return self._scored("reaudit", read, float(self.tokens * self.models_again), kept=0, alone=alone)

    def _scored(self, name: str, work: str, tokens: float, *, kept: int, alone: bool) -> PlannedStage:
        """Tokens read by the target alone or beside references; `kept` bytes of these for each of the documents'."""
        memory = self.found.scoring_peak + self.tokens * kept
        if not alone:
            memory += (self.whole_models - 1) * self.found.weights + 4 * self.found.trained * self.references
        seconds = tokens * self.found.scoring / self.processes
        return PlannedStage(name, work, tokens, seconds, memory, self.tokens * (_AUDIT_BYTES + kept))

    def _unlearn(self) -> PlannedStage:
        settings = self.recipe.unlearn
        assert settings is not None
        mean = self.tokens / max(1, len(self.documents))
        step = (settings.batch_size + settings.retain_batch_size) * mean
        looks = settings.max_steps / settings.check_every * self._of_sets("forget", "holdout")
        tokens = settings.max_steps * step
        seconds = tokens * UNLEARNING * self.found.training + looks * self.found.scoring
        memory = self._training_memory("full" if settings.method == "full" else "lora")
        memory += (self.whole_models - 1) * self.found.weights
        memory += int(_ENTRY_BYTES * settings.kept_entries * self._of_sets("forget", "retain", None))
        whole = settings.method in ("full", "last_layers")
        disk = self.found.weights if whole else 4 * self.found.trained
        work = (
            f"at most {settings.max_steps} steps of {settings.batch_size} + {settings.retain_batch_size} documents a "
            f"round, {settings.rounds} rounds; the first is counted, and the control level mostly ends it sooner"
        )
        return PlannedStage(
            "unlearn", work, tokens + looks, seconds / self.processes, memory, disk * (1 if whole else 2 * _ADAM)
        )

    def _retrain(self) -> PlannedStage:
        fitting = self.recipe.retrain_as
        tokens = fitting.schedule.epochs * self._of_sets("forget", "retain", None)
        work = f"the base fitted anew without what the audit selected, {fitting.schedule.epochs:g} epochs"
        return self._trained("retrain", work, tokens, method=fitting.method)

    def _verify(self) -> PlannedStage:
        recipe = self.recipe
        sides = 1 + int(recipe.unlearn is not None or recipe.retrain is not None)
        oracle = recipe.models.oracle is not None or (recipe.lab is not None and recipe.lab.oracle)
        values = 0
        if recipe.report.extraction:
            for name in ("forget", "holdout"):
                values += min(MOST_VALUES, sum(len(one.spans) for one in self.documents if one.set == name))
        tries = values * (sides + int(oracle))
        tokens = float(self.tokens * int(oracle))
        work = f"{values:,} values tried on {sides + int(oracle)} models" if values else "figures and report"
        seconds = (tries * self.found.completing + tokens * self.found.scoring) / self.processes
        memory = self.found.scoring_peak + (sides + int(oracle) - 1) * self.found.weights
        return PlannedStage("measured", work, tokens, seconds, memory, 0)
