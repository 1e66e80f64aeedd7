"""What ``--check-devices`` measures, as data, as lines for a person and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from alexnet.diagnostics.copies import DeviceCopy
from alexnet.diagnostics.devices import DeviceInfo, StepTimes
from alexnet.diagnostics.equivalence import TOLERANCE, Comparison

GIB, MB, GB = 2**30, 10**6, 10**9

GOOD_OVERLAP = 0.85
"""Fraction of the largest possible overlap that is good."""
LAUNCH_BOUND, LINK_BOUND = 0.9, 0.15
"""Fractions of an update's time, and of the network's, from which on these are the bottleneck."""
UNEQUAL = 1.2
"""Ratio of the towers' times from which on they are not equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """Everything that was measured of a worker's devices."""

    images: int
    """A worker's share of a batch."""
    devices: list[DeviceInfo]
    peer_access: bool | None
    """Whether GPUs copy to each other directly; None without several GPUs."""
    copies: list[tuple[DeviceCopy, float]]
    """Between the towers' devices in a forward pass, and the seconds that each takes."""
    backward_bytes: int
    """Copied between the devices in a backward pass."""
    times: StepTimes
    comparison: Comparison
    """With the one-column network on the first device."""
    not_compiled: str | None = None
    """Why ``--compile on`` has no effect, if it has none."""

    @property
    def launch_bound(self) -> bool | None:
        """Whether the CPU can't launch work as fast as the GPUs compute it; None without GPUs."""
        launch = self.times.launch_seconds
        return None if launch is None else launch >= LAUNCH_BOUND * self.times.step_seconds

    @property
    def forward_bytes(self) -> int:
        """Copied between the devices in a forward pass."""
        return sum(copy.bytes for copy, _ in self.copies)

    def lines(self) -> Iterator[str]:
        """The report in words."""
        yield from map(_about_device, self.devices)
        if self.peer_access is not None:
            direct = "the GPUs copy to each other directly"
            yield f"peer-to-peer: {direct if self.peer_access else 'no, copies pass the CPU'}"
        yield from self._about_copies()
        times = self.times
        yield (
            f"an update of {self.images} images takes {_time(times.step_seconds)}, "
            f"{self.images / times.step_seconds:,.0f} images/s (without reading images)"
        )
        if times.launch_seconds is not None:
            yield (
                f"the CPU launches it in {_time(times.launch_seconds)}: launching is "
                f"{'' if self.launch_bound else 'not '}the bottleneck"
            )
        for device, size in times.peak_bytes.items():
            yield f"{device}: an update uses at most {size / GIB:,.2f} GiB"
        if times.network_seconds and times.overlap:
            yield _about_overlap(times.tower_seconds, times.network_seconds, times.overlap)
        if self.not_compiled:
            yield f"--compile on has no effect: {self.not_compiled}"
        yield _about_comparison(self.comparison, self.devices[0].device)
        yield f"verdict: {verdict(self)}"

    def _about_copies(self) -> Iterator[str]:
        if not self.copies:
            yield "one device: nothing is copied, and no towers can work at the same time"
            return
        yield (
            f"copies in a forward pass of {self.images} images, "
            f"{self.forward_bytes / MB:,.1f} MB together:"
        )
        for copy, seconds in self.copies:
            yield (
                f"  to {copy.layer:<5} {copy.source} → {copy.target} {copy.bytes / MB:8,.2f} MB "
                f"in {_time(seconds)}, {copy.bytes / seconds / GB:,.1f} GB/s"
            )
        yield (
            "gradients are copied in the opposite direction, "
            f"{self.backward_bytes / MB:,.1f} MB together"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCheckResult:
    """The result of ``--check-devices``."""

    report: DeviceReport
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the devices compute what one device computes."""
        return self.report.comparison.passed

    def to_json(self) -> dict[str, Any]:
        """The last line on standard output."""
        report, times, comparison = self.report, self.report.times, self.report.comparison
        return {
            "stage": "train",
            "check_devices": True,
            "passed": comparison.passed,
            "images": report.images,
            "devices": [asdict(device) for device in report.devices],
            "peer_access": report.peer_access,
            "copies": [
                {
                    "layer": copy.layer,
                    "source": str(copy.source),
                    "target": str(copy.target),
                    "bytes": copy.bytes,
                    "seconds": seconds,
                    "bytes_per_second": round(copy.bytes / seconds),
                }
                for copy, seconds in report.copies
            ],
            "forward_bytes": report.forward_bytes,
            "backward_bytes": report.backward_bytes,
            "step_seconds": times.step_seconds,
            "images_per_second": round(report.images / times.step_seconds, 1),
            "tower_seconds": times.tower_seconds,
            "together_seconds": times.network_seconds,
            "overlap": times.overlap,
            "launch_seconds": times.launch_seconds,
            "launch_bound": report.launch_bound,
            "peak_bytes": times.peak_bytes,
            "logits_difference": comparison.logits,
            "gradients_difference": comparison.gradients,
            "tolerance": TOLERANCE,
            "verdict": verdict(report),
            "seconds": self.seconds,
        }


def verdict(report: DeviceReport) -> str:
    """What the measurements mean, and what to do about it."""
    times, towers = report.times, len(report.times.tower_seconds)
    if not report.comparison.passed:
        return (
            f"these devices compute wrong results ({report.comparison.layer}); do not train on "
            "them. "
            + (
                "If the GPUs copy to each other directly, the machine's IOMMU may be the cause: "
                "disable it, or give --gpus-per-worker 1"
                if report.peer_access
                else "Check the driver and the memory of the devices"
            )
        )
    bottleneck = _bottleneck(report)
    if times.overlap is None:
        return f"usable; {bottleneck}"
    works = f"usable; the towers overlap {times.overlap:.1f} of {towers}.0"
    if times.overlap >= GOOD_OVERLAP * towers:
        return f"{works}, as they should"
    return f"{works}; {bottleneck}"


def _bottleneck(report: DeviceReport) -> str:
    """What limits the speed, as far as it was measured."""
    times = report.times
    if times.launch_seconds is None:
        return "without GPUs, the CPU cores limit the speed"
    if report.launch_bound:
        return (
            f"launching the work on the GPU is the bottleneck ({_time(times.launch_seconds)} of "
            f"{_time(times.step_seconds)}): give more images for each worker "
            "with a larger --batch-size or fewer --num-workers"
        )
    if times.network_seconds is None:
        return (
            "the GPU itself is the bottleneck, as it should be: --precision tf32 or bf16 and "
            "--channels-last on may be faster"
        )
    copying = 2 * sum(seconds for _, seconds in report.copies)  # Gradients go back.
    if copying >= LINK_BOUND * times.network_seconds:
        peer = "" if report.peer_access else ", since the GPUs can't copy to each other directly"
        return (
            f"the link between the GPUs is the bottleneck (copies take {_time(copying)} of "
            f"{_time(times.network_seconds)}{peer}): use GPUs with NVLink or on one PCIe switch, "
            "or give --gpus-per-worker 1 and twice the --num-workers"
        )
    slowest = max(times.tower_seconds)
    if slowest >= UNEQUAL * min(times.tower_seconds):
        number = times.tower_seconds.index(slowest)
        return f"tower {number} is the bottleneck: its GPU is slower, or something else uses it"
    return (
        "neither launching nor the link explains it; a trace of torch.profiler shows what the "
        "GPUs wait for. --gpus-per-worker 1 and twice the --num-workers may be faster"
    )


def _about_device(info: DeviceInfo) -> str:
    memory = "" if info.memory is None else f", {info.memory / GIB:,.1f} GiB"
    modules = [f"tower {number}" for number in info.towers] + ["fc8"] * info.last_layer
    return (
        f"{info.device} ({info.name}{memory}) holds {', '.join(modules)}: "
        f"{info.parameters:,} parameters, {info.bytes / MB:,.1f} MB"
    )


def _about_overlap(tower_seconds: list[float], network_seconds: float, overlap: float) -> str:
    towers = ", ".join(
        f"tower {number} alone {_time(seconds)}" for number, seconds in enumerate(tower_seconds)
    )
    return (
        f"forward and backward: {towers}, the whole network {_time(network_seconds)}: overlap "
        f"{overlap:.2f} ({len(tower_seconds)}: all work at the same time, 1: one after the other)"
    )


def _about_comparison(comparison: Comparison, first_device: str) -> str:
    return (
        f"compared with one column on {first_device}, in float64: logits differ by "
        f"{comparison.logits:.1e}, gradients by at most {comparison.gradients:.1e} "
        f"({comparison.layer}), allowed is {TOLERANCE:.0e}: "
        f"{'PASS' if comparison.passed else 'FAIL'}"
    )


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1000:,.3g} ms"
