"""Evidence: what was asked, what was tested, on what, with what result; and that it is still what was written.

out/evidence.json       figures, fingerprints, verdict
out/EVIDENCE.md         the same in words, for a privacy officer
out/readings/*.parquet  what each attack read of each text: numbers, no text
out/digests.json        SHA-256 of each of these files
out/digests.json.sig    a signature of it, if somebody signed
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mitigate.artifacts.digests import file_digest
from mitigate.artifacts.files import DIGESTS, check_version, damage, read_record, read_table
from mitigate.artifacts.signatures import sign, signature_of, signer_of
from mitigate.errors import MitigateError
from mitigate.proof.battery import ATTACKS, READING
from mitigate.proof.certificate import certificate
from mitigate.proof.findings import findings_of, verdict_of

SCHEMA = 3
EVIDENCE, CERTIFICATE, READINGS = "evidence.json", "EVIDENCE.md", "readings"
_REMEDY = "verify again"
_EQUAL = 1e-9  # of figures that are computed again from the same numbers


@dataclass(frozen=True)
class Evidence:
    """What a verification found.

    Attributes:
        record: the content of evidence.json.
        readings: attack -> its table.
    """

    record: dict[str, Any]
    readings: Mapping[str, pa.Table]

    @property
    def status(self) -> str:
        """`withstood`, `fell`, `over_forgotten` or `cannot_tell`."""
        return str(self.record["verdict"]["status"])

    @property
    def figures(self) -> dict[str, float]:
        """Every number by a name: `judges.gap`, `layers.half.value`, `sampled.leak_at.16`, `twins.kinds.phone.value`.

        Those that were not measured are left out.
        """
        named: dict[str, float] = {}
        for one in self.record["findings"]:
            name = ".".join(part for part in (one["attack"], one["part"]) if part)
            for key in ("value", "control", "gap", "tpr_at_1pct_fpr", "epsilon", "never_seen"):
                if isinstance(one.get(key), int | float):
                    named[f"{name}.{key}"] = float(one[key])
            for kind, of_kind in one["kinds"].items():
                word = re.sub(r"\W+", "_", kind)
                named |= {
                    f"{name}.kinds.{word}.{key}": float(of_kind[key])
                    for key in ("value", "control", "never_seen")
                    if of_kind.get(key) is not None
                }
            for key in ("leak_at", "discoverable"):
                named |= {f"{name}.{key}.{of}": float(found["value"]) for of, found in one.get(key, {}).items()}
        for one in self.record["tasks"]:
            named |= {f"tasks.{one['task']}.{one['metric']}.{side}": one[side] for side in ("before", "mitigated")}
        for name, value in self.record["utility"].items():
            if isinstance(value, int | float):
                named[f"utility.{name}"] = float(value)
        return named

    @classmethod
    def load(cls, directory: str | Path) -> Evidence:
        """Read what `prove` wrote.

        Raises:
            MitigateError: no evidence there, a damaged one, or one of another version.
        """
        directory = Path(directory)
        path = directory / EVIDENCE
        if not path.is_file():
            raise MitigateError(f"{directory}: holds no evidence (no {EVIDENCE}); make it with `mitigate verify`")
        record = read_record(path, remedy=_REMEDY)
        check_version(path, record, expected=SCHEMA, remedy=_REMEDY)
        tables = {
            name: read_table(directory / READINGS / f"{name}.parquet")
            for name in dict.fromkeys(one["attack"] for one in record["findings"])
        }
        return cls(record, tables)


def sign_evidence(directory: str | Path, key: str | Path) -> Path:
    """Sign the digests of all that belongs to evidence, with an SSH key; where the signature lies.

    Raises:
        MitigateError: see `mitigate.artifacts.signatures.sign`.
    """
    return sign(Path(directory) / DIGESTS, key)


def signer_of_evidence(directory: str | Path, signers: str | Path) -> str:
    """Who signed evidence, of those who may; see `mitigate.artifacts.signatures.signer_of`.

    It says nothing of the files themselves: `check_evidence` holds them against what was signed.
    """
    return signer_of(Path(directory) / DIGESTS, signers)


def is_signed(directory: str | Path) -> bool:
    """Whether somebody signed it."""
    return signature_of(Path(directory) / DIGESTS).is_file()


def check_evidence(directory: str | Path) -> list[str]:
    """What is not as it was written, or does not follow from what was read, a line each; empty if nothing is.

    Digests tell what was changed since; figures and verdict are computed again from the readings, so that an edited
    figure is told even where the digests were made anew.

    Raises:
        MitigateError: no evidence there, or one of another version.
    """
    directory = Path(directory)
    wrong = damage(directory)
    if not (directory / DIGESTS).is_file():
        wrong.append(f"{DIGESTS}: missing")
    try:
        evidence = Evidence.load(directory)
    except MitigateError as error:
        if not (directory / EVIDENCE).is_file():
            raise
        return list(dict.fromkeys([*wrong, str(error)]))
    record = evidence.record
    for name, table in evidence.readings.items():
        if record["readings"].get(name) != file_digest(directory / READINGS / f"{name}.parquet"):
            wrong.append(f"{READINGS}/{name}.parquet: is not what the figures were computed from")
        if name not in ATTACKS or table.schema != READING:
            return [*wrong, f"{READINGS}/{name}.parquet: no readings of an attack of this version"]
    settings = record["settings"]
    again = findings_of(evidence.readings, margin=settings["margin"], samples=settings["samples"])
    wrong += _differences("findings", record["findings"], again)
    verdict = verdict_of(
        again,
        kept_out=record["kept_out"],
        elsewhere=record["elsewhere"]["places"],
        not_applicable=[one["attack"] for one in record["not_made"] if not one["applies"]],
    )
    wrong += _differences("verdict", record["verdict"], verdict)
    written = (directory / CERTIFICATE).read_text("utf-8") if (directory / CERTIFICATE).is_file() else ""
    if written != certificate(record):
        wrong.append(f"{CERTIFICATE}: does not say what {EVIDENCE} says")
    return wrong


def _differences(where: str, written: Any, again: Any) -> list[str]:
    """Places at which two values are not the same."""
    if isinstance(written, Mapping) and isinstance(again, Mapping):
        keys = dict.fromkeys([*written, *again])
        return [line for key in keys for line in _differences(f"{where}.{key}", written.get(key), again.get(key))]
    if isinstance(written, list) and isinstance(again, list) and len(written) == len(again):
        pairs = zip(written, again, strict=True)
        return [line for n, pair in enumerate(pairs) for line in _differences(f"{where}[{n}]", *pair)]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (written, again))
    if written == again or (numbers and np.isclose(written, again, rtol=0, atol=_EQUAL)):
        return []
    return [f"{EVIDENCE}: {where} does not follow from the readings"]
