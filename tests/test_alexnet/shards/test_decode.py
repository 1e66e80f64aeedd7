"""Decoding: torchvision's pixels from sound files, a reason from all others, never an exception."""

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
from PIL import Image, ImageChops
from torchvision.transforms import CenterCrop, Compose, Resize

from alexnet.recipes import IMAGE_SIZE
from alexnet.shards import decode as decode_module
from alexnet.shards.decode import (
    Decoded,
    Reason,
    Rejection,
    decode,
    render_reject,
)
from alexnet.shards.resize import is_ordinary, square_of_image, square_of_pixels

REAL_DATA = os.environ.get("ALEXNET_REAL_DATA")

reference = Compose([Resize(IMAGE_SIZE, antialias=True), CenterCrop(IMAGE_SIZE)])


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth colour picture without symmetries."""
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    channels = [255 * x, 255 * y * y, 128 + 120 * np.sin(5 * x + 3 * y)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
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


def rejection(data: bytes, **options: int) -> Rejection:
    result = decode(data, **options)
    assert isinstance(result, Rejection)
    assert "\n" not in result.detail
    return result


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_any_shape_is_resized_and_cropped_as_by_torchvision(
    width: int, height: int, seed: int
) -> None:
    # torchvision makes the whole enlarged image, of which a thin strip's would be huge.
    height = max(height, width // 30)
    width = max(width, height // 30)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    decoded = decode(saved(image, "BMP"))
    assert isinstance(decoded, Decoded)
    assert (decoded.width, decoded.height) == (width, height)
    difference = np.abs(decoded.pixels.astype(int) - np.asarray(reference(image)).astype(int))
    # Both round to bytes between rows and columns; on noise, a few values in a million meet two
    # roundings that go apart.
    assert difference.max() <= 2
    assert (difference > 1).mean() < 1e-3
    assert difference.mean() < 0.5


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = picture(IMAGE_SIZE, IMAGE_SIZE)
    assert (pixels_of(saved(image)) == np.asarray(image)).all()


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_the_thinnest_image_is_an_image(size: tuple[int, int]) -> None:
    assert (pixels_of(saved(Image.new("RGB", size, (1, 2, 3)))) == (1, 2, 3)).all()


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (saved(picture(), "JPEG", quality=95), 3),
        (saved(picture(), "JPEG", quality=95, progressive=True), 3),
        (saved(picture(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0garbage"), 3),
        (saved(picture().convert("CMYK"), "JPEG", quality=95), 3),
        (saved(picture().convert("RGBA")), 0),
        (saved(picture(), transparency=(0, 0, 0)), 0),
        (saved(picture(), "WEBP", lossless=True), 0),
        (saved(picture(), "BMP"), 0),
        (saved(picture().quantize(256)), 6),
        (saved(picture().quantize(256), transparency=7), 6),
        (saved(picture().quantize(256), transparency=bytes(range(256))), 6),
        (saved(picture().quantize(256), "GIF", transparency=7), 6),
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
def test_every_kind_of_colour_becomes_the_same_rgb(data: bytes, tolerance: float) -> None:
    expected = np.asarray(reference(picture())).astype(int)
    assert np.abs(pixels_of(data) - expected).mean() <= tolerance


def test_adobe_ycck_is_not_inverted() -> None:
    # libjpeg turns YCC into RGB and calls its complement CMY; Adobe stores complements. So the
    # planes are those of the negative, and K, in Adobe's reckoning, is no ink at all.
    negative = ImageChops.invert(picture()).convert("YCbCr")
    planes = [ImageChops.invert(plane) for plane in negative.split()]
    data = bytearray(
        saved(Image.merge("CMYK", [*planes, Image.new("L", planes[0].size)]), "JPEG", quality=95)
    )
    data[data.index(b"Adobe") + 11] = 2
    assert Image.open(io.BytesIO(data)).info["adobe_transform"] == 2
    expected = np.asarray(reference(picture())).astype(int)
    assert np.abs(pixels_of(bytes(data)) - expected).mean() <= 3


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images_become_grey_rgb(mode: str) -> None:
    image = picture().convert(mode)
    expected = np.asarray(reference(image.convert("RGB"))).astype(int)
    assert np.abs(pixels_of(saved(image)) - expected).max() <= 1


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    grey = picture().convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode.startswith("I")
    assert (pixels_of(saved(deep)) == pixels_of(saved(grey))).all()


def test_exif_rotation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(picture(), "JPEG", exif=exif)
    assert (pixels_of(turned) == pixels_of(saved(picture(), "JPEG"))).all()


FORMS = {form: saved(picture(), form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP")}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not an image"),
        (saved(picture(), "TIFF"), "unsupported"),
        (b"\0\0\0\x1cftypheic" + bytes(50), "unsupported"),
        (FORMS["JPEG"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "unsupported"),
        (FORMS["JPEG"].replace(b"\xff\xdb", b"\xff\x02"), "unreadable"),
        (FORMS["PNG"].replace(b"IDAT", b"IDAX"), "unreadable"),
    ],
)
def test_what_is_wrong_is_told_apart(data: bytes, reason: Reason) -> None:
    assert rejection(data).reason == reason


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_in_the_middle_is_truncated(form: str) -> None:
    data = FORMS[form]
    for percent in (15, 50, 85):
        assert rejection(data[: len(data) * percent // 100]).reason == "truncated", percent


@pytest.mark.parametrize(
    ("form", "place", "layout"),
    [
        ("BMP", 18, "<ii"),
        ("GIF", 6, "<HH"),
        ("JPEG", FORMS["JPEG"].index(b"\xff\xc0") + 5, ">HH"),
    ],
)
def test_too_many_pixels_are_refused_by_the_header_alone(
    form: str, place: int, layout: str
) -> None:
    data = bytearray(FORMS[form])
    # More than Pillow warns of, less than it refuses.
    struct.pack_into(layout, data, place, 10_000, 10_000)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert rejection(bytes(data)).reason == "too many pixels"
    assert not warned


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_the_limit_itself_is_allowed(form: str) -> None:
    data = saved(picture(60, 40), form)
    assert isinstance(decode(data, max_pixels=2400), Decoded)
    assert rejection(data, max_pixels=2399).detail == "60x40, the limit is 2399"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FORMS)),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=5),
    st.floats(0.2, 1),
)
def test_damage_never_raises(form: str, damage: list[tuple[float, bytes]], kept: float) -> None:
    data = bytearray(FORMS[form])
    for place, replacement in damage:
        start = int(place * len(data))
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
def test_large_and_long_images_go_another_way_to_the_same_pixels(size: tuple[int, int]) -> None:
    assert not is_ordinary(*size)
    image = picture(*size)
    difference = np.abs(
        square_of_image(image).astype(int) - square_of_pixels(np.array(image)).astype(int)
    )
    assert difference.max() <= 2
    assert difference.mean() < 0.3


def test_what_can_be_seen_of_a_rejected_file() -> None:
    data = saved(picture(400, 300), "JPEG", quality=95)
    half = data[: len(data) // 2]
    assert isinstance(decode(half), Rejection)
    seen, whole = render_reject(half).astype(int), pixels_of(data)
    np.testing.assert_allclose(seen[:80], whole[:80], atol=3)
    assert np.abs(seen[-40:] - whole[-40:]).mean() > 10
    for nothing in (b"", b"not an image", b"\xff\xd8\xff"):
        assert (render_reject(nothing) == 128).all()


def displacement(found: NDArray[np.int64], expected: NDArray[np.int64]) -> tuple[float, float]:
    """By how many pixels, down and to the right, one picture is moved against another.

    The peak of the circular cross-correlation, refined by the parabola through its neighbours.
    """
    spectra = [np.fft.rfft2(p.mean(axis=2) - p.mean()) for p in (found, expected)]
    correlation = np.fft.irfft2(spectra[0] * spectra[1].conj())
    down, right = np.unravel_index(correlation.argmax(), correlation.shape)
    moved = []
    for axis, peak in enumerate((down, right)):
        line = correlation[:, right] if axis == 0 else correlation[down]
        before, at, after = (line[(peak + step) % IMAGE_SIZE] for step in (-1, 0, 1))
        whole = (peak + IMAGE_SIZE // 2) % IMAGE_SIZE - IMAGE_SIZE // 2
        moved.append(float(whole + (before - after) / (2 * (before - 2 * at + after))))
    return moved[0], moved[1]


def test_displacement_finds_half_a_pixel() -> None:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    wide = coarse.resize((2 * IMAGE_SIZE + 2, 2 * IMAGE_SIZE), Image.Resampling.BICUBIC)
    still, moved = (
        np.asarray(wide.crop((left, 0, left + 2 * IMAGE_SIZE, 2 * IMAGE_SIZE)).reduce(2)).astype(
            int
        )
        for left in (0, 1)
    )
    assert displacement(still, still) == pytest.approx((0, 0), abs=1e-6)
    assert displacement(moved, still) == pytest.approx((0, -0.5), abs=0.1)


@pytest.mark.skipif(not REAL_DATA, reason="ALEXNET_REAL_DATA names no folder")
def test_real_photographs_agree_with_torchvision() -> None:
    paths = sorted(Path(str(REAL_DATA), "full-size").rglob("*.JPEG"))
    assert paths
    for path in paths:
        with Image.open(path) as image:
            expected = np.asarray(reference(image.convert("RGB"))).astype(int)
        found = pixels_of(path.read_bytes()).astype(int)
        difference = np.abs(found - expected)
        assert difference.max() <= 2, path
        assert difference.mean() < 0.3, path
        assert max(map(abs, displacement(found, expected))) < 0.02, path


@pytest.mark.skipif(not REAL_DATA, reason="ALEXNET_REAL_DATA names no folder")
def test_the_fast_path_gives_pillows_pixels() -> None:
    for path in sorted(Path(str(REAL_DATA), "full-size").rglob("*.JPEG")):
        data = path.read_bytes()
        fast = decode_module._decode_ordinary_jpeg(data, decode_module.MAX_PIXELS)
        if fast is not None:
            with Image.open(path) as image:
                by_pillow = square_of_image(image.convert("RGB"))
            np.testing.assert_array_equal(fast.pixels, by_pillow, err_msg=str(path))
