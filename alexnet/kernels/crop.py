"""The loop of ``augment`` on a CPU: from stored pixels to patches in one pass over memory."""

import numpy as np
from numpy.typing import NDArray

from alexnet.kernels.jit import jit

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@jit
def crop(
    images: Pixels,
    corners: NDArray[np.int64],
    flips: NDArray[np.bool_],
    colours: Floats,
    patches: Floats,
    mean: Floats,
    scale: np.float32,
) -> None:
    """Write (pixel - mean + colour) · scale of a patch of each image.

    Shapes: (B, 256, 256, 3), (B, 2), (B,), (B, 3) → (B, 224, 224, 3); ``mean`` (224, 672).
    """
    lines, width = mean.shape
    tint = np.empty(width, np.float32)
    mirrored = np.empty(width, np.uint8)
    for n in range(len(images)):
        top, left = corners[n]
        for j in range(width):
            tint[j] = colours[n, j % 3]
        for i in range(lines):
            line = images[n, top + i].reshape(-1)[3 * left :][:width]
            if flips[n]:
                _mirror(line, mirrored)
                line = mirrored
            average, patch = mean[i], patches[n, i].reshape(-1)
            for j in range(width):
                patch[j] = (np.float32(line[j]) - average[j] + tint[j]) * scale


@jit
def _mirror(line: Pixels, mirrored: Pixels) -> None:
    """Copy a line of RGB pixels from right to left."""
    # Without a sign an index can't count from the end, and nothing asks: fifty times as fast.
    target, source, step = np.uint64(0), np.uint64(line.size - 3), np.uint64(3)
    green, blue = np.uint64(1), np.uint64(2)
    for _ in range(line.size // 3):
        mirrored[target] = line[source]
        mirrored[target + green] = line[source + green]
        mirrored[target + blue] = line[source + blue]
        target += step
        source -= step
