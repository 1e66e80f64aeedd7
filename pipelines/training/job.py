"""The Ray Train job: started again after lost workers, until the last epoch is done.

Each start is given the checkpoints in the training's folder and resumes from the newest one. Ray
Train's own ``max_failures`` is not used: it would also retry errors of the user.
"""

import functools
import os
import signal
import threading
from collections.abc import Callable

from ray.train import (
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util import placement_group_table

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.recipes import Recipe
from alexnet.training.ddp import DEFAULT_BACKEND, TIMEOUT
from pipelines import cluster
from pipelines.cluster import KEEP_FREED_MEMORY
from pipelines.clusters.allocation import (
    WorkerResources,
    choose_gpus,
    request_in_words,
    training_resources,
)
from pipelines.configuration.setting_types import Device, Workers
from pipelines.console.interrupt import GRACE_S, Interrupted, end_after, run_in_thread
from pipelines.console.log import stage_logger
from pipelines.console.redact import SecretUri, shortened
from pipelines.console.watchdog import Watchdog
from pipelines.console.worker_log import worker_log
from pipelines.settings import TrainSettings
from pipelines.tracking.node_metrics import host_name
from pipelines.training import checkpoint_folder, checkpointing
from pipelines.training.checkpoint_folder import list_checkpoints
from pipelines.training.driver_lines import CHECKPOINT_GRACE_S, wait_for_checkpoint
from pipelines.training.initial_weights import InitialWeights
from pipelines.training.state import LoopConfig
from pipelines.training.worker import train_loop_per_worker
from pipelines.workdir import Workdir

TORCH_CONFIG = TorchConfig(backend=DEFAULT_BACKEND, timeout_s=int(TIMEOUT.total_seconds()))
"""The default process group of all workers, on GPUs too; ``alexnet.training.ddp`` says why."""

BEGAN_WITH = "devices.json"
"""File beside the checkpoints: the kind of device that a training began with and keeps."""


def train_to_the_end(
    settings: TrainSettings,
    recipe: Recipe,
    *,
    shards: str,
    tracking_uri: str,
    run_id: str,
    name: str,
    initial: InitialWeights | None = None,
) -> str:
    """Train until the last epoch; resume a training that an earlier command has started.

    Args:
        settings: of the stage.
        recipe: that they resolve to.
        shards: the data set's folder.
        tracking_uri: of the MLflow store that metrics go to.
        run_id: of the MLflow run.
        name: of the training, which its checkpoints are stored under.
        initial: weights to begin with; None to draw all.

    Returns:
        The path of the last checkpoint.

    Raises:
        UserError: a worker has met an error that the user can put right.
        TrainingFailedError: more workers were lost than ``max_failures`` allows.
    """
    cluster.connect()
    log = stage_logger("train")
    checkpoints = Workdir(settings.workdir).checkpoints
    folder = storage.join(checkpoints, name)
    if not storage.is_remote(checkpoints):
        os.makedirs(checkpoints, exist_ok=True)
    loop = functools.partial(
        LoopConfig,
        settings=settings,
        recipe=recipe,
        shards=shards,
        tracking_uri=SecretUri(tracking_uri),
        run_id=run_id,
        driver_host=host_name(),
        initial=initial.write(folder) if initial else None,
    )
    resources = _resources(settings, folder)
    failures_left = settings.max_failures
    while True:
        try:
            checkpoint_folder.forget_ray_list(folder)
            checkpoint_folder.prune_checkpoints(folder)
            with_checkpoints = functools.partial(loop, checkpoints=list_checkpoints(folder))
            _fit(settings, name, with_checkpoints, resources)
        except TrainingFailedError as error:
            cause = _cause(error)
            if isinstance(cause, UserError) or not failures_left:
                raise cause from error
            failures_left -= 1
            log.info(
                "lost a worker (%s); resuming from the newest checkpoint, %d retries left "
                "(--max-failures)",
                shortened(cause, 200),
                failures_left,
            )
            continue
        checkpoint_folder.prune_checkpoints(folder)
        return list_checkpoints(folder)[0]


def _resources(settings: TrainSettings, folder: str) -> WorkerResources:
    """The resources of a training: those that it began with, unless --device names others.

    Args:
        settings: of the stage.
        folder: of the training's checkpoints.

    Raises:
        UserError: the cluster can't ever have so many.
    """
    if settings.exact:  # GPUs add in an order of their own.
        if choose_gpus("auto", settings.num_workers[0], settings.gpus_wanted):
            stage_logger("train").info("--exact on: training on CPUs; the GPUs are not used")
        return training_resources(settings.num_workers, "cpu", 0)
    path = storage.join(folder, BEGAN_WITH)
    began_with = storage.read_json(path)["gpus"] if storage.is_file(path) else None
    if began_with is None or settings.device != "auto":
        resources = training_resources(settings.num_workers, settings.device, settings.gpus_wanted)
        storage.write_json(path, {"gpus": resources.gpus})
        return resources
    kind = f"{began_with} GPUs for each worker" if began_with else "the CPU"
    try:
        device: Device = "cuda" if began_with else "cpu"
        resources = training_resources(settings.num_workers, device, began_with)
    except UserError as error:
        raise UserError(f"this training began with {kind}, and {one_line(error)}") from error
    if choose_gpus("auto", settings.num_workers[0], settings.gpus_wanted) != began_with:
        stage_logger("train").info("continuing with %s, as it began; --device changes that", kind)
    return resources


def _fit(
    settings: TrainSettings,
    name: str,
    loop: Callable[..., LoopConfig],
    resources: WorkerResources,
) -> None:
    """Train until the end or the first lost worker.

    Args:
        settings: of the stage.
        name: of the training.
        loop: makes the workers' config from their number of ``cpus`` and the ``worker_log``.
        resources: of the workers.
    """
    started = threading.Event()
    storage_path = Workdir(settings.workdir).checkpoints

    def waiting_for() -> str | None:
        if _requested(resources):
            return f"waiting for {request_in_words(resources)}"
        return None if started.is_set() else "waiting for the workers to start"

    with worker_log("train", started.set) as lines, Watchdog("train", waiting_for):
        trainer = TorchTrainer(
            train_loop_per_worker,
            train_loop_config={"loop": loop(cpus=resources.threads, worker_log=lines)},
            torch_config=TORCH_CONFIG,
            scaling_config=scaling_config(settings.num_workers, resources),
            run_config=RunConfig(
                name=name,
                storage_path=storage_path,
                checkpoint_config=checkpointing.KEEP,
                failure_config=FailureConfig(controller_failure_limit=-1),
                logging_config=LoggingConfig(log_level="ERROR"),
                worker_runtime_env={"env_vars": KEEP_FREED_MEMORY},
            ),
        )
        # In a thread, or Ray Train would replace the handler of Ctrl-C, for ever.
        try:
            run_in_thread(trainer.fit, "ray-train")
        except Interrupted as error:
            if error.number == signal.SIGTERM and started.is_set():
                end_after(CHECKPOINT_GRACE_S + GRACE_S, error.exit_status)
                wait_for_checkpoint(lines, storage.join(storage_path, name))
            raise


def _requested(resources: WorkerResources) -> bool:
    """Whether such workers have been requested from Ray and don't fit yet."""
    bundle = {"CPU": float(resources.cpus), "GPU": float(resources.gpus)}
    return any(
        group["state"] == "PENDING"
        and any({"GPU": 0.0} | requested == bundle for requested in group["bundles"].values())
        for group in placement_group_table().values()
    )


def scaling_config(workers: Workers, resources: WorkerResources) -> ScalingConfig:
    """The number of workers and the resources of each, as Ray Train takes them.

    With a range of workers, Ray Train starts as many as fit, fewer after a loss, and every minute
    checks whether more fit. Then it restarts from the newest checkpoint.
    """
    minimum, maximum = workers
    gpus = {"GPU": resources.gpus} if resources.gpus else {}
    return ScalingConfig(
        num_workers=maximum if minimum == maximum else workers,
        use_gpu=resources.gpus > 0,
        resources_per_worker={"CPU": resources.cpus} | gpus,
    )


def _cause(error: Exception) -> Exception:
    """The user's mistake that ended a worker, if it was one; else the error itself."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UserError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error
