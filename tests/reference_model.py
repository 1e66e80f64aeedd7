"""The network and its normalizations written a second time, from the plain formulas.

One column with ``groups=2`` in conv2, conv4 and conv5, and no import from ``alexnet``: what the
two towers compute is compared with this.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHA = {"paper": 1e-4, "source145": 1e-4 / 5}
"""Of the cross-map normalization, on each square."""


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


class Twin(nn.Module):
    """(N, 3, 224, 224) → (N, classes) logits; ``kept`` scales the outputs of fc6 and fc7."""

    def __init__(self, recipe: str, classes: int, kept: float, width: int = 4096) -> None:
        super().__init__()
        self.recipe, self.kept = recipe, kept
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(9216, width)
        self.fc7 = nn.Linear(width, width)
        self.fc8 = nn.Linear(width, classes)

    def norm(self, x: Tensor) -> Tensor:
        """Each half of the maps has its own neighbours."""
        first, second = x.tensor_split(2, dim=1)
        alpha = ALPHA[self.recipe]
        return torch.cat([cross_map(first, alpha), cross_map(second, alpha)], dim=1)

    def forward(self, patches: Tensor) -> Tensor:
        padded = patches.new_zeros(len(patches), 3, 227, 227)
        padded[:, :, :224, :224] = patches
        x = self.conv1(padded)
        if self.recipe == "paper":
            x = F.max_pool2d(self.norm(F.relu(x)), 3, 2)
        else:
            x = F.relu(F.max_pool2d(self.norm(x), 3, 2))
        x = self.norm(F.relu(self.conv2(x)))
        if self.recipe == "source145":
            x = within_map(x)
        x = F.max_pool2d(x, 3, 2)
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = F.max_pool2d(F.relu(self.conv5(x)), 3, 2)
        x = F.relu(self.fc6(x.flatten(1))) * self.kept
        x = F.relu(self.fc7(x)) * self.kept
        logits: Tensor = self.fc8(x)
        return logits
