"""Loaded models in a Ray actor, for evaluation and batch inference."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import nn

from alexnet.model.classifier import view_probabilities
from alexnet.training.augment import CENTRE_VIEW, ten_crop
from pipelines.tracking import registry
from pipelines.tracking.store import Store


@dataclass(frozen=True, slots=True)
class Predictor:
    """Loaded models, on the actor's GPU if it has one, else on the CPU."""

    models: Mapping[str, nn.Module]
    """By URI."""
    device: torch.device

    @classmethod
    def load(cls, store: Store, uris: list[str], threads: int) -> "Predictor":
        """Load models from a tracking store or its registry."""
        torch.set_num_threads(threads)
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        return cls({uri: registry.load_classifier(store, uri).to(device) for uri in uris}, device)

    def views(self, images: NDArray[np.uint8], count: int = 10) -> NDArray[np.float32]:
        """Probabilities of the ten views, or of the centre view alone, averaged over models.

        Args:
            images: (N, 256, 256, 3).
            count: 10 or 1.

        Returns:
            (count, N, classes).

        Raises:
            InvalidModelError: a model outputs NaN.
        """
        views = ten_crop(torch.from_numpy(images).to(self.device))
        chosen = views if count > 1 else views[CENTRE_VIEW : CENTRE_VIEW + 1]
        return view_probabilities(self.models, chosen).numpy()
