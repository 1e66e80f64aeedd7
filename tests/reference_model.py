"""The normalizations, written a second time from the plain formulas.

This module imports nothing from ``alexnet``. Tests compare the code with it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA = {"paper": 1e-4, "source145": 1e-4 / 5}
"""Of the cross-map normalization, by recipe: the weight of each square."""


def cross_map(x: Tensor, alpha: float) -> Tensor:
    """x / (2 + alpha Σ x²)^.75 over five neighbouring maps, (N, C, H, W)."""
    squares = x.square()
    sums = [squares[:, max(0, i - 2) : i + 3].sum(dim=1) for i in range(x.shape[1])]
    return x / (2 + alpha * torch.stack(sums, dim=1)) ** 0.75


def within_map(x: Tensor) -> Tensor:
    """x / (1 + .001/25 Σ x²)^.75 over 5x5 positions, (N, C, H, W)."""
    height, width = x.shape[2:]
    squares = F.pad(x.square(), (2, 2, 2, 2))
    sums = torch.zeros_like(x)
    for row in range(5):
        for column in range(5):
            sums = sums + squares[:, :, row : row + height, column : column + width]
    return x / (1 + 0.001 / 25 * sums) ** 0.75
