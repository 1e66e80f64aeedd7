"""Which device holds which tower, and the same network as one column on one device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alexnet.model.towers import AlexNet


def place_towers(model: AlexNet, devices: Sequence[torch.device]) -> AlexNet:
    """Move tower i to device i, or all to the only device given; fc8 goes with the first.

    Raises:
        ValueError: neither one device nor one for each tower is given.
    """
    count = len(model.towers)
    if len(devices) not in (1, count):
        raise ValueError(f"devices: {len(devices)}, towers: {count}; give one, or one for each")
    for tower, device in zip(model.towers, spread(devices, count), strict=True):
        tower.to(device)
    model.fc8.to(devices[0])
    return model


def spread(devices: Sequence[torch.device], towers: int) -> list[torch.device]:
    """One device for each tower, from one for all or one for each."""
    return list(devices) * towers if len(devices) == 1 else list(devices)


def to_single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The towers' weights as those of one column: ``conv1.weight`` (96, 3, 11, 11) and so on.

    conv2, conv4 and conv5 of the result are meant for a convolution with a group for each tower.
    """
    towers = tower_count(state)
    single = {}
    for name, tensor in state.items():
        if name.startswith("towers.0."):
            layer = name.removeprefix("towers.0.")
            parts = [state[f"towers.{index}.{layer}"].cpu() for index in range(towers)]
            single[layer] = torch.cat(parts)
        elif not name.startswith("towers."):
            single[name] = tensor.cpu()
    return single


def from_single(state: Mapping[str, Tensor], towers: int) -> dict[str, Tensor]:
    """The inverse of ``to_single``."""
    cut = {}
    for name, tensor in state.items():
        if name.startswith("fc8."):
            cut[name] = tensor
        else:
            for index, part in enumerate(tensor.chunk(towers)):
                cut[f"towers.{index}.{name}"] = part.clone()
    return cut


def tower_count(state: Mapping[str, Tensor]) -> int:
    """How many towers some weights, named as ``AlexNet`` names them, belong to."""
    return len({name.split(".")[1] for name in state if name.startswith("towers.")})
