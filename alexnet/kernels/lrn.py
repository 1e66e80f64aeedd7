"""The loops of ``norms`` on a CPU: one pass over main memory forward, one backward.

The batch is worked off in tiles that stay in the cache: a row of positions with all its maps for
the cross-map window, a few maps of a whole image for the window within a map. A tile's terms lie
in the middle of zeros, as one line of memory, so a window sum is a sum of that line and itself
shifted; what lies across the end of a row falls to elements that nobody reads.

Arrays are contiguous, (N, H, W, C), all float32 or all float64; ``bias``, ``alpha`` and ``slope``
are scalars of the same type, or the arithmetic would be float64's. ``size`` is odd, at least 3.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.kernels.jit import jit

Array = NDArray[np.floating[Any]]
Scalar = np.floating[Any]
Extent = tuple[int, int, int]

MAPS = 32
"""Maps of a tile within a map. Of the network's largest maps three tiles take 370 kB."""


@jit
def forward(x: Array, y: Array, within: bool, size: int, bias: Scalar, alpha: Scalar) -> None:
    """Write x · d ^ -.75 into ``y``, with d = ``bias`` + ``alpha`` · window sums of squares."""
    buffers = _buffers(2, x, within, size)
    for number in range(_tiles(x.shape, within)):
        image, top, bottom, first, last = _tile(number, x.shape, within)
        part = x[image, top:bottom]
        _, factors = _sums_and_powers(part, first, last, buffers, within, size, bias, alpha)
        for i in range(part.shape[0]):
            for j in range(part.shape[1]):
                values = part[i, j][first:last]
                results = y[image, top + i, j][first:last]
                factor = factors[i, j]
                for k in range(last - first):
                    results[k] = values[k] * factor[k]


@jit
def backward(
    x: Array,
    grad: Array,
    result: Array,
    within: bool,
    size: int,
    bias: Scalar,
    alpha: Scalar,
    slope: Scalar,
) -> None:
    """Write ``grad`` · q - ``slope`` · x · window sums of (``grad`` · x · q / d) into ``result``.

    q = d ^ -.75, and ``slope`` is 1.5 · ``alpha``.
    """
    border, margin = _zeros(within, size)
    buffers = _buffers(3, x, within, size)
    for number in range(_tiles(x.shape, within)):
        image, top, bottom, first, last = _tile(number, x.shape, within)
        part = x[image, top:bottom]
        sums, factors = _sums_and_powers(part, first, last, buffers, within, size, bias, alpha)
        through = _shaped(buffers[2], sums.shape)
        through[:] = 0
        for i in range(part.shape[0]):
            for j in range(part.shape[1]):
                values = part[i, j][first:last]
                upstream = grad[image, top + i, j][first:last]
                total, factor = sums[i, j], factors[i, j]
                target = through[border + i, border + j][margin : margin + last - first]
                for k in range(last - first):
                    d = bias + alpha * total[k]
                    target[k] = upstream[k] * values[k] * factor[k] / d
        totals, _ = _window_sums(through, sums, within, size)
        for i in range(part.shape[0]):
            for j in range(part.shape[1]):
                values = part[i, j][first:last]
                upstream = grad[image, top + i, j][first:last]
                results = result[image, top + i, j][first:last]
                total, factor = totals[i, j], factors[i, j]
                for k in range(last - first):
                    results[k] = upstream[k] * factor[k] - slope * values[k] * total[k]


@jit
def _sums_and_powers(
    part: Array,
    first: int,
    last: int,
    buffers: Array,
    within: bool,
    size: int,
    bias: Scalar,
    alpha: Scalar,
) -> tuple[Array, Array]:
    """Of a tile's squares, in two of the ``buffers``: window sums, and d ^ -.75."""
    border, margin = _zeros(within, size)
    rows, width, _ = part.shape
    extent = rows + 2 * border, width + 2 * border, last - first + 2 * margin
    terms, spare = _shaped(buffers[0], extent), _shaped(buffers[1], extent)
    _square(part, first, last, terms, border, margin)
    sums, factors = _window_sums(terms, spare, within, size)
    for i in range(rows):
        _powers(sums[i, :width], factors[i, :width], bias, alpha)
    return sums, factors


@jit
def _zeros(within: bool, size: int) -> tuple[int, int]:
    """How many zeros stand around a tile's positions, and around its maps."""
    return (size // 2, 0) if within else (0, size // 2)


@jit
def _buffers(count: int, x: Array, within: bool, size: int) -> Array:
    """Room for some padded tiles, each in a line; no tile is larger than the first."""
    border, margin = _zeros(within, size)
    _, top, bottom, first, last = _tile(0, x.shape, within)
    positions = (bottom - top + 2 * border) * (x.shape[2] + 2 * border)
    return np.empty((count, positions * (last - first + 2 * margin)), x.dtype)


@jit
def _tiles(shape: tuple[int, ...], within: bool) -> int:
    """How many tiles a batch has."""
    count, height, _, maps = shape
    return count * (-(-maps // MAPS) if within else height)


@jit
def _tile(number: int, shape: tuple[int, ...], within: bool) -> tuple[int, int, int, int, int]:
    """A tile's image, its first row and the one after it, and so with the maps."""
    _, height, _, maps = shape
    if within:
        image, part = divmod(number, -(-maps // MAPS))
        return image, 0, height, part * MAPS, min((part + 1) * MAPS, maps)
    image, row = divmod(number, height)
    return image, row, row + 1, 0, maps


@jit
def _shaped(buffer: Array, extent: Extent) -> Array:
    """The first part of a line of memory, as an array."""
    return buffer[: extent[0] * extent[1] * extent[2]].reshape(extent)


@jit
def _square(x: Array, first: int, last: int, terms: Array, border: int, margin: int) -> None:
    """Write the squares of some maps into the middle of ``terms``, and zeros around them."""
    terms[:] = 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            values = x[i, j][first:last]
            squares = terms[border + i, border + j][margin : margin + last - first]
            for k in range(last - first):
                squares[k] = values[k] * values[k]


@jit
def _window_sums(terms: Array, spare: Array, within: bool, size: int) -> tuple[Array, Array]:
    """The sums, and the one of the two arrays that is free then; both are overwritten."""
    _, width, depth = terms.shape
    line, other = terms.reshape(-1), spare.reshape(-1)
    if not within:
        _neighbours(line, other, size, 1)
        return spare, terms
    _neighbours(line, other, size, depth)
    _neighbours(other, line, size, width * depth)
    return terms, spare


@jit
def _neighbours(terms: Array, sums: Array, size: int, stride: int) -> None:
    """Write into element i of ``sums`` those of ``size`` terms, from i on, ``stride`` apart."""
    count = terms.size - (size - 1) * stride
    first, second, third = terms[:count], terms[stride:], terms[2 * stride :]
    for i in range(count):
        sums[i] = first[i] + second[i] + third[i]
    for step in range(3, size, 2):
        first, second = terms[step * stride :], terms[(step + 1) * stride :]
        for i in range(count):
            sums[i] += first[i] + second[i]


@jit
def _powers(sums: Array, factors: Array, bias: Scalar, alpha: Scalar) -> None:
    """Write (``bias`` + ``alpha`` · sum) ^ -.75 into ``factors``."""
    given, result, one = sums.reshape(-1), factors.reshape(-1), sums.dtype.type(1)
    for i in range(given.size):
        d = bias + alpha * given[i]
        root = one / np.sqrt(d)
        result[i] = root * (one / np.sqrt(d * root))
