"""A training on one device, without Ray and MLflow, for benchmarks of what is learned.

``tests/test_pipelines/test_workflow.py`` checks that a training with Ray computes the same bits.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from alexnet.recipes import SOURCE145, Recipe
from alexnet.shards.loader import ShardLoader
from alexnet.shards.manifest import Manifest
from alexnet.shards.pixel_stats import read_statistics
from alexnet.training.augment import mean_crop, pca_axes
from alexnet.training.device_queue import SideStream
from alexnet.training.loop import TrainContext, train_epoch
from alexnet.training.network import Execution, build_network
from alexnet.training.optimizer import build_optimizer, rates_at, set_rates, with_drops
from alexnet.training.validation import validate

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochErrors:
    """Results of one epoch."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the epoch's images, with augmentation and dropout."""
    loss: float
    """Mean over the validation images."""
    top1_error: float
    """Of the validation images' centre view, as ``top5_error``."""
    top5_error: float
    seconds: float
    """From the start of the training to the end of this epoch's validation."""


def recipe_with(batch_size: int, learning_rate: float, drops: list[int]) -> Recipe:
    """``source145`` with another schedule; its rate drops after these numbers of epochs."""
    schedule = with_drops(SOURCE145.schedule, drops)
    return replace(SOURCE145, batch_size=batch_size, learning_rate=learning_rate, schedule=schedule)


def train(
    manifest: Manifest,
    recipe: Recipe,
    seed: int,
    epochs: int,
    *,
    reshuffle: bool = True,
    device: torch.device = CPU,
    execution: Execution | None = None,
    threads: int = 2,
) -> Iterator[EpochErrors]:
    """Train from initial weights; both towers are on the device.

    Args:
        manifest: of the preprocessed images.
        recipe: hyperparameters.
        seed: of weights, order, augmentation and dropout.
        epochs: how many.
        reshuffle: whether every epoch has an order of its own.
        device: what computes.
        execution: precision and layout, by default float32 and NCHW.
        threads: that decode.
    """
    execution = execution or Execution()
    pixels = read_statistics(manifest.statistics_path)
    context = TrainContext(
        recipe=recipe,
        means=[mean_crop(pixels.mean_image).to(device)],
        side_streams=[SideStream(device)],
        pca_axes=pca_axes(recipe, pixels.rgb_covariance),
        seed=seed,
        bf16=execution.bf16,
        channels_last=execution.channels_last,
    )
    loader = ShardLoader(
        manifest=manifest,
        batch_size=recipe.batch_size,
        seed=seed,
        reshuffle=reshuffle,
        threads=threads,
        pin_memory=device.type == "cuda",
    )
    network, _ = build_network(recipe, len(manifest.labels), [device], seed, execution)
    optimizer = build_optimizer(network, recipe)
    started = time.monotonic()
    errors: list[float] = []
    for epoch in range(epochs):
        rates = rates_at(recipe.schedule, recipe.learning_rate, epoch, errors)
        set_rates(optimizer, rates)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        for step in train_epoch(network, optimizer, loader, context, rates, epoch=epoch):
            loss += step.loss.detach()
        validation = validate(network, loader, context)
        errors.append(validation.top1_error)
        yield EpochErrors(
            epoch=epoch + 1,
            train_loss=float(loss) / manifest.rows("train"),
            loss=validation.mean_loss,
            top1_error=validation.top1_error,
            top5_error=validation.top5_error,
            seconds=time.monotonic() - started,
        )
