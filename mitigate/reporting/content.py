"""The content of report.json: which keys it has and what they hold, checked when it is made and when it is read.

It is JSON as programs read it, so the records are typed dictionaries. A share or mean `x` has its 95 % interval
`x_interval` beside it; null is what could not be measured, and `notes` says why. docs/report.md explains the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from mitigate.artifacts.files import check_version, read_json
from mitigate.errors import MitigateError

SCHEMA = 1  # of report.json
_REMEDY = "give the command again that wrote it"
Interval = list[float] | None
_just_these_keys = with_config(ConfigDict(extra="forbid"))


@_just_these_keys
class Leakage(TypedDict):
    """What an attacker reads from one model."""

    span_auc: float | None
    span_auc_interval: Interval
    document_auc: float | None
    document_auc_interval: Interval
    tpr_at_1pct_fpr: float | None
    tpr_at_1pct_fpr_interval: Interval
    span_score_mean: float | None
    span_score_mean_interval: Interval
    people: dict[str, int]
    as_high_share: float | None
    as_high_share_interval: Interval
    rank_p_value: float | None


@_just_these_keys
class LeakageSides(TypedDict):
    """Before, and after where something was unlearned."""

    before: Leakage
    after: Leakage | None


@_just_these_keys
class Excess(TypedDict):
    """AUCs less those of models that never saw the text."""

    span_auc: float | None
    span_auc_interval: Interval
    document_auc: float | None
    document_auc_interval: Interval


@_just_these_keys
class ExcessSides(TypedDict):
    """Before, and after where something was unlearned."""

    before: Excess
    after: Excess | None


@_just_these_keys
class NeverSeen(Excess):
    """The AUCs of models that never saw the text, and how far the target's are from them."""

    source: Literal["oracle", "references", "assumed"]
    score: str
    stand_ins: int
    excess: ExcessSides
    by_oracle: float | None
    by_oracle_interval: Interval
    selected: float | None
    selected_interval: Interval


@_just_these_keys
class Sides(TypedDict):
    """A figure before and after, in the unit of its section: nats a token, or a share."""

    before: float | None
    before_interval: Interval
    after: float | None
    after_interval: Interval


@_just_these_keys
class SidesAndOracle(Sides):
    """The same, and of a model retrained without the documents to forget."""

    oracle: float | None
    oracle_interval: Interval


@_just_these_keys
class OracleDistance(Sides):
    """Mean |log p − log p_oracle| over the secret tokens, nats; `ratio` is after / before."""

    ratio: float | None


@_just_these_keys
class Utility(TypedDict):
    """Mean loss on tokens that are not to be forgotten, nats a token."""

    retain_nll: SidesAndOracle
    holdout_nll: SidesAndOracle


@_just_these_keys
class Completed(SidesAndOracle):
    """Share of `secrets` values that greedy decoding completes."""

    secrets: int


@_just_these_keys
class CompletedNeverSeen(Sides):
    """The same of values in never-seen documents, which no oracle is asked for."""

    secrets: int


@_just_these_keys
class NeverSeenCompleted(CompletedNeverSeen):
    """The control of extraction: values of a length to be told from chance, all, and names."""

    all: CompletedNeverSeen
    names: CompletedNeverSeen


@_just_these_keys
class Stretches(TypedDict):
    """The longest runs that greedy decoding reproduces."""

    spans: int
    longest_tokens: int | None
    longest_characters: int | None
    mean_tokens: float | None
    mean_characters: float | None
    whole: float | None
    document_tokens: int | None
    document_characters: int | None


@_just_these_keys
class StretchesSides(TypedDict):
    """Before, and after where something was unlearned."""

    before: Stretches
    after: Stretches | None


@_just_these_keys
class ExtractionFigures(Completed):
    """Extraction: the headline, then all values, names and each kind; its control; what could not be tried."""

    secrets_total: int
    groups: int
    least_characters: int
    untried: dict[str, int]
    all: Completed
    names: Completed
    kinds: dict[str, Completed]
    never_seen: NeverSeenCompleted | None
    stretches: StretchesSides


