"""Loaded models in a Ray actor, for evaluation and batch inference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.errors import InvalidModelError, UserError
from alexnet.inference.rows import Prediction
from alexnet.metrics import average
from alexnet.model.classifier import (
    average_models,
    probabilities_by_model,
    view_probabilities,
)
from alexnet.model.exported import Layer, Outputs, as_function
from alexnet.model.precision import Precision
from alexnet.training.augment import centre_view, evaluation_views, ten_crop
from pipelines.tracking import registry
from pipelines.tracking.store import Store


@dataclass(frozen=True, slots=True)
class Predictor:
    """Loaded models, on the actor's GPU if it has one, else on the CPU."""

    models: Mapping[str, nn.Module]
    """By URI."""
    device: torch.device

    @classmethod
    def load(cls, store: Store, uris: Sequence[str], threads: int) -> "Predictor":
        """Load models from a tracking store or its registry."""
        torch.set_num_threads(threads)
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        return cls({uri: registry.load_classifier(store, uri).to(device) for uri in uris}, device)

    def by_model(self, images: NDArray[np.uint8], precisions: Mapping[str, Precision]) -> Tensor:
        """Probabilities of the ten views by each model.

        Args:
            images: (N, 256, 256, 3).
            precisions: of each model, by URI.

        Returns:
            (models, 10, N, classes) on the device.

        Raises:
            InvalidModelError: a model outputs NaN.
            UserError: a model is to be computed in bfloat16 and is no export.
        """
        views = ten_crop(torch.from_numpy(images).to(self.device))
        functions = {
            uri: _probabilities(as_function(model, uri, None, precision=precisions[uri]))
            for uri, model in self.models.items()
        }
        return probabilities_by_model(functions, views)

    def views(
        self,
        images: NDArray[np.uint8],
        precisions: Mapping[str, Precision],
        coefficients: Sequence[float] | None = None,
    ) -> NDArray[np.float32]:
        """(10, N, classes): ``by_model`` averaged over models, which have these weights."""
        return average_models(self.by_model(images, precisions), coefficients).numpy()

    @torch.no_grad()
    def features(
        self, images: NDArray[np.uint8], layer: Layer, precisions: Mapping[str, Precision]
    ) -> NDArray[np.float32]:
        """(N, units): a layer's activations for the centre view, of the only model.

        Args:
            images: (N, 256, 256, 3).
            layer: fc6 or fc7.
            precisions: of the model, by URI.

        Raises:
            UserError: the model has no such layer.
        """
        ((uri, model),) = self.models.items()
        function = as_function(model, uri, layer, precision=precisions[uri])
        crops = centre_view(torch.from_numpy(images).to(self.device)).contiguous()
        found = function(crops).features
        assert found is not None
        return found.float().cpu().numpy()


def _probabilities(function: Callable[[Tensor], Outputs]) -> Callable[[Tensor], Tensor]:
    return lambda crops: function(crops).probabilities


class BatchPredictor:
    """Loaded models as the function that predicts a batch: a ``parts.Predict``."""

    def __init__(
        self,
        models: Predictor,
        classes: int,
        *,
        views: int,
        layer: Layer | None,
        precision: Precision,
    ) -> None:
        """Prepare.

        Args:
            models: loaded.
            classes: that they name.
            views: 10 or 1; probabilities and features are averaged over views and models.
            layer: whose features are wanted; of one model only.
            precision: of the models.

        Raises:
            UserError: a model has no such layer.
        """
        self._functions = {
            uri: as_function(model, uri, layer, precision=precision)
            for uri, model in models.models.items()
        }
        self._device, self._classes, self._views = models.device, classes, views

    @property
    def parallel(self) -> bool:
        """Whether several threads may predict at the same time."""
        return self._device.type == "cpu"

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> Prediction:
        """Predict a batch.

        Args:
            images: (N, 256, 256, 3).

        Raises:
            InvalidModelError: a model outputs NaN, or other classes than it names.
            UserError: the GPU has too little memory.
        """
        features: list[Tensor] = []

        def keep_features(function: Callable[[Tensor], Outputs]) -> Callable[[Tensor], Tensor]:
            def probabilities(crops: Tensor) -> Tensor:
                outputs = function(crops)
                if outputs.features is not None:
                    features.append(outputs.features)
                return outputs.probabilities

            return probabilities

        functions = {uri: keep_features(function) for uri, function in self._functions.items()}
        try:
            by_view = view_probabilities(functions, self._crops(images)).numpy()
            units = torch.stack(features).mean(dim=0).cpu().numpy() if features else None
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"a batch of {len(images)} images does not fit into the GPU's memory; give a "
                "smaller --batch-size"
            ) from error
        if by_view.shape[2] != self._classes:
            raise InvalidModelError(
                f"{next(iter(functions))}: outputs {by_view.shape[2]} probabilities, but names "
                f"{self._classes} classes"
            )
        return Prediction(average(list(by_view)), units)

    def _crops(self, images: NDArray[np.uint8]) -> Tensor:
        """(views, N, 224, 224, 3) on the device."""
        batch = torch.from_numpy(images)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return evaluation_views(batch, self._views)
