"""What the verbs print of their results: figures, verdict and erasure requests; never text of documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mitigate.cli.options import LEAKS, is_main_process, leave_processes
from mitigate.errors import printable, summarize

if TYPE_CHECKING:
    from mitigate.verification.compare import Comparison


def print_erasure(erasure: Mapping[str, Any] | None) -> None:
    """What an erasure request selected: counts, and the documents that its secrets stand in besides; no text."""
    if erasure is None:
        return
    places = erasure["linked"]
    line = f"erasure request: {len(erasure['documents'])} documents to forget"
    if places:
        elsewhere = dict.fromkeys(place["doc_id"] for place in places)
        chosen = sum(place["selected"] for place in places)
        line += f"; their secrets stand in {len(places)} places of other documents, {chosen} selected: "
        line += summarize(elsewhere, most=20)
    typer.echo(line)


def fail_unless_clean(comparison: Comparison) -> None:
    """End with a status of its own unless the verdict is that nothing leaks.

    All processes of a job end together: a launcher kills the others when one ends so, and the first may be writing.
    """
    if comparison.report["verdict"]["leaks"] is not False:
        from mitigate.runtime import process_state

        process_state().wait_for_everyone()
        leave_processes()
        raise typer.Exit(LEAKS)


def print_summary(comparison: Comparison, out: Path) -> None:
    """The main figures before and after, the verdict, and where the report is; on the main process alone."""
    if not is_main_process():
        return
    figures = comparison.report
    before, after = figures["leakage"]["before"], figures["leakage"]["after"]

    def line(label: str, *values: float | None) -> None:
        shown = " -> ".join("not measured" if value is None else f"{value:.3f}" for value in values)
        typer.echo(f"  {label:<42}{shown}")

    typer.echo(f"{printable(figures['name'])}: {figures['selected']['spans']} spans selected")
    print_erasure(figures["erasure"])
    if figures["retrain"]:
        typer.echo(figures["retrain"]["exact"])
    line("span AUC (0.5 = as if never seen)", before["span_auc"], after["span_auc"] if after else None)
    line("secrets extracted", figures["extraction"]["before"], figures["extraction"]["after"])
    line("distance to the oracle, nats", figures["oracle_distance"]["before"], figures["oracle_distance"]["after"])
    utility = figures["utility"]
    for name, nll in {"retain": utility["retain_nll"], "holdout": utility["holdout_nll"]}.items():
        line(f"{name} loss, nats", nll["before"], nll["after"])
    if tofu := figures["tofu"]:
        names = {"forget_quality_log10": "TOFU forget quality, log10 p", "model_utility": "TOFU model utility"}
        for key, name in names.items():
            line(name, tofu[key]["before"], tofu[key]["after"])
    verdict = figures["verdict"]
    typer.echo(f"{verdict['status'].replace('_', ' ').upper()}: {verdict['headline']}")
    for sentence in verdict["sentences"]:
        typer.echo(f"  {sentence}")
    typer.echo(f"report: {out / 'report.html'}")
