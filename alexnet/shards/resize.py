"""The shorter side to 256 pixels, the central 256x256 kept.

Sizes and offsets are rounded as torchvision's ``Resize`` and ``CenterCrop`` round them. Ordinary
images are resized by torch's kernel for bytes, three times as fast as Pillow's. Very large and
very long ones go through Pillow, which computes no pixel outside the crop and so needs no more
memory than the image.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from alexnet.recipes import IMAGE_SIZE

_ORDINARY_PIXELS = 2**21
_ORDINARY_RATIO = 4
"""Images with more pixels, or longer for their width, are left to Pillow."""


def is_ordinary(width: int, height: int) -> bool:
    """Whether ``square_of_pixels`` takes an image of this size."""
    short, long = sorted((width, height))
    return long <= _ORDINARY_RATIO * short and long * short <= _ORDINARY_PIXELS


def square_of_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The central square of writable pixels (height, width, 3): (256, 256, 3)."""
    height, width, channels = pixels.shape
    long, start = _long_side(width, height)
    rows, columns = (long, IMAGE_SIZE) if width <= height else (IMAGE_SIZE, long)
    target = torch.empty((rows, columns, channels), dtype=torch.uint8)
    # What ``interpolate(antialias=True)`` calls; it could not be told to keep a pixel's channels
    # side by side, and putting them together again would take as long as the resizing.
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
    """The central square of an RGB image in Pillow's hands: (256, 256, 3)."""
    width, height = image.size
    if is_ordinary(width, height):
        return square_of_pixels(np.array(image))
    long, start = _long_side(width, height)
    scale = max(width, height) / long
    near, far = start * scale, (start + IMAGE_SIZE) * scale
    box = (0, near, width, far) if width <= height else (near, 0, far, height)
    return np.array(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=box))


def _long_side(width: int, height: int) -> tuple[int, int]:
    """The longer side when the shorter is 256, and where along it the central square begins."""
    short, long = sorted((width, height))
    resized = IMAGE_SIZE * long // short
    return resized, round((resized - IMAGE_SIZE) / 2)
