"""Crops against NumPy slices, and the distribution of the augmentation parameters."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_device import FakeDeviceMode, fake_device
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from alexnet.recipes import PAPER, RECIPES, SOURCE145, Recipe
from alexnet.training.augment import (
    CENTRE_VIEW,
    AugmentParams,
    centre_crops,
    crops_by_compiled_loop,
    crops_by_torch_operations,
    mean_crop,
    pca_axes,
    sample_augment_params,
    ten_crop,
    training_crops,
)

COVARIANCE = np.array([[4800.0, 4300, 3700], [4300, 4700, 4400], [3700, 4400, 5100]])
"""Similar to the covariance of RGB in natural images."""


def random_images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, 256, 256, 3), np.uint8)


def params_of(
    recipe: Recipe,
    count: int,
    *,
    seed: int = 1,
    epoch: int = 2,
    offset: int = 3,
    noise: bool = True,
) -> AugmentParams:
    return sample_augment_params(
        recipe,
        pca_axes(recipe, COVARIANCE),
        count,
        seed=seed,
        epoch=epoch,
        offset=offset,
        colour_noise=noise,
    )


def equal_params(first: AugmentParams, second: AugmentParams) -> bool:
    return (
        np.array_equal(first.corners, second.corners)
        and np.array_equal(first.flips, second.flips)
        and np.array_equal(first.colours, second.colours)
    )


def test_crops_contain_the_exact_pixels() -> None:
    images = random_images(6)
    corners = np.array([[0, 0], [32, 32], [0, 32], [32, 0], [5, 20], [31, 1]])
    flips = np.array([False, True, True, False, True, False])
    params = AugmentParams(corners, flips, np.zeros((6, 3), np.float32))
    crops = training_crops(torch.from_numpy(images), params, torch.zeros(3, 224, 224), 1.0)
    assert (tuple(crops.shape), crops.dtype) == ((6, 3, 224, 224), torch.float32)
    for crop, image, (top, left), flip in zip(crops, images, corners, flips, strict=True):
        expected = image[top : top + 224, left : left + 224]
        if flip:
            expected = expected[:, ::-1]
        np.testing.assert_array_equal(crop.numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_central_mean_is_subtracted_unflipped_from_every_crop(recipe: str) -> None:
    count, scale = 64, {"paper": 1.0, "source145": 1 / 1.1}[recipe]
    images, params = random_images(count), params_of(RECIPES[recipe], count)
    assert 0 < params.flips.sum() < count
    mean_image = np.random.default_rng(4).uniform(0, 255, (256, 256, 3)).astype(np.float32)
    assert RECIPES[recipe].training_scale == pytest.approx(scale)
    crops = training_crops(
        torch.from_numpy(images), params, mean_crop(mean_image), RECIPES[recipe].training_scale
    )
    for i in range(count):
        top, left = params.corners[i]
        pixels = images[i, top : top + 224, left : left + 224].astype(np.float64)
        pixels = pixels[:, ::-1] if params.flips[i] else pixels
        expected = (pixels - mean_image[16:240, 16:240] + params.colours[i]) * scale
        np.testing.assert_allclose(crops[i].numpy(), expected.transpose(2, 0, 1), atol=1e-4)


def reference_crops(images: Tensor, params: AugmentParams, mean: Tensor, scale: float) -> Tensor:
    """The formula in the simplest torch operations; both implementations must return its bits."""
    crops = torch.empty((len(images), 224, 224, 3), dtype=torch.uint8)
    for crop, image, (top, left), flip in zip(
        crops, images, params.corners.tolist(), params.flips.tolist(), strict=True
    ):
        pixels = image[top : top + 224, left : left + 224]
        crop.copy_(pixels.flip(1) if flip else pixels)
    result = crops.permute(0, 3, 1, 2).float()
    return result.sub_(mean).add_(torch.from_numpy(params.colours)[:, :, None, None]).mul_(scale)


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "implementation", [crops_by_compiled_loop, crops_by_torch_operations, training_crops]
)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("count", [0, 1, 37])
def test_every_implementation_returns_the_same_bits(
    implementation: Callable[[Tensor, AugmentParams, Tensor, float], Tensor],
    recipe: Recipe,
    count: int,
    threads: int,
) -> None:
    images, params = torch.from_numpy(random_images(count)), params_of(recipe, count)
    mean = 255 * torch.rand((3, 224, 224), generator=torch.Generator().manual_seed(5))
    expected = reference_crops(images, params, mean, recipe.training_scale)
    torch.set_num_threads(threads)
    crops = implementation(images, params, mean, recipe.training_scale)
    assert torch.equal(crops.view(torch.int32), expected.view(torch.int32))
    # The order of a convolution's sums depends on the memory format of its input.
    assert not count or crops.stride() == expected.stride()


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout_of_crops_on_other_devices_than_the_cpu(channels_last: bool) -> None:
    images, params = torch.from_numpy(random_images(3)), params_of(PAPER, 3)
    mean = torch.ones(3, 224, 224)
    on_cpu = [
        training_crops(images, params, mean, 0.5, channels_last=channels_last),
        centre_crops(images, mean, channels_last=channels_last),
    ]
    assert all(crops.is_contiguous(memory_format=torch.channels_last) for crops in on_cpu)
    assert torch.equal(on_cpu[1], ten_crop(images)[CENTRE_VIEW].permute(0, 3, 1, 2) - mean)
    with FakeDeviceMode():
        device = fake_device(0)
        images, mean = images.to(device), mean.to(device)
        on_device = [
            training_crops(images, params, mean, 0.5, channels_last=channels_last),
            centre_crops(images, mean, channels_last=channels_last),
        ]
        for crops, expected in zip(on_device, on_cpu, strict=True):
            layout = torch.channels_last if channels_last else torch.contiguous_format
            assert crops.is_contiguous(memory_format=layout)
            assert torch.equal(crops.cpu(), expected)


def test_the_images_are_not_modified() -> None:
    images = torch.from_numpy(random_images(4))
    before = images.clone()
    training_crops(images, params_of(PAPER, 4), torch.ones(3, 224, 224), 0.5)
    ten_crop(images)
    assert torch.equal(images, before)


def test_mean_crop() -> None:
    mean_image = np.random.default_rng(4).uniform(0, 255, (256, 256, 3)).astype(np.float32)
    crop = mean_crop(mean_image)
    assert crop.dtype == torch.float32
    np.testing.assert_array_equal(crop.numpy(), mean_image[16:240, 16:240].transpose(2, 0, 1))


@pytest.mark.parametrize(("recipe", "positions", "chunk"), [(PAPER, 32, 1), (SOURCE145, 33, 32)])
def test_crops_and_flips_are_uniform(recipe: Recipe, positions: int, chunk: int) -> None:
    count = 40_000
    params = params_of(recipe, count * chunk)
    corners, flips = params.corners[::chunk], params.flips[::chunk]
    cells = corners[:, 0] * positions + corners[:, 1]
    for values, size in (
        (corners[:, 0], positions),
        (corners[:, 1], positions),
        (cells, positions**2),
        (cells * 2 + flips, 2 * positions**2),
        (flips.astype(int), 2),
    ):
        counts = np.bincount(values, minlength=size)
        assert len(counts) == size
        assert counts.min() > 0
        chi_square = ((counts - count / size) ** 2 / (count / size)).sum()
        # Its mean is size - 1, and its variance 2 (size - 1).
        assert abs(chi_square - (size - 1)) < 5 * (2 * (size - 1)) ** 0.5


def test_only_the_source_uses_one_crop_for_32_images() -> None:
    params = params_of(SOURCE145, 128)
    corners, flips = params.corners.reshape(4, 32, 2), params.flips.reshape(4, 32)
    assert (corners == corners[:, :1]).all()
    assert (flips == flips[:, :1]).all()
    assert len(np.unique(corners[:, 0], axis=0)) == 4
    assert len(np.unique(params.colours, axis=0)) == 128, "each image has its own colour shift"
    assert len(np.unique(params_of(PAPER, 128).corners, axis=0)) > 100
    partial = params_of(SOURCE145, 70)
    assert (len(partial.corners), len(partial.flips), len(partial.colours)) == (70, 70, 70)
    assert len(np.unique(partial.corners[64:], axis=0)) == 1


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        # Shift Σ p α λ, with λ of intensities from 0 to 1, in grey levels: V (λ/255)² Vᵀ.
        (PAPER, 0.1**2 * COVARIANCE @ COVARIANCE / 255**2),
        # Shift Σ p α √λ: V λ Vᵀ.
        (SOURCE145, 0.1**2 * COVARIANCE),
    ],
)
def test_covariance_of_the_colour_noise(recipe: Recipe, expected: NDArray[np.float64]) -> None:
    colours = params_of(recipe, 400_000).colours.astype(np.float64)
    np.testing.assert_allclose(np.cov(colours.T), expected, rtol=0.015)
    deviations = np.sqrt(np.diag(expected))
    assert (np.abs(colours.mean(axis=0)) < 5 * deviations / 400_000**0.5).all()
    kurtosis = ((colours / deviations) ** 4).mean(axis=0)
    np.testing.assert_allclose(kurtosis, 3, atol=0.1)


def test_axes_of_the_source_are_the_ones_of_its_authors() -> None:
    # ``color_pca`` in the file make-data/input_meta of github.com/akrizhevsky/cuda-convnet2:
    # standard deviations, and one component in each row. The 2012 source (convdata_jpeg.py) adds
    # .1 · N(0, 1) · deviation · component to the red, green and blue of an image.
    deviations = np.array([19.720833049149668, 37.09388853298572, 121.78006099293066])
    components = np.array(
        [
            [0.4179551316634632, -0.8169806183780459, 0.3973111842256688],
            [-0.7125794528735844, -0.02354167129954881, 0.7011963441539094],
            [-0.5635104535486105, -0.5761843966188692, -0.5920029643797313],
        ]
    )
    covariance = components.T @ np.diag(deviations**2) @ components
    expected = deviations[:, None] * components
    axes = pca_axes(SOURCE145, covariance)
    signs = np.sign((axes * expected).sum(axis=1))  # N(0, 1) is symmetric, so a sign is free.
    np.testing.assert_allclose(signs[:, None] * axes, expected, rtol=0, atol=1e-10)
    # The paper multiplies by the eigenvalue instead, of intensities from 0 to 1.
    of_paper = np.linalg.norm(pca_axes(PAPER, covariance), axis=1)
    np.testing.assert_allclose(of_paper, deviations**2 / 255, rtol=1e-12)


def test_colour_noise_is_proportional_to_its_standard_deviation() -> None:
    stronger = params_of(replace(SOURCE145, colour_noise_std=0.3), 10).colours
    np.testing.assert_allclose(stronger, 3 * params_of(SOURCE145, 10).colours, rtol=1e-5)


def test_colour_noise_of_grey_images_is_grey() -> None:
    for recipe in RECIPES.values():
        axes = pca_axes(recipe, np.full((3, 3), 900.0))
        assert np.isfinite(axes).all()
        colours = sample_augment_params(recipe, axes, 50, seed=0, epoch=0, offset=0).colours
        np.testing.assert_allclose(colours, colours[:, :1].repeat(3, axis=1), atol=1e-4)


def test_without_noise_only_the_colours_change() -> None:
    for recipe in RECIPES.values():
        without, with_noise = params_of(recipe, 64, noise=False), params_of(recipe, 64)
        assert not without.colours.any()
        assert with_noise.colours.any()
        assert equal_params(without, replace(with_noise, colours=without.colours))


def test_parameters_depend_on_seed_epoch_and_offset_alone() -> None:
    torch.manual_seed(0)
    first = params_of(PAPER, 64)
    torch.manual_seed(1)
    assert equal_params(first, params_of(PAPER, 64))
    for other in (
        params_of(PAPER, 64, seed=2),
        params_of(PAPER, 64, epoch=3),
        params_of(PAPER, 64, offset=4),
        params_of(PAPER, 64, epoch=3, offset=2),
    ):
        assert (first.corners == other.corners).all(axis=1).mean() < 0.1
        assert 0.2 < (first.flips == other.flips).mean() < 0.8
        assert not (first.colours == other.colours).any()


@given(count=st.integers(1, 80), world_size=st.integers(1, 5), recipe=st.sampled_from([*RECIPES]))
@settings(max_examples=40)
def test_workers_take_parts_of_the_global_batch(count: int, world_size: int, recipe: str) -> None:
    params = params_of(RECIPES[recipe], count)
    positions = np.random.default_rng(count).permutation(count)
    for rows in np.array_split(positions, world_size):
        part = params.take(rows)
        assert np.array_equal(part.corners, params.corners[rows])
        assert np.array_equal(part.flips, params.flips[rows])
        assert np.array_equal(part.colours, params.colours[rows])


def test_a_worker_without_images() -> None:
    params = params_of(PAPER, 1).take(np.empty(0, np.int64))
    images = torch.empty((0, 256, 256, 3), dtype=torch.uint8)
    crops = training_crops(images, params, torch.zeros(3, 224, 224), 1.0)
    assert tuple(crops.shape) == (0, 3, 224, 224)


def test_ten_views() -> None:
    images = random_images(3)
    views = ten_crop(torch.from_numpy(images))
    assert (tuple(views.shape), views.dtype) == ((10, 3, 224, 224, 3), torch.uint8)
    corners = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    for number, (top, left) in enumerate(corners):
        crop = images[:, top : top + 224, left : left + 224]
        np.testing.assert_array_equal(views[number].numpy(), crop)
        np.testing.assert_array_equal(views[5 + number].numpy(), crop[:, :, ::-1])
    central: Tensor = views[CENTRE_VIEW]
    np.testing.assert_array_equal(central.numpy(), images[:, 16:240, 16:240])
