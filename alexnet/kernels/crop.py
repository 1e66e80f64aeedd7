"""Loops over images anywhere in memory: copies, and crops in one pass over the pixels."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from alexnet.kernels.jit import jit
from alexnet.recipes import IMAGE_SIZE

ROW_BYTES = IMAGE_SIZE * 3
IMAGE_BYTES = IMAGE_SIZE * ROW_BYTES

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(_: Any, address: types.Integer) -> Any:
    """The address as a pointer, in compiled code."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy_bytes(_: Any, target: types.Integer, source: types.Integer, count: types.Integer) -> Any:
    """Copy bytes with C's ``memcpy``: for whole images, 2.5 times as fast as a compiled loop."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, source, count = arguments
        pointers = [builder.inttoptr(address, cgutils.voidptr_t) for address in (to, source)]
        cgutils.raw_memcpy(builder, *pointers, count, itemsize=1)
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _store_past_cache(_: Any, target: types.Integer, source: types.Integer) -> Any:
    """Copy 4 floats with a non-temporal store; both addresses are multiples of 16."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        floats = ir.VectorType(ir.FloatType(), 4)
        to, source = [builder.inttoptr(address, floats.as_pointer()) for address in arguments]
        store = builder.store(builder.load(source, align=16), to, align=16)
        once = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        store.set_metadata("nontemporal", once)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _fence(_: Any) -> Any:
    """A memory fence: after it, other threads see what non-temporal stores have written."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def _mirror_5_pixels(_: Any, target: types.Integer, source: types.Integer) -> Any:
    """Write 5 pixels from right to left, and a byte after them that is written again later.

    ``source`` is the byte before the pixels, so that none after them is read.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bytes_16 = ir.VectorType(ir.IntType(8), 16)
        to, source = [builder.inttoptr(address, bytes_16.as_pointer()) for address in arguments]
        order = [first + channel for first in range(13, 0, -3) for channel in range(3)] + [0]
        indices = ir.Constant(ir.VectorType(ir.IntType(32), 16), order)
        loaded = builder.load(source, align=1)
        builder.store(builder.shuffle_vector(loaded, loaded, indices), to, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def addresses_of(images: Pixels) -> NDArray[np.int64]:
    """(n,): where each image of a contiguous array, (n, 256, 256, 3), is in memory."""
    assert images.flags.c_contiguous
    assert images.nbytes == IMAGE_BYTES * len(images)
    return images.ctypes.data + IMAGE_BYTES * np.arange(len(images))


@jit
def copy_images(addresses: NDArray[np.int64], images: Pixels) -> None:
    """Copy raw images, (n,) addresses, into a contiguous array of n · 196,608 bytes."""
    for n in range(len(addresses)):
        _copy_bytes(images.ctypes.data + IMAGE_BYTES * n, addresses[n], IMAGE_BYTES)


@jit
def crop_images(
    addresses: NDArray[np.int64],
    corners: NDArray[np.int64],
    flips: NDArray[np.bool_],
    colours: Floats,
    crops: Floats,
    mean: Floats,
    scale: np.float32,
) -> None:
    """Write (pixel - mean + colour) · scale of one crop of each image into ``crops``.

    The images can be anywhere: ``addresses``, (B,), are those of (256, 256, 3) arrays. Shapes of
    the others: (B, 2), (B,), (B, 3) → (B, 224, 672). ``mean`` is (224, 672). ``crops`` begins at a
    multiple of 16 bytes, as all arrays of NumPy and torch do.
    """
    rows, width = mean.shape
    row_colour = np.empty(width, np.float32)
    mirrored = np.empty((rows, width), np.uint8)
    # A row is computed in the cache. A batch of crops is larger than the cache: with non-temporal
    # stores, the memory below is not read before it is overwritten.
    crop_row = np.empty(width, np.float32)
    assert width % 4 == 0
    assert crops.ctypes.data % 16 == 0
    assert crop_row.ctypes.data % 16 == 0
    for n in range(len(addresses)):
        image = carray(_pointer(addresses[n]), (IMAGE_SIZE, ROW_BYTES), np.uint8)
        top, left = corners[n]
        for j in range(width):
            row_colour[j] = colours[n, j % 3]
        crop = image[top : top + rows, 3 * left : 3 * left + width]
        if flips[n]:
            for i in range(rows):
                _mirror(crop[i], mirrored[i])
            crop = mirrored
        for i in range(rows):
            row, mean_row = crop[i], mean[i]
            for j in range(width):
                crop_row[j] = (np.float32(row[j]) - mean_row[j] + row_colour[j]) * scale
            target = crops.ctypes.data + crops.strides[0] * n + crops.strides[1] * i
            for j in range(0, 4 * width, 16):
                _store_past_cache(target + j, crop_row.ctypes.data + j)
    _fence()


@jit
def _mirror(row: Pixels, mirrored: Pixels) -> None:
    """Copy a row of RGB pixels from right to left."""
    done, pixels = 0, row.size // 3
    while pixels - done > 5:
        _mirror_5_pixels(
            mirrored.ctypes.data + 3 * done, row.ctypes.data + 3 * (pixels - done - 5) - 1
        )
        done += 5
    for pixel in range(done, pixels):
        for channel in range(3):
            mirrored[3 * pixel + channel] = row[3 * (pixels - 1 - pixel) + channel]
