"""The normalizations and the network, written a second time from the plain formulas.

This module imports nothing from ``alexnet``. Tests compare the code with it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class ReferenceAlexNet(nn.Module):
    """(N, 3, 224, 224) → (N, classes) logits, as one column with one group for each tower.

    Args:
        recipe: ``paper`` or ``source145``.
        classes: number of classes.
        kept: factor of the outputs of fc6 and fc7.
        hidden: units in fc6 and in fc7.
        groups: number of towers.
        normalization: False leaves out all normalizations.
        pool_size: width of the pooling windows.
    """

    def __init__(
        self,
        recipe: str,
        classes: int,
        *,
        kept: float,
        hidden: int = 4096,
        groups: int = 2,
        normalization: bool = True,
        pool_size: int = 3,
    ) -> None:
        super().__init__()
        self.recipe, self.kept, self.groups = recipe, kept, groups
        self.normalization, self.pool_size = normalization, pool_size
        self.conv1 = nn.Conv2d(3, 48 * groups, 11, stride=4)
        self.conv2 = nn.Conv2d(48 * groups, 128 * groups, 5, padding=2, groups=groups)
        self.conv3 = nn.Conv2d(128 * groups, 192 * groups, 3, padding=1)
        self.conv4 = nn.Conv2d(192 * groups, 192 * groups, 3, padding=1, groups=groups)
        self.conv5 = nn.Conv2d(192 * groups, 256, 3, padding=1, groups=groups)
        self.fc6 = nn.Linear(9216, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, classes)

    def norm(self, x: Tensor) -> Tensor:
        """Normalize each tower's maps separately."""
        if not self.normalization:
            return x
        parts = [cross_map(part, ALPHA[self.recipe]) for part in x.chunk(self.groups, dim=1)]
        return torch.cat(parts, dim=1)

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.pool_size, 2)

    def forward(self, crops: Tensor) -> Tensor:
        padded = crops.new_zeros(len(crops), 3, 227, 227)
        padded[:, :, :224, :224] = crops
        x = self.conv1(padded)
        if self.recipe == "paper":
            x = self.pool(self.norm(F.relu(x)))
        else:
            x = F.relu(self.pool(self.norm(x)))
        assert x.shape[1:] == (48 * self.groups, 27, 27)
        x = self.norm(F.relu(self.conv2(x)))
        if self.recipe == "source145" and self.normalization:
            x = within_map(x)
        x = self.pool(x)
        assert x.shape[1:] == (128 * self.groups, 13, 13)
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = self.pool(F.relu(self.conv5(x)))
        assert x.shape[1:] == (256, 6, 6)
        x = F.relu(self.fc6(x.flatten(1))) * self.kept
        x = F.relu(self.fc7(x)) * self.kept
        logits: Tensor = self.fc8(x)
        return logits
