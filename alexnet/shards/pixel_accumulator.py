"""Exact sums of pixels and of products of channels, computed while images are decoded.

A sum of 257 bytes fits into 16 bits, and float32 represents all integers up to 2^24, which is a
sum of 258 products of bytes. Sums of up to that many images are kept in these small types, which
fit into the processor's cache, and are then added to sums of 64 bits.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.codec import RAW_BYTES
from alexnet.shards.pixel_stats import PixelSums

_PARTS = 4
"""An image is multiplied in this number of parts, of 200 kB each as float32."""

_MAX_IMAGES = 256 // _PARTS
"""Images for which sums of products, each at most 255 * 255, are below 2^24."""


class PixelAccumulator:
    """Sums over images that are added one by one."""

    def __init__(self) -> None:
        self._pixels = np.zeros(RAW_BYTES, np.uint16)
        self._values = torch.empty(RAW_BYTES // _PARTS)
        # (3 lags, values of a part): sums of each value times itself, times the next value and
        # times the one after that. The channels are the last dimension of an image, so these
        # contain all products of two channels of a pixel.
        self._products = torch.zeros(3, RAW_BYTES // _PARTS)
        self._lags = [
            (sums[: len(sums) - lag], self._values[: len(sums) - lag], self._values[lag:])
            for lag, sums in enumerate(self._products)
        ]
        self._count = 0
        self._total = PixelSums.zero()

    def add(self, image: NDArray[np.uint8]) -> None:
        """Add one image, (256, 256, 3)."""
        flat = image.reshape(-1)
        np.add(self._pixels, flat, out=self._pixels)
        values = self._values
        for part in torch.from_numpy(flat).view(_PARTS, -1):
            values.copy_(part)
            for products, first, second in self._lags:
                products.addcmul_(first, second)
        self._count += 1
        if self._count == _MAX_IMAGES:
            self._flush()

    def sums(self) -> PixelSums:
        """The sums over all images so far."""
        self._flush()
        return self._total

    def _flush(self) -> None:
        """Add the sums of the last images to the total and reset them."""
        # (3 lags, 3 channels of the first factor). If channel + lag is above 2, the second factor
        # belongs to the next pixel; these sums are not used.
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
