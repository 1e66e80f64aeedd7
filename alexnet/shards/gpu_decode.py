"""JPEGs decoded by a GPU, with torchvision and NVIDIA's nvJPEG, for computers with few CPU cores.

Pixels differ slightly from those of the CPU's decoder: the inverse transform and the interpolation
of colours are implemented differently. Images stored raw have nothing to decode.
"""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alexnet.errors import UserError, one_line
from alexnet.recipes import IMAGE_SIZE


def decode_on_gpu(
    stored: Sequence[NDArray[np.uint8]], images: Tensor, device: torch.device
) -> None:
    """Decode JPEGs on a GPU into memory of the CPU, and wait for it; for use in a thread.

    Args:
        stored: n JPEGs, (bytes,) each.
        images: (n, 256, 256, 3) uint8 on the CPU, overwritten with RGB.
        device: the GPU.

    Raises:
        ValueError: one of them is no 256x256 JPEG.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # Takes a second, and only GPUs need it.

    # A stream of its own: the thread neither waits for the network nor lets it wait.
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        try:
            decoded = decode_jpeg(
                [torch.from_numpy(data.copy()) for data in stored], ImageReadMode.RGB, device
            )
        except RuntimeError as error:
            raise ValueError(one_line(error)) from error
        for image in decoded:
            if image.shape[1:] != images.shape[1:3]:
                raise ValueError(f"{image.shape[2]}x{image.shape[1]} pixels")
        images.copy_(torch.stack(decoded).permute(0, 2, 3, 1).contiguous(), non_blocking=True)
    stream.synchronize()


def check_gpu_decoding(device: torch.device) -> None:
    """Decode one image on a GPU.

    Raises:
        UserError: this installation can't.
    """
    buffer = BytesIO()
    Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE)).save(buffer, "JPEG")
    target = torch.empty((1, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
    try:
        decode_on_gpu([np.frombuffer(buffer.getvalue(), np.uint8)], target, device)
    except ValueError as error:
        raise UserError(f"torchvision can't decode JPEGs on {device} ({error})") from error
