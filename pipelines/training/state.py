"""What a Ray Train worker works with: its network, its share of the data, its place in a run.

All workers hold the same weights; rank 0 speaks for all, to the terminal, to MLflow and to the
checkpoints.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Semaphore
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_devices
from torch import nn

from alexnet import storage
from alexnet.metrics import Errors
from alexnet.model.compilation import compile_towers
from alexnet.model.placement import place_towers
from alexnet.model.towers import AlexNet, initialize
from alexnet.recipes import RECIPES, Recipe, ablate
from alexnet.shards.format import Manifest, read_manifest
from alexnet.shards.loader import ShardLoader
from alexnet.shards.pixel_stats import read_statistics
from alexnet.training.augment import mean_crop, pca_axes
from alexnet.training.checkpoint import TrainState
from alexnet.training.ddp import wrap_ddp
from alexnet.training.ema import EMA
from alexnet.training.loop import TrainContext
from alexnet.training.optimizer import MomentumSGD, build_optimizer, with_drops
from pipelines import cluster
from pipelines.settings import TrainSettings
from pipelines.tracking import server
from pipelines.tracking.metric_writer import MetricWriter
from pipelines.tracking.run import MetricStore
from pipelines.training.checkpointing import restore


@dataclass(slots=True, kw_only=True)
class WorkerState:
    """One worker's part of a run."""

    settings: TrainSettings
    recipe: Recipe
    manifest: Manifest
    setup: TrainContext
    reader: ShardLoader
    network: AlexNet
    wrapped: nn.Module
    optimizer: MomentumSGD
    average: EMA | None
    position: TrainState
    writer: MetricWriter | None
    """Rank 0's line to MLflow."""
    reported: float = field(default_factory=time.monotonic)
    """When the last checkpoint was begun, by the monotonic clock."""
    idle: Semaphore = field(default_factory=Semaphore)
    """Held while a checkpoint is written."""
    log: Any
    """Rank 0's line to the terminal, a ``worker_log.WorkerLog`` actor."""
    held: Mapping[str, float]
    """What the cluster gives to all workers of the run together."""
    restart_for_resize: bool = False
    """Whether these workers end before the training does, since more of them find a place."""

    def say(self, line: str) -> None:
        """Print a line in the driver's terminal."""
        self.log.emit.remote(f"train: {line}")


def chosen_recipe(settings: TrainSettings) -> Recipe:
    """The recipe with the settings' numbers in place of its own."""
    recipe = ablate(
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


def build_worker(config: Mapping[str, Any]) -> WorkerState:
    """One worker's part, as the newest checkpoint left it. ``config``: see ``train_loop_per_worker``."""
    settings = TrainSettings.model_validate(config["settings"])
    recipe = chosen_recipe(settings)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    manifest = read_manifest(config["shards"])
    statistics = read_statistics(storage.join(manifest.folder, "statistics.npz"))
    devices = get_devices()
    # Torch would take TF32 for convolutions without being asked.
    torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
    network = AlexNet(recipe, len(manifest.labels))
    initialize(network, recipe, settings.seed)
    place_towers(network, devices)
    if settings.channels_last == "on":
        network.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(network, recipe)
    average = EMA(network, settings.ema) if settings.ema else None

    def say(line: str) -> None:
        if rank == 0:
            config["worker_log"].emit.remote(f"train: {line}")

    position = restore(network, optimizer, average.weights if average else None, say)
    if settings.compile == "on" and (problem := compile_towers(network)):
        say(f"--compile on has no effect: {problem}")
    if rank != 0:
        position.epoch_errors = Errors()
    mean = mean_crop(statistics.mean_image)
    return WorkerState(
        settings=settings,
        recipe=recipe,
        manifest=manifest,
        setup=TrainContext(
            recipe=recipe,
            means=[mean.to(device) for device in dict.fromkeys(devices)],
            axes=pca_axes(recipe, statistics.rgb_covariance),
            seed=settings.seed,
            bf16=settings.precision == "bf16",
            warmup_rows=settings.warmup_epochs * manifest.rows("train"),
        ),
        reader=ShardLoader(
            manifest=manifest,
            batch_size=recipe.batch_size,
            seed=settings.seed,
            rank=rank,
            world=world,
            threads=config["threads"],
            pinned=devices[0].type == "cuda",
        ),
        network=network,
        wrapped=wrap_ddp(network, settings.gradient_compression) if world > 1 else network,
        optimizer=optimizer,
        average=average,
        position=position,
        writer=open_metric_writer(config, position) if rank == 0 else None,
        log=config["worker_log"],
        held={"CPU": world * config["threads"], "GPU": world * config["gpus"]},
    )


def open_metric_writer(config: Mapping[str, Any], position: TrainState) -> MetricWriter:
    """Go on with the run's curves, beginning with what the checkpoint kept of them."""
    server.set_short_timeouts()
    return MetricWriter(
        MetricStore(config["tracking_uri"], config["run_id"]), position.pending_metrics
    )


def all_reduce_errors(mine: Errors) -> Errors:
    """Counts of all workers together."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return replace(mine)
    values = [float(mine.images), mine.loss, float(mine.top1_wrong), float(mine.top5_wrong)]
    tensor = torch.tensor(values, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        tensor = tensor.to(get_devices()[0])
    dist.all_reduce(tensor)
    images, loss, top1_wrong, top5_wrong = tensor.tolist()
    return Errors(
        images=int(images), loss=loss, top1_wrong=int(top1_wrong), top5_wrong=int(top5_wrong)
    )


def can_scale_up(job: WorkerState) -> bool:
    """Whether a range of workers was asked for and more of it would find a place now."""
    settings, world = job.settings, job.reader.world
    if world == settings.num_workers[1]:
        return False
    wanted = (settings.num_workers, settings.device, settings.gpus_wanted)
    return any_rank(job.reader.rank == 0 and cluster.choose_workers(*wanted, mine=job.held) > world)


def any_rank(here: bool) -> bool:
    """Whether it is so on one of the workers at least."""
    return all_reduce_errors(Errors(images=int(here))).images > 0
