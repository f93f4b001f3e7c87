"""When training ends: by where all spans are, not by one share of them."""

from __future__ import annotations

from typing import Any

import pytest

from mitigate.unlearning.material.control import Control
from mitigate.unlearning.training.watch import PATIENCE, corrected, off, reason_to_stop

CONTROL = Control(log_ratio=0.0, distance=0.3)


def looks(
    *distances: float,
    ratio: float = 0.5,
    below: float | None = 0.0,
    above: float | None = 0.0,
    auc: float | None = 0.5,
) -> list[dict]:
    return [
        {
            "step": 20 * number,
            "selected_log_ratio": ratio,
            "selected_distance": distance,
            "over_forgotten": below,
            "exposed": above,
            "span_auc": auc,
            "never_seen_moved": 0.0,
        }
        for number, distance in enumerate(distances)
    ]


def test_the_first_look_ends_nothing() -> None:
    assert reason_to_stop(looks(0.1, ratio=-1), CONTROL) is None


def test_tokens_at_the_control_and_as_near_to_the_references_end_it() -> None:
    assert reason_to_stop(looks(2.0, 0.3, ratio=0.0), CONTROL) == "control level reached at step 20"
    assert reason_to_stop(looks(2.0, 0.31, ratio=0.0), CONTROL) is None, "half far above and half far below"
    assert reason_to_stop(looks(2.0, 0.3, ratio=0.01), CONTROL) is None


def test_spans_that_still_stand_out_go_on_until_it_gets_no_better() -> None:
    assert reason_to_stop(looks(2.0, 0.3, ratio=0.0, above=0.04), CONTROL) is None
    assert reason_to_stop(looks(2.0, 0.3, ratio=0.0, auc=0.6), CONTROL) is None, "no span does, and all together do"
    low = [*looks(2.0), *looks(2.0, 0.3, ratio=0.0, auc=0.4)[1:]]
    assert reason_to_stop(low, CONTROL) is None, "nor are they to be below"
    assert reason_to_stop(looks(2.0, 0.3, ratio=0.0, below=0.04), CONTROL) is None
    stuck = looks(2.0, *[0.3] * (PATIENCE + 1), ratio=0.0, above=0.04)
    assert reason_to_stop(
        stuck, CONTROL
    ) == f"control level reached at step {stuck[-1]['step']}, and no nearer to it " + (f"for {PATIENCE} looks")


def test_the_nearest_look_is_within_the_level_first_and_then_nearest_to_the_references() -> None:
    [inside] = looks(0.5, auc=0.47)
    [nearer] = looks(0.4, auc=0.52)
    [low] = looks(0.1, auc=0.40)
    [exposed] = looks(0.1, above=0.10)
    [untold] = looks(0.2, auc=None, above=None, below=None)
    assert off(nearer) < off(inside) < min(off(low), off(exposed))
    assert off(untold) == (0.0, 0.2)


def test_the_level_moves_with_never_seen_text() -> None:
    [begun, now] = looks(2.0, 0.3, ratio=0.1)
    assert reason_to_stop([begun, now], CONTROL) is None
    assert reason_to_stop([begun, now | {"never_seen_moved": 0.1}], CONTROL) == "control level reached at step 20"
    assert corrected(0.0, [now, now], CONTROL) == -0.025
    assert corrected(0.0, [now, now | {"never_seen_moved": 0.3}], CONTROL) == pytest.approx(0.05)


def test_without_never_seen_text_the_references_alone_tell_it() -> None:
    alone = Control(0.0, None)
    near: dict[str, Any] = {"ratio": -0.1, "below": None, "above": None, "auc": None}
    assert reason_to_stop(looks(2.0, 0.1, **near), alone) is None
    ended = reason_to_stop(looks(2.0, *[0.1] * (PATIENCE + 1), **near), alone)
    assert ended is not None
    assert "no nearer to it" in ended


