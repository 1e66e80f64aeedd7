"""The crops of an epoch's batches: their random parameters, and on CPUs the crops themselves.

On CPUs the threads that decode a batch's images also crop them, some at a time. The crops are the
same bits as those that ``augment.training_crops`` makes of whole images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.recipes import CROP_SIZE, Recipe
from alexnet.shards.buffers import BufferPool
from alexnet.shards.loader import Batch, BatchRows, StartCrops, WriteCrops
from alexnet.training.augment import AugmentParams, crop_piece, mean_rows, sample_augment_params


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How the images of one epoch are cropped."""

    recipe: Recipe
    pca_axes: NDArray[np.float64]
    """(3, 3): axes of the colour noise, from ``augment.pca_axes``."""
    seed: int
    epoch: int
    colour_noise: bool = True

    @property
    def scale(self) -> float:
        """Factor of the crops."""
        return self.recipe.training_scale if self.colour_noise else 1.0

    def params(self, batch: Batch | BatchRows) -> AugmentParams:
        """The parameters of a worker's part of a batch."""
        return sample_augment_params(
            self.recipe,
            self.pca_axes,
            batch.rows,
            seed=self.seed,
            epoch=self.epoch,
            offset=batch.offset,
            colour_noise=self.colour_noise,
        ).take(batch.positions)


def crop_buffers() -> BufferPool[np.float32]:
    """The memory of a training's crops."""
    return BufferPool((CROP_SIZE, CROP_SIZE, 3), np.float32)


def crops_while_decoding(
    augmentation: Augmentation, mean: Tensor, buffers: BufferPool[np.float32]
) -> StartCrops:
    """What lets a loader deliver crops, (b, 3, 224, 224) float32, channels last in memory.

    Args:
        augmentation: of the epoch.
        mean: (3, 224, 224) float32 on the CPU.
        buffers: from ``crop_buffers``, for all epochs.
    """
    rows_of_mean = mean_rows(mean)

    def start(batch: BatchRows) -> tuple[Tensor, WriteCrops]:
        params = augmentation.params(batch)
        crops = buffers.take(len(batch.positions))

        def write(first: int, addresses: NDArray[np.int64]) -> None:
            piece = slice(first, first + len(addresses))
            crop_piece(
                addresses, params.take(piece), rows_of_mean, augmentation.scale, crops[piece]
            )

        return torch.from_numpy(crops).permute(0, 3, 1, 2), write

    return start
