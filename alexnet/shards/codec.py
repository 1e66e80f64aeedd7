"""256x256 images ↔ the bytes in a shard's column ``image``: one encoder, one decoder."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from alexnet.errors import CorruptShardError, one_line
from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.format import RowGroup, read_row_group

RAW_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3
"""Bytes of an image that is stored without compression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How the 256x256 images are stored."""

    kind: Literal["jpeg", "raw"]
    jpeg_quality: int
    """1 to 100; has no effect on raw images."""


def encode(pixels: NDArray[np.uint8], encoding: Encoding) -> bytes:
    """(256, 256, 3) RGB → stored bytes; the same pixels always give the same bytes."""
    if encoding.kind == "raw":
        return pixels.tobytes()
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=encoding.jpeg_quality, subsampling="4:2:0")
    return buffer.getvalue()


def decode_into(stored: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    """Write a stored image, raw or JPEG, into a contiguous (256, 256, 3) array.

    Can be called from several threads at the same time: decoding releases Python's global lock.

    Args:
        stored: (n,) bytes of the column ``image``.
        image: (256, 256, 3), overwritten with RGB.

    Raises:
        ValueError: the bytes are neither a raw image nor a 256x256 JPEG.
    """
    if len(stored) == RAW_BYTES:
        image[:] = stored.reshape(image.shape)
        return
    decoded = simplejpeg.decode_jpeg(stored, "RGB", buffer=image)
    if decoded.shape != image.shape:  # A smaller image fills only a part of the array.
        raise ValueError(f"{decoded.shape[1]}x{decoded.shape[0]} pixels")


def decode_images(
    stored: Sequence[pa.Buffer],
    threads: ThreadPoolExecutor,
    into: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Stored images → (n, 256, 256, 3) RGB.

    ``into``: an array of this shape for the result, by default a new one.

    Raises:
        ValueError: one of them is neither a raw image nor a 256x256 JPEG.
    """
    shape = len(stored), IMAGE_SIZE, IMAGE_SIZE, 3
    images = np.empty(shape, np.uint8) if into is None else into
    assert images.shape == shape

    def decode(index: int) -> None:
        decode_into(np.frombuffer(stored[index], np.uint8), images[index])

    list(threads.map(decode, range(len(stored))))
    return images


def read_images(
    group: RowGroup,
    columns: list[str],
    threads: ThreadPoolExecutor,
    into: NDArray[np.uint8] | None = None,
) -> tuple[pa.Table, NDArray[np.uint8]]:
    """Some columns of a row group, and its images; ``into`` as for ``decode_images``.

    Returns:
        The columns, and (rows, 256, 256, 3) RGB.

    Raises:
        CorruptShardError: the shard is missing or damaged.
    """
    table = read_row_group(group, [*columns, "image"])
    stored = [image.as_buffer() for image in table["image"]]
    try:
        return table.drop_columns("image"), decode_images(stored, threads, into)
    except ValueError as error:
        raise CorruptShardError(
            f"{group.path}: an image can't be decoded ({one_line(error)})"
        ) from error
