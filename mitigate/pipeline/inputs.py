"""What a recipe's stages start from: its documents, its models by name, and how they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transformers import AutoConfig, PreTrainedTokenizerBase

from mitigate.detection.assessment import check_calibration
from mitigate.detection.references.crossfit import References, load_references
from mitigate.documents import Documents, read_documents
from mitigate.documents.erasure import apply_request
from mitigate.documents.sources import without_spans
from mitigate.errors import MitigateError
from mitigate.models.compatible import check_tokenizers
from mitigate.models.directory import check_layering, is_served, load_tokenizer, model_fingerprint, names_missing_base
from mitigate.models.probes import stated_limits
from mitigate.models.store import ModelStore
from mitigate.recipe.schema import Recipe
from mitigate.verification.questions.asking import Asked, read_asked
from mitigate.verification.tofu.questions import Question, read_questions


class Inputs:
    """The inputs of one recipe: the user's, or what the lab stages leave under `recipe.out`."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.out = recipe.out

    def check(self) -> None:
        """Refuse what is missing before anything is written.

        Raises:
            MitigateError: models or documents that the recipe names are not there.
        """
        models, store = self.recipe.models, self.store()
        given = load_references(self.recipe.references.given) if self.recipe.references.given else References((), ())
        for source in (models.target, models.base, models.oracle, *given.paths):
            if source is not None:
                store.check(source)
        if models.target and is_served(models.target) and self.recipe.report.extraction:
            raise MitigateError(f"{models.target}: a server, from which nothing is extracted: report.extraction: false")
        if models.target and is_served(models.target) and self.recipe.report.questions:
            raise MitigateError(f"{models.target}: a server, which is not asked: leave out report.questions")
        self._check_layering(store)
        self._check_tokenizers(given.paths, store=store)
        if self.recipe.lab is None or self.recipe.lab.people is None:
            crossfitted = self.recipe.references.count + len(given.crossfitted)
            check_calibration(self.audited, crossfitted=crossfitted, detect=self.recipe.detect)
        if self.recipe.lab is None:
            self._check_stride(store)
        _ = self.questions

    def _check_stride(self, store: ModelStore) -> None:
        """Refuse a stride that the model's own context does not hold, before references are trained."""
        detect = self.recipe.detect
        if detect.stride is None:
            return
        _, base = store.check(self.target)
        config = AutoConfig.from_pretrained(base, trust_remote_code=self.recipe.models.trust_remote_code)
        limit = min(stated_limits(config), default=None)
        if limit is not None and detect.stride >= min(limit, detect.context or limit):
            raise MitigateError(
                f"detect.stride: {detect.stride} is not less than the context of {self.target}, {limit} tokens: a next "
                "window would leave out what stands before it"
            )

    def _check_tokenizers(self, references: Sequence[str], *, store: ModelStore) -> None:
        """Refuse models that read token ids unlike each other, as far as they are there before the lab's stages."""
        recipe, models = self.recipe, self.recipe.models
        trained_on = models.base if recipe.references.count or recipe.retrain or recipe.lab else None
        named = {"base": trained_on, "oracle": models.oracle}
        others = {what: source for what, source in named.items() if source is not None}
        others |= {f"reference {number}": source for number, source in enumerate(references)}
        if first := models.target or others.get("base"):
            check_tokenizers(first, others, store=store)

    def _check_layering(self, store: ModelStore) -> None:
        """Refuse models over which what the recipe asks for cannot be trained."""
        models, unlearn, references = self.recipe.models, self.recipe.unlearn, self.recipe.references
        if models.target and unlearn is not None and unlearn.method in ("lora", "dora"):
            check_layering(models.target, base=store.base)
        if models.base and references.count:
            check_layering(models.base, whole=references.method == "full")

    @cached_property
    def documents(self) -> Documents:
        """The documents as they come: the user's, or the lab's."""
        recipe = self.recipe
        mark = recipe.forget.where if recipe.forget else None
        if recipe.lab is not None and recipe.lab.people is not None:
            return read_documents(self.lab_documents, mark=mark)
        return read_documents(
            recipe.data.documents, root=recipe.data.root, load_tokenizer=lambda: self.tokenizer, mark=mark
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What text is read with, its chat template included: the target's, or in the lab the base's."""
        source = self.target if self.recipe.lab is None else self.base
        trust = self.recipe.models.trust_remote_code
        return load_tokenizer(source, base=self._base_of_adapters, trust_remote_code=trust)

    @cached_property
    def audited(self) -> Documents:
        """The documents to audit: as they come, or with those of the erasure request as the forget set."""
        if self.recipe.forget is None:
            return self.documents
        never_trained = ("holdout",) if self.recipe.lab is None else ("holdout", None)
        return apply_request(self.documents, self.recipe.forget, never_trained=never_trained)

    @cached_property
    def anchors(self) -> Documents | None:
        """The further text that is held still, if there is any."""
        recipe = self.recipe
        if not recipe.data.anchors:
            return None
        sources = without_spans(recipe.data.anchors)
        return read_documents(sources, root=recipe.data.root, load_tokenizer=lambda: self.tokenizer)

    @cached_property
    def questions(self) -> list[Question]:
        """The TOFU benchmark's questions; none where the recipe does not ask them."""
        settings = self.recipe.report.tofu
        return read_questions(settings, root=self.recipe.data.root) if settings else []

    @cached_property
    def asked(self) -> tuple[Asked, ...]:
        """The rows of `report.questions`; none where the recipe asks none."""
        return read_asked(self.recipe.report.questions, self.audited, root=self.recipe.data.root)

    @cached_property
    def references(self) -> References:
        """Cross-fitted and given references."""
        crossfitted = [self.out / "references"] if self.recipe.references.count else []
        return load_references([*crossfitted, *self.recipe.references.given])

    @property
    def base(self) -> str:
        """The model that target and references were fine-tuned from."""
        return self.recipe.models.base or str(self.out / "lab/base")

    @property
    def target(self) -> str:
        """The leaky model."""
        return self.recipe.models.target or str(self.out / "lab/target")

    @property
    def oracle(self) -> str | None:
        """The model retrained without the forget documents, if there is one."""
        made = str(self.out / "lab/oracle") if self.recipe.lab is not None and self.recipe.lab.oracle else None
        return self.recipe.models.oracle or made

    def store(self) -> ModelStore:
        """A fresh store with the recipe's device and number format."""
        models = self.recipe.models
        return ModelStore(
            device=models.device,
            dtype=models.dtype,
            trust_remote_code=models.trust_remote_code,
            allow_pickle=models.allow_pickle,
            load_in=models.load_in,
            attention=models.attention,
            device_map=models.device_map,
            base=self._base_of_adapters,
        )

    @property
    def lab_documents(self) -> Path:
        """The lab's documents, which its first stage writes."""
        return self.out / "lab" / "data" / "documents.jsonl"

    def fingerprint(self, model: str | Path) -> str:
        """Of a model's weights and settings, with those of the base that an adapter needs."""
        return model_fingerprint(model, base=self._base_of_adapters)

    @cached_property
    def _base_of_adapters(self) -> str | None:
        """models.base, where the target is an adapter that names a base which is not there."""
        models = self.recipe.models
        return models.base if models.target and models.base and names_missing_base(models.target) else None
