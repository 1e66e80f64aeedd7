"""Stored images, compared with what Pillow decodes."""

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
from factories import JPEG, RAW
from numpy.typing import NDArray
from PIL import Image

from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.codec import RAW_BYTES, Encoding, decode_images, decode_into, encode

Pixels = NDArray[np.uint8]


def noise_images() -> list[Pixels]:
    """Smooth noise with few, some and many levels."""
    random = np.random.default_rng(6)
    return [
        np.asarray(
            Image.fromarray(random.integers(0, levels, (128, 128, 3), np.uint8)).resize(
                (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
            )
        )
        for levels in (2, 40, 256)
    ]


def decoded(stored: bytes) -> Pixels:
    image = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    decode_into(np.frombuffer(stored, np.uint8), image)
    return image


def test_jpegs_decode_to_pillows_pixels() -> None:
    for pixels in noise_images():
        stored = encode(pixels, JPEG)
        assert np.array_equal(decoded(stored), np.asarray(Image.open(BytesIO(stored))))


def test_raw_images_are_stored_unchanged() -> None:
    for pixels in noise_images():
        stored = encode(pixels, RAW)
        assert len(stored) == RAW_BYTES
        assert np.array_equal(decoded(stored), pixels)


def test_encoding_is_repeatable_and_quality_changes_the_size() -> None:
    pixels = noise_images()[1]
    stored = encode(pixels, JPEG)
    assert stored == encode(pixels.copy(), JPEG)
    small = encode(pixels, Encoding(kind="jpeg", jpeg_quality=50))
    assert len(small) < len(stored) < RAW_BYTES / 5
    assert np.abs(decoded(stored).astype(int) - pixels).mean() <= 8


def test_images_decoded_by_threads_are_in_order() -> None:
    stored = [encode(pixels // part, JPEG) for pixels in noise_images() for part in range(1, 9)]
    with ThreadPoolExecutor(4) as threads:
        images = decode_images([pa.py_buffer(data) for data in stored], threads)
    assert images.shape == (len(stored), IMAGE_SIZE, IMAGE_SIZE, 3)
    for image, data in zip(images, stored, strict=True):
        assert np.array_equal(image, decoded(data))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"", "JPEG"),
        (b"no image", "JPEG"),
        (encode(np.zeros((64, 64, 3), np.uint8), JPEG), "64x64 pixels"),
    ],
    ids=["empty", "text", "another size"],
)
def test_other_bytes_raise_an_error(stored: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoded(stored)
