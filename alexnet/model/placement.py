"""Which device holds which tower, and the towers' weights as those of the one-column network."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alexnet.model.towers import AlexNet


def place_towers(model: AlexNet, devices: Sequence[torch.device]) -> AlexNet:
    """Move tower i to device i, or all towers to the only device; fc8 goes to the first device.

    Raises:
        ValueError: neither one device nor one for each tower is given.
    """
    count = len(model.towers)
    if len(devices) not in (1, count):
        raise ValueError(f"devices: {len(devices)}, towers: {count}; give one, or one for each")
    for tower, device in zip(model.towers, devices_per_tower(devices, count), strict=True):
        tower.to(device)
    model.fc8.to(devices[0])
    return model


def devices_per_tower(devices: Sequence[torch.device], towers: int) -> list[torch.device]:
    """One device for each tower, from one for all or one for each."""
    return list(devices) * towers if len(devices) == 1 else list(devices)


def to_grouped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The towers' weights as those of ``GroupedAlexNet``: ``conv1.weight`` (96, 3, 11, 11) etc.

    conv2, conv4 and conv5 of the result belong to convolutions with one group for each tower.
    """
    towers = tower_count(state)
    grouped = {}
    for name, tensor in state.items():
        if name.startswith("towers.0."):
            layer = name.removeprefix("towers.0.")
            parts = [state[f"towers.{index}.{layer}"].cpu() for index in range(towers)]
            grouped[layer] = torch.cat(parts)
        elif not name.startswith("towers."):
            grouped[name] = tensor.cpu()
    return grouped


def from_grouped(state: Mapping[str, Tensor], towers: int) -> dict[str, Tensor]:
    """The inverse of ``to_grouped``."""
    split = {}
    for name, tensor in state.items():
        if name.startswith("fc8."):
            split[name] = tensor
        else:
            for index, part in enumerate(tensor.chunk(towers)):
                split[f"towers.{index}.{name}"] = part.clone()
    return split


def tower_count(state: Mapping[str, Tensor]) -> int:
    """How many towers the weights of an ``AlexNet`` belong to."""
    return len({name.split(".")[1] for name in state if name.startswith("towers.")})
