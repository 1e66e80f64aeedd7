"""What one Ray Train worker holds: its network, its part of the data, its training state.

All workers hold the same weights. Rank 0 alone writes to the terminal, to MLflow and the
checkpoints.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import Semaphore
from typing import Any

import ray.train
import torch
from ray.train.torch import get_devices
from torch import Tensor, nn

from alexnet.errors import UserError
from alexnet.metrics import LossAndErrors
from alexnet.model.towers import AlexNet
from alexnet.recipes import Recipe
from alexnet.shards.gpu_decode import check_gpu_decoding
from alexnet.shards.loader import ShardLoader
from alexnet.shards.manifest import Manifest, read_manifest
from alexnet.shards.order import MICROBATCHES
from alexnet.shards.pixel_stats import PixelStatistics, read_statistics
from alexnet.training.augment import mean_crop, pca_axes
from alexnet.training.checkpoint import TrainState
from alexnet.training.ddp import wrap_ddp
from alexnet.training.device_queue import SideStream
from alexnet.training.ema import EMA
from alexnet.training.exact import ExactWorker
from alexnet.training.loop import TrainContext
from alexnet.training.network import Execution, build_network
from alexnet.training.optimizer import MomentumSGD, build_optimizer
from pipelines.clusters.allocation import own_node
from pipelines.console.progress import Update
from pipelines.console.redact import SecretUri
from pipelines.settings import TrainSettings
from pipelines.tracking import server
from pipelines.tracking.metric_writer import MetricWriter
from pipelines.tracking.node_metrics import host_name, node_metrics
from pipelines.tracking.run import MetricStore
from pipelines.tracking.step_images import StepImages
from pipelines.training.checkpointing import restore
from pipelines.training.driver_lines import DriverLines
from pipelines.training.initial_weights import begin_with
from pipelines.training.pictures import Pictures

MAX_ROW_GROUPS = 60_000
"""That are mapped at the same time. Linux allows a process 65,530 maps, and libraries need some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """What the driver hands to every worker."""

    settings: TrainSettings
    recipe: Recipe
    shards: str
    """The data set's folder."""
    tracking_uri: SecretUri
    run_id: str
    cpus: int
    """Of each worker."""
    driver_host: str
    """The computer whose metrics MLflow itself writes."""
    initial: str | None = None
    """Path of the weights to begin with (``initial_weights``)."""
    checkpoints: Sequence[str] = ()
    """Paths of those of earlier starts of the job, the newest first."""
    worker_log: Any
    """A ``worker_log.WorkerLog`` actor."""


@dataclass(slots=True, kw_only=True)
class WorkerState:
    """One worker of a training."""

    settings: TrainSettings
    recipe: Recipe
    manifest: Manifest
    context: TrainContext
    loader: ShardLoader
    network: AlexNet
    wrapped: nn.Module
    """The network, inside DDP if there are several workers."""
    optimizer: MomentumSGD
    average: EMA | None
    train_state: TrainState
    writer: MetricWriter | None
    """On rank 0."""
    pictures: Pictures | None
    """On rank 0."""
    log_line: Callable[[str | Update], None]
    """Logs a line in the driver; does nothing on other ranks than 0."""
    checkpoint_requested: Callable[[], bool]
    """Whether the driver has requested a checkpoint; False on other ranks than 0."""
    checkpoint_started: float = field(default_factory=time.monotonic)
    """When the last checkpoint was started, by the monotonic clock."""
    checkpoint_slot: Semaphore = field(default_factory=Semaphore)
    """Held while a checkpoint is written."""


def build_worker(config: LoopConfig) -> WorkerState:
    """A worker whose training resumes from the newest checkpoint, if there is one."""
    settings, recipe = config.settings, config.recipe
    ray_context = ray.train.get_context()
    rank, world_size = ray_context.get_world_rank(), ray_context.get_world_size()
    manifest = read_manifest(config.shards)
    check_row_groups(settings, manifest)
    statistics = read_statistics(manifest.statistics_path)
    devices = get_devices()
    network, not_compiled = build_network(
        recipe, len(manifest.labels), devices, settings.seed, execution_of(settings)
    )
    own_mean = begin_with(network, config.initial) if config.initial else None
    mean = mean_crop(statistics.mean_image) if own_mean is None else own_mean
    optimizer = build_optimizer(network, recipe)
    average = EMA(network, settings.ema) if settings.ema else None

    driver_lines = DriverLines(config.worker_log)

    def log_line(line: str | Update) -> None:
        if rank == 0:
            driver_lines.emit(line)

    weights = average.weights if average else None
    train_state = restore(network, optimizer, weights, log_line, config.checkpoints)
    if not_compiled:
        log_line(f"--compile on has no effect: {not_compiled}")
    if rank != 0:
        train_state.epoch_errors = LossAndErrors()
    return WorkerState(
        settings=settings,
        recipe=recipe,
        manifest=manifest,
        context=_train_context(
            settings,
            recipe,
            manifest,
            statistics,
            mean,
            devices,
            ExactWorker.create(rank, world_size, config.cpus) if settings.exact else None,
        ),
        loader=ShardLoader(
            manifest=manifest,
            batch_size=recipe.batch_size,
            seed=settings.seed,
            reshuffle=recipe.shuffle == "every-epoch",
            shuffle_rows=settings.shuffle_rows,
            rank=rank,
            world_size=world_size,
            microbatches=MICROBATCHES if settings.exact else None,
            threads=decode_threads(config.cpus, devices[0]),
            pin_memory=devices[0].type == "cuda",
            decode_on=decoding_device(settings, manifest, devices[0]),
            verify=settings.verify_reads,
        ),
        network=network,
        wrapped=(
            wrap_ddp(network, settings.gradient_compression)
            if world_size > 1 and not settings.exact
            else network
        ),
        optimizer=optimizer,
        average=average,
        train_state=train_state,
        writer=open_metric_writer(config, train_state) if rank == 0 else None,
        pictures=open_pictures(config, manifest, mean, log_line) if rank == 0 else None,
        log_line=log_line,
        checkpoint_requested=driver_lines.checkpoint_requested,
    )


