"""Work, results and times that a device has not finished yet.

A GPU has a queue of work (a stream), and the CPU continues when it has added to the queue. Here are
a copy and a moment that are known when the device reaches them; only reading them waits for that.
On a CPU they are known at once. A second stream prepares the next batch while the first computes.
"""

import time
from collections.abc import Callable

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


class SideStream:
    """A second stream of a GPU, for work that does not wait for the current stream's.

    On a CPU, work is done at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # Work may read everything that has been launched before.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Launch work, and let the current stream wait for it; the CPU waits for neither.

        Args:
            work: creates a tensor on the device from tensors on the CPU, and from those on the
                device that existed when this object was created.

        Returns:
            The tensor, for use on the current stream.
        """
        if self._stream is None:
            return work()
        with torch.cuda.stream(self._stream):
            result = work()
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        # Otherwise the side stream could reuse its memory before the current stream is done.
        result.record_stream(current)
        return result


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor. The CPU does not wait for a GPU, which reads pinned memory."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # Returns the tensor itself if it is pinned.
    return tensor.to(device, non_blocking=True)
