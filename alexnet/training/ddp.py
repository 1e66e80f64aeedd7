"""Data-parallel training: each worker has the whole network, and gradients are averaged.

A process group of NCCL belongs to one device: newer versions of torch refuse the tensors of another
one. So there is one process group for each device of a worker, over which the gradients of the
parameters on it are averaged. The default process group is used only for tensors on the CPU, and
its backend has to be gloo: ``dist.new_group`` refuses other devices than that of a default group
which is bound to one.

The average of a gradient g over W workers is the sum of g · (1 / W). The order of the terms is the
backend's; with two workers there is only one.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.nn.parallel import DistributedDataParallel

from alexnet.model.towers import AlexNet

Compression = Literal["none", "fp16", "bf16"]

HOOKS = {"fp16": fp16_compress_hook, "bf16": bf16_compress_hook}

DEFAULT_BACKEND = "gloo"
"""Of the default process group."""

TIMEOUT = timedelta(minutes=30)
"""For one operation of a process group. Workers wait for each other while one writes checkpoints to
slow storage; a lost worker is noticed by other means."""


class DevicePart(NamedTuple):
    """The parameters on one device, and the process group that averages their gradients."""

    parameters: Sequence[nn.Parameter]
    group: dist.ProcessGroup


class MultiDeviceDDP(nn.Module):
    """``DistributedDataParallel`` for a network whose parameters are on several devices.

    Takes and returns what the network does. All workers begin with the weights of rank 0.
    """

    def __init__(
        self, network: AlexNet, parts: Sequence[DevicePart], compression: Compression = "none"
    ) -> None:
        """Prepare; all workers have to do this at the same time.

        Args:
            network: of this worker.
            parts: every parameter in one of them; the same parts on all workers, in this order.
            compression: see ``wrap_ddp``.
        """
        super().__init__()
        self.network = network
        # In a tuple, so that they are no submodules: the network has all parameters already.
        self._replicas = tuple(_replica(part, compression) for part in parts)

    def forward(self, *crops: Tensor, keys: Sequence[Tensor] = ()) -> Tensor:
        """Logits of this worker's crops."""
        for replica in self._replicas:
            replica()
        return self.network(*crops, keys=keys)  # type: ignore[no-any-return]


class _Parameters(nn.Module):
    """Parameters for DDP, which prepares for a backward pass in its ``forward``."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.list = nn.ParameterList(parameters)

    def forward(self) -> None:
        """Compute nothing."""


def _replica(part: DevicePart, compression: Compression) -> DistributedDataParallel:
    replica = DistributedDataParallel(_Parameters(part.parameters), process_group=part.group)
    if compression != "none":
        replica.register_comm_hook(part.group, HOOKS[compression])
    return replica


def wrap_ddp(network: AlexNet, compression: Compression = "none") -> MultiDeviceDDP:
    """Wrap the network so that all workers of the default process group average their gradients.

    ``compression``: the format in which gradients are sent between workers, two bytes instead of
    four. ``fp16`` keeps 11 significant bits but turns values below 6e-8 into 0; ``bf16`` keeps 8
    significant bits of any value. Each worker's own gradients stay float32.
    """
    parts = [DevicePart(p, device_group(d)) for d, p in parameters_by_device(network).items()]
    return MultiDeviceDDP(network, parts, compression)


def parameters_by_device(network: AlexNet) -> dict[torch.device, list[nn.Parameter]]:
    """The parameters on each device, in the order of the network."""
    parts: dict[torch.device, list[nn.Parameter]] = {}
    for parameter in network.parameters():
        parts.setdefault(parameter.device, []).append(parameter)
    return parts


def device_group(device: torch.device) -> dist.ProcessGroup:
    """A process group of all workers for tensors on a device; all have to call this together."""
    if device.type == "cpu":
        assert dist.group.WORLD is not None
        return dist.group.WORLD
    group = dist.new_group(backend="nccl", device_id=device, timeout=TIMEOUT)
    return cast(dist.ProcessGroup, group)  # Every worker is a member.
