"""What two towers on some devices do there: where they lie, what crosses between them, how fast.

For one look at a new machine; training knows nothing of it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from statistics import median

import numpy as np
import torch
from torch import Tensor

from alexnet.diagnostics.copies import CopyTracer, DeviceCopy
from alexnet.model.placement import place_towers
from alexnet.model.towers import AlexNet, Tower, initialize
from alexnet.recipes import CROP_SIZE, Recipe
from alexnet.shards.loader import Batch
from alexnet.training.loop import train_step
from alexnet.training.optimizer import EpochRates, build_optimizer, set_rates

CLASSES = 1000

MOST, WITHIN = 10, 5.0
"""Measurements of one thing: this many, or as many as begin in so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """A device and what lies on it."""

    device: str
    name: str
    memory: int | None
    """Bytes of the device; unknown for CPUs."""
    towers: list[int]
    last_layer: bool
    """Whether fc8 lies here."""
    parameters: int
    bytes: int
    """Of the parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Medians in seconds."""

    step: float
    """A whole update: forward, backward, new weights."""
    alone: list[float]
    """Forward and backward pass of each tower while the others rest; none on a single device."""
    together: float | None
    """Forward and backward pass of the whole network; None on a single device."""
    peak: dict[str, int]
    """Most bytes ever allocated in an update, for each GPU."""

    @property
    def overlap(self) -> float | None:
        """As many towers as there are if all worked all the time, 1 if one after the other."""
        return sum(self.alone) / self.together if self.together else None


class DeviceBenchmark:
    """A network of full size on some devices, with a batch of noise on each."""

    def __init__(
        self,
        recipe: Recipe,
        devices: Sequence[torch.device],
        images: int,
        *,
        bf16: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.recipe, self.bf16 = recipe, bf16
        self.devices = list(dict.fromkeys(devices))
        self.network = AlexNet(recipe, CLASSES)
        initialize(self.network, recipe, 0)
        place_towers(self.network, devices)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.network.train()
        noise = torch.rand(images, 3, CROP_SIZE, CROP_SIZE).sub_(0.5).mul_(255)
        self.patches = [noise.to(device) for device in self.devices]
        labels = torch.arange(images) % CLASSES
        nothing = torch.empty(0, dtype=torch.uint8)
        self.batch = Batch(nothing, labels, np.arange(images), offset=0, rows=images)

    def device_infos(self) -> list[DeviceInfo]:
        """What lies where."""
        towers: list[Tower] = list(self.network.towers)  # type: ignore[arg-type]
        found = []
        for device in self.devices:
            mine = [p for p in self.network.parameters() if p.device == device]
            cuda = device.type == "cuda"
            about = torch.cuda.get_device_properties(device) if cuda else None
            found.append(
                DeviceInfo(
                    device=str(device),
                    name=about.name if about else f"{torch.get_num_threads()} threads",
                    memory=about.total_memory if about else None,
                    towers=[i for i, tower in enumerate(towers) if tower.device == device],
                    last_layer=self.network.fc8.weight.device == device,
                    parameters=sum(p.numel() for p in mine),
                    bytes=sum(p.numel() * p.element_size() for p in mine),
                )
            )
        return found

    def peer_access(self) -> bool | None:
        """Whether each GPU can read all the others' memory; None without several GPUs."""
        if len(self.devices) == 1 or self.devices[0].type != "cuda":
            return None
        pairs = permutations(self.devices, 2)
        return all(torch.cuda.can_device_access_peer(*pair) for pair in pairs)

    def forward_copies(self) -> list[DeviceCopy]:
        """What crosses between the towers' devices in one forward pass, in order."""
        crossings = CopyTracer()
        with torch.no_grad(), crossings, crossings.layers(self.network):
            self._logits()
        return self._between(crossings)

    def step_copies(self) -> list[DeviceCopy]:
        """What crosses between the towers' devices in one update, forward and backward."""
        step = self._step()
        with CopyTracer() as crossings:
            step()
        return self._between(crossings)

    def copy_seconds(self, crossing: DeviceCopy) -> float:
        """Time of one such copy among many; on GPUs the CPU's part of it is hidden."""
        many = 20
        tensor = torch.zeros(crossing.shape, dtype=crossing.dtype, device=crossing.source)

        def copy() -> None:
            for _ in range(many):
                tensor.to(crossing.target, non_blocking=True)

        return self._seconds(copy) / many

    def step_times(self) -> StepTimes:
        """How long an update takes, and each tower's part of its passes."""
        gpus = [device for device in self.devices if device.type == "cuda"]
        step = self._seconds(self._step())
        peak = {str(device): torch.cuda.max_memory_allocated(device) for device in gpus}
        if len(self.devices) == 1:
            return StepTimes(step=step, alone=[], together=None, peak=peak)
        numbers = range(len(self.network.towers))
        return StepTimes(
            step=step,
            alone=[self._seconds(partial(self._alone, i)) for i in numbers],
            together=self._seconds(self._together),
            peak=peak,
        )

    def _between(self, crossings: CopyTracer) -> list[DeviceCopy]:
        """Without what comes from the CPU, such as labels."""
        return [crossing for crossing in crossings.found if crossing.source in self.devices]

    def _step(self) -> Callable[[], object]:
        optimizer = build_optimizer(self.network, self.recipe)
        # A rate of 0 would skip the work; this one leaves the network as it is long enough.
        set_rates(optimizer, EpochRates(1e-6))
        return lambda: train_step(
            self.network, optimizer, self.patches, self.batch, 1, bf16=self.bf16
        )

    def _logits(self) -> Tensor:
        with self._autocast():
            return self.network(*self.patches)  # type: ignore[no-any-return]

    def _together(self) -> None:
        self.network.zero_grad()
        self._logits().sum().backward()  # type: ignore[no-untyped-call]

    def _alone(self, number: int) -> None:
        """One tower's passes; zeros made on its device stand for what the others would send."""
        self.network.zero_grad()
        tower: Tower = self.network.towers[number]  # type: ignore[assignment]
        others = len(self.network.towers) - 1
        inputs = dict(zip(self.devices, self.patches, strict=True))

        def meet(x: Tensor) -> Tensor:
            return torch.cat([x] + [torch.zeros_like(x)] * others, dim=1)

        with self._autocast():
            x = tower.conv3_to_pool5(meet(tower.before_conv3(inputs[tower.device])))
            x = tower.hidden7(meet(tower.hidden6(meet(x))))
            if number == 0:
                x = self.network.fc8(meet(x))
        x.sum().backward()  # type: ignore[no-untyped-call]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.devices[0].type, torch.bfloat16, enabled=self.bf16)

    def _seconds(self, work: Callable[[], object]) -> float:
        for _ in range(3 if self.devices[0].type == "cuda" else 1):
            work()
        times: list[float] = []
        end = time.perf_counter() + WITHIN
        while not times or (len(times) < MOST and time.perf_counter() < end):
            self._wait()
            begun = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - begun)
        return median(times)

    def _wait(self) -> None:
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
