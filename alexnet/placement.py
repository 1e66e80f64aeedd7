"""Which device holds which tower, and the same network as one column on one device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alexnet.towers import TOWERS, AlexNet


def place(model: AlexNet, devices: Sequence[torch.device]) -> AlexNet:
    """Move tower i to device i, or both to the only device given; fc8 goes with the first.

    Raises:
        ValueError: neither one device nor one for each tower is given.
    """
    if len(devices) not in (1, TOWERS):
        raise ValueError(f"{len(devices)} devices for {TOWERS} towers: give 1 or {TOWERS}")
    for tower, device in zip(model.towers, spread(devices), strict=True):
        tower.to(device)
    model.fc8.to(devices[0])
    return model


def spread(devices: Sequence[torch.device]) -> list[torch.device]:
    """One device for each tower, from one or two."""
    return list(devices) * TOWERS if len(devices) == 1 else list(devices)


def to_single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The two towers' weights as those of one column: ``conv1.weight`` (96, 3, 11, 11) and so on.

    conv2, conv4 and conv5 of the result are meant for a convolution with ``groups=2``.
    """
    single = {}
    for name, tensor in state.items():
        if name.startswith("towers.0."):
            layer = name.removeprefix("towers.0.")
            parts = [state[f"towers.{index}.{layer}"].cpu() for index in range(TOWERS)]
            single[layer] = torch.cat(parts)
        elif not name.startswith("towers."):
            single[name] = tensor.cpu()
    return single


def from_single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_single``."""
    towers = {}
    for name, tensor in state.items():
        if name.startswith("fc8."):
            towers[name] = tensor
        else:
            for index, part in enumerate(tensor.chunk(TOWERS)):
                towers[f"towers.{index}.{name}"] = part.clone()
    return towers
