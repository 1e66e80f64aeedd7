"""What each Ray Train worker does: restore, learn, report, checkpoint.

All workers hold the same weights; rank 0 speaks for all, to the terminal, to MLflow and to the
checkpoints. The workers agree on when to report because it depends on the step alone.
"""

import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.torch import get_devices
from torch import nn

from alexnet import checkpoints, storage
from alexnet.allocation import keep_freed_memory
from alexnet.augment import colour_axes, mean_patch
from alexnet.averaging import WeightAverage
from alexnet.batches import Reader
from alexnet.checkpoints import Position
from alexnet.errors import UserError
from alexnet.metrics import Errors
from alexnet.optimizer import (
    MomentumSGD,
    build_optimizer,
    rates_at,
    set_rates,
    warmed,
    with_drops,
)
from alexnet.placement import place
from alexnet.recipes import RECIPES, Recipe, ablated
from alexnet.replicas import replicate
from alexnet.shards import Manifest, read_manifest
from alexnet.statistics import read_statistics
from alexnet.towers import AlexNet, initialize
from alexnet.training import Setup, Step, total, train_epoch, validate
from pipelines.progress import duration
from pipelines.settings import TrainSettings
from pipelines.tracking import MetricWriter


@dataclass(slots=True, kw_only=True)
class _Job:
    """One worker's part of a run."""

    settings: TrainSettings
    recipe: Recipe
    manifest: Manifest
    setup: Setup
    reader: Reader
    network: AlexNet
    wrapped: nn.Module
    optimizer: MomentumSGD
    average: WeightAverage | None
    position: Position
    writer: MetricWriter | None
    """Rank 0's line to MLflow."""
    board: Any
    """Rank 0's line to the terminal, a ``terminal.Board`` actor."""

    def say(self, line: str) -> None:
        """Print a line in the driver's terminal."""
        self.board.say.remote(f"train: {line}")


def work_on_rank(config: Mapping[str, Any]) -> None:
    """The Ray Train loop. ``config``: settings, shards, tracking_uri, run_id, threads, board."""
    torch.set_num_threads(config["threads"])
    keep_freed_memory()
    job = _set_up(config)
    if job.writer and (step := job.position.step):
        job.say(f"going on from the checkpoint of step {step} in epoch {job.position.epoch + 1}")
    while job.position.epoch < job.recipe.epochs:
        _run_epoch(job)
    if job.writer and (lost := job.writer.flush()):
        job.say(f"{lost} points of the curves could not be written to MLflow")


def chosen_recipe(settings: TrainSettings) -> Recipe:
    """The recipe with the settings' numbers in place of its own."""
    recipe = ablated(
        RECIPES[settings.recipe],
        normalization=settings.normalization == "on",
        overlapping_pooling=settings.overlapping_pooling == "on",
        towers=settings.towers,
    )
    drops = settings.lr_drops
    return replace(
        recipe,
        schedule=recipe.schedule if drops is None else with_drops(recipe.schedule, drops),
        learning_rate=settings.learning_rate or recipe.learning_rate,
        batch_size=settings.batch_size or recipe.batch_size,
        epochs=settings.epochs or recipe.epochs,
    )


def _set_up(config: Mapping[str, Any]) -> _Job:
    settings = TrainSettings.model_validate(config["settings"])
    recipe = chosen_recipe(settings)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    manifest = read_manifest(config["shards"])
    statistics = read_statistics(storage.join(manifest.folder, "statistics.npz"))
    devices = get_devices()
    network = AlexNet(recipe, len(manifest.labels))
    initialize(network, recipe, settings.seed)
    place(network, devices)
    optimizer = build_optimizer(network, recipe)
    average = WeightAverage(network, settings.ema) if settings.ema else None
    position = Position()
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            position = checkpoints.load(
                folder, network, optimizer, average.weights if average else None
            )
    if rank != 0:
        position.epoch_errors = Errors()
    mean = mean_patch(statistics.mean_image)
    return _Job(
        settings=settings,
        recipe=recipe,
        manifest=manifest,
        setup=Setup(
            recipe=recipe,
            means=[mean.to(device) for device in dict.fromkeys(devices)],
            axes=colour_axes(recipe, statistics.rgb_covariance),
            seed=settings.seed,
            bf16=settings.precision == "bf16",
            warmup_rows=settings.warmup_epochs * manifest.rows("train"),
        ),
        reader=Reader(
            manifest=manifest,
            batch_size=recipe.batch_size,
            seed=settings.seed,
            rank=rank,
            world=world,
            threads=config["threads"],
        ),
        network=network,
        wrapped=replicate(network, settings.gradient_compression) if world > 1 else network,
        optimizer=optimizer,
        average=average,
        position=position,
        writer=MetricWriter.attach(config["tracking_uri"], config["run_id"], "loss")
        if rank == 0
        else None,
        board=config["board"],
    )


