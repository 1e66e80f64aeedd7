"""The network as one column with grouped convolutions, written independently of the towers.

As a function it equals the towers, in training and in evaluation. It uses torch's dropout, which
scales the kept units in training and does nothing in evaluation. The module imports only torch, so
it can be copied to another project together with the file that ``alexnet.export`` writes.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedAlexNet(nn.Sequential):
    """The network as one column.

    Takes RGB crops in the 0-255 range, (N, 3, 224, 224) of any number type. Returns (N,
    ``classes``) logits, classes in the order of their sorted wnids.

    ``recipe`` needs these keys: ``towers``, ``hidden``, ``pool_size``, ``dropout``,
    ``norm1_before_relu``, ``cross_map`` and ``within_map``. Each of the last two is None or has
    ``size``, ``alpha`` and ``bias``. ``kernels``, ``conv6``, ``pool_ceil``, ``conv1_padding``,
    ``conv2_padding`` and ``conv5_padding`` may be missing: older files don't have them.
    """

    def __init__(self, recipe: Mapping[str, Any], classes: int) -> None:
        super().__init__()
        groups, hidden = recipe["towers"], recipe["hidden"]
        cross_map, within_map = recipe["cross_map"], recipe["within_map"]

        def pool() -> nn.Module:
            return nn.MaxPool2d(recipe["pool_size"], 2, ceil_mode=recipe.get("pool_ceil", False))

        def norm() -> nn.Module:
            return CrossMap(groups, **cross_map) if cross_map else nn.Identity()

        self.centre = Centre()
        self.pad1 = nn.ZeroPad2d(tuple(recipe.get("conv1_padding", (0, 3))) * 2)
        kernels = (groups * count for count in recipe.get("kernels", (48, 128, 192, 192)))
        kernels1, kernels2, kernels3, kernels4 = kernels
        self.conv1 = nn.Conv2d(3, kernels1, 11, stride=4)
        if recipe["norm1_before_relu"]:
            self.norm1, self.pool1, self.relu1 = norm(), pool(), nn.ReLU()
        else:
            self.relu1, self.norm1, self.pool1 = nn.ReLU(), norm(), pool()
        padding2, padding5 = recipe.get("conv2_padding", 2), recipe.get("conv5_padding", 1)
        self.conv2 = nn.Conv2d(kernels1, kernels2, 5, padding=padding2, groups=groups)
        self.relu2 = nn.ReLU()
        self.norm2 = norm()
        self.within2 = WithinMap(**within_map) if within_map else nn.Identity()
        self.pool2 = pool()
        self.conv3 = nn.Conv2d(kernels2, kernels3, 3, padding=1)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(kernels3, kernels4, 3, padding=1, groups=groups)
        self.relu4 = nn.ReLU()
        self.conv5 = nn.Conv2d(kernels4, 256, 3, padding=padding5, groups=groups)
        self.relu5 = nn.ReLU()
        self.pool5 = pool()
        if recipe.get("conv6", False):
            self.conv6 = nn.Conv2d(256, 256, 3, padding=1)
            self.relu_conv6 = nn.ReLU()
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
        """Subtract the mean image's central crop."""
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
        # Torch divides alpha by the window size.
        parts = F.local_response_norm(parts, self.size, self.alpha * self.size, 0.75, self.bias)
        return parts.reshape(count, maps, height, width)


class WithinMap(nn.Module):
    """x / (bias + alpha · Σ x²) ^ .75 over ``size`` rows and columns of the same map."""

    def __init__(self, size: int, alpha: float, bias: float) -> None:
        super().__init__()
        self.size, self.alpha, self.bias = size, alpha, bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        # Not ``divisor_override=1``: the export to ONNX ignores it.
        sums = F.avg_pool2d(x * x, self.size, 1, self.size // 2) * self.size**2
        return x / (self.bias + self.alpha * sums) ** 0.75
