"""Which of a document's references teach unlearning, and which are kept out of it to judge what it made.

Unlearning brings tokens to where references that never saw them have them. Told by the same references, it may have
succeeded with these alone: every model errs in its own way, and one trained against two of them learns their errors. So
half of the OUT references of each document, where there are four or more, teach, and half judge. Which half is drawn by
a hash of the document's group, so that audit, unlearning and re-audit agree without a record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import logsumexp

from mitigate.artifacts.files import fingerprint
from mitigate.artifacts.provenance import Origin
from mitigate.detection.record import Audit
from mitigate.detection.references.dealing import draw
from mitigate.detection.scores.token import clipped
from mitigate.errors import MitigateError

LEAST_REFERENCES = 4  # OUT references of every document; with fewer, all of them teach and none is left to judge
_SPLIT = {"log_ratio", "log_ratio_clipped"}  # scores that follow from log-probabilities of the token itself
_ALONE = {"loss", "min_k_pp"}  # scores that ask no reference


def judges_of(audit: Audit) -> list[tuple[int, ...]] | None:
    """For each document, the references that are kept out of unlearning; None where there are not enough of them.

    None also for scores that need the references' whole distributions (InfoRMIA): an audit holds only what all of a
    document's references say together.
    """
    if audit.metadata.detect.score not in _SPLIT | _ALONE:
        return None
    table = audit.documents.select(["out_references", "group"]).to_pylist()
    if min(len(row["out_references"]) for row in table) < LEAST_REFERENCES:
        return None
    return [
        tuple(sorted(draw(row["out_references"], len(row["out_references"]) // 2, key=f"judges {row['group']}")))
        for row in table
    ]


def taught_by(audit: Audit, *, keep_judges: bool) -> list[dict[str, Any]]:
    """Who teaches a model that is unlearned from an audit, and who taught what it is made from: for `unlearn.json`.

    Returns:
        of each unlearning, the first one first, the fingerprints of the `references` and the `split` that kept some of
        them out, as `_split_of` says it: None where all taught. `references` is None where that is not recorded.
    """
    origin = audit.metadata.origin
    earlier = _taught(origin) if origin is not None and origin.by == "unlearn" else []
    return [*earlier, {"references": _references(audit), "split": _split_of(audit) if keep_judges else None}]


def as_judged(before: Audit, after: Audit | None) -> tuple[Audit, Audit | None, bool | None]:
    """An audit and its re-audit as those see them who may judge what unlearning made.

    Without a re-audit, the audited model is the one that unlearning may have made.

    Returns:
        the audits by the references that were kept out of unlearning, where some were, else as they are; and whether
        none of those who judge taught: None where nothing was unlearned, for then no reference taught anything. Of a
        re-audited model that does not say how it was made it is False: it may have been moved or merged.
    """
    origin = (before if after is None else after).metadata.origin
    if origin is None:
        return before, after, None if after is None else False
    if origin.by != "unlearn":
        return before, after, None
    names, split = set(_references(before)), _split_of(before)
    shared = [one for one in _taught(origin) if _meets(one, names)]
    if not shared:
        return before, after, True
    if split is None or any(one["split"] != split for one in shared):
        return before, after, False
    return by_judges(before), by_judges(after) if after is not None else None, True


def teachers_of(origin: Origin | None) -> set[str] | None:
    """Fingerprints of the references that taught a model, in any of its unlearnings; None where that is not known."""
    taught = _taught(origin) if origin is not None and origin.by == "unlearn" else []
    if origin is None or any(one["references"] is None for one in taught):
        return None
    return {name for one in taught for name in one["references"]}


def _taught(origin: Origin) -> list[dict[str, Any]]:
    """Who taught in each unlearning, as `taught_by` says it; of one that did not record it, nothing is known."""
    unknown: list[dict[str, Any]] = [{"references": None, "split": None}]
    taught: list[dict[str, Any]] = origin.record.get("taught", unknown)
    return taught


def _meets(one: Mapping[str, Any], names: set[str]) -> bool:
    """Whether a reference that taught is among these, or may be."""
    return one["references"] is None or not names.isdisjoint(one["references"])


def _references(audit: Audit) -> list[str]:
    return [reference.fingerprint for reference in audit.metadata.references]


def _split_of(audit: Audit) -> str | None:
    """A digest of which references are kept out for whom; None where nobody is."""
    if judges_of(audit) is None:
        return None
    table = audit.documents.select(["group", "out_references"]).to_pylist()
    return fingerprint([_references(audit), sorted({(row["group"], tuple(row["out_references"])) for row in table})])


def by_judges(audit: Audit) -> Audit:
    """The audit as the references that were kept out of unlearning see it.

    Raises:
        MitigateError: there are none.
    """
    judges = judges_of(audit)
    if judges is None:
        raise MitigateError("audit: too few references to keep some out of unlearning; cross-fit 8 or more")
    return _seen_by(audit, judges)


def by_teachers(audit: Audit) -> Audit:
    """The audit as the references that unlearning may use see it: all of them where none is kept out."""
    judges = judges_of(audit)
    if judges is None:
        return audit
    used = audit.documents["out_references"].to_pylist()
    return _seen_by(audit, [tuple(k for k in out if k not in own) for out, own in zip(used, judges, strict=True)])


def _seen_by(audit: Audit, references: Sequence[tuple[int, ...]]) -> Audit:
    """The audit with these references of each document alone: log p̄, scores of tokens and spans, and who judges."""
    per_reference = audit.reference_log_probs
    own = np.zeros(per_reference.shape, dtype=bool)
    for rows, chosen in zip(audit.rows.values(), references, strict=True):
        own[rows, list(chosen)] = True
    masked = np.where(own, per_reference, np.nan)
    known = ~np.isnan(masked)
    count = known.sum(axis=1)
    with np.errstate(divide="ignore"):
        out = logsumexp(np.where(known, masked, -np.inf), axis=1) - np.log(np.maximum(count, 1))
    out = np.where(count > 0, out, np.nan)
    score = audit.columns["score"].astype(np.float64)
    if audit.metadata.detect.score in _SPLIT:
        score = audit.columns["log_prob"] - out
        score = clipped(score) if audit.metadata.detect.score == "log_ratio_clipped" else score
    tokens = with_column(audit.tokens, "log_prob_out", out.astype(np.float32))
    tokens = with_column(tokens, "score", score.astype(np.float32))
    listed = pa.FixedSizeListArray.from_arrays(
        pa.array(masked.astype(np.float32).ravel(), from_pandas=True), masked.shape[1]
    ).cast(audit.tokens.schema.field("log_prob_references").type)
    tokens = with_column(tokens, "log_prob_references", listed)
    documents = with_column(audit.documents, "out_references", [list(chosen) for chosen in references])
    means = [known_mean(score[audit.rows_of(span)]) for span in audit.span_rows]
    return replace(audit, tokens=tokens, documents=documents, spans=with_column(audit.spans, "score", means), kept=None)


def known_mean(values: np.ndarray) -> float:
    """Over the values that are there; NaN where none is."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with other values in a column, of the same type; NaN is null."""
    place = table.column_names.index(name)
    field = table.schema.field(name)
    column = values if isinstance(values, pa.Array) else pa.array(values, type=field.type, from_pandas=True)
    return table.set_column(place, field, column)
