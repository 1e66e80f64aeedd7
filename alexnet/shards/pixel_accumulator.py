"""Adding up images as they are decoded, exactly and without leaving the processor's cache.

A sum of at most 257 bytes fits into 16 bits, and float32 counts to 2^24 without rounding, which
is 258 products of bytes. So many are added up in these types before the sums move on to 64 bits.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.codec import RAW_BYTES
from alexnet.shards.pixel_stats import PixelSums

_PARTS = 4
"""An image's values are multiplied in so many parts, of 200 kB each in single precision."""

_EXACT = 256 // _PARTS
"""Images after which sums of products, each at most 255 * 255, stay below 2^24."""


class PixelAccumulator:
    """Sums over images, one after the other."""

    def __init__(self) -> None:
        self._pixels = np.zeros(RAW_BYTES, np.uint16)
        self._values = torch.empty(RAW_BYTES // _PARTS)
        # Of each value times itself, times the next and times the one after: with three channels
        # side by side, these hold all products of two channels of a pixel.
        self._products = torch.zeros(3, RAW_BYTES // _PARTS)
        self._lags = [
            (sums[: len(sums) - lag], self._values[: len(sums) - lag], self._values[lag:])
            for lag, sums in enumerate(self._products)
        ]
        self._count = 0
        self._total = PixelSums.zero()

    def add(self, image: NDArray[np.uint8]) -> None:
        """Count one image, (256, 256, 3)."""
        flat = image.reshape(-1)
        np.add(self._pixels, flat, out=self._pixels)
        values = self._values
        for part in torch.from_numpy(flat).view(_PARTS, -1):
            values.copy_(part)
            for products, first, second in self._lags:
                products.addcmul_(first, second)
        self._count += 1
        if self._count == _EXACT:
            self._move()

    def sums(self) -> PixelSums:
        """Over all images so far."""
        self._move()
        return self._total

    def _move(self) -> None:
        """From the recent sums to the total."""
        # (3 lags, 3 channels): the channel of the first factor; lags reach into the next pixel
        # where channel + lag is above 2, and these are left out.
        lagged = self._products.double().view(3, -1, 3).sum(dim=1)
        for first in range(3):
            for second in range(first, 3):
                product = int(lagged[second - first, first])
                self._total.products[first, second] += product
                if first != second:
                    self._total.products[second, first] += product
        self._total.pixels += self._pixels.reshape(IMAGE_SIZE, IMAGE_SIZE, 3)
        self._total.count += self._count
        self._pixels.fill(0)
        self._products.zero_()
        self._count = 0
