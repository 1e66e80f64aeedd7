"""The steps at which points of the curves are due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.cadence import next_point


@pytest.mark.parametrize(
    ("step", "seconds_per_step", "expected"),
    [
        (0, 0.0, 10),  # The speed is not known.
        (7, 0.0, 10),
        (10, 2.5, 20),  # On a CPU the number of updates is what matters.
        (13, 2.5, 20),
        (20, 0.03, 60),  # 34 updates take a second.
        (21, 0.03, 60),
        (20, 0.0001, 10_020),
    ],
)
def test_next_point(step: int, seconds_per_step: float, expected: int) -> None:
    due = next_point(step, log_steps=10, log_seconds=1.0, seconds_per_step=seconds_per_step)
    assert due == expected


@given(st.integers(0, 10**6), st.integers(1, 1000), st.floats(0, 100), st.floats(0.001, 10))
def test_any_next_point(step: int, log_steps: int, log_seconds: float, speed: float) -> None:
    due = next_point(step, log_steps=log_steps, log_seconds=log_seconds, seconds_per_step=speed)
    assert due > step
    assert due % log_steps == 0
    assert (due - step) * speed >= log_seconds * 0.999
    # The multiple before would be too early.
    assert due - log_steps <= step or (due - log_steps - step) * speed < log_seconds
