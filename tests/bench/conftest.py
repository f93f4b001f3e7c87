"""What the tests of benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def few_trees() -> Iterator[None]:
    """Nothing here is about how good the boosted attack models are, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mitigate.detection.calibration.attack._TREES", 10)
        yield
