"""Mean image and covariance against float64 over all images at once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alexnet.errors import UserError
from alexnet.shards.decode import Decoded, decode
from alexnet.shards.format import Manifest
from alexnet.shards.pixel_accumulator import PixelAccumulator
from alexnet.shards.pixel_stats import (
    PixelStatistics,
    PixelSums,
    finish,
    read_statistics,
    read_sums,
    write_statistics,
    write_sums,
)


def pictures(count: int) -> NDArray[np.uint8]:
    """Noise with correlated colours and a gradient from top to bottom."""
    random = np.random.default_rng(8)
    grey = random.integers(0, 200, (count, 256, 256, 1))
    own = random.integers(0, 40, (count, 256, 256, 3))
    slope = np.arange(256)[None, :, None, None] // 16
    return (grey + own + slope).clip(0, 255).astype(np.uint8)


def sums_of(images: NDArray[np.uint8]) -> PixelSums:
    summing = PixelAccumulator()
    for image in images:
        summing.add(image)
    return summing.sums()


def expected(images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    exact = images.astype(np.float64)
    return exact.mean(axis=0), np.cov(exact.reshape(-1, 3).T, bias=True)


def test_against_all_images_at_once() -> None:
    images = pictures(9)
    statistics = finish(sums_of(images))
    mean, covariance = expected(images)
    assert statistics.count == 9
    assert statistics.mean_image.dtype == np.float32
    assert statistics.mean_image.shape == (256, 256, 3)
    np.testing.assert_array_equal(statistics.mean_image, mean.astype(np.float32))
    np.testing.assert_allclose(statistics.rgb_covariance, covariance, rtol=1e-10)
    assert np.linalg.eigvalsh(statistics.rgb_covariance).min() > 0


def test_many_white_images_are_summed_exactly() -> None:
    # The largest products there are, and more of them than single precision adds up exactly.
    sums = sums_of(
        np.broadcast_to(np.full((256, 256, 3), 255, np.uint8), (600, 256, 256, 3)).copy()
    )
    assert (sums.products == 600 * 256 * 256 * 255 * 255).all()
    assert (sums.pixels == 600 * 255).all()
    np.testing.assert_allclose(finish(sums).rgb_covariance, 0, atol=1e-9)


def test_sums_can_be_looked_at_and_gone_on_with() -> None:
    images = pictures(5)
    summing = PixelAccumulator()
    for image in images[:2]:
        summing.add(image)
    assert summing.sums().count == 2
    for image in images[2:]:
        summing.add(image)
    exact = images.astype(np.int64)
    np.testing.assert_array_equal(summing.sums().pixels, exact.sum(axis=0))
    flat = exact.reshape(-1, 3)
    np.testing.assert_array_equal(summing.sums().products, flat.T @ flat)


PARTS = [sums_of(part) for part in np.split(pictures(6), [1, 3])]


@given(st.permutations(range(len(PARTS))))
@settings(max_examples=6)
def test_the_order_of_merging_changes_no_bit(order: list[int]) -> None:
    merged = PixelSums.zero()
    for index in order:
        merged.merge(PARTS[index])
    whole = finish(sums_of(pictures(6)))
    found = finish(merged)
    np.testing.assert_array_equal(found.mean_image, whole.mean_image)
    np.testing.assert_array_equal(found.rgb_covariance, whole.rgb_covariance)
    assert found.count == whole.count


def test_files(tmp_path: Path) -> None:
    sums = sums_of(pictures(2))
    write_sums(str(tmp_path / "sums.npz"), sums)
    again = read_sums(str(tmp_path / "sums.npz"))
    np.testing.assert_array_equal(again.pixels, sums.pixels)
    np.testing.assert_array_equal(again.products, sums.products)
    assert again.count == 2

    path = tmp_path / "statistics.npz"
    write_statistics(str(path), finish(sums))
    read = read_statistics(str(path))
    np.testing.assert_array_equal(read.mean_image, finish(sums).mean_image)
    np.testing.assert_array_equal(read.rgb_covariance, finish(sums).rgb_covariance)
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["count", "mean_image", "rgb_covariance"]
        assert (arrays["mean_image"].dtype, arrays["rgb_covariance"].shape) == (np.float32, (3, 3))


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "empty", "another"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "statistics.npz"
    write_statistics(str(path), finish(sums_of(pictures(1))))
    if damage == "missing":
        path.unlink()
    elif damage == "another":
        np.savez(path, mean_image=np.zeros(3))
    else:
        data = path.read_bytes()
        contents = {"truncated": data[: len(data) // 2], "text": b"nothing", "empty": b""}
        path.write_bytes(contents[damage])
    with pytest.raises(UserError) as caught:
        read_statistics(str(path))
    assert str(caught.value).startswith(f"{path}: can't be read")
    assert "\n" not in str(caught.value)


def test_of_a_data_set(raw_images: Path, dataset: Manifest) -> None:
    # Over the readable training images, as they were before JPEG stored them again.
    decoded = [decode(path.read_bytes()) for path in sorted(raw_images.glob("train/*/*"))]
    images = np.stack([image.pixels for image in decoded if isinstance(image, Decoded)])
    assert len(images) == 39
    mean, covariance = expected(images)
    found: PixelStatistics = read_statistics(str(Path(dataset.folder) / "statistics.npz"))
    assert found.count == 39
    np.testing.assert_array_equal(found.mean_image, mean.astype(np.float32))
    np.testing.assert_allclose(found.rgb_covariance, covariance, rtol=1e-10)
