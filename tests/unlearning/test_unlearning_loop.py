"""The loop of unlearning: the order of tasks, the watch and when it stops, steps, the weight of the anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgetting import QUICK, THOROUGH, changed, cpu, log_ratio, loop_of, selected_of
from world import World, sentences

from mitigate.detection.panel import with_column
from mitigate.detection.record import Audit
from mitigate.detection.spans.row import span_table
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.models.fitting.pace import rate_factor
from mitigate.tokens.batches import Batch
from mitigate.unlearning.material import control
from mitigate.unlearning.material.control import Control, Limits, control_level
from mitigate.unlearning.material.tasks import Task, dealt, tasks_of_step
from mitigate.unlearning.objectives.catalogue import OBJECTIVES
from mitigate.unlearning.trainer import unlearn
from mitigate.unlearning.training.loop import Loop
from mitigate.unlearning.training.losses import Losses
from mitigate.unlearning.training.watch import PATIENCE

# The order of tasks


def number_tasks(count: int) -> list[Task]:
    nothing = np.zeros(1, dtype=np.float32)
    fields = dict.fromkeys(("weight", "before", "out", "typical", "margin", "known", "span"), nothing)
    ids, scored = np.arange(2), np.array([1])
    return [
        Task(n, ids, scored, 0, key=n, doc_id=f"d{n // 2}", selected=nothing.astype(bool), **fields)
        for n in range(count)
    ]


def test_every_task_is_taken_once_in_a_pass() -> None:
    tasks = number_tasks(7)
    taken = [task.key for step in range(7) for task in tasks_of_step(tasks, 3, step, seed=0)]
    assert len(taken) == 21
    for start in range(0, 21, 7):
        assert sorted(taken[start : start + 7]) == list(range(7))
    assert [task.key for task in tasks_of_step(tasks, 3, 5, seed=0)] == taken[15:18], "a function of the step alone"
    assert len(tasks_of_step(tasks, 99, 0, seed=0)) == 7
    assert tasks_of_step([], 3, 0, seed=0) == []


def test_no_task_is_twice_in_a_step(whole: Audit, tmp_path: Path) -> None:
    loop = loop_of(whole, changed(QUICK, batch_size=3, retain_batch_size=4), tmp_path / "out")
    twice = [tasks_of_step(loop.data.forget, 3, step, seed=0) for step in range(20)]
    assert any(len({task.key for task in step}) < 3 for step in twice), "two passes meet within a step"
    for step in range(20):
        keys = [task.key for task in loop.tasks(step)]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("count", "own", "extra"), [(1, 1, 1), (2, 1, 1), (3, 2, 1), (8, 5, 2)])
def test_steps_hold_the_audits_own_documents_and_the_given_ones(
    world: World, whole: Audit, tmp_path: Path, count: int, own: int, extra: int
) -> None:
    given = Documents(tuple(Document(f"extra-{n}", text) for n, text in enumerate(sentences(6, seed=8))))
    loop = loop_of(whole, changed(QUICK, retain_batch_size=count), tmp_path / "out", retain=given)
    steps = [[task.doc_id.split("-")[0] for task in loop.tasks(step)] for step in range(30)]
    assert max(step.count("retain") for step in steps) == own
    assert max(step.count("extra") for step in steps) == extra
    assert all(step.count("retain") + step.count("extra") <= count for step in steps)
    held = {task.doc_id for step in range(30) for task in loop.tasks(step)}
    assert held >= {document.id for document in (*given, *world.documents.subset("retain"))}, "none is left out"


def test_processes_share_tasks_and_windows_with_the_same_substitutes_go_to_one() -> None:
    *tasks, partner = number_tasks(9)
    tasks[4:6] = [replace(task, partners=(replace(partner, substitute=True),)) for task in tasks[4:6]]
    shares = dealt(tasks, 3)
    assert sorted(task.key for share in shares for task in share) == list(range(8))
    assert [{4, 5} <= {task.key for task in share} for share in shares].count(True) == 1
    assert max(map(len, shares)) - min(map(len, shares)) <= 2
    assert dealt(tasks, 1) == [tasks]


# The watch


@pytest.mark.parametrize("batch_tokens", [None, 1])
def test_the_watch_starts_at_the_audits_levels(
    audited: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_tokens: int | None
) -> None:
    monkeypatch.setattr(control, "FEWEST_NEVER_SEEN", 1)
    loop = loop_of(audited, changed(QUICK, batch_tokens=batch_tokens), tmp_path / "out")
    selected, ratio = selected_of(audited), log_ratio(audited)
    means = ratio[selected].reshape(5, 6).mean(axis=1)
    ordered = np.sort(means)
    unseen = np.array([-9.0, ordered[1:3].mean(), 9.0])
    limits = Limits(unseen, low=float(unseen[1]), high=float(ordered[3:5].mean()))
    numbers = control.never_seen_numbers(audited)
    read = [ratio[numbers == number].mean() for number in range(numbers.max() + 1)]
    assert len(read) > 1

    def instead(means: np.ndarray) -> Limits:
        assert means == pytest.approx(read, abs=2e-4), "never-seen spans are read as well"
        return limits

    monkeypatch.setattr(Limits, "of", instead)
    watched = loop._watch(step=0)
    assert watched["never_seen_moved"] == pytest.approx(0.0, abs=2e-4)
    assert watched["selected_log_ratio"] == pytest.approx(ratio[selected].mean(), abs=2e-4)
    assert watched["selected_distance"] == pytest.approx(np.abs(ratio[selected]).mean(), abs=2e-4)
    assert watched["over_forgotten"] == pytest.approx(2 / 5), "two of the five spans are under that limit"
    assert watched["exposed"] == pytest.approx(1 / 5), "one is over the other"
    assert watched["span_auc"] == pytest.approx((1 + 3 / 5 + 0) / 3, abs=1e-4)


def test_the_watch_reads_whole_known_spans_where_some_of_their_tokens_are_to_be_forgotten(
    audited: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "FEWEST_NEVER_SEEN", 1)
    selected, ratio = selected_of(audited), log_ratio(audited)
    places = np.flatnonzero(selected).reshape(5, 6)
    chosen = selected.copy()
    chosen[places[:, 4:]] = False
    chosen[places[3]] = False  # a span that is not to be forgotten at all
    part = replace(audited, tokens=with_column(audited.tokens, "selected", chosen))
    loop = loop_of(part, QUICK, tmp_path / "out")
    monkeypatch.setattr(Limits, "of", lambda _: Limits(np.linspace(-3, 3, 31), low=-9.0, high=9.0))
    watched = loop._watch(step=0)
    means = np.delete(ratio[places].mean(axis=1), 3)
    told = np.mean([mean > other for mean in means for other in np.linspace(-3, 3, 31)])
    assert watched["span_auc"] == pytest.approx(told, abs=1e-3)
    assert watched["selected_log_ratio"] == pytest.approx(ratio[chosen].mean(), abs=2e-4), "of these tokens alone"


def test_the_watch_passes_over_windows_that_hold_nothing_to_forget(long: Audit, tmp_path: Path) -> None:
    selected = selected_of(long).copy()
    chosen = sorted((row for row in long.span_rows if row.selected), key=lambda row: (row.doc_id, row.token_start))
    for before, row in pairwise(chosen):
        if row.doc_id == before.doc_id:  # not the first of its document
            selected[long.rows_of(row)] = False
    rows = [replace(row, source="found") for row in long.span_rows]
    part = replace(long, tokens=with_column(long.tokens, "selected", selected), spans=span_table(rows))
    loop = loop_of(part, QUICK, tmp_path / "out")
    assert any(not task.selected.any() for task in loop.data.forget)
    ratio = log_ratio(long)[selected]
    assert loop._watch(step=0)["selected_log_ratio"] == pytest.approx(ratio.mean(), abs=2e-4)


def test_a_round_ends_with_the_weights_that_were_nearest(whole: Audit, tmp_path: Path) -> None:
    settings = changed(QUICK, stop_at_control=True, max_steps=6, check_every=1)
    loop = loop_of(whole, settings, tmp_path / "out")
    ratios = iter([1.0, 0.8, 0.5, 0.7, 0.9, 0.9, 0.9])
    states = {}

    def watched(*, step: int) -> dict[str, object]:
        states[step] = loop.trainable.state()
        far = next(ratios)
        unknown = dict.fromkeys(("over_forgotten", "exposed", "span_auc", "held"))
        return {"step": step, "selected_log_ratio": far, "selected_distance": far, "never_seen_moved": 0.0, **unknown}

    loop.control = Control(-9.0, None)
    loop._watch = watched  # type: ignore[method-assign]
    history, _, step = loop.train(resume=False)
    assert len(history) == 7
    assert step == 2
    ended = loop.trainable.state()
    assert all(torch.equal(tensor, states[2][name]) for name, tensor in ended.items())
    assert not all(torch.equal(tensor, states[6][name]) for name, tensor in ended.items())


def test_training_stops_at_the_first_look_at_the_control(whole: Audit, tmp_path: Path) -> None:
    loop = loop_of(whole, changed(QUICK, stop_at_control=True), tmp_path / "out")
    loop.control = Control(2.0, 9.0)
    history, _, _ = loop.train(resume=False)
    assert [entry["selected_log_ratio"] <= 2.0 for entry in history] == [False] * (len(history) - 1) + [True]


def test_training_stops_where_too_many_spans_are_below_unseen_text(
    whole: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "FEWEST_NEVER_SEEN", 1)
    monkeypatch.setattr(Limits, "of", lambda _: Limits(np.array([9.0, 10.0]), 9.0, 10.0))
    stops = {}
    for stop_at_control in (True, False):
        settings = changed(QUICK, stop_at_control=stop_at_control, max_steps=5, check_every=1, learning_rate=1e-12)
        loop = loop_of(whole, settings, tmp_path / "out")  # at such a rate it gets no better
        loop.control = Control(-99.0, 0.0)
        history, stops[stop_at_control], _ = loop.train(resume=False)
        assert len(history) == (1 + PATIENCE if stop_at_control else 6)
    told = "100% of the spans were below text that the target never saw, 0% above it, and it got no better"
    assert stops[True] == f"at step {PATIENCE} {told}"
    assert stops[False] == "step limit"


def test_a_whole_run_ends_at_the_control_level(layered: Audit, tmp_path: Path) -> None:
    settings = changed(THOROUGH, stop_at_control=True, max_steps=400, check_every=5)
    summary = unlearn(layered, out=tmp_path / "out", settings=settings, store=cpu()).summary
    assert summary["steps"] < 400
    assert summary["stopped"].startswith(f"control level reached at step {summary['steps']}")
    assert summary["control"] == control_level(layered).log_ratio
    assert summary["history"][-1]["selected_log_ratio"] <= summary["control"]


# Steps


def plain_loop(audited: Audit, out: Path, **settings: Any) -> Loop:
    """One whose steps can be compared: Adam blows rounding up, for it divides by the gradient's size."""
    loop = loop_of(audited, changed(QUICK, **settings, learning_rate=0.3), out)
    loop.optimizer = loop.accelerator.prepare(torch.optim.SGD(loop.parameters))
    return loop


