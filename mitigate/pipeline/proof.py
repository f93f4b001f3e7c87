"""The last stages of a run: the benchmark's questions, what the oracle and extraction say, and the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mitigate.artifacts.files import new_directory, read_json, read_table, write_json, write_table
from mitigate.detection.record import Audit
from mitigate.pipeline.inputs import Inputs
from mitigate.pipeline.stages import RESULTS, Stages, damaged_results, note_results
from mitigate.verification.compare import Comparison, compare, measure
from mitigate.verification.extraction import SCHEMA as EXTRACTION_SCHEMA
from mitigate.verification.extraction import Extraction
from mitigate.verification.figures import View
from mitigate.verification.questions.asking import ask
from mitigate.verification.questions.figures import question_figures
from mitigate.verification.tofu.answers import ask as ask_tofu_questions
from mitigate.verification.tofu.figures import tofu_figures
from mitigate.verification.tofu.settings import Tofu

logger = logging.getLogger(__name__)


def ask_tofu(inputs: Inputs, stages: Stages, mitigated: Path | None) -> dict[str, Any] | None:
    """Ask the models the TOFU benchmark's questions: one table each. None where the recipe does not ask."""
    settings = inputs.recipe.report.tofu
    if settings is None:
        return None
    models = {"before": inputs.target, "after": mitigated, "oracle": inputs.oracle}
    return tofu_figures(
        {
            side: _ask(inputs, stages, settings, side, model) if model is not None else None
            for side, model in models.items()
        }
    )


def ask_questions(inputs: Inputs, stages: Stages, mitigated: Path | None) -> dict[str, pa.Table | None]:
    """Ask the models the recipe's own questions: one table each; empty where the recipe asks none."""
    parts = inputs.recipe.report.questions
    if not parts:
        return {}
    models = {"before": inputs.target, "after": mitigated, "oracle": inputs.oracle}
    return {
        side: _answers(inputs, stages, side, model) if model is not None else None for side, model in models.items()
    }


def write_report(
    inputs: Inputs,
    stages: Stages,
    before: Audit,
    after: Audit | None,
    *,
    tofu: Mapping[str, Any] | None,
    answers: Mapping[str, pa.Table | None],
    notes: Sequence[str],
) -> Comparison:
    """Measure the oracle and extraction, compare, and write report.json and report.html.

    Args:
        inputs, stages: of the run.
        before, after: the audit and the re-audit.
        tofu: the figures of the TOFU benchmark, where the recipe asks for them.
        answers: to the recipe's own questions, of `ask_questions`.
        notes: what the run has to say, before what the comparison says.
    """
    recipe, out = inputs.recipe, inputs.out
    oracle, extraction = _measured(inputs, stages, before, after)
    started = time.monotonic()
    losses = {
        "before": before.columns["log_prob"],
        "after": after.columns["log_prob"] if after is not None else None,
        "oracle": oracle,
    }
    comparison = compare(
        before,
        after,
        oracle_log_probs=oracle,
        extraction=extraction,
        tofu=tofu,
        questions=question_figures(inputs.asked, answers, View(before), losses) if answers else None,
        name=recipe.name,
        recipe=recipe.model_dump(mode="json"),
        seconds=stages.seconds(),
        text=recipe.report.text,
        warnings=notes,
    )
    if stages.state.is_main_process:
        comparison.report["seconds"]["report"] = round(time.monotonic() - started, 1)
        for line in damaged_results(out):
            logger.warning("report: %s; made again", line)
        comparison.save_into(out)
        note_results(out, RESULTS)
    return comparison


def _ask(inputs: Inputs, stages: Stages, settings: Tofu, side: str, model: str | Path) -> pa.Table:
    path = inputs.out / "tofu" / f"{side}.parquet"

    def make() -> None:
        table = ask_tofu_questions(
            inputs.store().load(model), inputs.questions, settings=settings, description=f"TOFU {side}"
        )
        if stages.state.is_main_process:
            write_table(path, table)

    made_from = {
        "report.tofu": settings.model_dump(),
        "questions": [asdict(question) for question in inputs.questions],
        "model": inputs.fingerprint(model),
    }
    stages.run(f"tofu.{side}", made_from, make, path, every_process=True)
    return read_table(path)


def _answers(inputs: Inputs, stages: Stages, side: str, model: str | Path) -> pa.Table:
    path, parts = inputs.out / "questions" / f"{side}.parquet", inputs.recipe.report.questions

    def make() -> None:
        table = ask(inputs.store().load(model), inputs.asked, parts, description=f"Questions {side}")
        if stages.state.is_main_process:
            write_table(path, table)

    made_from = {
        "report.questions": {name: part.model_dump(mode="json") for name, part in parts.items()},
        "rows": [[one.id, one.set, one.text] for part in inputs.asked for one in part.documents],
        "model": inputs.fingerprint(model),
    }
    stages.run(f"questions.{side}", made_from, make, path, every_process=True)
    return read_table(path)


def _measured(
    inputs: Inputs, stages: Stages, before: Audit, after: Audit | None
) -> tuple[np.ndarray | None, Extraction | None]:
    """The oracle's log-probabilities, and what extraction found."""
    recipe, path = inputs.recipe, inputs.out / "measured"

    def make() -> None:
        oracle, extraction = measure(
            before, after, oracle=inputs.oracle, extraction=recipe.report.extraction, store=inputs.store()
        )
        if stages.state.is_main_process:
            with new_directory(path, replace=True) as directory:
                if extraction is not None:
                    write_json(directory / "extraction.json", extraction.as_json())
                if oracle is not None:
                    write_table(directory / "oracle.parquet", pa.table({"log_prob": oracle}))

    made_from = {
        "audit": before.fingerprint,
        "re-audit": after.fingerprint if after is not None else None,
        "oracle": inputs.fingerprint(inputs.oracle) if inputs.oracle else None,
        "report.extraction": recipe.report.extraction,
        "extraction": EXTRACTION_SCHEMA,  # a new version's figures are others: run the stage again
    }
    stages.run("measured", made_from, make, path, every_process=True)
    extraction_file = path / "extraction.json"
    extraction = (
        Extraction.from_json(read_json(extraction_file), where=str(extraction_file))
        if extraction_file.is_file()
        else None
    )
    oracle_file = path / "oracle.parquet"
    oracle: np.ndarray | None = read_table(oracle_file)["log_prob"].to_numpy() if oracle_file.is_file() else None
    return oracle, extraction
