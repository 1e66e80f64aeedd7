"""The state dict of ``torchvision.models.alexnet``, read and written.

Its network takes RGB crops in the range 0 to 1, minus a mean and divided by a deviation for each
channel. Here the deviations are in conv1's weights, and the mean, a constant one, is subtracted.
Its dropout scales units up in training. Here fc6 and fc7 are halved in evaluation, so the weights
that read them are doubled. As functions, in evaluation, both are equal.
"""

import pickle
from collections.abc import Mapping
from io import BytesIO

import torch
from torch import Tensor

from alexnet.errors import UserError, one_line
from alexnet.weights.one_column import OneColumn

NAMES = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}
"""torchvision's names of the layers."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""By which torchvision's transforms normalize channels, in the range 0 to 1."""

KEPT = 0.5
"""Fraction of the units that dropout keeps."""


def read_torchvision(path: str, content: bytes) -> OneColumn:
    """Read a file that ``torch.save`` has written, without executing anything in it.

    Raises:
        UserError: it is damaged, holds more than tensors, or is not of this network.
    """
    try:
        state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = one_line(error).partition(". ")[0][:200]
        raise UserError(f"{path}: not a readable state dict of torch ({reason})") from error
    tensors: dict[str, Tensor] = {}
    for layer, theirs in NAMES.items():
        for kind in ("weight", "bias"):
            tensor = state.get(f"{theirs}.{kind}") if isinstance(state, Mapping) else None
            if not isinstance(tensor, Tensor):
                raise UserError(
                    f"{path}: not a state dict of torchvision's alexnet (no {theirs}.{kind})"
                )
            tensors[f"{layer}.{kind}"] = tensor.float()
    if tensors["conv1.weight"].ndim != 4 or tensors["conv1.weight"].shape[1] != 3:
        raise UserError(f"{path}: not a state dict of torchvision's alexnet (features.0.weight)")
    tensors["conv1.weight"] = tensors["conv1.weight"] / (255 * _by_channel(STD))
    for layer in ("fc7", "fc8"):
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] / KEPT
    return OneColumn(
        kind="torchvision's alexnet",
        tensors=tensors,
        mean=(255 * _by_channel(MEAN)).expand(3, 224, 224).clone(),
        recipe="torchvision",
    )


def to_torchvision(tensors: Mapping[str, Tensor], mean: Tensor) -> dict[str, Tensor]:
    """The inverse: a state dict of ``torchvision.models.alexnet``.

    Args:
        tensors: of the recipe ``torchvision``, as in ``OneColumn``.
        mean: (3, 224, 224) that is subtracted from crops. What differs from torchvision's mean is
            added to conv1's bias, by its average over the image: exactly, if it is constant.
    """
    state = {
        f"{theirs}.{kind}": tensors[f"{layer}.{kind}"].clone()
        for layer, theirs in NAMES.items()
        for kind in ("weight", "bias")
    }
    offset = (255 * _by_channel(MEAN) - mean).double().mean(dim=(1, 2))
    moved = (tensors["conv1.weight"].sum(dim=(2, 3)) * offset).sum(dim=1)
    state["features.0.bias"] += moved.to(mean.dtype)
    state["features.0.weight"] *= 255 * _by_channel(STD)
    for layer in ("fc7", "fc8"):
        state[f"{NAMES[layer]}.weight"] *= KEPT
    return state


def _by_channel(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).reshape(3, 1, 1)
