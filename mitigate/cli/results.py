"""What the verbs print of their results, never text of documents, and the conditions under which they end as a leak."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from mitigate.cli.options import LEAKS, is_main_process, leave_processes
from mitigate.errors import MitigateError, printable, summarize

if TYPE_CHECKING:
    from mitigate.verification.compare import Comparison

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
}
_CONDITION = re.compile(r"\s*([\w.]+)\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


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
    """End with a status of its own unless the verdict is that nothing leaks."""
    if comparison.report["verdict"]["leaks"] is not False:
        end_as_leak()


def end_as_leak() -> NoReturn:
    """End with the status of a leak.

    All processes of a job end together: a launcher kills the others when one ends so, and the first may be writing.
    """
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


@dataclass(frozen=True)
class FailIf:
    """A figure held against a number, or a word that says something of the result (`comparison` is empty then)."""

    name: str
    comparison: str = ""
    limit: float = 0.0

    def holds(self, figures: Mapping[str, float], words: Mapping[str, bool]) -> bool:
        """Whether it does.

        Raises:
            MitigateError: no such figure was measured, of which nothing can be said then.
        """
        if not self.comparison:
            return words[self.name]
        if self.name not in figures:
            raise MitigateError(
                f"--fail-if: no figure {self.name!r} was measured here, so nothing is said of it; there are: "
                f"{summarize(figures, most=60)}"
            )
        return _COMPARISONS[self.comparison](figures[self.name], self.limit)


def conditions_of(given: list[str] | None, *, words: Collection[str], example: str) -> list[FailIf]:
    """The conditions that were given.

    Args:
        given: as they are written.
        words: that may stand alone.
        example: of a condition, for the message.

    Raises:
        MitigateError: one is no condition.
    """
    return [_condition(text, words, example) for text in given or []]


def _condition(text: str, words: Collection[str], example: str) -> FailIf:
    if text.strip() in words:
        return FailIf(text.strip())
    found = _CONDITION.fullmatch(text)
    try:
        if found is not None:
            return FailIf(found[1], found[2], float(found[3]))
    except ValueError:
        pass
    raise MitigateError(
        f'--fail-if {text!r}: written NAME > NUMBER (or <, <=, >=), such as "{example}", or {", or ".join(words)}'
    )