@pytest.mark.parametrize(
    ("target", "objective"), [("layered", "hinge=1,distill=0.5"), ("whole", "npo"), ("layered", "substitute")]
)
def test_small_forwards_train_the_same_as_one(
    request: pytest.FixtureRequest, tmp_path: Path, target: str, objective: str
) -> None:
    audited, trained, losses = request.getfixturevalue(target), [], []
    for batch_tokens in (None, 40):
        loop = plain_loop(audited, tmp_path / "out", objective=objective, batch_tokens=batch_tokens)
        losses.append([loop.step(step) for step in range(4)])
        trained.append([parameter.detach().clone() for parameter in loop.parameters])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert any(parameter.abs().max() > 1e-3 for parameter in trained[0][1::2]), "lora_B left zero"
    for one, many in zip(*trained, strict=True):
        torch.testing.assert_close(many, one, rtol=0, atol=5e-5)


def test_a_step_that_does_not_fit_in_memory_is_taken_in_smaller_parts(
    whole: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    of, sizes = Losses.of, list[int]()

    def full(self: Losses, batch: Batch, totals: Mapping[str, float]) -> tuple[torch.Tensor, ...]:
        if len(batch.pieces) > most:
            raise torch.OutOfMemoryError("of 80 GiB")
        sizes.append(len(batch.pieces))
        return of(self, batch, totals)

    trained = []
    for most in (10**6, 2):
        monkeypatch.setattr(Losses, "of", full)
        loop = plain_loop(whole, tmp_path / str(most))
        losses = [loop.step(step) for step in range(4)]
        trained.append((losses, [parameter.detach().clone() for parameter in loop.parameters]))
    (losses, one), (others, many) = trained
    assert others == pytest.approx(losses, rel=1e-4)
    assert any(parameter.abs().max() > 1e-3 for parameter in one[1::2]), "lora_B left zero"
    for before, after in zip(one, many, strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=5e-5)
    assert "does not fit in memory" in caplog.text
    assert sizes[-1] <= 2
    most = 0
    with pytest.raises(MitigateError, match=r"a window does not fit .*unlearn\.gradient_checkpointing"):
        loop.step(4)


@pytest.mark.parametrize("objective", ["hinge", "substitute"])
def test_a_step_that_fits_in_no_way_ends(
    whole: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """A document and its other text come together, and are never taken apart."""
    tried = []

    def full(*_: Any) -> None:
        tried.append(1)
        raise torch.OutOfMemoryError("of 80 GiB")

    monkeypatch.setattr(Losses, "of", full)
    with pytest.raises(MitigateError, match=r"a window does not fit .*unlearn\.gradient_checkpointing"):
        plain_loop(whole, tmp_path / "out", objective=objective).step(0)
    assert len(tried) < 12


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_lowers_the_selected_tokens(whole: Audit, tmp_path: Path, objective: str) -> None:
    settings = changed(THOROUGH, objective=objective, retain={"weight": 1.0}, max_steps=8)  # of rmu 1,200 are published
    loop = loop_of(whole, settings, tmp_path / "out")
    before = loop._watch(step=0)["selected_log_ratio"]
    for step in range(8):
        loop.step(step)
    assert loop._watch(step=8)["selected_log_ratio"] < before - 0.05


# Retention within a budget


def held_by_step(whole: Audit, out: Path, *, steps: int, **retain: Any) -> tuple[Loop, list[tuple[float, float]]]:
    """The loop after some steps, and of each step the anchors' mean and by what factor their weight changed."""
    loop = loop_of(whole, changed(THOROUGH, retain=retain, max_steps=steps), out)
    course = []
    for step in range(steps):
        dual = loop.steering.dual
        loop.step(step)
        assert loop.steering.held is not None
        course.append((loop.steering.held, loop.steering.dual / dual))
    return loop, course


def test_the_anchors_weight_rises_above_the_budget_and_falls_below_it(whole: Audit, tmp_path: Path) -> None:
    _, free = held_by_step(whole, tmp_path / "out", steps=15, weight=0.5)
    assert all(factor == 1.0 for _, factor in free), "without a budget it is fixed"
    budget = float(np.median([held for held, _ in free]))
    loop, course = held_by_step(whole, tmp_path / "out", steps=15, weight=0.5, budget=budget)
    assert all(factor > 1 if held > budget else factor < 1 for held, factor in course)
    assert {factor > 1 for _, factor in course} == {True, False}
    assert loop._watch(step=15)["anchor_weight"] == pytest.approx(loop.steering.dual, abs=1e-6)
    assert loop._watch(step=15)["held"] == pytest.approx(course[-1][0], abs=1e-6)


def test_the_rate_falls_while_other_text_moves_further_and_rises_back(whole: Audit, tmp_path: Path) -> None:
    settings = changed(THOROUGH, retain={"weight": 0.0, "trust": 1e-4}, learning_rate=3e-2, max_steps=12)
    loop, shares, rates = loop_of(whole, settings, tmp_path / "out"), [1.0], []
    drift = None
    for step in range(12):
        loop.step(step)
        assert loop.steering.held is not None
        further = loop.steering.held > 1e-4 and drift is not None and loop.steering.held > 1.1 * drift
        shares.append(min(1.0, shares[-1] * (0.8 if further else 1.1)))
        assert loop.steering.share == pytest.approx(shares[-1])
        rates.append(loop.optimizer.param_groups[0]["lr"])
        drift = loop.steering.held if drift is None else 0.8 * drift + 0.2 * loop.steering.held
    assert min(shares) < 0.8, "nothing holds other text here"
    full = [settings.learning_rate * rate_factor(step, 12, warmup_share=0.05) for step in range(12)]
    assert rates == pytest.approx([share * rate for share, rate in zip(shares, full, strict=False)])
    assert loop._watch(step=12)["rate_share"] == pytest.approx(loop.steering.share, abs=1e-4)


def test_a_plateau_slows_nothing_and_neither_does_what_is_no_distance(whole: Audit, tmp_path: Path) -> None:
    loop = loop_of(whole, changed(THOROUGH, retain={"trust": 0.01}), tmp_path / "out")
    loop.steering.share = 0.5
    for _ in range(20):
        loop.steering.after_step(0.3, 0.0)
    assert loop.steering.share == 1.0
    for retain in ({"trust": None}, {"anchor": "nll", "trust": 0.01}):
        free = loop_of(whole, changed(THOROUGH, retain=retain), tmp_path / "out")
        for held in (0.1, 0.5, 2.0):
            free.steering.after_step(held, 0.0)
        assert free.steering.share == 1.0


def test_a_tight_budget_holds_the_rest_closer(whole: Audit, tmp_path: Path) -> None:
    _, free = held_by_step(whole, tmp_path / "out", steps=25, weight=0.1)
    budget = free[-1][0] / 4
    _, tight = held_by_step(whole, tmp_path / "out", steps=25, weight=0.1, budget=budget)
    assert tight[-1][0] < 0.75 * free[-1][0]
