"""Measurements of work that runs on while the CPU continues."""

import pytest
import torch

from alexnet.diagnostics import timing
from alexnet.diagnostics.timing import STEPS_PER_SYNC, measure_work


@pytest.mark.parametrize("repeats", [1, 3])
def test_gpus_are_waited_for_once_after_many_steps(
    monkeypatch: pytest.MonkeyPatch, repeats: int
) -> None:
    events: list[str] = []
    gpus = [torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda gpu: events.append(str(gpu)))
    monkeypatch.setattr(timing, "MAX_REPEATS", repeats)
    times = measure_work(lambda: events.append("step"), [*gpus, torch.device("cpu")])
    waits = ["cuda:0", "cuda:1"]
    once = [*waits, *["step"] * STEPS_PER_SYNC, *waits]
    assert events == ["step"] * 3 + once * repeats
    assert times.launch is not None
    assert 0 < times.work < times.launch * STEPS_PER_SYNC * 50


def test_on_a_cpu_each_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(timing, "MAX_REPEATS", 2)
    times = measure_work(lambda: steps.append(1), [torch.device("cpu")])
    assert len(steps) == 1 + 2
    assert times.launch is None