@pytest.mark.parametrize(
    ("below", "above", "distances", "ends"),
    [
        (0.11, 0.60, (1.0, 0.9), False),
        (0.11, 0.60, (1.0, *[0.9] * 4), False),  # more are above: it goes on although it got no better
        (0.11, 0.02, (1.0, 0.9), False),  # it gets better: what fell too low is lifted
        (0.11, 0.02, (1.0, 0.9, 0.95, 0.95), False),  # what fell too low has time to be lifted
        (0.11, 0.02, (1.0, 0.9, 0.95, 0.96, 0.97), True),
        (0.11, 0.02, (1.0, *[0.9] * 4), True),
        (0.11, 0.02, (1.0, 0.9, 0.95, 0.96, 0.89), False),
        (0.04, 0.00, (1.0, *[0.9] * 4), False),
    ],
)
def test_spans_that_fell_too_low_end_it_only_where_no_more_stand_out(
    below: float, above: float, distances: tuple[float, ...], ends: bool
) -> None:
    reason = reason_to_stop(looks(*distances, below=below, above=above), CONTROL)
    assert (reason is not None) == ends
    if reason is not None:
        assert "11% of the spans were below text that the target never saw, 2% above it, and it got no better" in reason


@pytest.mark.parametrize(
    ("aucs", "ends"),
    [
        ((0.9, 0.6, 0.3), False),  # what it is off by is taken off the level: it has time to rise
        ((0.9, 0.6, 0.3, 0.2, 0.2), True),
        ((0.9, 0.6, 0.3, 0.2, 0.4), False),  # and is nearer than it was above
        ((0.9, 0.6, 0.3, 0.2, 0.25), False),  # it has turned
        ((0.9, 0.3, 0.2, 0.25, 0.2), True),
        ((0.9, 0.3, 0.2, 0.35, 0.3), False),
    ],
)
def test_spans_that_all_lie_lower_than_never_seen_ones_end_it_unless_they_rise(
    aucs: tuple[float, ...], ends: bool
) -> None:
    history = looks(*[0.8] * len(aucs), below=None, above=None)
    for look, auc in zip(history, aucs, strict=True):
        look["span_auc"] = auc
    told = f"never-seen spans lay above those to forget (AUC {aucs[-1]:.2f}), and it got no better"
    assert reason_to_stop(history, CONTROL) == (f"at step {20 * (len(aucs) - 1)} {told}" if ends else None)


# What is off the level


def means(*ratios: float) -> list[dict]:
    return [{"selected_log_ratio": ratio, "never_seen_moved": 0.0} for ratio in ratios]


def test_what_the_mean_is_off_by_is_taken_off_the_level_unless_it_comes_by_itself() -> None:
    control = Control(log_ratio=0.1, distance=0.3)
    assert corrected(0.0, means(0.5), control) == 0.0, "one look says nothing"
    assert corrected(0.0, means(0.9, 0.5), control) == 0.0, "still on its way"
    assert corrected(0.0, means(0.3, -0.3), control) == pytest.approx(0.1), "it has come through, and goes on"
    assert corrected(0.0, means(-0.3, -0.05), control) == 0.0, "on its way back"
    assert corrected(0.0, means(0.25, 0.22), control) == pytest.approx(-0.03)
    assert corrected(-0.1, means(-0.1, -0.1), control) == pytest.approx(-0.05), "in both directions"
    assert corrected(0.2, means(0.1, 0.1), control) == pytest.approx(0.2)
    assert corrected(-0.4, means(0.9, 0.9), control) == -0.4, "it has not come down"
    assert corrected(-0.4, means(*[0.9] * 4), control) == pytest.approx(-0.6), "stuck on the way"
    assert corrected(0.0, means(0.9, 0.8, 0.7, 0.6), control) == 0.0, "slow, and not stuck"
    assert corrected(-0.9, means(*[0.9] * 4), control) == -1.0, "within a nat"
    assert corrected(0.2, means(*[0.9] * 4), Control(0.0, None)) == 0.2, "nothing tells where to"


def test_a_mean_that_is_held_off_comes_to_the_control() -> None:
    """A course that goes three tenths of the way to 0.08 above its level at each look."""
    control = Control(log_ratio=0.0, distance=0.3)
    level, mean, history = 0.05, 1.0, means(1.0)
    for _ in range(60):
        mean += 0.3 * (level + 0.08 - mean)
        history += means(mean)
        level = corrected(level, history, control)
    assert mean == pytest.approx(0.0, abs=0.01)
    assert level == pytest.approx(-0.08, abs=0.01)
