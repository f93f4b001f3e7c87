"""The verb `verify`: attacks on a mitigated model, the evidence of what held, and whether that is still as written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mitigate.cli.options import (
    BaseModelPath,
    Device,
    Dtype,
    Pickle,
    Remote,
    Seed,
    Set,
    is_main_process,
    model_store,
    quiet,
    settings_from,
)
from mitigate.cli.results import conditions_of, end_as_leak
from mitigate.errors import MitigateError, printable

if TYPE_CHECKING:
    from mitigate.models.store import ModelStore
    from mitigate.proof.evidence import Evidence

_WORDS = ("fell", "not withstood")  # conditions of --fail-if


def verify(
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Directory of a finished `mitigate run`: its audit, its adapter, its oracle."),
    ] = None,
    audit: Annotated[Path | None, typer.Option(help="Instead of --run: the audit of the model as it was.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Instead of --run: the mitigated model.", show_default=False)
    ] = None,
    oracle: Annotated[
        str | None,
        typer.Option(
            help="The control: a model trained without what was forgotten. Default: the run's, else a reference.",
            show_default=False,
        ),
    ] = None,
    judges: Annotated[
        str | None,
        typer.Option(
            help="References that judge in the place of the audit's: of `mitigate references --judges`.",
            show_default="the audit's, those that did not teach",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Directory of the evidence; what is in it already is kept.",
            show_default="RUN/verify, or evidence",
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            help="Make sure that evidence is as it was written, and follows from its readings. With the models at hand "
            "(--run, or --audit and --model) also make every attack again.",
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            help='End with status 3 if it holds, such as "judges.tpr_at_1pct_fpr > 0.03"; may be given again. '
            "`fell`: the model fell; `not withstood`: it did not withstand everything.",
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            "--sign",
            help="Sign the evidence with this SSH key (OpenSSH); with --check, once it was found to be right.",
            show_default=False,
        ),
    ] = None,
    signers: Annotated[
        Path | None,
        typer.Option(
            "--signers",
            help="With --check: who may have signed it, lines of NAME and a public key; no other signature passes.",
            show_default=False,
        ),
    ] = None,
    request: Annotated[
        list[str] | None,
        typer.Option(help="What EVIDENCE.md says of the request: key=value, such as reference=R-17; may be repeated."),
    ] = None,
    settings: Set = None,
    base: BaseModelPath = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    allow_pickle: Pickle = False,
    seed: Seed = 0,
) -> None:
    """Attack a mitigated model, each attack beside the same one on a control, and write the evidence.

    Judges that unlearning did not use, the rank among other people's values, classifiers of all that the model says,
    middle layers; weights rounded as they are served; relearning from four kinds of text; extraction from seven kinds
    of prompt and your own, and by drawing; and what both checkpoints together give away. OUT/EVIDENCE.md says what was
    asked, done, tested and not tested, and what remains; evidence.json has the figures. An interrupted verification
    goes on with the next attack. --set takes attacks, margin, relearn.*, lora.*, plain (a file of text about nobody),
    prompts (a file of rows with prompt and value), samples, twins, short_prefix, continued_tokens and most_values;
    and tasks of lm-eval, where that is installed (task_files, task_limit).

    Example: mitigate verify --run runs/mine --request reference=R-17 --request due=2026-12-31

    Example: mitigate verify --audit audit --model adapter --set attacks=[judges,nf4,relearn_forgotten] --out evidence

    Example: mitigate verify --run runs/mine --judges judges

    Example: mitigate verify --run runs/mine --set prompts=questions.jsonl --set samples=1000

    Example: mitigate verify --run runs/mine --fail-if "fell" --fail-if "true_prefix.gap > 0.05"

    Example: mitigate verify --check runs/mine/verify

    Example: mitigate verify --check evidence --audit audit --model adapter --oracle retrained

    Example: mitigate verify --check evidence --sign ~/.ssh/id_ed25519

    Example: mitigate verify --check evidence --signers officers.txt
    """
    from mitigate.artifacts.signatures import check_key
    from mitigate.proof.settings import Proof

    conditions = conditions_of(fail_if, words=_WORDS, example="judges.gap > 0.05")
    if sign is not None:
        check_key(sign)
    if check is not None:
        if settings or request or out:
            raise MitigateError(
                "--check: settings and request are those of the evidence; leave --set, --request, --out"
            )
        given = (base, device, dtype, trust_remote_code, allow_pickle)
        models = _models(run, audit, model, oracle, judges, options=given) if run or audit or model else None
        evidence = _checked(check, models)
        _tell_signer(check, signers)
    else:
        if signers is not None:
            raise MitigateError("--signers: goes with --check; to sign what is made now, --sign KEY")
        proof = settings_from(Proof, settings)
        pairs = _pairs(request)
        models = _models(
            run, audit, model, oracle, judges, options=(base, device, dtype, trust_remote_code, allow_pickle)
        )
        from mitigate.proof.prove import prove

        out = out or (run / "verify" if run is not None else Path("evidence"))
        evidence = prove(
            models.audit,
            models.model,
            out=out,
            oracle=models.oracle,
            judges=models.judges,
            settings=proof,
            store=models.store,
            request=pairs,
            name=models.name,
            seed=seed,
        )
        if is_main_process():
            _print(evidence, out)
    if sign is not None and is_main_process():
        from mitigate.proof.evidence import sign_evidence

        typer.echo(f"signature: {sign_evidence(check or out or Path('evidence'), sign)}")
    fell = evidence.status in ("fell", "over_forgotten")
    words = dict(zip(_WORDS, (fell, evidence.status != "withstood"), strict=True))
    if any(condition.holds(evidence.figures, words) for condition in conditions):
        end_as_leak()


def _checked(directory: Path, models: _Models | None) -> Evidence:
    from mitigate.proof.evidence import Evidence, check_evidence

    if models is None:
        wrong, what = check_evidence(directory), "every figure follows from the readings"
    else:
        from mitigate.proof.again import check_again

        wrong = check_again(
            directory, models.audit, models.model, oracle=models.oracle, judges=models.judges, store=models.store
        )
        what = "every attack reads the same again"
    if wrong:
        raise MitigateError("\n  ".join([f"{directory}: is not evidence as it was written:", *wrong]))
    evidence = Evidence.load(directory)
    if is_main_process():
        typer.echo(f"{directory}: as it was written, and {what}: {evidence.status}")
    return evidence


def _tell_signer(directory: Path, signers: Path | None) -> None:
    """Who signed it; an error where somebody must have and nobody did."""
    from mitigate.proof.evidence import is_signed, signer_of_evidence

    if not is_main_process():
        return
    if signers is not None:
        typer.echo(f"{directory}: signed by {printable(signer_of_evidence(directory, signers))}")
    elif is_signed(directory):
        typer.echo(f"{directory}: there is a signature, which was not looked at: --signers FILE tells whose it is")


@dataclass(frozen=True)
class _Models:
    """What is attacked, by whom it is judged, and who loads it."""

    audit: Path
    model: str
    oracle: str | None
    judges: str | None
    name: str
    store: ModelStore


def _models(
    run: Path | None,
    audit: Path | None,
    model: str | None,
    oracle: str | None,
    judges: str | None,
    *,
    options: tuple[Any, ...],
) -> _Models:
    if (run is None) == (audit is None and model is None) or (run is None and not (audit and model)):
        raise MitigateError("give --run DIR of a finished run, or --audit DIR and --model DIR")
    quiet()
    base, *rest = options
    name = ""
    if run is not None:
        audit, model, found_oracle, found_base, name = _of_run(run)
        oracle, base = oracle or found_oracle, base or found_base
    assert audit is not None
    assert model is not None
    return _Models(audit, model, oracle, judges, name, model_store(base, *rest))


def _of_run(run: Path) -> tuple[Path, str, str | None, str | None, str]:
    """A run's audit, mitigated model, oracle, base of adapters, and name."""
    from mitigate.models.directory import names_missing_base
    from mitigate.reporting.content import read_report

    mitigated = [run / name for name in ("adapter", "retrained") if (run / name).is_dir()]
    if not (run / "report.json").is_file() or not (run / "audit").is_dir() or not mitigated:
        raise MitigateError(f"{run}: no finished run that unlearned or retrained (audit/, adapter/, report.json)")
    report = read_report(run / "report.json")
    models = report["recipe"].get("models", {})
    made = run / "lab" / "oracle"
    oracle = models.get("oracle") or (str(made) if made.is_dir() else None)
    target = models.get("target")
    base = models.get("base") if target and names_missing_base(target) else None
    return run / "audit", str(mitigated[0]), oracle, base, report["name"]


