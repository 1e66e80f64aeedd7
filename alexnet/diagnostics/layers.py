"""What the layers of a network do: activations of an image, dead units, norms of gradients."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.model.towers import AlexNet, Tower
from alexnet.recipes import Recipe

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
HIDDEN_LAYERS = (*CONVOLUTIONS, "fc6", "fc7")
"""Layers that a ReLU follows, without conv6, which few networks have."""


@dataclass(frozen=True, slots=True)
class Activations:
    """What the layers output for some images."""

    maps: Mapping[str, list[NDArray[np.float32]]]
    """Of each convolution and tower, (kernels, height, width): the first image's, 0 or more."""
    dead: Mapping[str, list[float]]
    """Of each hidden layer and tower: per cent of the units that are 0 for every image. A kernel is
    one unit: it is 0 if it is so at every position."""


@torch.no_grad()
def activations(
    weights: Mapping[str, Tensor], recipe: Recipe, classes: int, crops: Tensor
) -> Activations:
    """Compute a network on the CPU and record its hidden layers.

    No random numbers are drawn, so it may run beside a training in the same process.

    Args:
        weights: by name, on the CPU; they are not copied.
        recipe: of the network.
        classes: outputs of its last layer.
        crops: (N, 3, 224, 224) float32, mean-subtracted.
    """
    with torch.device("meta"):
        network = AlexNet(recipe, classes)
    network.load_state_dict(dict(weights), assign=True)
    network.eval()
    outputs: dict[str, list[Tensor]] = {name: [] for name in HIDDEN_LAYERS}

    def record(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        # A normalization before the ReLU divides by positive numbers, which keeps the signs.
        outputs[name].append(output.relu())

    for tower in network.towers:
        assert isinstance(tower, Tower)
        for name in HIDDEN_LAYERS:
            getattr(tower, name).register_forward_hook(partial(record, name))
    network(crops)
    return Activations(
        maps={name: [maps[0].numpy() for maps in outputs[name]] for name in CONVOLUTIONS},
        dead={name: [_dead_percent(units) for units in outputs[name]] for name in HIDDEN_LAYERS},
    )


def _dead_percent(outputs: Tensor) -> float:
    """Of (N, units) or (N, units, height, width), 0 or more."""
    highest = outputs.movedim(1, 0).flatten(1).amax(dim=1)
    return 100 * float((highest == 0).float().mean())


@torch.no_grad()
def gradient_norms(network: AlexNet) -> dict[str, list[float]]:
    """Norms of the last update's gradients of the weights, by layer and tower; fc8 has one.

    The gradient is that of the mean loss of a batch. Layers without one are left out.
    """
    norms: dict[str, list[float]] = {}
    for name, parameter in network.named_parameters():
        layer, kind = name.split(".")[-2:]
        if kind == "weight" and parameter.grad is not None:
            norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
            norms.setdefault(layer, []).append(float(norm))
    return norms
