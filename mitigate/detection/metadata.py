"""What an audit was made from and how sure it is, as audit.json holds it: frozen records, read with attributes.

Written and read again, a record is the same, key for key in the order of its fields. One that lacks a key, or has one
that is not known here, is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mitigate.artifacts.files import check_version, read_json
from mitigate.artifacts.provenance import Origin
from mitigate.detection.settings import Detect
from mitigate.errors import MitigateError

SCHEMA = 3  # of audit.json and the tables beside it; one of another version is refused
REMEDY = "audit again"
Reason = Literal["not audited", "cut", "first token"]
_NOT_EVERYWHERE = ("again", "generated", "extract")  # keys of audit.json that only some audits have


class Record(BaseModel):
    """Facts that are stated once and not changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def written(self) -> dict[str, Any]:
        """As in a JSON file."""
        return self.model_dump(mode="json")


class AuditedModel(Record):
    """A model that took part: where it is, and the fingerprint that it had."""

    name: str
    source: str
    fingerprint: str


class Unjudged(Record):
    """A known span with a token that has no score, and why."""

    doc_id: str
    char_start: int
    char_end: int
    label: str
    reason: Reason


class Coverage(Record):
    """How much of the text and of the known spans was judged.

    Attributes:
        characters: of all documents, white space aside; `audited`: those covered by a token that has a score.
        known_spans: all; `known_spans_outside`: those with a token that has no score, each listed in `outside`, with
            its `reason`: `not audited`, `cut` (beyond what the trainer kept) or `first token`.
        values_outside: other sensitive values there that the recognisers of `mitigate.recognisers.values` find.
    """

    characters: int
    audited: int
    known_spans: int
    known_spans_outside: int
    outside: tuple[Unjudged, ...]
    values_outside: int


class Fit(Record):
    """How closely the references were fitted beside the target: losses in nats a token, over `documents`.

    Attributes:
        target: on documents that it was trained on.
        trained: of references on documents of theirs.
        untrained: of the OUT references.
    """

    documents: int
    target: float
    trained: float
    untrained: float


class Uncalibrated(Record):
    """Scores whose error rate is not known."""

    kind: Literal["none"] = "none"


class NonMembers(Record):
    """False discovery rates from holdout documents, searched alike: their number, and the spans found and known."""

    kind: Literal["non_members"] = "non_members"
    documents: int
    null_spans: dict[str, int]


class Reliability(Record):
    """Stated probability against the share of members, with the number of spans, bin by bin."""

    probability: tuple[float, ...]
    share: tuple[float, ...]
    count: tuple[int, ...]


class SegmentationUsed(Record):
    """What `mitigate.detection.spans.segments` was fitted to."""

    bias: float
    switch: float


class Shadows(Record):
    """Probabilities and false discovery rates from references that stood in for the target.

    Attributes:
        references: how many judge a document.
        shadows: how many references stood in.
        attack_model: the one that did best on held-out rows.
        memorized_nats: how far a token had to lie above a model that never saw it to count as memorized.
        spans: that the figures are over; `ece`, `reliability`: how well stated probabilities hold on them.
    """

    kind: Literal["shadows"] = "shadows"
    references: int
    shadows: int
    attack_model: str
    memorized_nats: float = 1.0
    spans: int
    ece: float
    reliability: Reliability
    segmentation: SegmentationUsed


Kind = Literal["shadows", "non_members", "none"]  # of a calibration
Calibration = Annotated[Uncalibrated | NonMembers | Shadows, Field(discriminator="kind")]


class LinkedPlace(Record):
    """Characters of another document that are a secret of a requested one.

    Attributes:
        span_id: of the span that this place is; None where no token of it has a score.
        origins: spans of that secret.
        set: of the document.
        tokens: that have a score, and how many of them are memorized.
        selected: to be unlearned.
    """

    doc_id: str
    char_start: int
    char_end: int
    label: str
    span_id: int | None
    origins: tuple[int, ...]
    set: str | None
    tokens: int
    memorized_tokens: int
    selected: bool


