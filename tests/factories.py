"""Small things that behave like the large ones: a few images, a narrow network."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from alexnet import predictions
from alexnet.metrics import LossAndErrors
from alexnet.model.towers import AlexNet, initialize
from alexnet.recipes import PAPER, SOURCE145, Recipe
from alexnet.shards.codec import Encoding
from alexnet.shards.finalize import finalize, finished_results
from alexnet.shards.loader import ShardLoader
from alexnet.shards.manifest import Manifest
from alexnet.shards.pixel_stats import read_statistics
from alexnet.shards.plan import ShardTask, plan_digest, write_plan
from alexnet.shards.write import make_shard
from alexnet.sources.read import read_source
from alexnet.training.augment import mean_crop, pca_axes
from alexnet.training.device_queue import SideStream
from alexnet.training.loop import Step, StepSums, TrainContext
from alexnet.training.optimizer import (
    EpochRates,
    MomentumSGD,
    build_optimizer,
    rates_at,
    set_rates,
)
from pipelines.results.stage_results import EvaluateResult

CLASSES = ("n01", "n02", "n03", "n04")
TRAIN, VAL = 10, 3
"""Images of each class."""
BROKEN = "train/n02/n02_4.JPEG"
"""The one file that can't be decoded: it is truncated."""
ROWS, BATCH_SIZE = 39, 8
"""Training rows of the data set, and rows of a global batch."""
SEED = 5
JPEG = Encoding(kind="jpeg", jpeg_quality=95)
RAW = Encoding(kind="raw", jpeg_quality=95)


def write_images(root: Path) -> None:
    """A data set in the folders layout: smooth noise without symmetries, in various sizes."""
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
    """The shard tasks that turn the images into a data set in a folder."""
    return write_plan(str(folder), read_source(str(raw)), encoding, rows_per_shard, seed)


def finalize_dataset(raw: Path, folder: Path, tasks: list[ShardTask]) -> Manifest:
    """The manifest of a data set whose tasks are finished."""
    source = read_source(str(raw))
    return finalize(
        str(folder),
        finished_results(str(folder), tasks),
        plan_digest=plan_digest(source, {}),
        source=str(raw),
        layout=source.layout,
        settings={},
        labels=source.labels,
        account=source.account,
    )


def make_dataset(raw: Path, folder: Path, *, encoding: Encoding = JPEG) -> Manifest:
    """The images as a data set in a folder, written in this process."""
    tasks = plan(raw, folder, encoding=encoding)
    for task in tasks:
        make_shard(task)
    return finalize_dataset(raw, folder, tasks)


SOURCE145_AND_SLOW_PAPER = [
    pytest.param(PAPER, id="paper", marks=pytest.mark.slow),
    pytest.param(SOURCE145, id="source145"),
]
"""Values of a test's parameter ``recipe``. In the quick tests one recipe is enough."""


def narrow_network(recipe: Recipe, classes: int = len(CLASSES), *, seed: int = 0) -> AlexNet:
    """An initialized network with 48 units in fc6 and in fc7 instead of 4096."""
    network = AlexNet(replace(recipe, hidden=48), classes)
    initialize(network, recipe, seed)
    return network


def train_context(
    dataset: Manifest,
    recipe: Recipe,
    *,
    seed: int = SEED,
    devices: Sequence[torch.device] = (torch.device("cpu"),),
) -> TrainContext:
    """The values that are constant during a run, with the data set's own pixel statistics."""
    statistics = read_statistics(dataset.statistics_path)
    mean = mean_crop(statistics.mean_image)
    return TrainContext(
        recipe=recipe,
        means=[mean.to(device) for device in devices],
        side_streams=[SideStream(device) for device in devices],
        pca_axes=pca_axes(recipe, statistics.rgb_covariance),
        seed=seed,
    )


