"""How a mitigated model was made: what `unlearn` and `retrain` write beside its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import read_record

logger = logging.getLogger(__name__)
UNLEARN_RECORD, RETRAIN_RECORD = "unlearn.json", "retrain.json"


def origin_of(source: str | Path, *, fingerprint: str) -> dict[str, Any] | None:
    """The record beside a model of how it was made, with the verb that wrote it as `by`; None for other models.

    Args:
        source: the model's directory; a hub id has no record.
        fingerprint: of the model as it is. A record of other weights counts for nothing: it would call exact what was
            put in its place since.
    """
    for verb, name in {"unlearn": UNLEARN_RECORD, "retrain": RETRAIN_RECORD}.items():
        path = Path(source) / name
        if not path.is_file():
            continue
        record: dict[str, Any] = read_record(path)
        if record.get("fingerprint", fingerprint) == fingerprint:
            return {"by": verb, **record}
        logger.warning("%s: is of other weights than are there now; how the model was made is not known", path)
    return None


def made_from(audit: Mapping[str, Any]) -> list[str]:
    """Fingerprints of the models that a mitigated one is made from: the audited target, and what that was made from.

    Args:
        audit: an audit's metadata.
    """
    return [audit["target"]["fingerprint"], *((audit.get("origin") or {}).get("made_from") or [])]
