"""The network of 2012: two towers that exchange activations in conv3, fc6, fc7 and fc8.

Paper, section 3.5. Each tower holds half of the kernels and may be placed on its own device. All
copies between the devices happen in ``gather``. If both towers are on one device, nothing is
copied. As a function the network equals one column with two groups in conv2, conv4, conv5 and in
the normalization.

Shapes below are those of two towers. The single tower of the paper's comparison has no other
tower's maps as input of conv3, and has all units of conv5, fc6 and fc7: see ``recipes.ablate``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.dropout import Dropout, dropout_mask
from alexnet.model.lrn import CrossMapNorm, WithinMapNorm, takes_bfloat16
from alexnet.recipes import Recipe

CONV5_KERNELS = 256
"""Kernels in conv5, and in conv6, of all towers together."""


class Tower(nn.Module):
    """One tower's part of the network: all layers except the last."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        kernels1, kernels2, kernels3, kernels4 = recipe.kernels
        self.conv1 = nn.Conv2d(3, kernels1, 11, stride=4)
        self.conv2 = nn.Conv2d(kernels1, kernels2, 5, padding=recipe.conv2_padding)
        self.conv3 = nn.Conv2d(recipe.towers * kernels2, kernels3, 3, padding=1)
        self.conv4 = nn.Conv2d(kernels3, kernels4, 3, padding=1)
        conv5_kernels = CONV5_KERNELS // recipe.towers
        self.conv5 = nn.Conv2d(kernels4, conv5_kernels, 3, padding=recipe.conv5_padding)
        if recipe.conv6:
            self.conv6 = nn.Conv2d(CONV5_KERNELS, conv5_kernels, 3, padding=1)
        self.fc6 = nn.Linear(CONV5_KERNELS * 6 * 6, recipe.hidden // recipe.towers)
        self.fc7 = nn.Linear(recipe.hidden, recipe.hidden // recipe.towers)
        self.norm1 = CrossMapNorm(recipe.cross_map) if recipe.cross_map else nn.Identity()
        self.norm2 = CrossMapNorm(recipe.cross_map) if recipe.cross_map else nn.Identity()
        self.within2 = WithinMapNorm(recipe.within_map) if recipe.within_map else nn.Identity()
        self.dropout = Dropout(recipe.dropout)
        self.linear_norm1 = recipe.norm1_before_relu
        self.pool_size, self.pool_ceil = recipe.pool_size, recipe.pool_ceil
        self.conv1_padding = recipe.conv1_padding * 2

    @property
    def device(self) -> torch.device:
        """The device that holds this tower's weights."""
        return self.conv1.weight.device

    def before_conv3(self, crops: Tensor) -> Tensor:
        """(N, 3, 224, 224) → (N, 128, 13, 13)."""
        x = self.conv1(F.pad(crops, self.conv1_padding))
        if self.linear_norm1:
            x = F.relu(self.pool(_in_float32(self.norm1, x)))
        else:
            x = self.pool(_in_float32(self.norm1, F.relu(x)))
        x = _in_float32(self.norm2, F.relu(self.conv2(x)))
        return self.pool(_in_float32(self.within2, x))

    def conv3_to_pool5(self, maps: Tensor) -> Tensor:
        """(N, 256, 13, 13) of both towers → (N, 4608), this tower's maps, flattened."""
        x = F.relu(self.conv3(maps))
        x = F.relu(self.conv5(F.relu(self.conv4(x))))
        return self.pool(x).flatten(1)

    def hidden6(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, 9216) of both towers → (N, 2048); ``mask`` is of that shape, for training."""
        return self.dropout(F.relu(self.fc6(features)), mask)  # type: ignore[no-any-return]

    def conv6_maps(self, features: Tensor) -> Tensor:
        """(N, 9216) of both towers → (N, 4608), this tower's maps, flattened."""
        return F.relu(self.conv6(features.reshape(-1, CONV5_KERNELS, 6, 6))).flatten(1)

    def hidden7(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, 4096) of both towers → (N, 2048); ``mask`` is of that shape, for training."""
        return self.dropout(F.relu(self.fc7(features)), mask)  # type: ignore[no-any-return]

    def pool(self, x: Tensor) -> Tensor:
        """Overlapping max pooling, 3x3 every 2 (paper, section 3.4), unless ablated."""
        return F.max_pool2d(x, self.pool_size, 2, ceil_mode=self.pool_ceil)


class AlexNet(nn.Module):
    """Two towers and the last layer, which is on the first tower's device.

    Takes mean-subtracted RGB crops in the 0-255 range, (N, 3, 224, 224) float: one tensor on each
    tower's device, or a single tensor if the towers share a device. Returns (N, ``classes``) logits
    on the first device. It has 60,965,224 parameters at 1000 classes.

    In training it also takes ``keys``, from ``dropout_keys``: (N, 3) on each device of the crops.
    """

    def __init__(self, recipe: Recipe, classes: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.towers = nn.ModuleList(Tower(recipe) for _ in range(recipe.towers))
        self.fc8 = nn.Linear(recipe.hidden, classes)

    def forward(self, *crops: Tensor, keys: Sequence[Tensor] = ()) -> Tensor:
        """Logits of a batch of crops."""
        towers: Sequence[Tower] = list(self.towers)  # type: ignore[arg-type]
        masks6, masks7 = self._dropout_masks(keys)
        inputs = crops * len(towers) if len(crops) == 1 else crops
        x = [tower.before_conv3(part) for tower, part in zip(towers, inputs, strict=True)]
        devices = [tower.device for tower in towers]
        x = [t.conv3_to_pool5(maps) for t, maps in zip(towers, gather(x, devices), strict=True)]
        if self.recipe.conv6:
            x = [t.conv6_maps(units) for t, units in zip(towers, gather(x, devices), strict=True)]
        parts = zip(towers, gather(x, devices), masks6, strict=True)
        x = [tower.hidden6(features, mask) for tower, features, mask in parts]
        parts = zip(towers, gather(x, devices), masks7, strict=True)
        x = [tower.hidden7(features, mask) for tower, features, mask in parts]
        return self.fc8(*gather(x, [self.fc8.weight.device]))  # type: ignore[no-any-return]

    def _dropout_masks(self, keys: Sequence[Tensor]) -> list[list[Tensor | None]]:
        """The masks of fc6 and those of fc7, for each tower; None where nothing is dropped."""
        probability, towers = self.recipe.dropout, len(self.towers)
        if not (self.training and probability):
            return [[None] * towers] * 2
        assert keys, "in training, dropout needs the images' keys"
        units = self.recipe.hidden // towers
        own_keys = list(keys) * towers if len(keys) == 1 else list(keys)
        return [
            [
                dropout_mask(part, layer, number * units, units, probability)
                for number, part in enumerate(own_keys)
            ]
            for layer in (6, 7)
        ]


def initialize(model: AlexNet, recipe: Recipe, seed: int) -> None:
    """Draw the initial weights. They are drawn on the CPU, so they don't depend on the devices."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            layer, kind = name.split(".")[-2:]
            if kind == "weight":
                weights = torch.empty(parameter.shape, dtype=torch.float32)
                weights.normal_(0.0, recipe.weight_std[layer], generator=generator)
                parameter.copy_(weights)
            else:
                parameter.fill_(recipe.bias_start if layer in recipe.ones else 0.0)


def _in_float32(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a normalization in float32 also under autocast: its sums and powers need it."""
    device_type = x.device.type
    if not torch.is_autocast_enabled(device_type) or takes_bfloat16(norm, x):
        return norm(x)  # type: ignore[no-any-return]
    with torch.autocast(device_type, enabled=False):
        return norm(x.float())  # type: ignore[no-any-return]


def gather(parts: Sequence[Tensor], devices: Sequence[torch.device]) -> list[Tensor]:
    """Concatenate the towers' activations on each device, the first tower's channels first.

    All copies are launched before all concatenations, and these before the computation that
    follows. A copy between GPUs waits for what was launched before on both. If a device computed
    between two copies, the other would wait for it, and the towers would compute one by one.
    """
    copies = [copy_to(parts, device) for device in devices]
    return [torch.cat(local, dim=1) for local in copies]


def copy_to(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on a device; those that are there already are not copied."""
    # ``to`` only where a copy is needed: ``torch.export`` would record its device as a constant.
    return [p if p.device == device else p.to(device, non_blocking=True) for p in parts]
