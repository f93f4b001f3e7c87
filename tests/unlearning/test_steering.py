"""What steers the steps: near the control the rate falls with what is left of the way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forgetting import THOROUGH, changed, log_ratio, loop_of, selected_of

from mitigate.detection.record import Audit
from mitigate.models.fitting.pace import rate_factor
from mitigate.unlearning.material.control import Control
from mitigate.unlearning.settings import Unlearn
from mitigate.unlearning.training.steering import Steering

CONTROL = Control(0.1, 0.2)


def look(ratio: float, *, moved: float = 0.0) -> dict[str, Any]:
    return {"selected_log_ratio": ratio, "never_seen_moved": moved}


def steered(first: float, *steps: float, moved: float = 0.0) -> Steering:
    """After a first look, steps whose tokens lay at these levels, and a look at never-seen text."""
    steering = Steering(Unlearn(), trusted=True)
    steering.after_look([look(first)], CONTROL)
    for ratio in steps:
        steering.after_step(0.0, ratio)
    steering.after_look([look(first), look(first / 3, moved=moved)], CONTROL)
    return steering


def test_the_rate_falls_with_what_is_left_over_the_last_third_of_the_way_or_of_few_nats() -> None:
    far, later, nearer = (steered(2.1, *[ratio] * 30).near for ratio in (1.0, 0.45, 0.31))
    assert (far, later, nearer) == pytest.approx((1.0, 0.5, 0.3))
    short = [steered(0.3, *[ratio] * 30).near for ratio in (0.3, 0.19, 0.1, -0.5)]
    assert short == pytest.approx([1.0, 0.6, 0.2, 0.2]), "0.15 nats are farther"
    assert steered(2.1, *[0.45] * 30, moved=0.1).near == pytest.approx(0.25 / 0.7), "the control came nearer"


def test_the_newest_step_counts_half() -> None:
    assert steered(2.1, 0.6, 0.2).near == pytest.approx((0.4 - 0.1) / 0.7)
    assert steered(2.1, 0.6, 0.2, math.nan).ratio == pytest.approx(0.4), "a step that says nothing counts nothing"


def test_it_is_whole_before_anything_is_known_and_where_nothing_ends_at_the_control() -> None:
    assert steered(2.1).near == 1.0
    free = Steering(Unlearn(), trusted=True)
    free.after_step(0.0, -3.0)
    assert free.near == 1.0


def test_a_rate_is_the_settings_the_trust_regions_and_this_together() -> None:
    steering = steered(2.1, *[0.45] * 30)
    steering.share = 0.25
    settings = Unlearn()
    full = settings.learning_rate * rate_factor(7, settings.max_steps, warmup_share=0.05)
    assert steering.rate(7) == pytest.approx(full * 0.25 * 0.5)


def test_where_tokens_end_moves_with_never_seen_text_and_by_what_is_off() -> None:
    steering = steered(2.1, 0.6, moved=-0.05)
    assert steering.tilt == -0.05, "they still come down"
    steering.after_look([look(2.1), look(0.2, moved=-0.05), look(0.2, moved=-0.02)], CONTROL)
    assert steering.trim == pytest.approx((0.08 - 0.2) / 4)
    assert steering.tilt == pytest.approx(-0.02 + (0.08 - 0.2) / 4)


def test_it_goes_on_from_its_state_and_a_round_from_the_round_before() -> None:
    steering = steered(2.1, 0.6, 0.3)
    steering.dual, steering.drift = 3.0, 0.07
    again = Steering(Unlearn(), trusted=True)
    again.restore(json.loads(json.dumps(steering.state())))
    assert again.state() == steering.state()
    assert again.near == steering.near < 1.0
    following = Steering(Unlearn(), trusted=True)
    following.go_on_from(steering)
    assert (following.dual, following.drift, following.near) == (3.0, 0.07, 1.0)
    assert following.tilt == steering.tilt


def test_a_step_says_where_its_tokens_lie(whole: Audit, tmp_path: Path) -> None:
    settings = changed(THOROUGH, batch_size=100, max_steps=2)
    loop = loop_of(whole, settings, tmp_path / "out")
    loop.step(0)
    selected = selected_of(whole)
    wanted = np.clip(log_ratio(whole)[selected], -3.0, 3.0).mean()
    assert loop.steering.ratio == pytest.approx(wanted, abs=1e-3)
    loop.step(1)
    assert loop.steering.near == 1.0, "nothing has looked"
