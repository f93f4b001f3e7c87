"""How a mitigated model was made: what `unlearn` and `retrain` write beside its weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mitigate.artifacts.files import check_version, read_record

logger = logging.getLogger(__name__)
UNLEARN_RECORD, RETRAIN_RECORD = "unlearn.json", "retrain.json"
SCHEMA = 1  # of either; they do not say it as long as it is 1


class Origin(BaseModel):
    """The record beside a model of how it was made, with the verb that wrote it.

    What follows `by` is as unlearn.json or retrain.json holds it; keys that more than one room reads are properties.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    by: Literal["unlearn", "retrain"]

    @property
    def record(self) -> dict[str, Any]:
        """The content of unlearn.json or retrain.json."""
        return self.model_extra or {}

    @property
    def made_from(self) -> list[str]:
        """Fingerprints of the models that it is made from, as far as that is recorded."""
        return self.record.get("made_from") or []

    @property
    def whole_documents(self) -> bool:
        """Whether documents were removed as wholes, not only secrets in them."""
        return self.record.get("scope") == "sequence" or (self.record.get("plan") or {}).get("redact") == "drop"


def origin_of(source: str | Path, *, fingerprint: str) -> Origin | None:
    """How a model was made; None where nothing beside it says so.

    Args:
        source: the model's directory; a hub id has no record.
        fingerprint: of the model as it is. A record of other weights counts for nothing: it would call exact what was
            put in its place since.

    Raises:
        MitigateError: the record is damaged, or of another version.
    """
    for verb, name in {"unlearn": UNLEARN_RECORD, "retrain": RETRAIN_RECORD}.items():
        path = Path(source) / name
        if not path.is_file():
            continue
        record = read_made(path)
        if record.get("fingerprint", fingerprint) == fingerprint:
            return Origin(**{"by": verb, **record})
        logger.warning("%s: is of other weights than are there now; how the model was made is not known", path)
    return None


def read_made(path: Path) -> dict[str, Any]:
    """Read unlearn.json or retrain.json.

    Raises:
        MitigateError: it is missing, damaged, or of another version.
    """
    record = read_record(path)
    check_version(path, record, expected=SCHEMA, unsaid=SCHEMA, remedy=f"make {path.parent} again")
    return record
