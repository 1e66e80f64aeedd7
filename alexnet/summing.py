"""Adding up images as they are decoded, exactly and in a few passes of single precision.

Products of bytes are below 2^16, and float32 counts to 2^24 without rounding: 256 images are
added up in it before the sums move on to integers.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.images import RAW_BYTES, SIDE
from alexnet.statistics import Sums

_EXACT = 256
"""Images whose sums of products, each at most 255 * 255, stay below 2^24."""


class Summing:
    """Sums over images, one after the other."""

    def __init__(self) -> None:
        self._values = torch.empty(RAW_BYTES)
        # Of the values, and of each value times itself, times the next and times the one after:
        # with three channels side by side, these hold all products of two channels of a pixel.
        self._recent = torch.zeros(4, RAW_BYTES)
        self._count = 0
        self._total = Sums.zero()

    def add(self, image: NDArray[np.uint8]) -> None:
        """Count one image, (256, 256, 3)."""
        values = self._values
        pixels, squares, neighbours, second_neighbours = self._recent
        values.copy_(torch.from_numpy(image).reshape(-1))
        pixels.add_(values)
        squares.addcmul_(values, values)
        neighbours[:-1].addcmul_(values[:-1], values[1:])
        second_neighbours[:-2].addcmul_(values[:-2], values[2:])
        self._count += 1
        if self._count == _EXACT:
            self._move()

    def sums(self) -> Sums:
        """Over all images so far."""
        self._move()
        return self._total

    def _move(self) -> None:
        """From the recent sums to the total."""
        pixels, *products = self._recent.numpy()
        # (3 lags, 3 channels): the channel of the first factor; lags reach into the next pixel
        # where channel + lag is above 2, and these are left out.
        lagged = np.stack([lag.reshape(-1, 3).sum(axis=0, dtype=np.float64) for lag in products])
        for first in range(3):
            for second in range(first, 3):
                product = int(lagged[second - first, first])
                self._total.products[first, second] += product
                if first != second:
                    self._total.products[second, first] += product
        self._total.pixels += pixels.reshape(SIDE, SIDE, 3).astype(np.int64)
        self._total.count += self._count
        self._recent.zero_()
        self._count = 0
