"""The training images that are nearest to some validation images, by the features of fc7.

The right half of the paper's figure 4 is made so (section 6.1): images are near if the Euclidean
distance of their features is small.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from alexnet.model.exported import Outputs, as_function
from alexnet.plots import evaluation
from alexnet.shards.codec import read_images
from alexnet.shards.format import RowGroup
from alexnet.shards.manifest import Manifest
from alexnet.training.augment import centre_view
from pipelines.tracking import registry
from pipelines.tracking.store import Store

QUERIES, NEIGHBOURS, CANDIDATES = 5, 6, 512
_BATCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Some stored images."""

    images: NDArray[np.uint8]
    """(N, 256, 256, 3)."""
    labels: NDArray[np.int64]
    """(N,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Validation images and the training images that are nearest to them."""

    queries: Labelled
    nearest: list[Labelled]
    """Of each query, the nearest first."""
    candidates: int
    """Training images among which they were looked for."""


def find_neighbours(store: Store, model: registry.ModelInfo, manifest: Manifest) -> Neighbours:
    """Compare the first validation images with the first training images, on the CPU.

    The images of both splits are shuffled when shards are made.

    Raises:
        UserError: a shard or the model can't be read, or the model has no layer fc7.
    """
    network = registry.load_classifier(store, model.uri)
    function = as_function(network, model.uri, "fc7", precision=model.precision)
    queries = _first(manifest.row_groups("val"), QUERIES)
    candidates = _first(manifest.row_groups("train"), CANDIDATES)
    distances = np.linalg.norm(
        _features(function, queries.images)[:, None] - _features(function, candidates.images),
        axis=2,
    )
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    return Neighbours(
        queries,
        [Labelled(candidates.images[row], candidates.labels[row]) for row in nearest],
        len(candidates.labels),
    )


def neighbours_figure(store: Store, model: registry.ModelInfo, manifest: Manifest) -> Figure:
    """Validation images and the training images that are nearest to them by their features."""
    names = [label.name for label in manifest.labels]
    found = find_neighbours(store, model, manifest)
    return evaluation.nearest_images(
        found.queries.images,
        [names[label] for label in found.queries.labels],
        [nearest.images for nearest in found.nearest],
        [[names[label] for label in nearest.labels] for nearest in found.nearest],
        found.candidates,
    )


def _first(groups: Sequence[RowGroup], count: int) -> Labelled:
    """The first images of a split."""
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    with ThreadPoolExecutor(2) as decoders:
        for group in groups:
            table, pixels = read_images(group, ["label"], decoders)
            images.append(pixels)
            labels += table["label"].to_pylist()
            if len(labels) >= count:
                break
    return Labelled(np.concatenate(images)[:count], np.array(labels[:count], np.int64))


@torch.no_grad()
def _features(
    function: Callable[[Tensor], Outputs], images: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """(N, units) of the centre view."""

    def batches() -> Iterator[NDArray[np.float32]]:
        for batch in torch.split(torch.from_numpy(images), _BATCH):
            features = function(centre_view(batch).contiguous()).features
            assert features is not None
            yield features.float().numpy()

    return np.concatenate(list(batches()))
