"""Crops from 256x256 images: random ones for training, ten fixed ones for evaluation.

The augmentation parameters of a whole global batch are drawn on the CPU, from (seed, epoch,
offset) alone. Each worker applies those of its own rows. So neither a restart nor the number of
workers changes any crop, and no random generator's state has to be saved.

The parameters are a crop position and a flip for each image (or for each chunk of 32 consecutive
images, as in the 2012 source), and for each image a colour shift along the principal components of
RGB.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.kernels.jit import parallel_over_batch
from alexnet.recipes import CROP_SIZE, IMAGE_SIZE, Recipe
from alexnet.training.device_queue import copy_to_device

BORDER = IMAGE_SIZE - CROP_SIZE
VIEW_CORNERS = ((0, 0), (0, BORDER), (BORDER // 2, BORDER // 2), (BORDER, 0), (BORDER, BORDER))
VIEWS = 2 * len(VIEW_CORNERS)
CENTRE_VIEW = 2
"""Index of the unflipped central crop among the ten."""


@dataclass(frozen=True, slots=True)
class AugmentParams:
    """Random parameters of a batch of B images."""

    corners: NDArray[np.int64]
    """(B, 2): top and left offset of the crop."""
    flips: NDArray[np.bool_]
    """(B,): whether the crop is mirrored."""
    colours: NDArray[np.float32]
    """(B, 3): added to red, green and blue, in grey levels."""

    def take(self, positions: NDArray[np.int64] | slice) -> "AugmentParams":
        """The parameters of some of the batch's images."""
        return AugmentParams(
            self.corners[positions], self.flips[positions], self.colours[positions]
        )


