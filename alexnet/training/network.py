"""The network as it is trained: on its devices, in a precision and a memory layout, compiled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from alexnet.model.compilation import compile_towers
from alexnet.model.placement import place_towers
from alexnet.model.precision import Precision, set_tf32
from alexnet.model.towers import AlexNet, initialize
from alexnet.recipes import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a network is computed, as far as this does not depend on the recipe."""

    precision: Precision = "float32"
    channels_last: bool = False
    """Whether weights have the layout NHWC in memory, and on GPUs images and activations too. On
    CPUs images and activations always have it."""
    compile: bool = False

    @property
    def bf16(self) -> bool:
        """Whether ``torch.autocast`` is used."""
        return self.precision == "bf16"


class BuiltNetwork(NamedTuple):
    """A network with its initial weights, ready for training."""

    network: AlexNet
    not_compiled: str | None
    """One line that explains why compilation was wanted and does not work; else None."""


def build_network(
    recipe: Recipe, classes: int, devices: Sequence[torch.device], seed: int, execution: Execution
) -> BuiltNetwork:
    """Build the network on one device or one for each tower.

    Sets this process's TF32 flags, and lets cuDNN choose algorithms by measuring them: batches have
    few different sizes. Neither changes anything on CPUs.
    """
    set_tf32(execution.precision)
    torch.backends.cudnn.benchmark = True
    network = AlexNet(recipe, classes)
    initialize(network, recipe, seed)
    place_towers(network, devices)
    if execution.channels_last:
        network.to(memory_format=torch.channels_last)
    return BuiltNetwork(network, compile_towers(network) if execution.compile else None)
