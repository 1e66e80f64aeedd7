"""The loop of ``alexnet.model.dropout`` on CPUs: masks from Philox 4x32-10."""

import numpy as np
from numpy.typing import NDArray

from alexnet.kernels.jit import jit


@jit
def fill_mask(
    keys: NDArray[np.int64], mask: NDArray[np.bool_], layer: int, first: int, threshold: int
) -> None:
    """Write whether each unit of each image is kept.

    Args:
        keys: (B, 3), from ``dropout_keys``.
        mask: (B, units), overwritten.
        layer: the number of the layer.
        first: the number of the first unit, a multiple of 4.
        threshold: 32-bit numbers from this on keep a unit.
    """
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    multiplier0, multiplier1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    step0, step1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    units = mask.shape[1]
    for n in range(len(keys)):
        seed, epoch, row = np.uint64(keys[n, 0]), np.uint64(keys[n, 1]), np.uint64(keys[n, 2])
        for start in range(0, units, 4):
            # A word is the lower half of 64 bits, so that a product of two words fits.
            c0, c1, c2, c3 = np.uint64((first + start) // 4), row, epoch, np.uint64(layer)
            k0, k1 = seed, np.uint64(0)
            for _ in range(10):
                product0, product1 = c0 * multiplier0, c2 * multiplier1
                c0, c1 = (product1 >> half) ^ c1 ^ k0, product1 & low
                c2, c3 = (product0 >> half) ^ c3 ^ k1, product0 & low
                k0, k1 = (k0 + step0) & low, (k1 + step1) & low
            limit = np.uint64(threshold)
            mask[n, start] = c0 >= limit
            if start + 1 < units:
                mask[n, start + 1] = c1 >= limit
            if start + 2 < units:
                mask[n, start + 2] = c2 >= limit
            if start + 3 < units:
                mask[n, start + 3] = c3 >= limit
