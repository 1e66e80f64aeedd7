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
from alexnet.augment import colour_axes, mean_patch
from alexnet.averaging import WeightAverage
from alexnet.batches import Reader
from alexnet.checkpoints import Position
from alexnet.compilation import compile_towers
from alexnet.metrics import Errors
from alexnet.optimizer import MomentumSGD, build_optimizer, with_drops
from alexnet.placement import place
from alexnet.recipes import RECIPES, Recipe, ablated
from alexnet.replicas import replicate
from alexnet.shards import Manifest, read_manifest
from alexnet.statistics import read_statistics
from alexnet.towers import AlexNet, initialize
from alexnet.training import Setup
from pipelines import cluster, server
from pipelines.checkpointing import restore
from pipelines.curves import MetricWriter
from pipelines.settings import TrainSettings
from pipelines.tracking import Curves


@dataclass(slots=True, kw_only=True)
class Job:
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
    reported: float = field(default_factory=time.monotonic)
    """When the last checkpoint was begun, by the monotonic clock."""
    idle: Semaphore = field(default_factory=Semaphore)
    """Held while a checkpoint is written."""
    board: Any
    """Rank 0's line to the terminal, a ``terminal.Board`` actor."""
    held: Mapping[str, float]
    """What the cluster gives to all workers of the run together."""
    make_room: bool = False
    """Whether these workers end before the training does, since more of them find a place."""

    def say(self, line: str) -> None:
        """Print a line in the driver's terminal."""
        self.board.say.remote(f"train: {line}")


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


def set_up(config: Mapping[str, Any]) -> Job:
    """One worker's part, as the newest checkpoint left it. ``config``: see ``work_on_rank``."""
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
    place(network, devices)
    if settings.channels_last == "on":
        network.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(network, recipe)
    average = WeightAverage(network, settings.ema) if settings.ema else None

    def say(line: str) -> None:
        if rank == 0:
            config["board"].say.remote(f"train: {line}")

    position = restore(network, optimizer, average.weights if average else None, say)
    if settings.compile == "on" and (problem := compile_towers(network)):
        say(f"--compile on has no effect: {problem}")
    if rank != 0:
        position.epoch_errors = Errors()
    mean = mean_patch(statistics.mean_image)
    return Job(
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
            pinned=devices[0].type == "cuda",
        ),
        network=network,
        wrapped=replicate(network, settings.gradient_compression) if world > 1 else network,
        optimizer=optimizer,
        average=average,
        position=position,
        writer=curve_writer(config, position) if rank == 0 else None,
        board=config["board"],
        held={"CPU": world * config["threads"], "GPU": world * config["gpus"]},
    )


def curve_writer(config: Mapping[str, Any], position: Position) -> MetricWriter:
    """Go on with the run's curves, beginning with what the checkpoint kept of them."""
    server.give_up_soon()
    return MetricWriter(Curves(config["tracking_uri"], config["run_id"]), position.unwritten)


def sum_over_workers(mine: Errors) -> Errors:
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


def more_could_work(job: Job) -> bool:
    """Whether a range of workers was asked for and more of it would find a place now."""
    settings, world = job.settings, job.reader.world
    if world == settings.num_workers[1]:
        return False
    wanted = (settings.num_workers, settings.device, settings.gpus_wanted)
    return any_worker(
        job.reader.rank == 0 and cluster.choose_workers(*wanted, mine=job.held) > world
    )


def any_worker(here: bool) -> bool:
    """Whether it is so on one of the workers at least."""
    return sum_over_workers(Errors(images=int(here))).images > 0
