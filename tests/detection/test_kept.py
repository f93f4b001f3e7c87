"""What is kept of references: signals as if they ran, for any model where all is kept, for its kin where little is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgetting import cpu
from world import World, planted_documents

from mitigate.detection.audit import audit, reaudit
from mitigate.detection.kept import KeptReferences
from mitigate.detection.parts.audit import audit_parts
from mitigate.detection.record import Audit
from mitigate.detection.references.crossfit import crossfit_references
from mitigate.detection.settings import Detect
from mitigate.detection.signals.kept import COMPARED, KEPT_COLUMNS, KeepMean, KeptMean, LogitRows
from mitigate.detection.signals.vocabulary import row_signals
from mitigate.errors import MitigateError
from mitigate.models.settings import Schedule

ROWS, VOCABULARY = 12, 40
OUT = (1, 2, 3)
TARGETS = torch.arange(ROWS) * 3 % VOCABULARY
PLACES = [(0, np.arange(ROWS))]


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def references() -> dict[int, torch.Tensor]:
    return {number: logits(number) for number in OUT}


def kept_of(target: torch.Tensor, *, entries: int, **settings: float) -> dict[str, np.ndarray]:
    found = KeepMean(entries, **settings).columns(LogitRows({0: target, **references()}, TARGETS, 0, OUT, PLACES))
    return {name: column.float().numpy() for name, column in found.items()}


def exact(target: torch.Tensor, **settings: float) -> dict[str, torch.Tensor]:
    [columns] = row_signals({0: target, **references()}, TARGETS, [(0, OUT)], **settings)
    return columns


def from_kept(kept: dict[str, np.ndarray], model: torch.Tensor, *, temperature: float = 1.0) -> dict[str, torch.Tensor]:
    return KeptMean([kept], temperature, vocabulary=VOCABULARY).columns(LogitRows({0: model}, TARGETS, 0, (), PLACES))


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0}, {"offline_a": 0.4}])
@pytest.mark.parametrize("entries", [VOCABULARY, VOCABULARY + 7])
def test_where_all_entries_are_kept_any_model_is_compared_as_with_the_references(
    settings: dict[str, float], entries: int
) -> None:
    kept, other = kept_of(logits(0), entries=entries, **settings), logits(9)
    got, expected = from_kept(kept, other, temperature=settings.get("temperature", 1.0)), exact(other, **settings)
    for name in COMPARED:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("entries", [2, 5, 17])
def test_with_few_entries_a_model_that_deals_out_the_rest_as_before_is_compared_exactly(entries: int) -> None:
    before = logits(0)
    kept = kept_of(before, entries=entries)
    assert (kept["kept_ids"][:, 0] == TARGETS.numpy()).all(), "the token itself is kept, likely or not"
    forgotten = before.scatter(1, TARGETS.unsqueeze(1), -6.0)  # what unlearning does, and all else in proportion
    for model in (before, forgotten):
        got, expected = from_kept(kept, model), exact(model)
        for name in COMPARED:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_fewer_entries_the_farther_off_another_model_may_be_and_never_by_the_token_itself() -> None:
    other = logits(9)
    expected = exact(other)
    off = {}
    for entries in (2, 8, 30):
        got = from_kept(kept_of(logits(0), entries=entries), other)
        torch.testing.assert_close(got["log_ratio"], expected["log_ratio"], rtol=1e-5, atol=1e-5)
        off[entries] = float((got["kl"] - expected["kl"]).abs().mean())
    assert off[2] > off[8] > off[30]


def test_of_a_distribution_that_a_few_entries_are_no_more_is_kept() -> None:
    sharp = {number: 40 * torch.nn.functional.one_hot(TARGETS, VOCABULARY).float() for number in (0, *OUT)}
    found = KeepMean(9).columns(LogitRows(sharp, TARGETS, 0, OUT, PLACES))
    assert (found["kept_log_probs"] > -torch.inf).sum(1).tolist() == [1] * ROWS
    ruled_out = {**sharp, 0: torch.full_like(sharp[0], -torch.inf).scatter(1, TARGETS.unsqueeze(1), 0.0)}
    for name, column in KeepMean(9).columns(LogitRows(ruled_out, TARGETS, 0, OUT, PLACES)).items():
        assert not column.isnan().any(), name


def test_a_model_with_fewer_tokens_than_were_kept_is_refused() -> None:
    with pytest.raises(MitigateError, match="small predicts 7 tokens, fewer than the references did"):
        KeptMean([kept_of(logits(0), entries=4)], vocabulary=7, name="small")


def test_what_is_kept_is_the_same_from_disk(tmp_path: Path) -> None:
    own = kept_of(logits(0), entries=6)
    own["kept_log_probs"][0] = np.nan  # a token without signals
    KeptReferences.of(own, None).save(tmp_path)
    read = KeptReferences.at(tmp_path)
    assert read is not None
    for name in KEPT_COLUMNS:
        np.testing.assert_array_equal(read.own[name][1:], own[name][1:], err_msg=name)
    assert not np.isfinite(read.own["kept_log_probs"][0]).any()
    assert KeptReferences.at(tmp_path / "elsewhere") is None


# --- in audits --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Four cross-fitted references and enough documents to calibrate by them."""
    documents, out = planted_documents(each=20, seed=3), tmp_path_factory.mktemp("kept") / "references"
    schedule = Schedule(epochs=20, learning_rate=5e-3, batch_size=8)
    crossfit_references(
        world.base, documents, out=out, count=4, method="full", schedule=schedule, seed=0, new_store=cpu
    )
    return {"references": [out], "documents": documents}