def loader_of(dataset: Manifest, *, rank: int = 0, world_size: int = 1) -> ShardLoader:
    """A worker's loader, for a validation."""
    return ShardLoader(
        manifest=dataset, batch_size=BATCH_SIZE, seed=SEED, rank=rank, world_size=world_size
    )


def total(steps: Sequence[Step]) -> LossAndErrors:
    """The sums over some steps."""
    sums = StepSums()
    for step in steps:
        sums.add(step)
    return sums.read()


def start_training(recipe: Recipe, learning_rate: float = 0.001) -> tuple[AlexNet, MomentumSGD]:
    """An initialized narrow network and its optimizer."""
    network = narrow_network(recipe)
    optimizer = build_optimizer(network, recipe)
    set_rates(optimizer, EpochRates(learning_rate))
    return network, optimizer


def random_crops(count: int, seed: int = 0) -> Tensor:
    """(count, 224, 224, 3) uint8: the input of ``CropClassifier``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8, generator=generator)


def random_inputs(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(count, 3, 224, 224): crops minus the mean, the input of ``AlexNet``."""
    generator = torch.Generator().manual_seed(seed)
    return 70 * torch.randn((count, 3, 224, 224), generator=generator, dtype=dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference divided by the norm of the expected tensor."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


def predictions_table(
    labels: Sequence[int],
    predicted: Sequence[int],
    *,
    classes: int = 3,
    keys: Sequence[str] | None = None,
    model: str = "models:/m-1",
    validation: str = "same",
    confidence: float = 0.6,
) -> pa.Table:
    """Predictions whose best labels are given; the others follow in the order of the labels."""
    best = [
        [first, *(k for k in range(classes) if k != first)][: min(5, classes)]
        for first in predicted
    ]
    rest = (1 - confidence) / max(classes - 1, 1)
    table = pa.table(
        {
            "key": list(keys or [f"val/{index:05}.JPEG" for index in range(len(labels))]),
            "label": list(labels),
            "labels": best,
            "probabilities": [[confidence] + [rest] * (len(row) - 1) for row in best],
            "centre_labels": best,
        }
    )
    return predictions.merge(
        [table.cast(predictions.SCHEMA)],
        len(labels),
        wnids=[f"n{k:08}" for k in range(classes)],
        models=[model],
        validation=validation,
    )


def evaluate_result(**changes: Any) -> EvaluateResult:
    """The result of an evaluation, with some fields changed."""
    values: dict[str, Any] = {
        "images": 12,
        "top1_error": 16.667,
        "top1_error_low": 4.697,
        "top1_error_high": 44.803,
        "top5_error": 0.0,
        "top5_error_low": 0.0,
        "top5_error_high": 24.249,
        "centre_top1_error": 25.0,
        "centre_top1_error_low": 8.894,
        "centre_top1_error_high": 53.23,
        "centre_top5_error": 8.333,
        "centre_top5_error_low": 1.487,
        "centre_top5_error_high": 35.388,
        "top1_accuracy": 83.333,
        "calibration_error": 3.25,
        "models": ["models:/m-1"],
        "validation": "same",
        "predictions": "/work/evaluations/abc/predictions.parquet",
    }
    return EvaluateResult(**values | changes)


def rate_changes(recipe: Recipe, *layers: str) -> dict[int, tuple[float | bool, ...]]:
    """The rates of weights, of some layers' weights and of biases, and whether there is noise.

    By the epochs, counted from 1, in which one of them changes; three significant digits.
    """
    found: dict[int, tuple[float | bool, ...]] = {}
    for epoch in range(recipe.epochs):
        rates = rates_at(recipe.schedule, recipe.learning_rate, epoch, [50.0] * epoch)
        assert rates.biases is not None
        own = [rates.learning_rate * rates.layers.get(layer, 1.0) for layer in layers]
        values = rates.learning_rate, *own, rates.biases
        now = *(float(f"{value:.3g}") for value in values), rates.colour_noise
        if not found or now != list(found.values())[-1]:
            found[epoch + 1] = now
    return found
