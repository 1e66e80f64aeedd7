"""A checkpoint as one column in one file, for use without this package.

    python -m alexnet.export CHECKPOINT OUTPUT.safetensors

The file holds the state dict of ``GroupedAlexNet``: a plain ``nn.Sequential`` whose layers have
the names ``conv1`` ... ``fc8``, with a group for each tower where the towers don't meet, and the
mean image as ``centre.mean``. Its header holds the recipe's numbers as JSON, under ``recipe``.
The class imports nothing but torch, so its text can be copied elsewhere.

As a function the two are equal, in training and in testing. Dropout here is today's: zeros and a
scale in training, nothing in testing. So the weights that read dropped-out units, of fc7 and
fc8, are multiplied by the part that is kept; with .5, no digit is lost by that.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alexnet import checkpoints, storage
from alexnet.errors import UserError
from alexnet.placement import to_single


class GroupedAlexNet(nn.Sequential):
    """The network as one column.

    Takes RGB patches in the 0-255 range, (N, 3, 224, 224) of any number type; returns (N,
    ``classes``) logits, classes in the order of their sorted wnids.

    ``recipe`` gives ``towers``, ``hidden``, ``pool_size``, ``dropout``, ``norm1_before_relu`` and,
    each with ``size``, ``alpha`` and ``bias`` or None, ``cross_map`` and ``within_map``.
    """

    def __init__(self, recipe: Mapping[str, Any], classes: int) -> None:
        super().__init__()
        groups, hidden = recipe["towers"], recipe["hidden"]
        cross_map, within_map = recipe["cross_map"], recipe["within_map"]

        def pool() -> nn.Module:
            return nn.MaxPool2d(recipe["pool_size"], 2)

        def norm() -> nn.Module:
            return CrossMap(groups, **cross_map) if cross_map else nn.Identity()

        self.centre = Centre()
        self.pad1 = nn.ZeroPad2d((0, 3, 0, 3))
        self.conv1 = nn.Conv2d(3, 48 * groups, 11, stride=4)
        if recipe["norm1_before_relu"]:
            self.norm1, self.pool1, self.relu1 = norm(), pool(), nn.ReLU()
        else:
            self.relu1, self.norm1, self.pool1 = nn.ReLU(), norm(), pool()
        self.conv2 = nn.Conv2d(48 * groups, 128 * groups, 5, padding=2, groups=groups)
        self.relu2 = nn.ReLU()
        self.norm2 = norm()
        self.within2 = WithinMap(**within_map) if within_map else nn.Identity()
        self.pool2 = pool()
        self.conv3 = nn.Conv2d(128 * groups, 192 * groups, 3, padding=1)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(192 * groups, 192 * groups, 3, padding=1, groups=groups)
        self.relu4 = nn.ReLU()
        self.conv5 = nn.Conv2d(192 * groups, 256, 3, padding=1, groups=groups)
        self.relu5 = nn.ReLU()
        self.pool5 = pool()
        self.flatten = nn.Flatten()
        self.fc6 = nn.Linear(256 * 6 * 6, hidden)
        self.relu6 = nn.ReLU()
        self.dropout6 = nn.Dropout(recipe["dropout"])
        self.fc7 = nn.Linear(hidden, hidden)
        self.relu7 = nn.ReLU()
        self.dropout7 = nn.Dropout(recipe["dropout"])
        self.fc8 = nn.Linear(hidden, classes)


class Centre(nn.Module):
    """x - mean, both (..., 3, 224, 224)."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 224, 224))

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the mean image's central patch."""
        return x - self.mean


class CrossMap(nn.Module):
    """x / (bias + alpha · Σ x²) ^ .75 over ``size`` neighbouring maps of the same group."""

    def __init__(self, groups: int, size: int, alpha: float, bias: float) -> None:
        super().__init__()
        self.groups, self.size, self.alpha, self.bias = groups, size, alpha, bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        count, maps, height, width = x.shape
        parts = x.reshape(count * self.groups, maps // self.groups, height, width)
        # Torch divides alpha by the window's size.
        parts = F.local_response_norm(parts, self.size, self.alpha * self.size, 0.75, self.bias)
        return parts.reshape(count, maps, height, width)


class WithinMap(nn.Module):
    """x / (bias + alpha · Σ x²) ^ .75 over ``size`` rows and columns of the same map."""

    def __init__(self, size: int, alpha: float, bias: float) -> None:
        super().__init__()
        self.size, self.alpha, self.bias = size, alpha, bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        sums = F.avg_pool2d(x * x, self.size, 1, self.size // 2, divisor_override=1)
        return x / (self.bias + self.alpha * sums) ** 0.75


def write(checkpoint: str, path: str) -> None:
    """Write a checkpoint's network, or the averaged one if the run kept one, as one file.

    Args:
        checkpoint: its folder (``checkpoints``).
        path: of the file, in an existing folder; a file that is there already is replaced.

    Raises:
        UserError: the checkpoint can't be read, or the file can't be written.
    """
    averaged = os.path.exists(os.path.join(checkpoint, "average.safetensors"))
    name = "average.safetensors" if averaged else "model.safetensors"
    recipe = checkpoints.read_recipe(checkpoint)
    state = to_single(checkpoints.read_tensors(checkpoint, name))
    for layer in ("fc7", "fc8"):
        state[f"{layer}.weight"] *= 1 - recipe["dropout"]
    state["centre.mean"] = checkpoints.read_tensors(checkpoint, "mean.safetensors")["mean"]
    try:
        save_file(state, f"{path}.part", {"recipe": json.dumps(recipe)})
        os.replace(f"{path}.part", path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: can't be written ({storage.one_line(error)})") from error


def read(path: str) -> GroupedAlexNet:
    """The network of an exported file, in testing mode.

    Raises:
        UserError: the file is missing, damaged or not an export.
    """
    try:
        with safe_open(path, "pt") as file:
            recipe = json.loads(file.metadata()["recipe"])
        state = load_file(path)
        network = GroupedAlexNet(recipe, len(state["fc8.weight"]))
        network.load_state_dict(state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a file of alexnet.export ({storage.one_line(error)})"
        ) from error
    return network.eval()


def main(arguments: Sequence[str]) -> None:
    """The command: exit status 0, or 2 with one line on what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m alexnet.export",
        description="Write a checkpoint as the state dict of a one-column network.",
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint")
    parser.add_argument("output", metavar="OUTPUT.safetensors", help="file to write")
    given = parser.parse_args(arguments)
    try:
        write(given.checkpoint, given.output)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
