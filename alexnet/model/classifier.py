"""A trained network as a function from 8-bit crops to class probabilities.

This is the model that is registered and served. It contains its own mean image and needs no other
file. It takes crops, so the same model serves the centre view and the ten views.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from alexnet.errors import InvalidModelError
from alexnet.model.towers import AlexNet


class CropClassifier(nn.Module):
    """(N, 224, 224, 3) uint8 RGB crops → (N, classes) float32 probabilities."""

    mean: Tensor

    def __init__(self, network: AlexNet, mean: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.eval()

    def forward(self, crops: Tensor) -> Tensor:
        """Probabilities of each crop."""
        # uint8 minus float32 is float32. An explicit ``float()`` would fix the device in an export.
        return self.network(crops.permute(0, 3, 1, 2) - self.mean).softmax(dim=1)  # type: ignore[no-any-return]


@torch.no_grad()
def probabilities_by_model(
    classifiers: Mapping[str, Callable[[Tensor], Tensor]], views: Tensor
) -> Tensor:
    """Probabilities of several classifiers for several views of the same images.

    Args:
        classifiers: crop classifiers on one device, of this class or loaded from a registry, by
            their names for messages.
        views: (V, N, 224, 224, 3) uint8 on that device.

    Returns:
        (classifiers, V, N, classes) float32 on that device.

    Raises:
        InvalidModelError: a classifier outputs NaN, which would be ranked like class 0.
    """
    by_model = []
    for name, model in classifiers.items():
        by_model.append(torch.stack([model(view) for view in views]))
        if not by_model[-1].isfinite().all():
            raise InvalidModelError(f"{name}: outputs NaN instead of probabilities")
    return torch.stack(by_model)


def average_models(by_model: Tensor, coefficients: Sequence[float] | None = None) -> Tensor:
    """(models, ...) → (...), the mean over the models, on the CPU.

    Args:
        by_model: float32, on any device.
        coefficients: the models' weights; the same for all by default.
    """
    if coefficients is None:
        return by_model.mean(dim=0).cpu()
    weights = torch.tensor(coefficients, dtype=by_model.dtype, device=by_model.device)
    averaged: Tensor = torch.tensordot(weights / weights.sum(), by_model, dims=1)
    return averaged.cpu()


def view_probabilities(
    classifiers: Mapping[str, Callable[[Tensor], Tensor]], views: Tensor
) -> Tensor:
    """The mean of ``probabilities_by_model`` over the classifiers, (V, N, classes) on the CPU."""
    return average_models(probabilities_by_model(classifiers, views))
