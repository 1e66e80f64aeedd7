"""Ray Data over the same shards as in its documentation, in stored order, for comparison.

python tests/benchmarks/peer_ray_ingest.py SHARDS EPOCHS
"""

import io
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import torch
from ingest import BATCH, COVARIANCE, measure
from numpy.typing import NDArray
from PIL import Image

from alexnet.recipes import PAPER
from alexnet.training.augment import pca_axes

AXES = pca_axes(PAPER, COVARIANCE).astype(np.float32)
MEAN = np.full((3, 224, 224), 120.0, np.float32)


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    if len(data) == 256 * 256 * 3:
        return np.frombuffer(data, np.uint8).reshape(256, 256, 3)
    return np.asarray(Image.open(io.BytesIO(data)))


def prepare(batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng()
    images = np.empty((len(batch["image"]), 3, 224, 224), np.float32)
    for image, data in zip(images, batch["image"], strict=True):
        top, left = random.integers(0, 33, 2)
        crop = pixels_of(data)[top : top + 224, left : left + 224].transpose(2, 0, 1)
        image[:] = crop[:, :, ::-1] if random.random() < 0.5 else crop
        colour = (random.normal(0, PAPER.colour_noise_std, 3) @ AXES).astype(np.float32)
        image -= MEAN
        image += colour[:, None, None]
    return {"image": images, "label": batch["label"]}


def crops_of(folder: str) -> ray.data.Dataset:
    """Start Ray with two CPUs; the crops of the shards in a folder."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_parquet(f"{folder}/train", columns=["image", "label"])
    return rows.map_batches(prepare, batch_size=BATCH)


def main(folder: str, epochs: int) -> None:
    data = crops_of(folder)

    def epoch(_: int) -> Iterator[int]:
        for batch in data.iter_torch_batches(batch_size=BATCH):
            images = batch["image"]
            assert (images.shape[1:], images.dtype) == ((3, 224, 224), torch.float32)
            yield len(images)

    measure(epoch, epochs)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
