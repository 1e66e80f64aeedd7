"""Measurements of the network on given devices: placement, copies between towers, times.

They are for the examination of new hardware. What is measured is what training does with a batch of
images in memory: ``training.loop.train_on_batch`` with a network of ``training.network``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from alexnet.diagnostics.copies import CopyTracer, DeviceCopy
from alexnet.diagnostics.timing import measure_work
from alexnet.model.dropout import dropout_keys
from alexnet.model.towers import Tower
from alexnet.recipes import CROP_SIZE, IMAGE_SIZE, Recipe
from alexnet.shards.loader import Batch
from alexnet.training.augment import centre_crops
from alexnet.training.device_queue import SideStream
from alexnet.training.loop import TrainContext, train_on_batch
from alexnet.training.network import Execution, build_network
from alexnet.training.optimizer import EpochRates, build_optimizer, set_rates

CLASSES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """A device and the parts of the network on it."""

    device: str
    name: str
    memory: int | None
    """Bytes of the device; None for CPUs."""
    towers: list[int]
    last_layer: bool
    """Whether fc8 is on this device."""
    parameters: int
    bytes: int
    """Of the parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Medians of measured times in seconds."""

    step_seconds: float
    """A whole update: images to the devices, crops, forward and backward pass, new weights."""
    launch_seconds: float | None
    """Until the CPU has launched an update on devices that are idle; None without GPUs."""
    tower_seconds: list[float]
    """Forward and backward pass of each tower while the others are idle; empty on one device."""
    network_seconds: float | None
    """Forward and backward pass of the whole network; None on one device."""
    peak_bytes: dict[str, int]
    """Largest memory allocated in an update, for each GPU."""

    @property
    def overlap(self) -> float | None:
        """The number of towers if all compute all the time, 1 if they compute one by one."""
        return sum(self.tower_seconds) / self.network_seconds if self.network_seconds else None


class DeviceBenchmark:
    """A network of full size on some devices, and a batch of random images."""

    def __init__(
        self,
        recipe: Recipe,
        devices: Sequence[torch.device],
        images: int,
        execution: Execution,
    ) -> None:
        self.recipe = recipe
        self.devices = list(dict.fromkeys(devices))
        self.network, self.not_compiled = build_network(recipe, CLASSES, devices, 0, execution)
        self.network.train()
        mean = torch.full((3, CROP_SIZE, CROP_SIZE), 127.5)
        self.context = TrainContext(
            recipe=recipe,
            means=[mean.to(device) for device in self.devices],
            side_streams=[SideStream(device) for device in self.devices],
            pca_axes=np.eye(3),
            seed=0,
            bf16=execution.bf16,
            channels_last=execution.channels_last,
        )
        generator = torch.Generator().manual_seed(0)
        shape = images, IMAGE_SIZE, IMAGE_SIZE, 3
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        if self.devices[0].type == "cuda":  # As the loader's batches.
            pixels = pixels.pin_memory()
        labels = torch.arange(images) % CLASSES
        self.batch = Batch(pixels, labels, np.arange(images), offset=0, rows=images)
        rows_keys = dropout_keys(0, 0, torch.arange(images))
        self.keys = [rows_keys.to(mean.device) for mean in self.context.means]
        self.crops = [
            centre_crops(pixels.to(mean.device), mean, channels_last=execution.channels_last)
            for mean in self.context.means
        ]

    def device_infos(self) -> list[DeviceInfo]:
        """The devices and the parts of the network on them."""
        towers: list[Tower] = list(self.network.towers)  # type: ignore[arg-type]
        infos = []
        for device in self.devices:
            parameters = [p for p in self.network.parameters() if p.device == device]
            is_cuda = device.type == "cuda"
            properties = torch.cuda.get_device_properties(device) if is_cuda else None
            infos.append(
                DeviceInfo(
                    device=str(device),
                    name=properties.name if properties else f"{torch.get_num_threads()} threads",
                    memory=properties.total_memory if properties else None,
                    towers=[i for i, tower in enumerate(towers) if tower.device == device],
                    last_layer=self.network.fc8.weight.device == device,
                    parameters=sum(p.numel() for p in parameters),
                    bytes=sum(p.numel() * p.element_size() for p in parameters),
                )
            )
        return infos

    def peer_access(self) -> bool | None:
        """Whether each GPU can access the memory of all others; None without several GPUs."""
        if len(self.devices) == 1 or self.devices[0].type != "cuda":
            return None
        pairs = permutations(self.devices, 2)
        return all(torch.cuda.can_device_access_peer(*pair) for pair in pairs)

    def forward_copies(self) -> list[DeviceCopy]:
        """The copies between the towers' devices in one forward pass, in order."""
        tracer = CopyTracer()
        with torch.no_grad(), tracer, tracer.layers(self.network):
            self._logits()
        return self._between_towers(tracer)

    def step_copies(self) -> list[DeviceCopy]:
        """The copies between the towers' devices in one update, forward and backward."""
        step = self.step()
        with CopyTracer() as tracer:
            step()
        return self._between_towers(tracer)

    def copy_seconds(self, copy: DeviceCopy) -> float:
        """Time of one copy in a series, so that launch times on the CPU overlap with copies."""
        repeats = 20
        tensor = torch.zeros(copy.shape, dtype=copy.dtype, device=copy.source)

        def copy_repeatedly() -> None:
            for _ in range(repeats):
                tensor.to(copy.target, non_blocking=True)

        return measure_work(copy_repeatedly, self.devices).work / repeats

    def step(self) -> Callable[[], object]:
        """A function that launches one update."""
        optimizer = build_optimizer(self.network, self.recipe)
        # The optimizer skips parameters with a rate of 0. A small one hardly changes the weights.
        set_rates(optimizer, EpochRates(1e-6))
        return lambda: train_on_batch(self.network, optimizer, self.batch, self.context, epoch=0)

    def step_times(self) -> StepTimes:
        """The time of an update, and of each tower's forward and backward pass."""
        gpus = [device for device in self.devices if device.type == "cuda"]
        step = measure_work(self.step(), self.devices)
        peak_bytes = {str(device): torch.cuda.max_memory_allocated(device) for device in gpus}
        tower_seconds: list[float] = []
        network_seconds: float | None = None
        if len(self.devices) > 1:
            numbers = range(len(self.network.towers))
            tower_seconds = [
                measure_work(partial(self._run_tower, number), self.devices).work
                for number in numbers
            ]
            network_seconds = measure_work(self._run_network, self.devices).work
        return StepTimes(
            step_seconds=step.work,
            launch_seconds=step.launch,
            tower_seconds=tower_seconds,
            network_seconds=network_seconds,
            peak_bytes=peak_bytes,
        )

    def _between_towers(self, tracer: CopyTracer) -> list[DeviceCopy]:
        """The recorded copies, except those from the CPU to a GPU, such as labels."""
        return [copy for copy in tracer.copies if copy.source in self.devices]

    def _logits(self) -> Tensor:
        with self._autocast():
            return self.network(*self.crops, keys=self.keys)  # type: ignore[no-any-return]

    def _run_network(self) -> None:
        self.network.zero_grad()
        self._logits().sum().backward()  # type: ignore[no-untyped-call]

    def _run_tower(self, number: int) -> None:
        """Forward and backward pass of one tower, with zeros as the other towers' activations."""
        self.network.zero_grad()
        tower: Tower = self.network.towers[number]  # type: ignore[assignment]
        other_towers = len(self.network.towers) - 1
        crops = dict(zip(self.devices, self.crops, strict=True))[tower.device]

        def with_zeros(x: Tensor) -> Tensor:
            return torch.cat([x] + [torch.zeros_like(x)] * other_towers, dim=1)

        with self._autocast():
            x = tower.conv3_to_pool5(with_zeros(tower.before_conv3(crops)))
            mask = x.new_ones((len(x), tower.fc6.out_features), dtype=torch.bool)
            x = tower.hidden7(with_zeros(tower.hidden6(with_zeros(x), mask)), mask)
            if number == 0:
                x = self.network.fc8(with_zeros(x))
        x.sum().backward()  # type: ignore[no-untyped-call]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.devices[0].type, torch.bfloat16, enabled=self.context.bf16)
