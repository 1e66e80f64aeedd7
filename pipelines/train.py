"""Parquet shards → a trained two-tower network, logged as a model in MLflow.

Ray Train runs --num-workers workers; each holds both towers, on two GPUs of its own or on the
CPU. A run that was killed goes on from its newest checkpoint when the same command is given
again.

    python pipelines/train.py --workdir /data/work --recipe source145 --num-workers 4 --device cuda
    python pipelines/train.py --check-devices --device cuda
"""

import os
import posixpath
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from ray.train import (
    FailureConfig,
    LoggingConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer

from alexnet import storage
from alexnet.allocation import KEEP_FREED_MEMORY
from alexnet.errors import UserError, one_line
from alexnet.model.classifier import CropClassifier
from alexnet.model.towers import AlexNet
from alexnet.plots import figures
from alexnet.provenance import code_version
from alexnet.recipes import CROP_SIZE, Recipe
from alexnet.shards.format import Manifest, read_manifest
from alexnet.shards.pixel_stats import PixelStatistics, read_statistics
from alexnet.training.augment import mean_crop
from alexnet.training.checkpoint import load_position, load_weights
from pipelines import cluster, stages
from pipelines.console.cli import run_script
from pipelines.console.worker_log import worker_log
from pipelines.settings import TrainCommandSettings, TrainSettings
from pipelines.stages import Figures, Outcome, StageKey, StageRecord, run_stage
from pipelines.tracking import registry, server
from pipelines.tracking.metric_writer import MetricWriter
from pipelines.tracking.run import MetricStore, Run
from pipelines.tracking.store import Store, connect
from pipelines.training import checkpointing, device_check
from pipelines.training.state import chosen_recipe
from pipelines.training.worker import train_loop_per_worker

CODE = ("pipelines.training.worker", "alexnet.model.classifier")
"""Entry modules of the code that decides what the trained model is."""

SETTLE_SECONDS = 5.0
"""For a lost or ended worker's place to be free again."""

CURVES_SECONDS = 60
"""For what the worker left pending_metrics, if the server was away when the training ended."""


def command(settings: TrainCommandSettings) -> Mapping[str, Any]:
    """What the script does: look at the devices, or train."""
    chosen = settings.part(TrainSettings)
    return device_check.run(chosen, scaling) if settings.check_devices else run(chosen).figures


def run(settings: TrainSettings, parent: stages.Parent | None = None) -> Outcome:
    """Train on the newest shards of the workdir, or find that it has been done."""
    shards = stages.require(settings.workdir, "preprocess").figures["shards"]
    manifest = read_manifest(shards)
    settings = _resolve(settings)
    store = connect(settings)
    identity = StageKey(
        stage="train",
        settings=settings.results(),
        inputs={"shards": manifest.content_digest()[:16]},
        code=code_version(CODE, boundary=stages.BOUNDARY),
    )
    return run_stage(
        settings,
        store,
        identity,
        parent=parent,
        usable=lambda record: registry.model_exists(store, record.figures["model"]),
        work=lambda run, record: _work(settings, manifest, store, run, record),
    )


def _resolve(settings: TrainSettings) -> TrainSettings:
    """Fill in what the recipe decides, so that the run records the numbers themselves."""
    recipe = chosen_recipe(settings)
    names = ("epochs", "batch_size", "learning_rate")
    return settings.model_copy(update={name: getattr(recipe, name) for name in names})


def _work(
    settings: TrainSettings,
    manifest: Manifest,
    store: Store,
    run: Run,
    record: StageRecord,
) -> Figures:
    recipe = chosen_recipe(settings)
    run.log_json(asdict(recipe), "recipe.json")
    run.log_dataset(
        "shards", manifest.content_digest(), manifest.folder, "training", f"{manifest.digest}"
    )
    run.set_tags({"shards.digest": manifest.digest, "shards.content": manifest.content_digest()})
    result = _train(settings, manifest, store, record)
    checkpoint = result.checkpoint
    assert checkpoint
    server.wait_for(store.uri)
    with checkpoint.as_directory() as folder:
        model = AlexNet(recipe, len(manifest.labels))
        position = load_position(folder)
        load_weights(folder, model, averaged=settings.ema is not None)
    writer = MetricWriter(MetricStore(store.uri, record.run_id), position.pending_metrics)
    if left := writer.flush(CURVES_SECONDS):
        print(f"train: {left} points of the curves could not be written to MLflow", flush=True)
    statistics = read_statistics(storage.join(manifest.folder, "statistics.npz"))
    uri = _log_model(run, model, recipe, manifest, statistics)
    run.log_figure(figures.learning_curves(position.history), "learning_curves.png")
    weights = model.state_dict()
    kernels = [weights[f"towers.{i}.conv1.weight"].numpy() for i in range(recipe.towers)]
    run.log_figure(figures.first_layer_kernels(kernels), "first_layer_kernels.png")
    last = position.history[-1]
    return {
        "stage": "train",
        "images": position.epoch * manifest.rows("train"),
        "epochs": position.epoch,
        "steps": position.step,
        "images_per_second": round(last["images_per_second"], 1),
        "train_loss": round(last["train_loss"], 4),
        "val_top1_error": round(last["val_top1_error"], 3),
        "val_top5_error": round(last["val_top5_error"], 3),
        "checkpoint": storage.join(_place(settings, record), posixpath.basename(checkpoint.path)),
        "model": uri,
    }


def _train(
    settings: TrainSettings, manifest: Manifest, store: Store, record: StageRecord
) -> Result:
    """Run the Ray Train job, and again after a loss: it finds its checkpoints under its name."""
    cluster.connect()
    folder = _place(settings, record)
    place = posixpath.dirname(folder)
    if settings.force:
        storage.delete_folder(folder)
    if not storage.is_remote(place):
        os.makedirs(place, exist_ok=True)
    config = {
        "settings": settings.model_dump(),
        "shards": manifest.folder,
        "tracking_uri": store.uri,
        "run_id": record.run_id,
    }
    least, most = settings.num_workers
    run_config = RunConfig(
        name=record.key,
        storage_path=place,
        checkpoint_config=checkpointing.KEEP,
        # Of a range of workers, another number may find the place that this one waits for.
        failure_config=FailureConfig(controller_failure_limit=0 if least < most else -1),
        logging_config=LoggingConfig(log_level="ERROR"),
        worker_runtime_env={"env_vars": KEEP_FREED_MEMORY},
    )
    left = settings.max_failures
    while True:
        try:
            result = _attempt(settings, config, run_config)
        except TrainingFailedError as error:
            cause = _cause(error)
            if isinstance(cause, UserError) or not left:
                raise cause from error
            left -= 1
            print(
                f"train: lost a worker ({one_line(cause)[:200]}); going on from the newest "
                f"checkpoint, {left} more such losses to bear (--max-failures)",
                flush=True,
            )
            continue
        assert result.metrics
        assert settings.epochs
        if result.metrics["epoch"] >= settings.epochs:
            checkpointing.prune_checkpoints(result, folder)
            return result
        # Else the workers ended because there is room for more of them.


def _place(settings: TrainSettings, record: StageRecord) -> str:
    """The folder of a run's checkpoints."""
    return storage.join(settings.workdir, "training", record.key)


def _attempt(settings: TrainSettings, config: dict[str, Any], run_config: RunConfig) -> Result:
    """Train until the end or the first failure, on what the cluster has now."""
    share = _settled(settings)
    with worker_log() as log:
        return TorchTrainer(
            train_loop_per_worker,
            train_loop_config=config
            | {"threads": share.cpus, "gpus": share.gpus, "worker_log": log},
            scaling_config=scaling(share),
            run_config=run_config,
        ).fit()


def _settled(settings: TrainSettings) -> cluster.WorkerResources:
    """The workers' share, once what an earlier attempt held has had time to become free."""
    wanted = (settings.num_workers, settings.device, settings.gpus_wanted)
    until = time.monotonic() + SETTLE_SECONDS
    while (share := cluster.allocate_workers(*wanted)).workers < settings.num_workers[1]:
        if time.monotonic() > until:
            break
        time.sleep(SETTLE_SECONDS / 10)
    return share


def scaling(share: cluster.WorkerResources) -> ScalingConfig:
    """The share as Ray Train takes it: both towers' GPUs and the CPUs that feed them."""
    return ScalingConfig(
        num_workers=share.workers,
        use_gpu=share.gpus > 0,
        resources_per_worker={"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {}),
    )


def _cause(error: Exception) -> Exception:
    """The user's mistake that ended a worker, if it was one; else the error itself."""
    failures = getattr(error, "worker_failures", {}).values()
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UserError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error


def _log_model(
    run: Run,
    model: AlexNet,
    recipe: Recipe,
    manifest: Manifest,
    statistics: PixelStatistics,
) -> str:
    """Log the network, with its mean image inside, as a function of patches."""
    print("train: exporting the model", flush=True)
    mean = mean_crop(statistics.mean_image)
    middle = np.clip(mean.numpy().transpose(1, 2, 0), 0, 255).astype(np.uint8)
    facts = {
        "classes": [[label.wnid, label.name] for label in manifest.labels],
        "recipe": recipe.name,
        "shards": manifest.content_digest(),
        "patch": CROP_SIZE,
    }
    with torch.no_grad():
        return run.log_model(CropClassifier(model, mean), np.stack([middle, middle]), facts)


if __name__ == "__main__":
    run_script(TrainCommandSettings, command, __doc__)