class ErasureFound(Record):
    """What an erasure request selected, and where its secrets stand besides. No text.

    Attributes:
        criteria: how many ids and texts, and which fields, the request named.
        documents: ids to forget; `never_trained`, `same_group`: requested or related ones that are not forgotten.
        matches: (doc_id, start, end) of each place where a text of the request stands.
        select_linked: whether the same secrets elsewhere are selected.
        secrets: how many were looked for elsewhere; `too_short`, `too_common`: how many were not.
        linked: the places found.
    """

    criteria: dict[str, Any]
    documents: tuple[str, ...]
    never_trained: tuple[str, ...]
    same_group: tuple[str, ...]
    matches: tuple[tuple[str, int, int], ...]
    select_linked: bool
    secrets: int
    too_short: int
    too_common: int
    linked: tuple[LinkedPlace, ...]


class CopiedFrom(Record):
    """Characters of a generated document that stand in a training document from `training_start`."""

    doc_id: str
    char_start: int
    char_end: int
    training_id: str
    training_start: int


class Generated(Record):
    """How the audited text was drawn from the model: settings, number of prompts, links, samples without text."""

    sampling: dict[str, Any]
    prompts: int
    links: tuple[CopiedFrom, ...]
    without_text: int


class Extract(Record):
    """What an audit is taken from: all that was audited, of which it holds what stands out, and controls.

    Attributes:
        documents, tokens, parts: that were audited.
        found: spans found in them; `known`: known spans; `selected`: spans to be unlearned.
        exposed: documents that hold a span that was found or is selected.
    """

    documents: int
    tokens: int
    parts: int
    found: int
    known: int
    selected: int
    exposed: int


class AuditMetadata(Record):
    """Everything in an audit that is not a table.

    Attributes:
        target, references: the models; `crossfitted`: numbers of the references trained on some of the documents.
        origin: how `unlearn` or `retrain` made the target, as they recorded it; None for other models.
        tokenizer, documents: fingerprints.
        skipped: rows that were not read, a line each.
        context: tokens in a window, at most what every model takes.
        calibration: what the certainty rests on.
        code, versions: of this package and of its libraries.
        kind: of the references.
        detect, seed: settings.
        warnings: about references.
        erasure: of an audit with an erasure request.
        fit: None without cross-fitted references.
        again: of a re-audit, the fingerprint of the audit that it repeats.
        generated: of an audit of text that the model wrote.
        extract: of an audit that is what stands out of a larger one; `coverage` is the larger one's.
    """

    target: AuditedModel
    origin: Origin | None
    references: tuple[AuditedModel, ...]
    crossfitted: tuple[int, ...]
    tokenizer: str
    documents: str
    skipped: tuple[str, ...]
    coverage: Coverage
    context: int
    calibration: Calibration
    code: str
    versions: dict[str, str]
    kind: Literal["given", "crossfit"]
    detect: Detect
    seed: int
    warnings: tuple[str, ...]
    erasure: ErasureFound | None
    fit: Fit | None
    again: str | None = None
    generated: Generated | None = None
    extract: Extract | None = None

    def written(self) -> dict[str, Any]:
        """The content of audit.json."""
        values = {"schema": SCHEMA, **super().written()}
        return {name: value for name, value in values.items() if value is not None or name not in _NOT_EVERYWHERE}

    @classmethod
    def read(cls, path: Path) -> AuditMetadata:
        """Read audit.json.

        Raises:
            MitigateError: it is missing, of another version, or not what was written.
        """
        values = read_json(path)
        check_version(path, values, expected=SCHEMA, remedy=REMEDY)
        try:
            return cls(**{name: value for name, value in values.items() if name != "schema"})
        except ValidationError as error:
            [first, *_] = error.errors()
            place = ".".join(map(str, first["loc"]))
            raise MitigateError(
                f"{path}: is not what was written ({place}: {first['msg'].lower()}); {REMEDY}"
            ) from None

    @property
    def made_from(self) -> list[str]:
        """Fingerprints of what a model made from this audit is made from: the target, and what that was made from."""
        return [self.target.fingerprint, *(self.origin.made_from if self.origin is not None else ())]
