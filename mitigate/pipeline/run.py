"""Run a recipe, stage by stage: [lab ->] references -> audit -> unlearn -> re-audit -> verify -> [tofu ->] report.

In the place of `unlearn` stands `retrain` where the recipe asks for it.

Every stage leaves an artifact under `out/` and is known by a fingerprint of its settings and inputs. A stage whose
fingerprint is unchanged is skipped; an interrupted run goes on where it stopped.

    out/lab/{documents.jsonl,base,target,oracle}   references/   audit/   adapter/ or retrained/   reaudit/   verify/
    out/tofu/   out/report.json   out/report.html   out/run.json (the recipe, and what each stage was made from)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mitigate.artifacts.files import new_directory, read_json, read_table, write_json, write_table
from mitigate.artifacts.locks import sole_worker
from mitigate.artifacts.temporaries import discard
from mitigate.detection.audit import audit, reaudit
from mitigate.detection.doubts import doubts_of
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import crossfit_references
from mitigate.documents import Documents, read_documents
from mitigate.errors import DoubtfulError, NothingToUnlearnError
from mitigate.lab.carriers import plant_in_text
from mitigate.lab.people import general_text, plant, write_jsonl
from mitigate.lab.tiny import make_base
from mitigate.models.directory import model_fingerprint
from mitigate.models.training import fine_tune
from mitigate.pipeline.inputs import Inputs
from mitigate.pipeline.stages import RESULTS, Stages, check_run_directory, damaged_results, note_results
from mitigate.recipe.schema import Recipe
from mitigate.retraining.retrain import retrain
from mitigate.runtime import process_state, together
from mitigate.unlearning.trainer import unlearn
from mitigate.verification.compare import Comparison, compare, measure
from mitigate.verification.extraction import SCHEMA as EXTRACTION_SCHEMA
from mitigate.verification.extraction import Extraction
from mitigate.verification.tofu.answers import ask
from mitigate.verification.tofu.figures import tofu_figures
from mitigate.verification.tofu.questions import Tofu, unfamiliar

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
        self.make_documents()
        self.make_models()
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
        tofu = self.tofu(mitigated)
        return self.report(
            before, after, tofu=tofu, notes=notes + unfamiliar(self.inputs.questions, self.inputs.audited)
        )

    # --- stages -------------------------------------------------------------------------------------------------------

    def make_documents(self) -> None:
        """Lab: write the documents with planted secrets."""
        lab = self.recipe.lab
        if lab is None or lab.people is None:
            return
        people = lab.people

        def make() -> None:
            seed = self.recipe.seed
            planting = plant(seed=seed, people_per_count=people.copies, forget_share=people.forget_share)
            documents = planting.documents
            if people.carriers:
                carriers = read_documents(people.carriers, root=self.recipe.data.root)
                documents = plant_in_text(planting, carriers, seed=seed)
            with new_directory(self.inputs.lab_documents.parent, replace=True) as directory:
                write_jsonl(documents, directory / self.inputs.lab_documents.name)

        inputs = {"lab.people": people.model_dump(), "seed": self.recipe.seed}
        self.stages.run("lab.documents", inputs, make, self.inputs.lab_documents)

    def make_models(self) -> None:
        """Lab: train the base from scratch, the target and the oracle; then the cross-fitted references.

        Target and references are trained on the documents as they come, so another erasure request leaves them as they
        are; the oracle is trained on what is left to retain when the request's documents are gone.
        """
        recipe, lab = self.recipe, self.recipe.lab
        audited = self.inputs.audited  # before the training: a request may select nothing
        if lab is not None:
            if lab.base is not None:
                text = (
                    read_documents(lab.base_text, root=recipe.data.root).items
                    if lab.base_text
                    else tuple(general_text(lab.base_documents, seed=recipe.seed))
                )
                shape = lab.base
                self.stages.run(
                    "lab.base",
                    {"lab.base": shape.model_dump(), "text": Documents(text).fingerprint, "seed": recipe.seed},
                    lambda: make_base(
                        text, out=self.out / "lab/base", shape=shape, seed=recipe.seed, device=recipe.models.device
                    ),
                    self.out / "lab/base",
                )
            trained = {"target": self.inputs.documents.subset(["forget", "retain"])}
            trained |= {"oracle": audited.subset("retain")} if lab.oracle else {}
            for name, chosen in trained.items():
                self.stages.run(
                    f"lab.{name}",
                    {
                        "lab.target": lab.target.model_dump(),
                        "base": model_fingerprint(self.inputs.base),
                        "documents": chosen.fingerprint,
                        "seed": recipe.seed,
                    },
                    lambda name=name, chosen=chosen: fine_tune(  # type: ignore[misc]
                        self.inputs.base,
                        chosen,
                        out=self.out / "lab" / name,
                        method=lab.target.method,
                        lora=lab.target.lora,
                        schedule=lab.target.schedule,
                        seed=recipe.seed,
                        description=f"Lab: {name}",
                        store=self.inputs.store(),
                    ),
                    self.out / "lab" / name,
                )
        if recipe.references.count:
            settings = recipe.references
            self.stages.run(
                "references",
                {
                    "references": settings.model_dump(exclude={"given"}),
                    "base": model_fingerprint(self.inputs.base),
                    "documents": self.inputs.documents.fingerprint,
                    "seed": recipe.seed,
                },
                lambda: crossfit_references(
                    self.inputs.base,
                    self.inputs.documents,
                    out=self.out / "references",
                    count=settings.count,
                    method=settings.method,
                    lora=settings.lora,
                    schedule=settings.schedule,
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

    def tofu(self, mitigated: Path | None) -> dict[str, Any] | None:
        """Ask the models the TOFU benchmark's questions: one table each. None where the recipe does not ask."""
        settings = self.recipe.report.tofu
        if settings is None:
            return None
        models = {"before": self.inputs.target, "after": mitigated, "oracle": self.inputs.oracle}
        return tofu_figures(
            {side: self._ask(settings, side, model) if model is not None else None for side, model in models.items()}
        )

    def _ask(self, settings: Tofu, side: str, model: str | Path) -> pa.Table:
        path = self.out / "tofu" / f"{side}.parquet"

        def make() -> None:
            table = ask(
                self.inputs.store().load(model), self.inputs.questions, settings=settings, description=f"TOFU {side}"
            )
            if self.state.is_main_process:
                write_table(path, table)

        inputs = {
            "report.tofu": settings.model_dump(),
            "questions": [asdict(question) for question in self.inputs.questions],
            "model": self.inputs.fingerprint(model),
        }
        self.stages.run(f"tofu.{side}", inputs, make, path, every_process=True)
        return read_table(path)

    def report(
        self,
        before: Audit,
        after: Audit | None,
        *,
        tofu: dict[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> Comparison:
        """Measure the oracle and extraction, compare, and write report.json and report.html."""
        recipe, path = self.recipe, self.out / "verify"

        def make() -> None:
            oracle, extraction = measure(
                before, after, oracle=self.inputs.oracle, extraction=recipe.report.extraction, store=self.inputs.store()
            )
            if self.state.is_main_process:
                with new_directory(path, replace=True) as directory:
                    if extraction is not None:
                        write_json(directory / "extraction.json", extraction.as_json())
                    if oracle is not None:
                        write_table(directory / "oracle.parquet", pa.table({"log_prob": oracle}))

        inputs = {
            "audit": before.fingerprint,
            "re-audit": after.fingerprint if after is not None else None,
            "oracle": self.inputs.fingerprint(self.inputs.oracle) if self.inputs.oracle else None,
            "report.extraction": recipe.report.extraction,
            "extraction": EXTRACTION_SCHEMA,  # a new version's figures are others: run the stage again
        }
        self.stages.run("verify", inputs, make, path, every_process=True)
        extraction_file = path / "extraction.json"
        extraction = (
            Extraction.from_json(read_json(extraction_file), where=str(extraction_file))
            if extraction_file.is_file()
            else None
        )
        oracle_file = path / "oracle.parquet"
        oracle: np.ndarray | None = read_table(oracle_file)["log_prob"].to_numpy() if oracle_file.is_file() else None
        started = time.monotonic()
        comparison = compare(
            before,
            after,
            oracle_log_probs=oracle,
            extraction=extraction,
            tofu=tofu,
            name=recipe.name,
            recipe=recipe.model_dump(mode="json"),
            seconds=self.stages.seconds(),
            text=recipe.report.text,
        )
        if self.state.is_main_process:
            comparison.report["notes"] = [*notes, *comparison.report["notes"]]
            comparison.report["seconds"]["report"] = round(time.monotonic() - started, 1)
            for line in damaged_results(self.out):
                logger.warning("report: %s; made again", line)
            comparison.save_into(self.out)
            note_results(self.out, RESULTS)
        return comparison
