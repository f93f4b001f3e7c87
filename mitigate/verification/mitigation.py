"""What a report says of how the mitigated model was made: by unlearning, or exactly, by fitting it anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mitigate.detection.record import Audit

_UNLEARN = ("objective", "steps", "stopped", "adapter_parameters", "model_parameters", "control")


def mitigation_figures(before: Audit, after: Audit | None) -> dict[str, dict[str, Any] | None]:
    """The report's sections `unlearn` and `retrain`, from what the re-audit says of its target's origin.

    Args:
        before: the audit.
        after (*optional*): the re-audit.

    Returns:
        `unlearn`: objective, steps, why it stopped, parameters, rounds; None for other models.
        `retrain`: `exact` (what the model is and is conditional on, in words), `is_exact`, `this_audit`: whether what
        `before` selected was removed, `removed` (counts), `redact`, `method`, `shards` (that hold documents) and
        `combine`, `base` and `base_source`, `warnings`; None for other models.
    """
    origin = after.metadata.origin if after is not None else None
    figures: dict[str, dict[str, Any] | None] = {"unlearn": None, "retrain": None}
    if origin is None:
        return figures
    record = origin.record
    if origin.by == "unlearn":
        figures["unlearn"] = {key: record[key] for key in _UNLEARN} | {"rounds": record.get("rounds", [])}
    else:
        figures["retrain"] = {
            **{key: record[key] for key in ("exact", "is_exact", "removed", "combine", "base_source", "warnings")},
            **{key: record["plan"][key] for key in ("base", "redact", "method")},
            "this_audit": before.fingerprint in record["audits"],
            "shards": len(record["shards"]),
        }
    return figures


def mitigation_notes(retrain: Mapping[str, Any] | None) -> list[str]:
    """What a reader must know to read `exact` right."""
    if retrain is None:
        return []
    notes = list(retrain["warnings"])
    if not retrain["this_audit"]:
        notes.append(
            "The model was fitted anew without what another audit selected. What this audit selected was not removed "
            "by it, unless the other selected it too."
        )
    if retrain["is_exact"]:
        notes.append(
            "Exact means: nothing was fitted to what was removed. That the base never saw it cannot be seen from "
            "here, and text that says the same in other words is not covered."
        )
    unsought = (retrain["removed"]["too_short_to_seek"] or 0) + (retrain["removed"]["too_common_to_seek"] or 0)
    if retrain["removed"]["too_short_to_seek"] is None:
        notes.append("Copies of the removed text in other training documents were not looked for.")
    elif unsought:
        notes.append(
            f"{unsought} removed strings are too short or too common to be looked for in other training documents; "
            "where they stand there, the model was fitted on them."
        )
    if retrain["is_exact"] and retrain["redact"] in ("mask", "fake"):
        notes.append(
            "The documents were still learned but for what was removed, so the form of their secrets may be likelier "
            "than in documents never seen. An AUC above 0.5 is then no trace of the secrets; redact: drop leaves the "
            "documents out."
        )
    if retrain["redact"] == "placeholder":
        notes.append(
            "Where the model learned to expect a placeholder, a secret is less probable than if it had never been "
            "there: never-seen secrets too, and an attacker can see that."
        )
    return notes
