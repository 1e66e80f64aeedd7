"""The Ray Train job: started again after lost workers, until the last epoch is done.

Each start is given the checkpoints in the training's folder and resumes from the newest one. Ray
Train's own ``max_failures`` is not used: it would also retry errors of the user.
"""

import functools
import os
from collections.abc import Callable

from ray.train import (
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.recipes import Recipe
from pipelines import cluster
from pipelines.cluster import KEEP_FREED_MEMORY, WorkerResources
from pipelines.console.log import stage_logger
from pipelines.console.worker_log import worker_log
from pipelines.settings import TrainSettings, Workers
from pipelines.training import checkpoint_folder, checkpointing
from pipelines.training.checkpoint_folder import list_checkpoints
from pipelines.training.state import LoopConfig
from pipelines.training.worker import train_loop_per_worker
from pipelines.workdir import Workdir


def train_to_the_end(
    settings: TrainSettings,
    recipe: Recipe,
    *,
    shards: str,
    tracking_uri: str,
    run_id: str,
    name: str,
) -> str:
    """Train until the last epoch; resume a training that an earlier command has started.

    Args:
        settings: of the stage.
        recipe: that they resolve to.
        shards: the data set's folder.
        tracking_uri: of the MLflow store that metrics go to.
        run_id: of the MLflow run.
        name: of the training, which its checkpoints are stored under.

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
        tracking_uri=tracking_uri,
        run_id=run_id,
    )
    failures_left = settings.max_failures
    while True:
        try:
            checkpoint_folder.forget_ray_list(folder)
            checkpoint_folder.prune_checkpoints(folder)
            _fit(settings, name, functools.partial(loop, checkpoints=list_checkpoints(folder)))
        except TrainingFailedError as error:
            cause = _cause(error)
            if isinstance(cause, UserError) or not failures_left:
                raise cause from error
            failures_left -= 1
            log.info(
                "lost a worker (%s); resuming from the newest checkpoint, %d retries left "
                "(--max-failures)",
                one_line(cause)[:200],
                failures_left,
            )
            continue
        checkpoint_folder.prune_checkpoints(folder)
        return list_checkpoints(folder)[0]


def _fit(settings: TrainSettings, name: str, loop: Callable[..., LoopConfig]) -> None:
    """Train until the end or the first lost worker.

    Args:
        settings: of the stage.
        name: of the training.
        loop: makes the workers' config from their number of ``cpus`` and the ``worker_log``.
    """
    resources = cluster.elastic_resources(
        settings.num_workers, settings.device, settings.gpus_wanted
    )
    with worker_log("train") as lines:
        TorchTrainer(
            train_loop_per_worker,
            train_loop_config={"loop": loop(cpus=resources.cpus, worker_log=lines)},
            scaling_config=scaling_config(settings.num_workers, resources),
            run_config=RunConfig(
                name=name,
                storage_path=Workdir(settings.workdir).checkpoints,
                checkpoint_config=checkpointing.KEEP,
                failure_config=FailureConfig(controller_failure_limit=-1),
                logging_config=LoggingConfig(log_level="ERROR"),
                worker_runtime_env={"env_vars": KEEP_FREED_MEMORY},
            ),
        ).fit()


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
