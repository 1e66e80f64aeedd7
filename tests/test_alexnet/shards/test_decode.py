"""Decoding: torchvision's pixels from valid files, a reason from all others, no exceptions."""

import io
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps
from torchvision.transforms import CenterCrop, Compose, Resize

from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.decode import (
    MAX_PIXELS,
    Decoded,
    Reason,
    Rejection,
    decode,
    decode_ordinary_jpeg,
    render_reject,
)
from alexnet.shards.resize import is_ordinary, square_of_image, square_of_pixels

REAL_DATA = os.environ.get("ALEXNET_REAL_DATA")

reference = Compose([Resize(IMAGE_SIZE, antialias=True), CenterCrop(IMAGE_SIZE)])


def gradient(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth colour image without symmetries."""
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    channels = [255 * x, 255 * y * y, 128 + 120 * np.sin(5 * x + 3 * y)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def saved(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> NDArray[np.int64]:
    """Decoded pixels as integers that can be subtracted; Pillow's warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(data)
    assert isinstance(decoded, Decoded), decoded
    assert decoded.pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert decoded.pixels.dtype == np.uint8
    return decoded.pixels.astype(np.int64)


def rejection(data: bytes, max_pixels: int = MAX_PIXELS) -> Rejection:
    result = decode(data, max_pixels=max_pixels)
    assert isinstance(result, Rejection)
    assert "\n" not in result.detail
    return result


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_any_shape_is_resized_and_cropped_as_by_torchvision(
    width: int, height: int, seed: int
) -> None:
    # torchvision computes the whole enlarged image, which is huge for a very thin one.
    height = max(height, width // 30)
    width = max(width, height // 30)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    decoded = decode(saved(image, "BMP"))
    assert isinstance(decoded, Decoded)
    assert (decoded.width, decoded.height) == (width, height)
    difference = np.abs(decoded.pixels.astype(int) - np.asarray(reference(image)).astype(int))
    # Both round to bytes between rows and columns. In noise, both roundings differ for a few values
    # in a million.
    assert difference.max() <= 2
    assert (difference > 1).mean() < 1e-3
    assert difference.mean() < 0.5


def test_an_image_of_256x256_is_not_changed() -> None:
    image = gradient(IMAGE_SIZE, IMAGE_SIZE)
    assert (pixels_of(saved(image)) == np.asarray(image)).all()


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_very_thin_images_are_decoded(size: tuple[int, int]) -> None:
    assert (pixels_of(saved(Image.new("RGB", size, (1, 2, 3)))) == (1, 2, 3)).all()


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (saved(gradient(), "JPEG", quality=95), 3),
        (saved(gradient(), "JPEG", quality=95, progressive=True), 3),
        (saved(gradient(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0garbage"), 3),
        (saved(gradient().convert("CMYK"), "JPEG", quality=95), 3),
        (saved(gradient().convert("RGBA")), 0),
        (saved(gradient(), transparency=(0, 0, 0)), 0),
        (saved(gradient(), "WEBP", lossless=True), 0),
        (saved(gradient(), "BMP"), 0),
        (saved(gradient().quantize(256)), 6),
        (saved(gradient().quantize(256), transparency=7), 6),
        (saved(gradient().quantize(256), transparency=bytes(range(256))), 6),
        (saved(gradient().quantize(256), "GIF", transparency=7), 6),
    ],
    ids=[
        "jpeg",
        "progressive",
        "broken-exif",
        "cmyk",
        "alpha",
        "key-colour",
        "webp",
        "bmp",
        "palette",
        "palette-key",
        "palette-alpha",
        "gif",
    ],
)
def test_all_kinds_of_colour_become_the_same_rgb(data: bytes, tolerance: float) -> None:
    expected = np.asarray(reference(gradient())).astype(int)
    assert np.abs(pixels_of(data) - expected).mean() <= tolerance


def test_adobe_ycck_is_not_inverted() -> None:
    # libjpeg converts YCC to RGB and takes its complement as CMY; Adobe stores complements. So the
    # planes are those of the negative, and Adobe's value of K means no ink.
    negative = ImageChops.invert(gradient()).convert("YCbCr")
    planes = [ImageChops.invert(plane) for plane in negative.split()]
    data = bytearray(
        saved(Image.merge("CMYK", [*planes, Image.new("L", planes[0].size)]), "JPEG", quality=95)
    )
    data[data.index(b"Adobe") + 11] = 2
    assert Image.open(io.BytesIO(data)).info["adobe_transform"] == 2
    expected = np.asarray(reference(gradient())).astype(int)
    assert np.abs(pixels_of(bytes(data)) - expected).mean() <= 3


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images_become_grey_rgb(mode: str) -> None:
    image = gradient().convert(mode)
    expected = np.asarray(reference(image.convert("RGB"))).astype(int)
    assert np.abs(pixels_of(saved(image)) - expected).max() <= 1


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    grey = gradient().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode.startswith("I")
    assert (pixels_of(saved(deep)) == pixels_of(saved(grey))).all()


def test_exif_rotation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = saved(gradient(), "JPEG", exif=exif)
    assert (pixels_of(rotated) == pixels_of(saved(gradient(), "JPEG"))).all()


FILES = {
    file_format: saved(gradient(), file_format)
    for file_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP")
}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not an image"),
        (saved(gradient(), "TIFF"), "unsupported"),
        (b"\0\0\0\x1cftypheic" + bytes(50), "unsupported"),
        (FILES["JPEG"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "unsupported"),
        (FILES["JPEG"].replace(b"\xff\xdb", b"\xff\x02"), "unreadable"),
        (FILES["PNG"].replace(b"IDAT", b"IDAX"), "unreadable"),
    ],
)
def test_each_kind_of_damage_has_its_reason(data: bytes, reason: Reason) -> None:
    assert rejection(data).reason == reason


@pytest.mark.parametrize("file_format", FILES)
def test_a_file_without_its_end_is_truncated(file_format: str) -> None:
    data = FILES[file_format]
    for percent in (15, 50, 85):
        assert rejection(data[: len(data) * percent // 100]).reason == "truncated", percent


@pytest.mark.parametrize(
    ("file_format", "offset", "struct_format"),
    [
        ("BMP", 18, "<ii"),
        ("GIF", 6, "<HH"),
        ("JPEG", FILES["JPEG"].index(b"\xff\xc0") + 5, ">HH"),
    ],
)
def test_too_many_pixels_are_rejected_by_the_header_alone(
    file_format: str, offset: int, struct_format: str
) -> None:
    data = bytearray(FILES[file_format])
    # Pillow warns of this size, but does not reject it.
    struct.pack_into(struct_format, data, offset, 10_000, 10_000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert rejection(bytes(data)).reason == "too many pixels"
    assert not caught


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_an_image_at_the_limit_is_decoded(file_format: str) -> None:
    data = saved(gradient(60, 40), file_format)
    assert isinstance(decode(data, max_pixels=2400), Decoded)
    assert rejection(data, max_pixels=2399).detail == "60x40, the limit is 2399"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=5),
    st.floats(0.2, 1),
)
def test_damage_never_raises(
    file_format: str, damage: list[tuple[float, bytes]], kept: float
) -> None:
    data = bytearray(FILES[file_format])
    for position, replacement in damage:
        start = int(position * len(data))
        data[start : start + len(replacement)] = replacement
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = decode(bytes(data[: int(kept * len(data))]), max_pixels=1_000_000)
    if isinstance(result, Decoded):
        assert result.pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    else:
        assert result.detail
        assert "\n" not in result.detail


@pytest.mark.parametrize("size", [(2100, 1500), (1500, 2100), (1400, 200), (200, 1400)])
def test_large_and_long_images_resized_by_pillow_have_the_same_pixels(
    size: tuple[int, int],
) -> None:
    assert not is_ordinary(*size)
    image = gradient(*size)
    difference = np.abs(
        square_of_image(image).astype(int) - square_of_pixels(np.array(image)).astype(int)
    )
    assert difference.max() <= 2
    assert difference.mean() < 0.3


def test_a_rejected_jpeg_is_rendered_up_to_its_damage() -> None:
    data = saved(gradient(400, 300), "JPEG", quality=95)
    half = data[: len(data) // 2]
    assert isinstance(decode(half), Rejection)
    rendered, expected = render_reject(half).astype(int), pixels_of(data)
    np.testing.assert_allclose(rendered[:80], expected[:80], atol=3)
    assert np.abs(rendered[-40:] - expected[-40:]).mean() > 10
    for content in (b"", b"not an image", b"\xff\xd8\xff"):
        assert (render_reject(content) == 128).all()


def displacement(actual: NDArray[np.int64], expected: NDArray[np.int64]) -> tuple[float, float]:
    """Displacement of one image against another in pixels, down and to the right.

    It is the peak of the circular cross-correlation, interpolated by a parabola.
    """
    spectra = [np.fft.rfft2(p.mean(axis=2) - p.mean()) for p in (actual, expected)]
    correlation = np.fft.irfft2(spectra[0] * spectra[1].conj())
    down, right = np.unravel_index(correlation.argmax(), correlation.shape)
    shifts = []
    for axis, peak in enumerate((down, right)):
        line = correlation[:, right] if axis == 0 else correlation[down]
        before, at, after = (line[(peak + step) % IMAGE_SIZE] for step in (-1, 0, 1))
        shift = (peak + IMAGE_SIZE // 2) % IMAGE_SIZE - IMAGE_SIZE // 2
        shifts.append(float(shift + (before - after) / (2 * (before - 2 * at + after))))
    return shifts[0], shifts[1]


def test_displacement_of_half_a_pixel() -> None:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    wide = coarse.resize((2 * IMAGE_SIZE + 2, 2 * IMAGE_SIZE), Image.Resampling.BICUBIC)
    original, shifted = (
        np.asarray(wide.crop((left, 0, left + 2 * IMAGE_SIZE, 2 * IMAGE_SIZE)).reduce(2)).astype(
            int
        )
        for left in (0, 1)
    )
    assert displacement(original, original) == pytest.approx((0, 0), abs=1e-6)
    assert displacement(shifted, original) == pytest.approx((0, -0.5), abs=0.1)


@pytest.mark.skipif(not REAL_DATA, reason="ALEXNET_REAL_DATA is not set")
def test_real_photographs_agree_with_torchvision() -> None:
    paths = sorted(Path(str(REAL_DATA), "full-size").rglob("*.JPEG"))
    assert paths
    for path in paths:
        with Image.open(path) as image:
            expected = np.asarray(reference(image.convert("RGB"))).astype(int)
        actual = pixels_of(path.read_bytes()).astype(int)
        difference = np.abs(actual - expected)
        assert difference.max() <= 2, path
        assert difference.mean() < 0.3, path
        assert max(map(abs, displacement(actual, expected))) < 0.02, path


@pytest.mark.skipif(not REAL_DATA, reason="ALEXNET_REAL_DATA is not set")
def test_ordinary_jpegs_decode_to_pillows_pixels() -> None:
    for path in sorted(Path(str(REAL_DATA), "full-size").rglob("*.JPEG")):
        data = path.read_bytes()
        decoded = decode_ordinary_jpeg(data, MAX_PIXELS)
        if decoded is not None:
            with Image.open(path) as image:
                expected = square_of_image(image.convert("RGB"))
            np.testing.assert_array_equal(decoded.pixels, expected, err_msg=str(path))


@pytest.mark.parametrize("size", [(60, 40), (300, 1000), (1800, 1500), (1300, 260)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_photographs_are_upright_on_request(
    orientation: int, file_format: str, size: tuple[int, int]
) -> None:
    """0 and 9 are no orientations."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(gradient(*size), file_format, exif=exif)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    decoded, stored = decode(data, upright=True), decode(data)
    assert isinstance(decoded, Decoded)
    assert isinstance(stored, Decoded)
    assert (decoded.width, decoded.height) == turned.size
    np.testing.assert_array_equal(decoded.pixels, square_of_image(turned))
    assert (stored.width, stored.height) == size
    without = decode(saved(gradient(*size), file_format))
    assert isinstance(without, Decoded)
    np.testing.assert_array_equal(stored.pixels, without.pixels)


@settings(max_examples=60)
@given(exif=st.binary(max_size=80), byte_order=st.sampled_from([b"", b"II*\0", b"MM\0*"]))
def test_a_damaged_exif_block_is_ignored(exif: bytes, byte_order: bytes) -> None:
    data = saved(gradient(), "JPEG", exif=b"Exif\0\0" + byte_order + exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(decode(data, upright=True), Decoded)