@_just_these_keys
class Selection(TypedDict):
    """What was selected, and by which rule."""

    spans: int
    found: int
    tokens: int
    documents: int
    known_recall: float | None
    rule: str


@_just_these_keys
class Counts(TypedDict):
    """Documents, by set and skipped, and their scored tokens."""

    documents: int
    forget: int
    retain: int
    holdout: int
    tokens: int
    skipped: int


@_just_these_keys
class UnlearnRound(TypedDict):
    """One round of unlearning, and what its look at the whole text said.

    `kept_step`: of its steps the one whose weights it ends with, nearest to the control; `span_auc`: known spans to
    forget against never-seen ones, told `by_judges` that were kept out of unlearning or by those that taught;
    `exposed`: whether it is above 0.55; `found_share`: of the tokens to forget that were not selected, those in
    stretches that the detector's threshold finds now, and the same of never-seen text; `added`: spans that the next
    round forgets besides; `undone`: it went too far, and the model is that of the round before.
    """

    steps: int
    stopped: str
    kept_step: int
    span_auc: float | None
    span_auc_interval: Interval
    by_judges: bool
    found_share: float | None
    found_share_never_seen: float | None
    exposed: bool | None
    added: int
    undone: bool


@_just_these_keys
class UnlearnFigures(TypedDict):
    """How unlearning went; `control` is the level that it aims at, nats. Older reports have no `rounds`."""

    objective: dict[str, float]
    steps: int
    stopped: str
    adapter_parameters: int
    model_parameters: int
    control: float | None
    rounds: NotRequired[list[UnlearnRound]]


@_just_these_keys
class Fingerprints(TypedDict):
    """Of everything that took part; see `mitigate.artifacts.files.fingerprint`."""

    target: str
    mitigated: str | None
    references: list[str]
    tokenizer: str
    documents: str


@_just_these_keys
class Report(TypedDict):
    """Everything that a report says.

    `coverage` and `calibration` are the audit's records, `erasure`, `retrain`, `tofu` and `questions` (which older
    reports lack) are null where there is no such thing; their keys are those of `mitigate.verification`.
    """

    schema: int
    name: str
    created: str
    leakage: LeakageSides
    never_seen: NeverSeen
    asked: Literal["documents", "secrets"]
    judges_kept_out: bool | None
    coverage: dict[str, Any]
    oracle_distance: OracleDistance
    out_distance: Sides
    utility: Utility
    extraction: ExtractionFigures
    selected_token_share: float
    selected: Selection
    over_forgotten_share: float | None
    over_forgotten_share_interval: Interval
    tofu: dict[str, Any] | None
    questions: NotRequired[dict[str, Any] | None]
    erasure: dict[str, Any] | None
    calibration: dict[str, Any]
    counts: Counts
    skipped: list[str]
    unlearn: UnlearnFigures | None
    retrain: dict[str, Any] | None
    seconds: dict[str, float]
    tokens_per_second: dict[str, float]
    fingerprints: Fingerprints
    versions: dict[str, str]
    recipe: dict[str, Any]
    notes: list[str]
    text: Literal["none", "masked", "all"]
    verdict: dict[str, Any]


def checked(report: Mapping[str, Any]) -> Report:
    """The same report, if it has just the keys that it should.

    Raises:
        ValidationError: it lacks one, has another, or one holds something else.
    """
    _REPORT.validate_python(report)
    return cast(Report, report)


def read_report(path: Path) -> Report:
    """Read report.json.

    Raises:
        MitigateError: the file is missing, of another version, or has been changed so that it is no report.
    """
    record = read_json(path)
    check_version(path, record, expected=SCHEMA, remedy=_REMEDY)
    try:
        return checked(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MitigateError(f"{path}: no report of this version ({where}: {first['msg'].lower()}); {_REMEDY}") from None


_REPORT = TypeAdapter(Report)
