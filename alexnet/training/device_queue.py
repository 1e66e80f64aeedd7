"""Results and times of work that a device has not finished yet.

A GPU has a queue of work, and the CPU continues when it has added to the queue. Here are a copy and
a moment that are known when the device reaches them; only reading them waits for that. On a CPU
they are known at once.
"""

import time

import torch
from torch import Tensor


class DeviceTime:
    """The moment at which a device has computed everything that was launched before."""

    def __init__(self, device: torch.device) -> None:
        self._clock = time.monotonic()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait until then."""
        if self._event:
            self._event.synchronize()

    def seconds_since(self, earlier: "DeviceTime") -> float:
        """Seconds between both moments, of one device; waits for the later one."""
        if not (self._event and earlier._event):
            return self._clock - earlier._clock
        self._event.synchronize()
        return float(earlier._event.elapsed_time(self._event)) / 1000


class HostCopy:
    """A copy of a tensor on the CPU. From a GPU it goes into pinned memory."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.detach().to("cpu", non_blocking=True, copy=True)
        self._made = DeviceTime(tensor.device)

    def read(self) -> Tensor:
        """The copy; waits until it is complete."""
        self._made.wait()
        return self._copy
