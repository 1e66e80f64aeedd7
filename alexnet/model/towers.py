"""The network of 2012: two towers that meet in conv3, fc6, fc7 and fc8 (paper, section 3.5).

Each tower holds half of the kernels and may live on a device of its own. Whatever crosses
between them goes through ``_gather``; when both towers share a device nothing is copied. As a
function this equals one column with two groups in conv2, conv4, conv5 and in the normalization.

Shapes below are those of two towers. A single one, for the paper's comparison, sees no other
tower's maps in conv3 and has conv5, fc6 and fc7 to itself: see ``recipes.ablate``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.lrn import CrossMapNorm, WithinMapNorm
from alexnet.recipes import LAYERS, Recipe

CONV5 = 256
"""Kernels in conv5 of all towers together."""


class Dropout(nn.Module):
    """Dropout as it was in 2012: zeros in training, smaller outputs in testing.

    Today's form scales up in training instead, and the two agree up to the weights' scale. But
    with the same initial weights and learning rate they learn differently: the outputs of fc6
    and fc7 start near their bias, 1, and doubling them makes fc8's first steps four times as
    large (paper, section 4.2).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Take and return any shape."""
        kept = 1 - self.probability
        return F.dropout(x, self.probability, self.training) * kept


class Tower(nn.Module):
    """A tower's share of the network: everything but the last layer."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 48, 11, stride=4)
        self.conv2 = nn.Conv2d(48, 128, 5, padding=2)
        self.conv3 = nn.Conv2d(recipe.towers * 128, 192, 3, padding=1)
        self.conv4 = nn.Conv2d(192, 192, 3, padding=1)
        self.conv5 = nn.Conv2d(192, CONV5 // recipe.towers, 3, padding=1)
        self.fc6 = nn.Linear(CONV5 * 6 * 6, recipe.hidden // recipe.towers)
        self.fc7 = nn.Linear(recipe.hidden, recipe.hidden // recipe.towers)
        self.norm1 = CrossMapNorm(recipe.cross_map) if recipe.cross_map else nn.Identity()
        self.norm2 = CrossMapNorm(recipe.cross_map) if recipe.cross_map else nn.Identity()
        self.within2 = WithinMapNorm(recipe.within_map) if recipe.within_map else nn.Identity()
        self.dropout = Dropout(recipe.dropout)
        self.linear_norm1 = recipe.norm1_before_relu
        self.pool_size = recipe.pool_size

    @property
    def device(self) -> torch.device:
        """Where this tower's weights lie."""
        return self.conv1.weight.device

    def before_conv3(self, patches: Tensor) -> Tensor:
        """(N, 3, 224, 224) → (N, 128, 13, 13)."""
        # cuda-convnet rounds the number of positions up: 55, with zeros right and below.
        x = self.conv1(F.pad(patches, (0, 3, 0, 3)))
        if self.linear_norm1:
            x = F.relu(self.pool(_in_float32(self.norm1, x)))
        else:
            x = self.pool(_in_float32(self.norm1, F.relu(x)))
        x = _in_float32(self.norm2, F.relu(self.conv2(x)))
        return self.pool(_in_float32(self.within2, x))

    def conv3_to_pool5(self, maps: Tensor) -> Tensor:
        """(N, 256, 13, 13) of both towers → (N, 4608), flattened maps of this one."""
        x = F.relu(self.conv3(maps))
        x = F.relu(self.conv5(F.relu(self.conv4(x))))
        return self.pool(x).flatten(1)

    def hidden6(self, features: Tensor) -> Tensor:
        """(N, 9216) of both towers → (N, 2048)."""
        return self.dropout(F.relu(self.fc6(features)))  # type: ignore[no-any-return]

    def hidden7(self, features: Tensor) -> Tensor:
        """(N, 4096) of both towers → (N, 2048)."""
        return self.dropout(F.relu(self.fc7(features)))  # type: ignore[no-any-return]

    def pool(self, x: Tensor) -> Tensor:
        """Overlapping max pooling, 3x3 every 2 (paper, section 3.4), unless ablated."""
        return F.max_pool2d(x, self.pool_size, 2)


class AlexNet(nn.Module):
    """Two towers and the last layer, which lies with the first tower.

    Takes mean-subtracted RGB patches in the 0-255 range, (N, 3, 224, 224) float, once for each
    tower's device (or once, when they share one); returns logits (N, ``classes``) on the first.
    60,965,224 parameters at 1000 classes.
    """

    def __init__(self, recipe: Recipe, classes: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.towers = nn.ModuleList(Tower(recipe) for _ in range(recipe.towers))
        self.fc8 = nn.Linear(recipe.hidden, classes)

    def forward(self, *patches: Tensor) -> Tensor:
        """Logits of a batch of patches."""
        towers: Sequence[Tower] = list(self.towers)  # type: ignore[arg-type]
        inputs = patches * len(towers) if len(patches) == 1 else patches
        x = [tower.before_conv3(p) for tower, p in zip(towers, inputs, strict=True)]
        x = [tower.conv3_to_pool5(_gather(x, tower.device)) for tower in towers]
        x = [tower.hidden6(_gather(x, tower.device)) for tower in towers]
        x = [tower.hidden7(_gather(x, tower.device)) for tower in towers]
        return self.fc8(_gather(x, self.fc8.weight.device))  # type: ignore[no-any-return]


def initialize(model: AlexNet, recipe: Recipe, seed: int) -> None:
    """Draw the initial weights on the CPU, so that they don't depend on where the model lies."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            layer, kind = name.split(".")[-2:]
            assert layer in LAYERS, name
            if kind == "weight":
                draws = torch.empty(parameter.shape, dtype=torch.float32)
                draws.normal_(0.0, recipe.weight_std[layer], generator=generator)
                parameter.copy_(draws)
            else:
                parameter.fill_(1.0 if layer in recipe.ones else 0.0)


def _in_float32(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a normalization; under autocast, in full precision: its sums and powers need it."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return norm(x)  # type: ignore[no-any-return]
    with torch.autocast(kind, enabled=False):
        return norm(x.float())  # type: ignore[no-any-return]


def _gather(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """The towers' outputs side by side on one device, the first tower's channels first."""
    # No ``to`` where nothing moves: an exported network would keep its device for ever.
    here = [p if p.device == device else p.to(device, non_blocking=True) for p in parts]
    return torch.cat(here, dim=1)