def _print(evidence: Evidence, out: Path) -> None:
    from mitigate.proof.battery import ATTACKS
    from mitigate.proof.certificate import said_by_kind

    width = 2 + max([len("attack"), *(len(_title(one)) for one in evidence.record["findings"])])
    typer.echo(f"{'attack':<{width}}{'model':>8}{'control':>9}{'gap':>26}")
    for one in evidence.record["findings"]:
        attack = ATTACKS[one["attack"]]
        value, control, gap = ("-" if one[key] is None else f"{one[key]:.3f}" for key in ("value", "control", "gap"))
        if interval := one["gap_interval"]:
            gap = f"{one['gap']:+.3f} ({interval[0]:+.3f}, {interval[1]:+.3f})"
        state = one["state"].replace("_", " ") if attack.scope == "model" else "needs the model before"
        if attack.scope == "model" and one["people_needed"] is not None:
            state += f": {one['people_needed']['forgotten']:,} people would, about"
        typer.echo(f"{_title(one):<{width}}{value:>8}{control:>9}{gap:>26}  {state}")
        if one["state"] in ("fell", "over_forgotten") and one["kinds"] and attack.scope == "model":
            typer.echo(f"  by kind (model, control): {printable(said_by_kind(one))}")
    for one in evidence.record["not_made"]:
        what = "not made" if one["applies"] else "does not apply"
        typer.echo(f"{one['attack'].replace('_', ' ')}: {what}: {printable(one['reason'])}")
    if left := evidence.record["asked"]["unselected_values"]:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in left.items())
        typer.echo(f"not selected, and left as they were in the documents to forget: {kinds}")
    verdict = evidence.record["verdict"]
    typer.echo(f"{verdict['status'].replace('_', ' ').upper()}: {' '.join(verdict['sentences'])}")
    typer.echo(f"evidence: {out / 'EVIDENCE.md'}")


def _title(finding: dict[str, Any]) -> str:
    from mitigate.proof.battery import ATTACKS

    return f"{ATTACKS[finding['attack']].title} {finding['part'].replace('_', ' ')}".strip()


def _pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or "\n" in text:
            raise MitigateError(f"--request {text!r}: written key=value, for instance reference=R-17")
        pairs[key.strip()] = value.strip()
    return pairs
