"""Patches from 256x256 images: random ones for training, ten fixed ones for testing.

Random numbers are drawn on the CPU for a whole global batch, from (seed, epoch, offset) alone;
each worker applies its rows' share. So neither a restart nor the number of workers changes
what any image looks like, and no generator's state needs to be saved.

A draw: a crop position and a flip for each image (or for each chunk of 32 consecutive ones, as
the 2012 source had it), and one colour shift along the principal components of RGB.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.kernels.jit import parallel_over_batch
from alexnet.recipes import CROP_SIZE, IMAGE_SIZE, Recipe

BORDER = IMAGE_SIZE - CROP_SIZE
VIEW_CORNERS = ((0, 0), (0, BORDER), (BORDER // 2, BORDER // 2), (BORDER, 0), (BORDER, BORDER))
VIEWS = 2 * len(VIEW_CORNERS)
CENTRE_VIEW = 2
"""Number of the unflipped central patch among the ten."""


@dataclass(frozen=True, slots=True)
class AugmentParams:
    """What chance decides about a batch of B images."""

    corners: NDArray[np.int64]
    """(B, 2): top and left offset of the patch."""
    flips: NDArray[np.bool_]
    """(B,): whether the patch is mirrored."""
    colours: NDArray[np.float32]
    """(B, 3): what is added to red, green and blue, grey levels."""

    def take(self, positions: NDArray[np.int64]) -> "AugmentParams":
        """The draws of some of the batch's images."""
        return AugmentParams(
            self.corners[positions], self.flips[positions], self.colours[positions]
        )


def draw(
    recipe: Recipe,
    axes: NDArray[np.float64],
    count: int,
    *,
    seed: int,
    epoch: int,
    offset: int,
    colour_noise: bool = True,
) -> AugmentParams:
    """The draws of the global batch of ``count`` images that starts at ``offset``."""
    # The third number keeps this stream apart from the one that orders the epoch's rows.
    random = np.random.default_rng([seed, epoch, 1 + offset])
    chunks = -(-count // recipe.crop_chunk)
    corners = random.integers(0, recipe.crop_positions, (chunks, 2))
    flips = random.random(chunks) < 0.5
    factors = random.normal(0.0, recipe.colour_noise_std, (count, 3))
    return AugmentParams(
        np.repeat(corners, recipe.crop_chunk, axis=0)[:count],
        np.repeat(flips, recipe.crop_chunk)[:count],
        (factors @ axes * colour_noise).astype(np.float32),
    )


def pca_axes(recipe: Recipe, rgb_covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The principal components of RGB, one a row, scaled as the recipe's noise wants them.

    ``deviation`` (the 2012 source): times the root of the eigenvalue, grey levels.
    ``eigenvalue`` (the paper): times the eigenvalue. The paper names no unit. In grey levels
    an eigenvalue is some 10^4 and the noise would drown every image, so intensities are taken
    from 0 to 1 here, as in later implementations, and the shift is given in grey levels again.
    """
    eigenvalues, vectors = np.linalg.eigh(rgb_covariance)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    scale = np.sqrt(eigenvalues) if recipe.colour_noise == "deviation" else eigenvalues / 255
    axes: NDArray[np.float64] = (vectors * scale).T
    return axes


def mean_crop(mean_image: NDArray[np.float32]) -> Tensor:
    """The central 224x224 of the mean image, (3, 224, 224) float32.

    The 2012 source subtracts this same patch from every crop, wherever it was taken.
    """
    border = BORDER // 2
    central = mean_image[border : border + CROP_SIZE, border : border + CROP_SIZE]
    return torch.from_numpy(np.ascontiguousarray(central.transpose(2, 0, 1)))


def training_crops(images: Tensor, draws: AugmentParams, mean: Tensor, scale: float) -> Tensor:
    """Crop, mirror, centre and tint a batch, on the device where the images lie.

    Args:
        images: (B, 256, 256, 3) uint8.
        draws: one for each image.
        mean: (3, 224, 224) float32 on the same device.
        scale: what the result is multiplied by (``Recipe.training_scale``).

    Returns:
        (B, 3, 224, 224) float32, channels last in memory. Both ways of working, and any number
        of threads, give the same bits.
    """
    work = _in_one_pass if images.device.type == "cpu" else _all_at_once
    return work(images, draws, mean, scale)


def _in_one_pass(images: Tensor, draws: AugmentParams, mean: Tensor, scale: float) -> Tensor:
    """For CPUs: each image is read and each patch written once, by all threads."""
    from alexnet.kernels.crop import crop  # Loads a compiler, which GPUs don't need.

    # NumPy asks the system for huge pages and torch does not: with small ones, touching fresh
    # memory for the first time takes longer than all the arithmetic.
    patches = np.empty((len(images), CROP_SIZE, CROP_SIZE, 3), np.float32)
    lines = np.ascontiguousarray(mean.numpy().transpose(1, 2, 0)).reshape(CROP_SIZE, -1)
    batch = [images.numpy(), draws.corners, draws.flips, draws.colours, patches]
    parallel_over_batch(crop, batch, lines, np.float32(scale))
    return torch.from_numpy(patches).permute(0, 3, 1, 2)


def _all_at_once(images: Tensor, draws: AugmentParams, mean: Tensor, scale: float) -> Tensor:
    """For GPUs: a few operations on the whole batch, none of which waits for the device."""
    corners, flips, colours = (
        torch.from_numpy(values).to(images.device, non_blocking=True)
        for values in (draws.corners, draws.flips, draws.colours)
    )
    steps = torch.arange(CROP_SIZE, device=images.device)
    rows = corners[:, :1] + steps
    columns = corners[:, 1:] + torch.where(flips[:, None], CROP_SIZE - 1 - steps, steps)
    number = torch.arange(len(images), device=images.device)
    patches = images[number[:, None, None], rows[:, :, None], columns[:, None, :]]
    result = patches.permute(0, 3, 1, 2).float()
    return result.sub_(mean).add_(colours[:, :, None, None]).mul_(scale)


def ten_crop(images: Tensor) -> Tensor:
    """Corners and centre, then their mirror images (paper, section 4.1).

    Args:
        images: (B, 256, 256, 3) uint8.

    Returns:
        (10, B, 224, 224, 3) uint8.
    """
    views = torch.stack(
        [images[:, top : top + CROP_SIZE, left : left + CROP_SIZE] for top, left in VIEW_CORNERS]
    )
    return torch.cat([views, views.flip(3)])
