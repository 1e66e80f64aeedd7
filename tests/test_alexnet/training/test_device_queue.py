"""Copies and times that a device reaches later, with a fake of CUDA's events."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alexnet.training.device_queue import DeviceTime, HostCopy, SideStream, copy_to_device

GPU = torch.device("cuda", 1)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to events; the device reaches them after 0, 250, 500 ... milliseconds."""
    happened: list[str] = []
    times = itertools.count(0, 250)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.time = next(times)

        def record(self, stream: Any) -> None:
            happened.append(f"record on {stream.device}")

        def synchronize(self) -> None:
            happened.append(f"wait for {self.time}")

        def elapsed_time(self, later: "Event") -> float:
            return float(later.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda gpu: SimpleNamespace(device=gpu))
    return happened


def test_times_of_a_gpu_are_those_of_its_queue(events: list[str]) -> None:
    first, second = DeviceTime(GPU), DeviceTime(GPU)
    assert events == ["record on cuda:1"] * 2, "nothing waits until a time is read"
    assert second.seconds_since(first) == 0.25
    assert events[2:] == ["wait for 250"]


def test_times_of_a_cpu() -> None:
    first = DeviceTime(torch.device("cpu"))
    second = DeviceTime(torch.device("cpu"))
    second.wait()
    assert 0 <= second.seconds_since(first) < 60


def test_a_copy_does_not_follow_later_changes() -> None:
    tensor = torch.tensor([1.0, 2.0])
    copy = HostCopy(tensor)
    tensor.zero_()
    assert copy.read().tolist() == [1.0, 2.0]


def test_on_a_cpu_work_is_done_at_once() -> None:
    cpu = torch.device("cpu")
    tensor = torch.ones(3)
    assert SideStream(cpu).run(lambda: tensor) is tensor
    assert copy_to_device(tensor, cpu) is tensor
