"""The loops of ``alexnet.model.lrn`` on CPUs: one pass over main memory forward, one backward.

The batch is processed in tiles that stay in the cache. For the cross-map window a tile is a row of
positions with all its maps; for the window within a map it is some maps of a whole image. The
terms of a tile are stored with zeros around them, in one flat array, so a window sum is the sum of
shifted views of that array. Windows that extend over the end of a row are at positions of the
zeros, which are not read.

Arrays are contiguous, (N, H, W, C), all float32 or all float64. ``bias``, ``alpha`` and ``slope``
are scalars of the same type: Python floats would turn the arithmetic into float64. ``size`` is odd
and at least 3.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet.kernels.jit import jit

Array = NDArray[np.floating[Any]]
Scalar = np.floating[Any]
Extent = tuple[int, int, int]

TILE_MAPS = 32
"""Maps of a tile for the window within a map. Three tiles of the network's largest maps take
370 kB."""


@jit
def forward(x: Array, y: Array, within: bool, size: int, bias: Scalar, alpha: Scalar) -> None:
    """Write x · d ^ -.75 into ``y``, with d = ``bias`` + ``alpha`` · window sums of squares."""
    buffers = _allocate_buffers(2, x, within, size)
    for number in range(_tile_count(x.shape, within)):
        image, top, bottom, first, last = _tile_bounds(number, x.shape, within)
        tile = x[image, top:bottom]
        _, factors = _sums_and_factors(tile, first, last, buffers, within, size, bias, alpha)
        for i in range(tile.shape[0]):
            for j in range(tile.shape[1]):
                values = tile[i, j][first:last]
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
    border, margin = _padding(within, size)
    buffers = _allocate_buffers(3, x, within, size)
    for number in range(_tile_count(x.shape, within)):
        image, top, bottom, first, last = _tile_bounds(number, x.shape, within)
        tile = x[image, top:bottom]
        sums, factors = _sums_and_factors(tile, first, last, buffers, within, size, bias, alpha)
        terms = _reshaped(buffers[2], sums.shape)
        terms[:] = 0
        for i in range(tile.shape[0]):
            for j in range(tile.shape[1]):
                values = tile[i, j][first:last]
                upstream = grad[image, top + i, j][first:last]
                total, factor = sums[i, j], factors[i, j]
                target = terms[border + i, border + j][margin : margin + last - first]
                for k in range(last - first):
                    d = bias + alpha * total[k]
                    target[k] = upstream[k] * values[k] * factor[k] / d
        totals, _ = _window_sums(terms, sums, within, size)
        for i in range(tile.shape[0]):
            for j in range(tile.shape[1]):
                values = tile[i, j][first:last]
                upstream = grad[image, top + i, j][first:last]
                results = result[image, top + i, j][first:last]
                total, factor = totals[i, j], factors[i, j]
                for k in range(last - first):
                    results[k] = upstream[k] * factor[k] - slope * values[k] * total[k]


@jit
def _sums_and_factors(
    tile: Array,
    first: int,
    last: int,
    buffers: Array,
    within: bool,
    size: int,
    bias: Scalar,
    alpha: Scalar,
) -> tuple[Array, Array]:
    """Window sums of a tile's squares, and d ^ -.75; both are views of the ``buffers``."""
    border, margin = _padding(within, size)
    rows, width, _ = tile.shape
    extent = rows + 2 * border, width + 2 * border, last - first + 2 * margin
    terms, spare = _reshaped(buffers[0], extent), _reshaped(buffers[1], extent)
    _write_squares(tile, first, last, terms, border, margin)
    sums, factors = _window_sums(terms, spare, within, size)
    for i in range(rows):
        _write_factors(sums[i, :width], factors[i, :width], bias, alpha)
    return sums, factors


@jit
def _padding(within: bool, size: int) -> tuple[int, int]:
    """Number of zeros on each side of a tile's positions, and of its maps."""
    return (size // 2, 0) if within else (0, size // 2)


@jit
def _allocate_buffers(count: int, x: Array, within: bool, size: int) -> Array:
    """Memory for ``count`` padded tiles, one a row. No tile is larger than the first one."""
    border, margin = _padding(within, size)
    _, top, bottom, first, last = _tile_bounds(0, x.shape, within)
    positions = (bottom - top + 2 * border) * (x.shape[2] + 2 * border)
    return np.empty((count, positions * (last - first + 2 * margin)), x.dtype)


@jit
def _tile_count(shape: tuple[int, ...], within: bool) -> int:
    """Number of tiles in a batch."""
    count, height, _, maps = shape
    return count * (-(-maps // TILE_MAPS) if within else height)


@jit
def _tile_bounds(
    number: int, shape: tuple[int, ...], within: bool
) -> tuple[int, int, int, int, int]:
    """A tile's image, its first row and the row after its last, its first map and the map after."""
    _, height, _, maps = shape
    if within:
        image, part = divmod(number, -(-maps // TILE_MAPS))
        return image, 0, height, part * TILE_MAPS, min((part + 1) * TILE_MAPS, maps)
    image, row = divmod(number, height)
    return image, row, row + 1, 0, maps


@jit
def _reshaped(buffer: Array, extent: Extent) -> Array:
    """The start of a flat buffer as an array of three axes."""
    return buffer[: extent[0] * extent[1] * extent[2]].reshape(extent)


@jit
def _write_squares(x: Array, first: int, last: int, terms: Array, border: int, margin: int) -> None:
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
    """The array that holds the sums, then the other one of the two; both are overwritten."""
    _, width, depth = terms.shape
    flat, other = terms.reshape(-1), spare.reshape(-1)
    if not within:
        _sliding_sums(flat, other, size, 1)
        return spare, terms
    _sliding_sums(flat, other, size, depth)
    _sliding_sums(other, flat, size, width * depth)
    return terms, spare


@jit
def _sliding_sums(terms: Array, sums: Array, size: int, stride: int) -> None:
    """Write the sum of ``size`` terms, from i on, ``stride`` apart, into element i of ``sums``."""
    count = terms.size - (size - 1) * stride
    first, second, third = terms[:count], terms[stride:], terms[2 * stride :]
    for i in range(count):
        sums[i] = first[i] + second[i] + third[i]
    for step in range(3, size, 2):
        first, second = terms[step * stride :], terms[(step + 1) * stride :]
        for i in range(count):
            sums[i] += first[i] + second[i]


@jit
def _write_factors(sums: Array, factors: Array, bias: Scalar, alpha: Scalar) -> None:
    """Write (``bias`` + ``alpha`` · sum) ^ -.75 into ``factors``."""
    flat, result, one = sums.reshape(-1), factors.reshape(-1), sums.dtype.type(1)
    for i in range(flat.size):
        d = bias + alpha * flat[i]
        root = one / np.sqrt(d)
        result[i] = root * (one / np.sqrt(d * root))