def _run_epoch(job: _Job) -> None:
    """Learn from the rest of the present epoch, validate, report."""
    settings, position = job.settings, job.position
    past = [record["val_top1_error"] for record in position.history]
    rates = rates_at(job.recipe.schedule, job.recipe.learning_rate, position.epoch, past)
    set_rates(job.optimizer, rates)
    begun, images_before = time.monotonic(), position.offset
    window: list[Step] = []
    window_begun = begun
    rows = job.manifest.rows("train")
    steps = train_epoch(
        job.wrapped,
        job.optimizer,
        job.reader,
        job.setup,
        rates,
        epoch=position.epoch,
        offset=position.offset,
    )
    for step in steps:
        window.append(step)
        position.step += 1
        if job.average:
            job.average.update(job.network, position.step)
        position.offset = step.offset
        last = step.offset == rows
        due = position.step % settings.checkpoint_steps == 0 and not last
        if position.step % settings.log_steps == 0 or last or due:
            speed = sum(s.rows for s in window) / (time.monotonic() - window_begun)
            seen = position.epoch * rows + position.offset
            rate = warmed(rates, seen, job.setup.warmup_rows).learning_rate
            _log_window(job, total(window), speed, rate, position.step)
            window, window_begun = [], time.monotonic()
        if due:
            _report(job)
            window_begun = time.monotonic()
    speed = (rows - images_before) / (time.monotonic() - begun)
    learned = _sum_over_workers(position.epoch_errors)
    with job.average.in_place(job.network) if job.average else nullcontext():
        checked = _sum_over_workers(
            validate(
                job.network, job.manifest, job.setup, rank=job.reader.rank, world=job.reader.world
            )
        )
    record = {
        "epoch": float(position.epoch + 1),
        "train_loss": learned.mean_loss,
        "train_top1_error": learned.top1_error,
        "val_loss": checked.mean_loss,
        "val_top1_error": checked.top1_error,
        "val_top5_error": checked.top5_error,
        "learning_rate": rates.learning_rate,
        "images_per_second": speed,
    }
    position.history.append(record)
    position.epoch, position.offset, position.epoch_errors = position.epoch + 1, 0, Errors()
    if job.writer:
        job.writer.write(
            {k: v for k, v in record.items() if k != "images_per_second"}, position.step
        )
        job.say(
            f"epoch {position.epoch}/{job.recipe.epochs} done, validation error "
            f"{checked.top1_error:.1f} % top-1, {checked.top5_error:.1f} % top-5 (centre view), "
            f"training loss {learned.mean_loss:.3f}"
        )
    _report(job)


def _log_window(
    job: _Job, mine: Errors, images_per_second: float, learning_rate: float, step: int
) -> None:
    """One point of the training curves, the mean since the last one, over all workers."""
    position, recipe = job.position, job.recipe
    position.epoch_errors.add(mine)
    seen = _sum_over_workers(mine)
    if not np.isfinite(seen.loss):
        raise UserError(
            f"the training loss is {seen.loss} in epoch {position.epoch + 1}, step {step}: the "
            "network diverged; give a lower --learning-rate than "
            f"{recipe.learning_rate} or another --recipe"
        )
    if not job.writer:
        return
    point = {
        "loss": seen.mean_loss,
        "top1_error": seen.top1_error,
        "learning_rate": learning_rate,
        "images_per_second": images_per_second,
    }
    job.writer.write(point, step)
    rows = job.manifest.rows("train")
    left = (recipe.epochs - position.epoch) * rows - position.offset
    job.say(
        f"epoch {position.epoch + 1}/{recipe.epochs}, {position.offset:,}/{rows:,} images, "
        f"loss {seen.mean_loss:.3f}, {images_per_second:,.0f} images/s, "
        f"{duration(left / images_per_second)} left"
    )


def _report(job: _Job) -> None:
    """A barrier of all workers; rank 0 brings the checkpoint."""
    position = job.position
    metrics = {"epoch": position.epoch, "step": position.step}
    whole = replace(position, epoch_errors=_sum_over_workers(position.epoch_errors))
    if job.reader.rank != 0:
        ray.train.report(metrics)
        return
    if job.writer:
        job.writer.flush()
    with tempfile.TemporaryDirectory(prefix="alexnet-checkpoint-") as folder:
        checkpoints.save(
            folder,
            job.network,
            job.optimizer,
            whole,
            job.setup.means[0],
            job.average.weights if job.average else None,
        )
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _sum_over_workers(mine: Errors) -> Errors:
    """Counts of all workers together."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return replace(mine)
    values = [float(mine.images), mine.loss, float(mine.wrong1), float(mine.wrong5)]
    tensor = torch.tensor(values, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        tensor = tensor.to(get_devices()[0])
    dist.all_reduce(tensor)
    images, loss, wrong1, wrong5 = tensor.tolist()
    return Errors(images=int(images), loss=loss, wrong1=int(wrong1), wrong5=int(wrong5))
