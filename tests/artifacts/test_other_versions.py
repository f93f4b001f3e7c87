"""A file of another version of this code is refused in words: which file, which version, which is read, what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from on_disk import edit_json
from world import World

from mitigate.artifacts.files import DIGESTS, check_version, read_record, write_record
from mitigate.artifacts.provenance import RETRAIN_RECORD, UNLEARN_RECORD, origin_of
from mitigate.detection.metadata import SCHEMA
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import load_references
from mitigate.errors import MitigateError
from mitigate.reporting.content import read_report
from mitigate.verification.compare import compare


def copied(directory: str | Path, to: Path) -> Path:
    """A copy whose files may be edited: without the digests that say what they were."""
    shutil.copytree(directory, to)
    (to / DIGESTS).unlink(missing_ok=True)
    return to


@pytest.mark.parametrize("found", [None, 0, 4, "3", True, 3.0])
def test_only_the_version_that_is_read_is_read(found: object, tmp_path: Path) -> None:
    record = {} if found is None else {"schema": found}
    with pytest.raises(MitigateError, match=r"report.json: (is of|says no) version.* reads version 3; write it again"):
        check_version(tmp_path / "report.json", record, expected=3, remedy="write it again")
    check_version(tmp_path / "report.json", {"schema": 3}, expected=3, remedy="")
    check_version(tmp_path / "report.json", {}, expected=3, unsaid=3, remedy="")


@pytest.mark.parametrize("version", [SCHEMA - 1, SCHEMA + 1])
def test_an_audit_of_another_version_is_refused(whole: Audit, tmp_path: Path, version: int) -> None:
    whole.save(tmp_path / "audit")
    assert Audit.load(tmp_path / "audit").metadata == whole.metadata
    (tmp_path / "audit" / DIGESTS).unlink()
    edit_json(tmp_path / "audit/audit.json", schema=version)
    with pytest.raises(MitigateError) as refused:
        Audit.load(tmp_path / "audit")
    said = str(refused.value)
    assert all(part in said for part in ("audit.json", f"version {version}", f"version {SCHEMA}", "again")), said


def test_references_of_another_version_are_refused(world: World, tmp_path: Path) -> None:
    references = copied(world.references, tmp_path / "references")
    load_references(references)
    index = references / "references.json"
    write_record(index, {**read_record(index), "schema": 2})
    with pytest.raises(MitigateError, match=r"references.json: is of version 2, .* version 1; .*mitigate references"):
        load_references(references)


@pytest.mark.parametrize("name", [UNLEARN_RECORD, RETRAIN_RECORD])
def test_how_a_model_was_made_is_not_guessed_from_another_version(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps({"schema": 2, "fingerprint": "00"}))
    with pytest.raises(MitigateError, match=rf"{name}: is of version 2, .* version 1; make .* again"):
        origin_of(tmp_path, fingerprint="00")


def test_a_report_of_another_version_or_with_other_keys_is_refused(whole: Audit, tmp_path: Path) -> None:
    compare(whole).save(tmp_path / "report")
    path = tmp_path / "report" / "report.json"
    written = json.loads(path.read_text())
    assert read_report(path) == written

    def refused(report: object, said: str) -> None:
        path.write_text(json.dumps(report))
        with pytest.raises(MitigateError, match=rf"report.json: {said}; give the command again that wrote it"):
            read_report(path)

    refused({**written, "schema": 2}, "is of version 2, and this code reads version 1")
    for name in written.keys() - {"schema", "questions"}:  # older reports lack the latter
        refused({key: value for key, value in written.items() if key != name}, rf"no report .*{name}: .*required.*")
    refused({**written, "leaked": 0.5}, r"no report of this version \(leaked: extra inputs are not permitted\)")
    before = {**written["leakage"]["before"], "span_auc": "high"}
    refused(
        {**written, "leakage": {"before": before, "after": None}}, r"no report .*leakage.before.span_auc: .*number.*"
    )
