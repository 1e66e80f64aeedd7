"""Times of work on devices, which may compute while the CPU launches the work that follows."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch

STEPS_PER_SYNC = 20
"""GPUs are waited for once after so many repetitions: training doesn't wait for them after each."""

MAX_REPEATS, MAX_SECONDS = 10, 5.0
"""A measurement is repeated this many times, or as often as it can start in this time."""


class WorkTimes(NamedTuple):
    """Medians in seconds."""

    work: float
    """One repetition of many in a row."""
    launch: float | None
    """Until the CPU has launched one repetition on devices that are idle; None without GPUs."""


def measure_work(
    work: Callable[[], object], devices: Sequence[torch.device], seconds: float = MAX_SECONDS
) -> WorkTimes:
    """Measure ``work``, after some calls to warm up.

    Args:
        work: launches the same work at each call.
        devices: all that it uses.
        seconds: after which no more repetition starts.
    """
    gpus = [device for device in devices if device.type == "cuda"]
    count = STEPS_PER_SYNC if gpus else 1
    for _ in range(3 if gpus else 1):
        work()
    times: list[float] = []
    launches: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (len(times) < MAX_REPEATS and time.perf_counter() < end):
        _synchronize(gpus)
        started = time.perf_counter()
        work()
        launches.append(time.perf_counter() - started)
        for _ in range(count - 1):
            work()
        _synchronize(gpus)
        times.append((time.perf_counter() - started) / count)
    return WorkTimes(median(times), median(launches) if gpus else None)


def _synchronize(gpus: Sequence[torch.device]) -> None:
    for gpu in gpus:
        torch.cuda.synchronize(gpu)
