"""Exact pixels from NumPy slices, and chance whose distribution is known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from alexnet.recipes import PAPER, RECIPES, SOURCE145, Recipe
from alexnet.training.augment import (
    CENTRE_VIEW,
    AugmentParams,
    _all_at_once,
    _in_one_pass,
    draw,
    mean_crop,
    pca_axes,
    ten_crop,
    training_crops,
)

COVARIANCE = np.array([[4800.0, 4300, 3700], [4300, 4700, 4400], [3700, 4400, 5100]])
"""Of the size and the shape that natural images have."""


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, 256, 256, 3), np.uint8)


def draws_of(
    recipe: Recipe,
    count: int,
    *,
    seed: int = 1,
    epoch: int = 2,
    offset: int = 3,
    noise: bool = True,
) -> AugmentParams:
    axes = pca_axes(recipe, COVARIANCE)
    return draw(recipe, axes, count, seed=seed, epoch=epoch, offset=offset, colour_noise=noise)


def same(first: AugmentParams, second: AugmentParams) -> bool:
    return (
        np.array_equal(first.corners, second.corners)
        and np.array_equal(first.flips, second.flips)
        and np.array_equal(first.colours, second.colours)
    )


def test_crops_are_the_very_pixels() -> None:
    images = pictures(6)
    corners = np.array([[0, 0], [32, 32], [0, 32], [32, 0], [5, 20], [31, 1]])
    flips = np.array([False, True, True, False, True, False])
    draws = AugmentParams(corners, flips, np.zeros((6, 3), np.float32))
    found = training_crops(torch.from_numpy(images), draws, torch.zeros(3, 224, 224), 1.0)
    assert (tuple(found.shape), found.dtype) == ((6, 3, 224, 224), torch.float32)
    for patch, image, (top, left), flip in zip(found, images, corners, flips, strict=True):
        crop = image[top : top + 224, left : left + 224]
        if flip:
            crop = crop[:, ::-1]
        np.testing.assert_array_equal(patch.numpy(), crop.transpose(2, 0, 1))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_central_mean_is_subtracted_unflipped_from_every_crop(recipe: str) -> None:
    count, scale = 64, {"paper": 1.0, "source145": 1 / 1.1}[recipe]
    images, draws = pictures(count), draws_of(RECIPES[recipe], count)
    assert 0 < draws.flips.sum() < count
    mean_image = np.random.default_rng(4).uniform(0, 255, (256, 256, 3)).astype(np.float32)
    assert RECIPES[recipe].training_scale == pytest.approx(scale)
    found = training_crops(
        torch.from_numpy(images), draws, mean_crop(mean_image), RECIPES[recipe].training_scale
    )
    for i in range(count):
        top, left = draws.corners[i]
        crop = images[i, top : top + 224, left : left + 224].astype(np.float64)
        crop = crop[:, ::-1] if draws.flips[i] else crop
        tinted = (crop - mean_image[16:240, 16:240] + draws.colours[i]) * scale
        np.testing.assert_allclose(found[i].numpy(), tinted.transpose(2, 0, 1), atol=1e-4)


def plain_patches(images: Tensor, draws: AugmentParams, mean: Tensor, scale: float) -> Tensor:
    """The formula in whole-batch operations, as it was first written: the bits that must stay."""
    patches = torch.empty((len(images), 224, 224, 3), dtype=torch.uint8)
    for patch, image, (top, left), flip in zip(
        patches, images, draws.corners.tolist(), draws.flips.tolist(), strict=True
    ):
        crop = image[top : top + 224, left : left + 224]
        patch.copy_(crop.flip(1) if flip else crop)
    result = patches.permute(0, 3, 1, 2).float()
    return result.sub_(mean).add_(torch.from_numpy(draws.colours)[:, :, None, None]).mul_(scale)


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("work", [_in_one_pass, _all_at_once, training_crops])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("count", [0, 1, 37])
def test_every_way_gives_the_same_bits(
    work: Callable[[Tensor, AugmentParams, Tensor, float], Tensor],
    recipe: Recipe,
    count: int,
    threads: int,
) -> None:
    images, draws = torch.from_numpy(pictures(count)), draws_of(recipe, count)
    mean = 255 * torch.rand((3, 224, 224), generator=torch.Generator().manual_seed(5))
    expected = plain_patches(images, draws, mean, recipe.training_scale)
    torch.set_num_threads(threads)
    found = work(images, draws, mean, recipe.training_scale)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    # Convolutions choose their way of summing by the layout.
    assert not count or found.stride() == expected.stride()


def test_the_images_stay_as_they_are() -> None:
    images = torch.from_numpy(pictures(4))
    before = images.clone()
    training_crops(images, draws_of(PAPER, 4), torch.ones(3, 224, 224), 0.5)
    ten_crop(images)
    assert torch.equal(images, before)


def test_mean_patch() -> None:
    mean_image = np.random.default_rng(4).uniform(0, 255, (256, 256, 3)).astype(np.float32)
    patch = mean_crop(mean_image)
    assert patch.dtype == torch.float32
    np.testing.assert_array_equal(patch.numpy(), mean_image[16:240, 16:240].transpose(2, 0, 1))


@pytest.mark.parametrize(("recipe", "positions", "chunk"), [(PAPER, 32, 1), (SOURCE145, 33, 32)])
def test_crops_and_flips_are_uniform(recipe: Recipe, positions: int, chunk: int) -> None:
    count = 40_000
    draws = draws_of(recipe, count * chunk)
    corners, flips = draws.corners[::chunk], draws.flips[::chunk]
    cells = corners[:, 0] * positions + corners[:, 1]
    for values, size in (
        (corners[:, 0], positions),
        (corners[:, 1], positions),
        (cells, positions**2),
        (cells * 2 + flips, 2 * positions**2),
        (flips.astype(int), 2),
    ):
        found = np.bincount(values, minlength=size)
        assert len(found) == size
        assert found.min() > 0
        chi_square = ((found - count / size) ** 2 / (count / size)).sum()
        # Mean size - 1 and variance 2 (size - 1).
        assert abs(chi_square - (size - 1)) < 5 * (2 * (size - 1)) ** 0.5


def test_only_the_source_shares_crops_within_chunks_of_32() -> None:
    draws = draws_of(SOURCE145, 128)
    corners, flips = draws.corners.reshape(4, 32, 2), draws.flips.reshape(4, 32)
    assert (corners == corners[:, :1]).all()
    assert (flips == flips[:, :1]).all()
    assert len(np.unique(corners[:, 0], axis=0)) == 4
    assert len(np.unique(draws.colours, axis=0)) == 128, "colours are each image's own"
    assert len(np.unique(draws_of(PAPER, 128).corners, axis=0)) > 100
    uneven = draws_of(SOURCE145, 70)
    assert (len(uneven.corners), len(uneven.flips), len(uneven.colours)) == (70, 70, 70)
    assert len(np.unique(uneven.corners[64:], axis=0)) == 1


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        # Shifts of Σ p α λ on intensities from 0 to 1, in grey levels: V (λ/255)² Vᵀ.
        (PAPER, 0.1**2 * COVARIANCE @ COVARIANCE / 255**2),
        # Shifts of Σ p α √λ: V λ Vᵀ.
        (SOURCE145, 0.1**2 * COVARIANCE),
    ],
)
def test_colour_noise_has_the_covariance_it_should(
    recipe: Recipe, expected: NDArray[np.float64]
) -> None:
    colours = draws_of(recipe, 400_000).colours.astype(np.float64)
    found = np.cov(colours.T)
    np.testing.assert_allclose(found, expected, rtol=0.015)
    deviations = np.sqrt(np.diag(expected))
    assert (np.abs(colours.mean(axis=0)) < 5 * deviations / 400_000**0.5).all()
    kurtosis = ((colours / deviations) ** 4).mean(axis=0)
    np.testing.assert_allclose(kurtosis, 3, atol=0.1)


def test_colour_noise_follows_its_standard_deviation() -> None:
    stronger = draws_of(replace(SOURCE145, colour_noise_std=0.3), 10).colours
    np.testing.assert_allclose(stronger, 3 * draws_of(SOURCE145, 10).colours, rtol=1e-5)


def test_grey_images_have_a_rank_one_covariance() -> None:
    for recipe in RECIPES.values():
        axes = pca_axes(recipe, np.full((3, 3), 900.0))
        assert np.isfinite(axes).all()
        colours = draw(recipe, axes, 50, seed=0, epoch=0, offset=0).colours
        np.testing.assert_allclose(colours, colours[:, :1].repeat(3, axis=1), atol=1e-4)


def test_without_noise_colours_are_zero_and_the_rest_is_the_same() -> None:
    for recipe in RECIPES.values():
        quiet, loud = draws_of(recipe, 64, noise=False), draws_of(recipe, 64)
        assert not quiet.colours.any()
        assert loud.colours.any()
        assert same(quiet, replace(loud, colours=quiet.colours))


def test_draws_depend_on_seed_epoch_and_offset_alone() -> None:
    torch.manual_seed(0)
    first = draws_of(PAPER, 64)
    torch.manual_seed(1)
    assert same(first, draws_of(PAPER, 64))
    for other in (
        draws_of(PAPER, 64, seed=2),
        draws_of(PAPER, 64, epoch=3),
        draws_of(PAPER, 64, offset=4),
        draws_of(PAPER, 64, epoch=3, offset=2),
    ):
        assert (first.corners == other.corners).all(axis=1).mean() < 0.1
        assert 0.2 < (first.flips == other.flips).mean() < 0.8
        assert not (first.colours == other.colours).any()


@given(count=st.integers(1, 80), world=st.integers(1, 5), recipe=st.sampled_from([*RECIPES]))
@settings(max_examples=40)
def test_workers_shares_are_parts_of_the_whole(count: int, world: int, recipe: str) -> None:
    draws = draws_of(RECIPES[recipe], count)
    positions = np.random.default_rng(count).permutation(count)
    for share in np.array_split(positions, world):
        mine = draws.take(share)
        assert np.array_equal(mine.corners, draws.corners[share])
        assert np.array_equal(mine.flips, draws.flips[share])
        assert np.array_equal(mine.colours, draws.colours[share])


def test_an_empty_share() -> None:
    draws = draws_of(PAPER, 1).take(np.empty(0, np.int64))
    images = torch.empty((0, 256, 256, 3), dtype=torch.uint8)
    patches = training_crops(images, draws, torch.zeros(3, 224, 224), 1.0)
    assert tuple(patches.shape) == (0, 3, 224, 224)


def test_ten_views() -> None:
    images = pictures(3)
    views = ten_crop(torch.from_numpy(images))
    assert (tuple(views.shape), views.dtype) == ((10, 3, 224, 224, 3), torch.uint8)
    corners = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    for number, (top, left) in enumerate(corners):
        crop = images[:, top : top + 224, left : left + 224]
        np.testing.assert_array_equal(views[number].numpy(), crop)
        np.testing.assert_array_equal(views[5 + number].numpy(), crop[:, :, ::-1])
    central: Tensor = views[CENTRE_VIEW]
    np.testing.assert_array_equal(central.numpy(), images[:, 16:240, 16:240])
