"""Run a recipe, stage by stage: [lab ->] references -> audit -> unlearn -> re-audit -> verify -> report.

In the place of `unlearn` stands `retrain` where the recipe asks for it.

Every stage leaves an artifact under `out/` and is known by a fingerprint of its settings and inputs. A stage whose
fingerprint is unchanged is skipped; an interrupted run goes on where it stopped.

    out/lab/{documents.jsonl,base,target,oracle}   references/   audit/   adapter/ or retrained/   reaudit/   measured/
    out/tofu/   out/questions/   out/report.json   out/report.html
    out/run.json (the recipe, and what each stage was made from)
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path

from mitigate.artifacts.locks import sole_worker
from mitigate.artifacts.temporaries import discard
from mitigate.detection.audit import audit, reaudit
from mitigate.detection.doubts import doubts_of
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import crossfit_references
from mitigate.documents import read_documents
from mitigate.errors import DoubtfulError, NothingToUnlearnError
from mitigate.models.directory import model_fingerprint
from mitigate.pipeline.inputs import Inputs
from mitigate.pipeline.lab import make_documents, make_models
from mitigate.pipeline.proof import ask_questions, ask_tofu, write_report
from mitigate.pipeline.stages import Stages, check_run_directory
from mitigate.recipe.schema import Recipe
from mitigate.retraining.retrain import retrain
from mitigate.runtime import process_state, together
from mitigate.unlearning.trainer import unlearn
from mitigate.verification.compare import Comparison
from mitigate.verification.tofu.questions import unfamiliar

logger = logging.getLogger(__name__)


def run(recipe: Recipe, *, replace: bool = False, yes: bool = False) -> Comparison:
    """Run a recipe and write its report.

    Args:
        recipe: what to do; see `load_recipe`.
        replace (`bool`, *optional*, defaults to `False`): empty `recipe.out` first.
        yes (`bool`, *optional*, defaults to `False`): unlearn what is selected also where that is doubtful.

    Returns:
        the comparison of the audit with the re-audit, as saved under `recipe.out`.

    Raises:
        DoubtfulError: the audit of the user's model is doubtful (see `doubts_of`), and nothing was unlearned yet.
        MitigateError: bad input, or `recipe.out` holds another run.
    """
    return Pipeline(recipe, replace=replace, yes=yes).run()


class Pipeline:
    """The stages of one recipe and the directory they write to."""

    def __init__(self, recipe: Recipe, *, replace: bool = False, yes: bool = False) -> None:
        self.recipe, self.replace = recipe, replace
        self.yes = yes or recipe.lab is not None  # nobody has what the lab makes, and its truth is known
        self.out = recipe.out
        self.state = process_state(recipe.models.device)
        self.inputs = Inputs(recipe)
        self.inputs.check()

    def run(self) -> Comparison:
        """All stages that are not done yet, then the report.

        Raises:
            MitigateError: another process works in the directory.
        """
        with together(self.state):
            if self.state.is_main_process:
                check_run_directory(self.out, replace=self.replace)
        with sole_worker(self.out, self.state, option="out="):
            return self._run()

    @cached_property
    def stages(self) -> Stages:
        """The directory and what is done there; opened at the first use, which writes to it."""
        recipe = self.recipe.model_dump(mode="json")
        return Stages(self.out, recipe, state=self.state, replace=self.replace)

    def _run(self) -> Comparison:
        _ = self.stages
        make_documents(self.inputs, self.stages)
        _ = self.inputs.audited, self.inputs.asked  # before any training: a request may select nothing
        make_models(self.inputs, self.stages)
        self.make_references()
        before = self.audit()
        after, mitigated, notes = None, None, []
        if self.recipe.unlearn is not None or self.recipe.retrain is not None:
            if not self.yes and (doubts := doubts_of(before)):
                raise DoubtfulError(doubts)
            try:
                mitigated = self.unlearn(before) if self.recipe.unlearn is not None else self.retrain(before)
                after = self.reaudit(before, mitigated)
            except NothingToUnlearnError as nothing:
                logger.warning("nothing was unlearned: %s", nothing)
                if self.state.is_main_process:  # of an earlier run with other settings
                    discard(self.out / "reaudit")
                notes.append(f"Nothing was unlearned: {nothing}.")
        tofu = ask_tofu(self.inputs, self.stages, mitigated)
        answers = ask_questions(self.inputs, self.stages, mitigated)
        notes += unfamiliar(self.inputs.questions, self.inputs.audited)
        return write_report(self.inputs, self.stages, before, after, tofu=tofu, answers=answers, notes=notes)

    # --- stages -------------------------------------------------------------------------------------------------------

    def make_references(self) -> None:
        """The cross-fitted references; trained on the documents as they come, so they outlive an erasure request."""
        recipe, settings = self.recipe, self.recipe.references
        if not settings.count:
            return
        self.stages.run(
            "references",
            {
                "references": settings.model_dump(exclude={"given"}),
                "base": model_fingerprint(self.inputs.base),
                "documents": self.inputs.documents.fingerprint,
                "seed": recipe.seed,
                **({"target": self.inputs.fingerprint(self.inputs.target)} if settings.schedule == "auto" else {}),
            },
            lambda: crossfit_references(
                self.inputs.base,
                self.inputs.documents,
                out=self.out / "references",
                count=settings.count,
                method=settings.method,
                lora=settings.lora,
                schedule=settings.schedule,
                target=self.inputs.target,
                seed=recipe.seed,
                new_store=self.inputs.store,
            ),
            self.out / "references",
            every_process=True,
            resumable=True,
        )

    def audit(self) -> Audit:
        """Score every token and find the memorized spans."""
        recipe = self.recipe
        path = self.out / "audit"

        def make() -> None:
            result = audit(
                self.inputs.target,
                self.inputs.references,
                documents=self.inputs.audited,
                detect=recipe.detect,
                store=self.inputs.store(),
                seed=recipe.seed,
            )
            if self.state.is_main_process:
                result.save(path, replace=True)

        references = [self.inputs.fingerprint(reference) for reference in self.inputs.references.paths]
        inputs = {
            "detect": recipe.detect.model_dump(),
            "target": self.inputs.fingerprint(self.inputs.target),
            "references": references,
            "documents": self.inputs.audited.fingerprint,
            "forget": recipe.forget.model_dump() if recipe.forget else None,
            "seed": recipe.seed,
        }
        self.stages.run("audit", inputs, make, path, every_process=True)
        return Audit.load(path)

    def unlearn(self, before: Audit) -> Path:
        """Train the adapter that forgets the selected tokens; returns its directory."""
        recipe, path = self.recipe, self.out / "adapter"
        assert recipe.unlearn is not None
        anchors = self.inputs.anchors

        def make() -> None:
            unlearn(
                before, out=path, retain=anchors, settings=recipe.unlearn, store=self.inputs.store(), seed=recipe.seed
            )

        inputs = {
            "unlearn": recipe.unlearn.model_dump(),
            "audit": before.fingerprint,
            "anchors": anchors.fingerprint if anchors is not None else None,
            "seed": recipe.seed,
        }
        self.stages.run("unlearn", inputs, make, path, every_process=True)
        return path

    def retrain(self, before: Audit) -> Path:
        """Fit the model anew without what the audit selected; returns its directory.

        The directory outlives another request: shards without changes are kept, and what was removed stays removed.
        """
        recipe, path = self.recipe, self.out / "retrained"
        assert recipe.retrain is not None
        settings, fitting = recipe.retrain, recipe.retrain_as
        tokenizer = self.inputs.tokenizer
        more = read_documents(settings.documents, root=recipe.data.root, tokenizer=tokenizer)

        def make() -> None:
            retrain(
                before,
                base=self.inputs.base,
                out=path,
                redact=settings.redact,
                documents=more,
                copies=settings.copies,
                method=fitting.method,
                lora=fitting.lora,
                schedule=fitting.schedule,
                shards=settings.shards,
                combine=settings.combine,
                seed=recipe.seed,
                new_store=self.inputs.store,
            )

        inputs = {
            "retrain": settings.model_dump(),
            "fitting": fitting.model_dump(),
            "audit": before.fingerprint,
            "documents": more.fingerprint,
            "base": model_fingerprint(self.inputs.base),
            "seed": recipe.seed,
        }
        self.stages.run("retrain", inputs, make, path, every_process=True, outlives=True)
        return path

    def reaudit(self, before: Audit, mitigated: Path) -> Audit:
        """Audit the mitigated model as the leaky one was audited."""
        path = self.out / "reaudit"

        def make() -> None:
            result = reaudit(before, mitigated, store=self.inputs.store())
            if self.state.is_main_process:
                result.save(path, replace=True)

        inputs = {"audit": before.fingerprint, "mitigated model": self.inputs.fingerprint(mitigated)}
        self.stages.run("reaudit", inputs, make, path, every_process=True)
        return Audit.load(path)