def decode_threads(cpus: int, device: torch.device) -> int:
    """Threads that decode images for a worker on a device.

    On CPUs the network needs the same cores. Beside GPUs they are free: a worker takes its part of
    its own node, which can have more CPUs than the smallest node, from which ``cpus`` is derived.

    Args:
        cpus: that every worker has.
        device: of the worker.
    """
    if device.type != "cuda":
        return cpus
    return max(cpus, int(own_node().cpus // ray.train.get_context().get_local_world_size()))


def decoding_device(
    settings: TrainSettings, manifest: Manifest, device: torch.device
) -> torch.device | None:
    """The GPU that decodes a worker's training images; None for the CPU.

    Raises:
        UserError: ``--decode-on gpu`` can't work.
    """
    if settings.decode_on == "cpu":
        return None
    if manifest.is_raw:
        raise UserError(
            "--decode-on gpu: these shards hold raw images, which nothing has to decode; give "
            "--decode-on cpu"
        )
    if device.type != "cuda":
        raise UserError(
            f"--decode-on gpu: this training runs on the {device.type}, without GPUs; "
            "give --decode-on cpu or --device cuda"
        )
    try:
        check_gpu_decoding(device)
    except UserError as error:
        raise UserError(f"--decode-on gpu: {error}; give --decode-on cpu") from error
    return device


def check_row_groups(settings: TrainSettings, manifest: Manifest) -> None:
    """Whether as many row groups as the training needs can be mapped at the same time.

    Raises:
        UserError: they can't.
    """
    if settings.shuffle_rows == "windows":
        return
    groups = len(manifest.row_groups("train"))
    if groups > MAX_ROW_GROUPS:
        raise UserError(
            f"--shuffle-rows all: the training shards have {groups:,} row groups, more than a "
            "process can map at the same time; give --shuffle-rows windows"
        )


def execution_of(settings: TrainSettings) -> Execution:
    """How the settings let a network be computed."""
    return Execution(
        precision=settings.precision,
        channels_last=settings.channels_last,
        compile=settings.compile,
    )


def _train_context(
    settings: TrainSettings,
    recipe: Recipe,
    manifest: Manifest,
    statistics: PixelStatistics,
    mean: Tensor,
    devices: list[torch.device],
    exact: ExactWorker | None,
) -> TrainContext:
    return TrainContext(
        recipe=recipe,
        means=[mean.to(device) for device in dict.fromkeys(devices)],
        side_streams=[SideStream(device) for device in dict.fromkeys(devices)],
        pca_axes=pca_axes(recipe, statistics.rgb_covariance),
        seed=settings.seed,
        bf16=execution_of(settings).bf16,
        channels_last=settings.channels_last,
        warmup_rows=settings.warmup_epochs * manifest.rows("train"),
        exact=exact,
    )


def open_node_metrics(config: LoopConfig) -> AbstractContextManager[None]:
    """A context in which one worker on each computer other than the driver's writes its metrics."""
    if config.driver_host == host_name() or ray.train.get_context().get_local_rank() != 0:
        return nullcontext()
    return node_metrics(config.tracking_uri.reveal(), config.run_id)


def open_pictures(
    config: LoopConfig,
    manifest: Manifest,
    mean: Tensor,
    log_line: Callable[[str], None],
) -> Pictures:
    """Pictures of the run, drawn in the background."""
    images = StepImages(config.tracking_uri.reveal(), config.run_id)
    return Pictures(images, manifest, mean, log_line)


def open_metric_writer(config: LoopConfig, train_state: TrainState) -> MetricWriter:
    """A writer of the run's metrics, which begins with those that the checkpoint kept."""
    server.set_short_timeouts()
    return MetricWriter(
        MetricStore(config.tracking_uri.reveal(), config.run_id), train_state.pending_metrics
    )
