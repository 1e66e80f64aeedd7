"""Crops that the loader makes: the bits of crops of whole images, for any threads and workers."""

from dataclasses import replace
from pathlib import Path

import factories
import numpy as np
import pytest
import torch
from factories import SEED, loader_of

from alexnet.recipes import PAPER, RECIPES, Recipe
from alexnet.shards.codec import Encoding
from alexnet.shards.loader import PREFETCH_BATCHES, ShardLoader
from alexnet.shards.manifest import Manifest
from alexnet.training.augment import training_crops
from alexnet.training.crops import Augmentation, crop_buffers, crops_while_decoding

AXES = np.array([[9.0, 8.0, 7.0], [-3.0, 0.0, 3.0], [1.0, -2.0, 1.0]])
MEAN = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0)) * 255


def augmentation(recipe: Recipe = PAPER, *, noise: bool = True, epoch: int = 3) -> Augmentation:
    return Augmentation(recipe=recipe, pca_axes=AXES, seed=SEED, epoch=epoch, colour_noise=noise)


@pytest.fixture(scope="module", params=[factories.JPEG, factories.RAW], ids=lambda e: e.kind)
def shards(
    request: pytest.FixtureRequest, raw_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Manifest:
    encoding: Encoding = request.param
    folder = tmp_path_factory.mktemp(encoding.kind)
    return factories.make_dataset(raw_images, folder, encoding=encoding)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("world_size", [1, 3])
def test_crops_of_the_loader_are_those_of_whole_images(
    shards: Manifest, recipe: Recipe, noise: bool, world_size: int
) -> None:
    how, buffers = augmentation(recipe, noise=noise), crop_buffers()
    for rank in range(world_size):
        for threads in (1, 2, 5):
            for size in (1, 7, 39):
                loader = ShardLoader(
                    manifest=shards,
                    batch_size=size,
                    seed=SEED,
                    rank=rank,
                    world_size=world_size,
                    threads=threads,
                )
                crops = loader.epoch(3, 0, crops_while_decoding(how, MEAN, buffers))
                for whole, batch in zip(loader.epoch(3), crops, strict=True):
                    expected = training_crops(whole.images, how.params(whole), MEAN, how.scale)
                    assert torch.equal(batch.images, expected)
                    assert batch.images.is_contiguous(memory_format=torch.channels_last)
                    assert torch.equal(batch.labels, whole.labels)
                    assert np.array_equal(batch.positions, whole.positions)
                    assert (batch.offset, batch.rows) == (whole.offset, whole.rows)


def test_kept_crops_are_not_overwritten_and_others_are(dataset: Manifest) -> None:
    buffers = crop_buffers()
    loader = replace(loader_of(dataset), batch_size=4)
    kept, copies, used = [], [], set()
    for epoch in range(3):
        how = augmentation(epoch=epoch)
        for batch in loader.epoch(epoch, 0, crops_while_decoding(how, MEAN, buffers)):
            used.add(batch.images.data_ptr())
            if batch.offset == 8:
                kept.append(batch.images[1:])
                copies.append(batch.images[1:].clone())
            del batch
    assert all(torch.equal(view, copy) for view, copy in zip(kept, copies, strict=True))
    assert len(used) <= 2 + PREFETCH_BATCHES + len(kept)
