"""The training set's mean image and the covariance of its RGB values, from exact partial sums.

The sums are integers, so the total does not depend on the order in which shards are finished. The
mean image is subtracted from the network's input (paper, section 2). The eigenvectors of the
covariance are the principal components of the colour noise (section 4.1).
"""

import io
import zipfile
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from alexnet import storage
from alexnet.errors import CorruptDatasetError
from alexnet.recipes import IMAGE_SIZE


@dataclass(slots=True)
class PixelSums:
    """Sums over ``count`` images; the sums of all shards are added up."""

    pixels: NDArray[np.int64]
    """(256, 256, 3): sum of the values at each position."""
    products: NDArray[np.int64]
    """(3, 3): sum over all pixels of the products of two channels' values."""
    count: int

    @classmethod
    def zero(cls) -> Self:
        """Sums over no image."""
        return cls(np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.int64), np.zeros((3, 3), np.int64), 0)

    def merge(self, other: "PixelSums") -> None:
        """Add the sums of other images."""
        self.pixels += other.pixels
        self.products += other.products
        self.count += other.count


@dataclass(frozen=True, slots=True)
class PixelStatistics:
    """Statistics of the training set, which training and evaluation need."""

    mean_image: NDArray[np.float32]
    """(256, 256, 3), 0-255."""
    rgb_covariance: NDArray[np.float64]
    """(3, 3), in squared levels of 0-255, over all pixels of all training images."""
    count: int
    """Number of images."""


def compute_statistics(sums: PixelSums) -> PixelStatistics:
    """Mean image and covariance from the sums over at least one image."""
    assert sums.count > 0
    pixels = sums.count * IMAGE_SIZE * IMAGE_SIZE
    mean = sums.pixels.sum(axis=(0, 1)) / pixels
    covariance = sums.products / pixels - np.outer(mean, mean)
    return PixelStatistics((sums.pixels / sums.count).astype(np.float32), covariance, sums.count)


def write_sums(path: str, sums: PixelSums) -> None:
    """Write partial sums, atomically."""
    _write_npz(path, pixels=sums.pixels, products=sums.products, count=np.int64(sums.count))


def read_sums(path: str) -> PixelSums:
    """Read partial sums that ``write_sums`` wrote."""
    with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as arrays:
        return PixelSums(arrays["pixels"], arrays["products"], int(arrays["count"]))


def write_statistics(path: str, statistics: PixelStatistics) -> None:
    """Write the statistics as an ``.npz`` file, atomically."""
    _write_npz(
        path,
        mean_image=statistics.mean_image,
        rgb_covariance=statistics.rgb_covariance,
        count=np.int64(statistics.count),
    )


def read_statistics(path: str) -> PixelStatistics:
    """Read statistics that ``write_statistics`` wrote.

    Raises:
        CorruptDatasetError: the file is missing or damaged.
    """
    try:
        with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as arrays:
            return PixelStatistics(
                arrays["mean_image"], arrays["rgb_covariance"], int(arrays["count"])
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CorruptDatasetError(f"{path}: can't be read ({error})") from error


def _write_npz(path: str, **arrays: NDArray[np.generic] | np.generic) -> None:
    with storage.atomic_output(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
