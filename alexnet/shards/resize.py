"""Resizing the shorter side to 256 pixels and cropping the central 256x256.

Sizes and offsets are rounded as torchvision's ``Resize`` and ``CenterCrop`` round them. Images of
ordinary size are resized by torch's kernel for bytes, which is three times as fast as Pillow. Very
large and very long images are resized by Pillow, which computes no pixel outside the crop and so
needs no more memory than the image.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from alexnet.recipes import IMAGE_SIZE

_ORDINARY_PIXELS = 2**21
_ORDINARY_RATIO = 4
"""Pillow resizes images with more pixels or a larger ratio of the longer to the shorter side."""


def is_ordinary(width: int, height: int) -> bool:
    """Whether ``square_of_pixels`` is used for images of this size."""
    short, long = sorted((width, height))
    return long <= _ORDINARY_RATIO * short and long * short <= _ORDINARY_PIXELS


def square_of_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(height, width, 3) uint8, writable → the resized central square, (256, 256, 3) uint8."""
    height, width, channels = pixels.shape
    long, start = _long_side(width, height)
    rows, columns = (long, IMAGE_SIZE) if width <= height else (IMAGE_SIZE, long)
    target = torch.empty((rows, columns, channels), dtype=torch.uint8)
    # The kernel of ``interpolate(antialias=True)``, which can't write into an array whose last
    # dimension is the channels; to transpose its result would take as long as the resizing.
    torch.ops.aten._upsample_bilinear2d_aa.out(
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        [rows, columns],
        False,
        out=target.permute(2, 0, 1)[None],
    )
    square = (
        target[start : start + IMAGE_SIZE]
        if width <= height
        else target[:, start : start + IMAGE_SIZE]
    )
    return np.ascontiguousarray(square.numpy())


def square_of_image(image: Image.Image) -> NDArray[np.uint8]:
    """An RGB image of Pillow → the resized central square, (256, 256, 3) uint8."""
    width, height = image.size
    if is_ordinary(width, height):
        return square_of_pixels(np.array(image))
    long, start = _long_side(width, height)
    scale = max(width, height) / long
    begin, end = start * scale, (start + IMAGE_SIZE) * scale
    box = (0, begin, width, end) if width <= height else (begin, 0, end, height)
    return np.array(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=box))


def _long_side(width: int, height: int) -> tuple[int, int]:
    """Length of the longer side after resizing, and where along it the central square begins."""
    short, long = sorted((width, height))
    resized = IMAGE_SIZE * long // short
    return resized, round((resized - IMAGE_SIZE) / 2)