def sample_augment_params(
    recipe: Recipe,
    pca_axes: NDArray[np.float64],
    count: int,
    *,
    seed: int,
    epoch: int,
    offset: int,
    colour_noise: bool = True,
) -> AugmentParams:
    """Draw the parameters of the global batch of ``count`` images that starts at ``offset``.

    ``pca_axes`` is the result of the function ``pca_axes``.
    """
    # The third number is never 0, so this stream differs from the one that orders the rows.
    random = np.random.default_rng([seed, epoch, 1 + offset])
    chunks = -(-count // recipe.crop_chunk)
    corners = random.integers(0, recipe.crop_positions, (chunks, 2))
    flips = random.random(chunks) < 0.5
    factors = random.normal(0.0, recipe.colour_noise_std, (count, 3))
    return AugmentParams(
        np.repeat(corners, recipe.crop_chunk, axis=0)[:count],
        np.repeat(flips, recipe.crop_chunk)[:count],
        (factors @ pca_axes * colour_noise).astype(np.float32),
    )


def pca_axes(recipe: Recipe, rgb_covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The principal components of RGB, (3, 3), one per row, scaled for the recipe's colour noise.

    ``deviation`` (the 2012 source): times the root of the eigenvalue, in grey levels.
    ``eigenvalue`` (the paper): times the eigenvalue. The paper names no unit. In grey levels an
    eigenvalue is about 10^4, and such noise would be stronger than any image. So the eigenvalue is
    that of intensities from 0 to 1, as in later implementations, and the shift is converted back to
    grey levels.
    """
    eigenvalues, vectors = np.linalg.eigh(rgb_covariance)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    scale = np.sqrt(eigenvalues) if recipe.colour_noise == "deviation" else eigenvalues / 255
    axes: NDArray[np.float64] = (vectors * scale).T
    return axes


def mean_crop(mean_image: NDArray[np.float32]) -> Tensor:
    """The central 224x224 of the mean image, (3, 224, 224) float32.

    As in the 2012 source, it is subtracted from every crop, at any crop position.
    """
    border = BORDER // 2
    central = mean_image[border : border + CROP_SIZE, border : border + CROP_SIZE]
    return torch.from_numpy(np.ascontiguousarray(central.transpose(2, 0, 1)))


def training_crops(
    images: Tensor,
    params: AugmentParams,
    mean: Tensor,
    scale: float,
    *,
    channels_last: bool = True,
) -> Tensor:
    """Crop, mirror, subtract the mean and add colour noise, on the device of the images.

    Args:
        images: (B, 256, 256, 3) uint8.
        params: of the B images.
        mean: (3, 224, 224) float32 on the same device.
        scale: factor of the result (``Recipe.training_scale``).
        channels_last: the result's layout in memory on GPUs; on CPUs it is always channels last.

    Returns:
        (B, 3, 224, 224) float32. Both implementations, and any number of
        threads, give the same bits.
    """
    if images.device.type == "cpu":
        return crops_by_compiled_loop(images, params, mean, scale)
    return crops_by_torch_operations(images, params, mean, scale, channels_last=channels_last)


def crops_by_compiled_loop(
    images: Tensor, params: AugmentParams, mean: Tensor, scale: float
) -> Tensor:
    """``training_crops`` for CPUs: all threads, each pixel is read once and written once."""
    # Imported here, because it imports the compiler, which GPUs don't need.
    from alexnet.kernels.crop import addresses_of, crop_images

    # Allocated by NumPy, because it requests huge pages and torch does not. With small pages, the
    # first write to new memory takes longer than all the arithmetic.
    crops = np.empty((len(images), CROP_SIZE, CROP_SIZE, 3), np.float32)
    pixels = np.ascontiguousarray(images.numpy())
    addresses, rows = addresses_of(pixels), crops.reshape(-1, CROP_SIZE, 3 * CROP_SIZE)
    arrays = [addresses, params.corners, params.flips, params.colours, rows]
    parallel_over_batch(crop_images, arrays, mean_rows(mean), np.float32(scale))
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def crop_piece(
    addresses: NDArray[np.int64],
    params: AugmentParams,
    mean: NDArray[np.float32],
    scale: float,
    crops: NDArray[np.float32],
) -> None:
    """``training_crops`` of some images on a CPU, in this thread alone.

    Args:
        addresses: (n,), where each image is in memory, 256x256x3 contiguous bytes.
        params: of the n images.
        mean: from ``mean_rows``.
        scale: as for ``training_crops``.
        crops: (n, 224, 224, 3), overwritten.
    """
    from alexnet.kernels.crop import crop_images

    rows = crops.reshape(-1, CROP_SIZE, 3 * CROP_SIZE)
    arrays = addresses, params.corners, params.flips, params.colours, rows
    crop_images(*arrays, mean, np.float32(scale))


def mean_rows(mean: Tensor) -> NDArray[np.float32]:
    """The mean of crops, (3, 224, 224) on the CPU, as the compiled loop reads it, (224, 672)."""
    return np.ascontiguousarray(mean.numpy().transpose(1, 2, 0)).reshape(CROP_SIZE, -1)


def crops_by_torch_operations(
    images: Tensor,
    params: AugmentParams,
    mean: Tensor,
    scale: float,
    *,
    channels_last: bool = True,
) -> Tensor:
    """``training_crops`` for GPUs: few operations, and none of them waits for the device."""
    corners, flips, colours = (
        copy_to_device(torch.from_numpy(values), images.device)
        for values in (params.corners, params.flips, params.colours)
    )
    steps = torch.arange(CROP_SIZE, device=images.device)
    rows = corners[:, :1] + steps
    columns = corners[:, 1:] + torch.where(flips[:, None], CROP_SIZE - 1 - steps, steps)
    number = torch.arange(len(images), device=images.device)
    crops = images[number[:, None, None], rows[:, :, None], columns[:, None, :]]
    result = _to_float(crops, channels_last=channels_last)
    return result.sub_(mean).add_(colours[:, :, None, None]).mul_(scale)


def centre_view(images: Tensor) -> Tensor:
    """(B, 256, 256, 3) → (B, 224, 224, 3), the same memory."""
    top, left = VIEW_CORNERS[CENTRE_VIEW]
    return images[:, top : top + CROP_SIZE, left : left + CROP_SIZE]


def centre_crops(images: Tensor, mean: Tensor, *, channels_last: bool = True) -> Tensor:
    """The centre view as input of the network, on the device of the images.

    Args:
        images: (B, 256, 256, 3) uint8.
        mean: (3, 224, 224) float32 on the same device.
        channels_last: as for ``training_crops``.

    Returns:
        (B, 3, 224, 224) float32.
    """
    return _to_float(centre_view(images), channels_last=channels_last) - mean


def _to_float(crops: Tensor, *, channels_last: bool) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in a layout; on CPUs it is channels last."""
    channels_last = channels_last or crops.device.type == "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=layout)


def evaluation_views(images: Tensor, count: int) -> Tensor:
    """(B, 256, 256, 3) → (count, B, 224, 224, 3): the ten views, or the centre alone (1)."""
    assert count in (1, VIEWS)
    return ten_crop(images) if count == VIEWS else centre_view(images).contiguous()[None]


def ten_crop(images: Tensor) -> Tensor:
    """Crops at the corners and the centre, then their mirror images (paper, section 4.1).

    Args:
        images: (B, 256, 256, 3) uint8.

    Returns:
        (10, B, 224, 224, 3) uint8.
    """
    views = torch.stack(
        [images[:, top : top + CROP_SIZE, left : left + CROP_SIZE] for top, left in VIEW_CORNERS]
    )
    return torch.cat([views, views.flip(3)])
