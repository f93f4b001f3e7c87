"""Two fine-tunes beside each other: which leaks less, person by person, and the gate that follows from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Mitigate
from world import LORA, World, planted_documents

from mitigate.detection.audit import audit, reaudit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.documents import Documents
from mitigate.errors import MitigateError
from mitigate.models.fitting.training import fine_tune
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.statistics.intervals import UNMEASURED, Figure
from mitigate.statistics.separation import auc
from mitigate.verification.compare import measure
from mitigate.verification.figures import View
from mitigate.verification.fine_tunes import _state, _status, compare_fine_tunes, in_words

EACH = 20


@dataclass(frozen=True)
class Gate:
    """Audits of fine-tunes on text as it is, on the same with its codes replaced, and as it is in another order."""

    raw: Audit
    redacted: Audit
    twin: Audit


def cpu() -> ModelStore:
    return ModelStore(device="cpu")


@pytest.fixture(scope="module")
def gate(world: World, tmp_path_factory: pytest.TempPathFactory) -> Gate:
    root = tmp_path_factory.mktemp("gate")
    documents = planted_documents(each=EACH, seed=4)
    covered = Documents(
        tuple(
            replace(one, text=f"{one.text[: one.spans[0].start]}000000{one.text[one.spans[0].end :]}", spans=())
            for one in documents
        )
    )

    def made(name: str, seed: int, chosen: Documents) -> Path:
        fine_tune(
            world.base,
            chosen,
            out=root / name,
            method="full",
            lora=LORA,
            schedule=Schedule(epochs=40, learning_rate=5e-3, batch_size=8),
            seed=seed,
            description=name,
            store=cpu(),
        )
        return root / name

    references = [made(f"reference-{n}", 5 + n, documents.subset(["retain"])) for n in range(2)]

    def audited(name: str, seed: int, chosen: Documents) -> Audit:
        target = made(name, seed, chosen.subset(["forget"]))
        judged = documents.subset(["forget", "holdout"])
        return audit(target, references, documents=judged, detect=Detect(), store=cpu())

    return Gate(audited("raw", 1, documents), audited("redacted", 2, covered), audited("twin", 3, documents))


def test_the_redacted_one_leaks_less_and_the_figures_are_those_of_each_audit(gate: Gate, tmp_path: Path) -> None:
    found = compare_fine_tunes(gate.raw, gate.redacted, store=cpu())
    record = found.record
    assert found.status == "leaks_less"
    assert record["differences"]["span_auc"]["state"] == record["differences"]["extraction"]["state"] == "less"
    for name, own in (("a", gate.raw), ("b", gate.redacted)):
        view = View(own)
        known = [span for span in own.span_rows if span.source == "known"]
        members, others = (
            np.array([np.nanmean(own.columns["score"][own.rows_of(s)]) for s in known if view.sets[s.doc_id] == which])
            for which in ("forget", "holdout")
        )
        assert found.figures[f"{name}.span_auc"] == pytest.approx(auc(members, others))
        _, attempts = measure(own, store=cpu())
        assert attempts is not None
        pairs = zip(attempts.forget.places, attempts.forget.completed["before"], strict=True)
        share = np.mean([hit for place, hit in pairs if place.source == "known"])
        assert found.figures[f"{name}.extraction"] == pytest.approx(share)
    for key in ("span_auc", "extraction"):
        difference = found.figures[f"b.{key}"] - found.figures[f"a.{key}"]
        assert found.figures[f"difference.{key}"] == pytest.approx(difference)
    unseen = [rows for doc_id, rows in gate.raw.rows.items() if gate.raw.sets[doc_id] == "holdout"]
    rise = np.concatenate([gate.raw.columns["log_prob"][r] - gate.redacted.columns["log_prob"][r] for r in unseen])
    assert found.figures["difference.holdout_nll"] == pytest.approx(np.nanmean(rise))
    assert record["models"]["a"]["verdict"]["leaks"] is True
    found.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/comparison.json").read_text()) == json.loads(json.dumps(record))
    told = (tmp_path / "out/COMPARISON.md").read_text()
    assert "B LEAKS LESS THAN A" in told
    assert told == in_words(record)
    for document in gate.raw.document_list():
        assert document.text[:30] not in told + json.dumps(record)
        assert document.id not in told + json.dumps(record)


def test_the_other_way_round_it_leaks_more_and_each_difference_turns_its_sign(gate: Gate) -> None:
    there, back = (
        compare_fine_tunes(*pair, store=cpu()) for pair in ((gate.raw, gate.redacted), (gate.redacted, gate.raw))
    )
    assert back.status == "leaks_more"
    for key, one in there.record["differences"].items():
        other = back.record["differences"][key]
        assert one["value"] == pytest.approx(-other["value"])
        assert one["interval"] == pytest.approx([-limit for limit in other["interval"][::-1]])


def test_a_model_trained_alike_leaks_neither_more_nor_surely_less(gate: Gate) -> None:
    assert compare_fine_tunes(gate.raw, gate.twin, store=cpu()).status in ("as_much", "cannot_tell")


def test_what_so_many_figures_say_together() -> None:
    assert _state(Figure(-0.3, -0.4, -0.2), margin=0.05, tests=3) == "less"
    assert _state(Figure(-0.1, -0.199, -0.001), margin=0.05, tests=1) == "less"
    assert _state(Figure(-0.1, -0.199, -0.001), margin=0.05, tests=3) == "cannot_tell", "one of three tests"
    assert _state(Figure(0.3, 0.2, 0.4), margin=0.05, tests=3) == "more"
    assert _state(Figure(0.0, -0.05, 0.04), margin=0.05, tests=3) == "as_much"
    assert _state(Figure(0.5, None, None), margin=0.05, tests=3) == "cannot_tell", "one person has no interval"
    assert _state(UNMEASURED, margin=0.05, tests=3) == "cannot_tell"
    assert _status(["less", "more", "as_much"]) == "leaks_more"
    assert _status(["less", "cannot_tell", "as_much"]) == "leaks_less"
    assert _status(["as_much", "cannot_tell"]) == "cannot_tell"
    assert _status(["as_much", "as_much"]) == "as_much"


def test_what_only_the_second_memorized_is_not_claimed_of_an_audit_made_again(gate: Gate) -> None:
    again = reaudit(gate.raw, gate.redacted.metadata.target.source, store=cpu())
    found = compare_fine_tunes(gate.raw, again, extraction=False, store=cpu())
    assert found.record["models"]["b"]["found_spans"] is None
    assert found.record["models"]["a"]["found_spans"] is not None
    assert any("made again" in note for note in found.record["notes"])
    assert found.record["differences"]["extraction"] == {"value": None, "interval": None, "state": "not_measured"}
    assert "Not measured" in " ".join(found.record["sentences"])


def test_audits_that_do_not_belong_together_are_refused(gate: Gate, whole: Audit) -> None:
    with pytest.raises(MitigateError, match="different documents"):
        compare_fine_tunes(gate.raw, whole, store=cpu())
    with pytest.raises(MitigateError, match="the same model"):
        compare_fine_tunes(gate.raw, gate.raw, store=cpu())


def test_the_command_line_is_a_gate(gate: Gate, tmp_path: Path, mitigate_: Mitigate) -> None:
    raw, redacted = tmp_path / "raw", tmp_path / "redacted"
    gate.raw.save(raw)
    gate.redacted.save(redacted)
    passed = mitigate_("compare", raw, redacted, "--out", tmp_path / "passed", "--fail-if", "leaks more")
    assert passed.status == 0, passed.err
    assert "B LEAKS LESS THAN A" in passed.out
    assert (tmp_path / "passed/COMPARISON.md").is_file()
    for number, condition in enumerate(("leaks more", "not less", "b.span_auc > 0.9")):
        out = tmp_path / f"caught-{number}"
        caught = mitigate_("compare", redacted, raw, "--no-extraction", "--out", out, "--fail-if", condition)
        assert caught.status == 3, condition
        assert "B LEAKS MORE THAN A" in caught.out
    leaks = mitigate_("compare", redacted, raw, "--no-extraction", "--out", tmp_path / "leaks", "--fail-on-leak")
    assert leaks.status == 3
    wrongs: list[tuple[tuple[Any, ...], str]] = [
        ((raw,), "two fine-tunes"),
        ((raw, redacted, "--before", raw), "two fine-tunes"),
        ((), "give two fine-tunes"),
        (("--before", raw, "--after", redacted, "--fail-if", "leaks more"), "--fail-on-leak"),
        ((raw, redacted, "--fail-if", "b.span_auc"), "written NAME > NUMBER"),
        ((raw, redacted, "--no-extraction", "--fail-if", "b.extraction > 0"), "no figure 'b.extraction'"),
    ]
    for number, (given, message) in enumerate(wrongs):
        refused = mitigate_("compare", *given, "--out", tmp_path / f"wrong-{number}")
        assert refused.status == 2, given
        assert message in refused.err