SETTINGS = [
    {"fdr": 0.1, "select": "found"},
    {"score": "informia"},
    {"score": "informia_z", "temperature": 2.0, "offline_a": 0.7},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_reaudit_of_any_model_runs_it_alone_and_finds_what_it_finds_beside_the_references(
    world: World, many: dict[str, Any], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cpu().load(world.base).vocabulary_size
    before = audit(world.target, **many, detect=Detect(**settings, kept_entries=whole), store=cpu())
    before.save(tmp_path / "audit")
    before = Audit.load(tmp_path / "audit")
    beside = reaudit(before, world.base, store=cpu(), references_again=True)
    store, loaded = cpu(), []
    load = store.load
    monkeypatch.setattr(store, "load", lambda source, **options: loaded.append(str(source)) or load(source, **options))
    after = reaudit(before, world.base, store=store)
    assert loaded == [str(world.base)]
    assert before.metadata.calibration.kind == ("shadows" if "fdr" in settings else "none")
    for name in set(beside.columns) - {"memorized", "selected"}:
        np.testing.assert_allclose(after.columns[name], beside.columns[name], rtol=1e-3, atol=2e-4, err_msg=name)
    assert after.spans.drop_columns(["score", "probability", "q"]).equals(
        beside.spans.drop_columns(["score", "probability", "q"])
    )
    for row, other in zip(after.span_rows, beside.span_rows, strict=True):
        for name in ("score", "probability", "q"):
            assert getattr(row, name) == pytest.approx(getattr(other, name), abs=2e-3), name
    assert after.metadata.calibration == beside.metadata.calibration


def test_what_keeps_nothing_is_as_it_was_and_what_cannot_keep_is_refused(world: World, many: dict[str, Any]) -> None:
    options = many | {"documents": many["documents"][:6], "store": cpu()}
    bare = audit(world.target, **options)
    kept = audit(world.target, **options, detect=Detect(kept_entries=8))
    assert bare.kept is None
    assert bare.tokens.equals(kept.tokens)
    for wrong in ({"kept_entries": 1}, {"kept_entries": 8, "signals": "log_probs"}):
        with pytest.raises(ValueError, match="kept_entries: "):
            Detect(**wrong)
    parts = {"documents": "unread.jsonl", "out": "unwritten", "part_tokens": 100, "detect": Detect(kept_entries=8)}
    with pytest.raises(MitigateError, match=r"detect\.kept_entries: an audit by parts"):
        audit_parts(world.target, many["references"], **parts)
