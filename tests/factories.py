"""Small things that behave like the large ones: a few images, a narrow network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alexnet.model.towers import AlexNet, initialize
from alexnet.recipes import Recipe
from alexnet.shards.codec import Encoding
from alexnet.shards.finalize import finalize, finished
from alexnet.shards.format import Manifest
from alexnet.shards.plan import ShardTask, plan_digest, write_plan
from alexnet.sources.read import read_source

CLASSES = ("n01", "n02", "n03", "n04")
TRAIN, VAL = 10, 3
"""Images of each class."""
BROKEN = "train/n02/n02_4.JPEG"
"""The one file that can't be read: it ends early."""
JPEG = Encoding(kind="jpeg", jpeg_quality=95)
RAW = Encoding(kind="raw", jpeg_quality=95)


def write_images(root: Path) -> None:
    """A data set in the folders form: smooth noise without symmetries, sizes of all kinds."""
    random = np.random.default_rng(2012)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for wnid in CLASSES:
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                size = tuple(random.integers(200, 340, 2).tolist())
                coarse = Image.fromarray(random.integers(0, 256, (8, 9, 3), np.uint8))
                path = folder / f"{wnid}_{number}.JPEG"
                coarse.resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", quality=90)
    broken = root / BROKEN
    broken.write_bytes(broken.read_bytes()[:1500])


def plan(
    raw: Path, folder: Path, *, rows_per_shard: int = 8, seed: int = 0, encoding: Encoding = JPEG
) -> list[ShardTask]:
    """The units of work that shard the images into a folder."""
    return write_plan(str(folder), read_source(str(raw)), encoding, rows_per_shard, seed)


def assemble(raw: Path, folder: Path, units: list[ShardTask]) -> Manifest:
    """The manifest of finished units."""
    source = read_source(str(raw))
    return finalize(
        str(folder),
        finished(str(folder), units),
        digest=plan_digest(source, {}),
        source=str(raw),
        form=source.form,
        settings={},
        labels=source.labels,
    )


def narrow_network(recipe: Recipe, classes: int = len(CLASSES), *, seed: int = 0) -> AlexNet:
    """The network with 48 units in fc6 and fc7 instead of 4096; initialized."""
    network = AlexNet(replace(recipe, hidden=48), classes)
    initialize(network, recipe, seed)
    return network


def he_init(network: AlexNet, seed: int = 0) -> None:
    """Weights under which every layer passes the image on.

    With the weights of 2012's first step the logits hardly depend on the image, and a wrong
    normalization would hardly show.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            std = 0.1 if name.endswith("bias") else (2 / parameter[0].numel()) ** 0.5
            draws = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(std * draws)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of what is expected."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())
