"""The verb `compare`: an audit and its re-audit, or two fine-tunes before one of them is released."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mitigate.cli.options import (
    Device,
    Dtype,
    FailOnLeak,
    Out,
    Pickle,
    Remote,
    ReportText,
    ShownText,
    check_free_out,
    is_main_process,
    model_store,
    quiet,
)
from mitigate.cli.results import conditions_of, end_as_leak, fail_unless_clean, print_summary
from mitigate.errors import MitigateError

if TYPE_CHECKING:
    from mitigate.verification.fine_tunes import FineTunes

_WORDS = ("leaks more", "not less")  # conditions of --fail-if


def compare(
    fine_tunes: Annotated[
        list[Path] | None,
        typer.Argument(help="Two fine-tunes, A and B: directories of their audits, or of runs.", show_default=False),
    ] = None,
    before: Annotated[
        Path | None, typer.Option(help="Instead of two fine-tunes: directory of the audit.", show_default=False)
    ] = None,
    after: Annotated[Path | None, typer.Option(help="Directory of the re-audit.", show_default=False)] = None,
    out: Out = Path("report"),
    oracle: Annotated[
        str | None, typer.Option(help="A model retrained without the forget documents, to measure the distance to.")
    ] = None,
    extraction: Annotated[bool, typer.Option(help="Try to extract the secrets from both models.")] = True,
    text: ReportText = ShownText.MASKED,
    name: Annotated[str, typer.Option(help="Title of the report.")] = "comparison",
    fail_on_leak: FailOnLeak = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            help='Of two fine-tunes: end with status 3 if it holds, such as "b.span_auc > 0.6"; may be given again. '
            "`leaks more`: B does; `not less`: it is not shown that B leaks less.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
) -> None:
    """How far the leakage fell from one audit to the next; or which of two fine-tunes leaks less.

    With --before and --after, of a model and what was made of it by unlearning: report.json and report.html.

    With two fine-tunes, such as on the text as it is and redacted, deduplicated or with differential privacy:
    comparison.json and COMPARISON.md. Audit both on the same documents, as they were before redaction, by the same
    references. --fail-on-leak then speaks of B.

    Example: mitigate compare --before audit --after reaudit --out report

    Example: mitigate compare audit-raw audit-redacted --out gate --fail-if "leaks more" --fail-if "b.extraction > 0.01"
    """
    conditions = conditions_of(fail_if, words=_WORDS, example="b.span_auc > 0.6")
    check_free_out(out)
    if fine_tunes:
        if len(fine_tunes) != 2 or before or after or oracle:
            raise MitigateError("compare: two fine-tunes, or --before and --after (and --oracle)")
    elif before is None or after is None:
        raise MitigateError("compare: give two fine-tunes A and B, or --before AUDIT and --after REAUDIT")
    elif conditions:
        raise MitigateError("--fail-if is for two fine-tunes; --before and --after have --fail-on-leak")
    quiet()
    from mitigate.detection.record import Audit

    store = model_store(None, device, dtype, trust_remote_code, allow_pickle)
    if fine_tunes:
        from mitigate.verification.fine_tunes import compare_fine_tunes

        first, second = (Audit.load(_audit_of(path)) for path in fine_tunes)
        found = compare_fine_tunes(first, second, extraction=extraction, store=store, name=name)
        if is_main_process():
            found.save(out)
            _print(found, out)
        leaks = fail_on_leak and found.record["models"]["b"]["verdict"]["leaks"] is not False
        words = dict(zip(_WORDS, (found.status == "leaks_more", found.status != "leaks_less"), strict=True))
        if leaks or any(condition.holds(found.figures, words) for condition in conditions):
            end_as_leak()
        return
    assert before is not None
    assert after is not None
    from mitigate.verification.compare import verify

    audits = Audit.load(before), Audit.load(after)
    comparison = verify(*audits, oracle=oracle, extraction=extraction, store=store, name=name, text=text.value)
    if is_main_process():
        comparison.save(out)
        print_summary(comparison, out)
    if fail_on_leak:
        fail_unless_clean(comparison)


def _audit_of(directory: Path) -> Path:
    """The audit of a run, or the directory itself."""
    return directory / "audit" if (directory / "report.json").is_file() else directory


def _print(found: FineTunes, out: Path) -> None:
    from mitigate.verification.fine_tunes import LEAKAGE, STATUS_WORDS

    def shown(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    models, width = found.record["models"], 2 + max(map(len, LEAKAGE.values()))
    typer.echo(f"{'figure':<{width}}{'A':>7}{'B':>8}{'B less A':>26}")
    for key, words in LEAKAGE.items():
        one = found.record["differences"][key]
        difference = shown(one["value"], "+.3f")
        if one["interval"]:
            difference += f" ({one['interval'][0]:+.3f}, {one['interval'][1]:+.3f})"
        own = "".join(f"{shown(models[name][key]):>8}" for name in models)
        typer.echo(f"{words:<{width - 1}}{own}{difference:>26}  {one['state'].replace('_', ' ')}")
    losses = "".join(f"{shown(models[name]['holdout_nll']):>8}" for name in models)
    rise = shown(found.record["cost"]["holdout_nll"], "+.3f")
    typer.echo(f"{'loss on never-seen documents':<{width - 1}}{losses}{rise:>26}")
    typer.echo(f"{STATUS_WORDS[found.status]}: {' '.join(found.record['sentences'])}")
    for note in found.record["notes"]:
        typer.echo(f"  {note}")
    typer.echo(f"comparison: {out / 'COMPARISON.md'}")
