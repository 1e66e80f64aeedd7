"""Mean image and covariance, compared with a computation in float64 over all images."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alexnet.errors import CorruptDatasetError
from alexnet.shards.decode import Decoded, decode
from alexnet.shards.format import STATISTICS
from alexnet.shards.manifest import Manifest
from alexnet.shards.pixel_accumulator import PixelAccumulator
from alexnet.shards.pixel_stats import (
    PixelStatistics,
    PixelSums,
    compute_statistics,
    read_statistics,
    read_sums,
    write_statistics,
    write_sums,
)


def noise_images(count: int) -> NDArray[np.uint8]:
    """Noise with correlated channels and a gradient from top to bottom."""
    random = np.random.default_rng(8)
    grey = random.integers(0, 200, (count, 256, 256, 1))
    coloured = random.integers(0, 40, (count, 256, 256, 3))
    slope = np.arange(256)[None, :, None, None] // 16
    return (grey + coloured + slope).clip(0, 255).astype(np.uint8)


def sums_of(images: NDArray[np.uint8]) -> PixelSums:
    accumulator = PixelAccumulator()
    for image in images:
        accumulator.add(image)
    return accumulator.sums()


def reference_statistics(
    images: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    exact = images.astype(np.float64)
    return exact.mean(axis=0), np.cov(exact.reshape(-1, 3).T, bias=True)


def test_statistics_are_those_of_all_images_at_once() -> None:
    images = noise_images(9)
    statistics = compute_statistics(sums_of(images))
    mean, covariance = reference_statistics(images)
    assert statistics.count == 9
    assert statistics.mean_image.dtype == np.float32
    assert statistics.mean_image.shape == (256, 256, 3)
    np.testing.assert_array_equal(statistics.mean_image, mean.astype(np.float32))
    np.testing.assert_allclose(statistics.rgb_covariance, covariance, rtol=1e-10)
    assert np.linalg.eigvalsh(statistics.rgb_covariance).min() > 0


def test_many_white_images_are_summed_exactly() -> None:
    # The largest products, and more of them than float32 can add up exactly.
    sums = sums_of(
        np.broadcast_to(np.full((256, 256, 3), 255, np.uint8), (600, 256, 256, 3)).copy()
    )
    assert (sums.products == 600 * 256 * 256 * 255 * 255).all()
    assert (sums.pixels == 600 * 255).all()
    np.testing.assert_allclose(compute_statistics(sums).rgb_covariance, 0, atol=1e-9)


def test_images_can_be_added_after_the_sums_were_read() -> None:
    images = noise_images(5)
    accumulator = PixelAccumulator()
    for image in images[:2]:
        accumulator.add(image)
    assert accumulator.sums().count == 2
    for image in images[2:]:
        accumulator.add(image)
    exact = images.astype(np.int64)
    np.testing.assert_array_equal(accumulator.sums().pixels, exact.sum(axis=0))
    flat = exact.reshape(-1, 3)
    np.testing.assert_array_equal(accumulator.sums().products, flat.T @ flat)


PARTS = [sums_of(part) for part in np.split(noise_images(6), [1, 3])]


@given(st.permutations(range(len(PARTS))))
@settings(max_examples=6)
def test_the_order_of_merging_does_not_change_the_statistics(order: list[int]) -> None:
    merged = PixelSums.zero()
    for index in order:
        merged.merge(PARTS[index])
    expected = compute_statistics(sums_of(noise_images(6)))
    statistics = compute_statistics(merged)
    np.testing.assert_array_equal(statistics.mean_image, expected.mean_image)
    np.testing.assert_array_equal(statistics.rgb_covariance, expected.rgb_covariance)
    assert statistics.count == expected.count


def test_files_contain_the_sums_and_the_statistics(tmp_path: Path) -> None:
    sums = sums_of(noise_images(2))
    write_sums(str(tmp_path / "sums.npz"), sums)
    read_back = read_sums(str(tmp_path / "sums.npz"))
    np.testing.assert_array_equal(read_back.pixels, sums.pixels)
    np.testing.assert_array_equal(read_back.products, sums.products)
    assert read_back.count == 2

    path = tmp_path / STATISTICS
    write_statistics(str(path), compute_statistics(sums))
    statistics = read_statistics(str(path))
    np.testing.assert_array_equal(statistics.mean_image, compute_statistics(sums).mean_image)
    np.testing.assert_array_equal(
        statistics.rgb_covariance, compute_statistics(sums).rgb_covariance
    )
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["count", "mean_image", "rgb_covariance"]
        assert (arrays["mean_image"].dtype, arrays["rgb_covariance"].shape) == (np.float32, (3, 3))


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "empty", "other arrays"])
def test_the_error_names_a_damaged_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / STATISTICS
    write_statistics(str(path), compute_statistics(sums_of(noise_images(1))))
    if damage == "missing":
        path.unlink()
    elif damage == "other arrays":
        np.savez(path, mean_image=np.zeros(3))
    else:
        data = path.read_bytes()
        contents = {"truncated": data[: len(data) // 2], "text": b"nothing", "empty": b""}
        path.write_bytes(contents[damage])
    with pytest.raises(CorruptDatasetError) as caught:
        read_statistics(str(path))
    assert str(caught.value).startswith(f"{path}: can't be read")
    assert "\n" not in str(caught.value)


def test_statistics_of_a_data_set(raw_images: Path, dataset: Manifest) -> None:
    # Of the decodable training images before they were encoded as JPEG.
    decoded = [decode(path.read_bytes()) for path in sorted(raw_images.glob("train/*/*"))]
    images = np.stack([image.pixels for image in decoded if isinstance(image, Decoded)])
    assert len(images) == 39
    mean, covariance = reference_statistics(images)
    statistics: PixelStatistics = read_statistics(dataset.statistics_path)
    assert statistics.count == 39
    np.testing.assert_array_equal(statistics.mean_image, mean.astype(np.float32))
    np.testing.assert_allclose(statistics.rgb_covariance, covariance, rtol=1e-10)
