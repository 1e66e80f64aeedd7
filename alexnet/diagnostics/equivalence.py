"""A check that the towers on some devices compute the same as one column on one device.

The comparison is in float64, because it must tell errors from rounding. In float32 the gradients of
two correct networks can differ by more than 1e-3: rounding differences of 1e-6 change which inputs
of ReLU are positive, and which input of a pooling window is the largest. In float64 the differences
are about 1e-14. A wrong copy between devices makes a difference of about 1.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.grouped import GroupedAlexNet
from alexnet.model.placement import devices_per_tower, place_towers, to_grouped
from alexnet.model.towers import AlexNet
from alexnet.recipes import CROP_SIZE, Recipe

TOLERANCE = 1e-9
"""Largest relative difference that passes."""

COMPARED_IMAGES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Norms of the differences between both networks, relative to the norms of the column's."""

    logits: float
    gradients: float
    """Of the parameter with the largest difference."""
    layer: str
    """The name of that parameter."""

    @property
    def passed(self) -> bool:
        """Whether both differences are within the tolerance. NaN does not pass."""
        return self.logits <= TOLERANCE and self.gradients <= TOLERANCE


def compare(recipe: Recipe, devices: Sequence[torch.device], classes: int) -> Comparison:
    """Compare the logits and gradients of the towers with those of one column on the first device.

    The column, ``GroupedAlexNet``, is written independently of the towers. Both networks have no
    dropout, because each device draws its own masks.
    """
    recipe = replace(recipe, dropout=0.0)
    network = AlexNet(recipe, classes).double()
    he_init(network)
    weights = to_grouped(network.state_dict())
    column = GroupedAlexNet(asdict(recipe), classes).double()
    column.load_state_dict(weights | {"centre.mean": torch.zeros(3, CROP_SIZE, CROP_SIZE)})
    place_towers(network, devices)
    column.to(devices[0])
    generator = torch.Generator().manual_seed(1)
    shape = COMPARED_IMAGES, 3, CROP_SIZE, CROP_SIZE
    crops = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(60)
    labels = torch.arange(COMPARED_IMAGES) % classes
    tower_devices = dict.fromkeys(devices_per_tower(devices, recipe.towers))
    inputs = [crops.to(device) for device in tower_devices]
    logits, gradients = _logits_and_gradients(network, inputs, labels)
    expected_logits, expected_gradients = _logits_and_gradients(column, inputs[:1], labels)
    grouped = to_grouped(gradients)
    assert grouped.keys() == expected_gradients.keys() == weights.keys()
    differences = {
        name: _relative_difference(grouped[name], expected)
        for name, expected in expected_gradients.items()
    }
    # NaN is larger than any number here.
    layer = max(
        differences, key=lambda name: (differences[name] != differences[name], differences[name])
    )
    return Comparison(
        logits=_relative_difference(logits, expected_logits),
        gradients=differences[layer],
        layer=layer,
    )


def he_init(network: AlexNet, seed: int = 0) -> None:
    """Draw weights with which the logits depend strongly on the image (He initialization).

    With the initial weights of 2012 the logits hardly depend on the image, so an error in the
    first layers would hardly change them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            std = (2 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
            # On the CPU, so that the weights don't depend on the device.
            values = torch.empty(parameter.shape, dtype=parameter.dtype)
            parameter.copy_(values.normal_(0, std, generator=generator))


def _logits_and_gradients(
    model: nn.Module, inputs: list[Tensor], labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of the mean cross-entropy by parameter name; 0 if there is none."""
    logits: Tensor = model(*inputs)
    F.cross_entropy(logits, labels.to(logits.device)).backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    return logits.detach(), gradients


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.cpu(), expected.cpu()
    return float((actual - expected).norm() / expected.norm())
