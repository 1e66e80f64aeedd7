"""Parquet shards → a trained two-tower network, logged as a model in MLflow.

Ray Train runs --num-workers workers; each holds both towers, on two GPUs of its own or on the
CPU. A run that was killed goes on from its newest checkpoint when the same command is given
again.

    python pipelines/train.py --workdir /data/work --recipe source145 --num-workers 4 --device cuda
"""

import os
from dataclasses import asdict

import numpy as np
import torch
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer

from alexnet import checkpoints, figures, storage
from alexnet.augment import mean_patch
from alexnet.errors import UserError
from alexnet.inference import PatchClassifier
from alexnet.provenance import code_version
from alexnet.recipes import Recipe
from alexnet.shards import Manifest, read_manifest
from alexnet.statistics import Statistics, read_statistics
from alexnet.towers import PATCH, AlexNet
from pipelines import cluster, command_line, stages, terminal, tracking
from pipelines.settings import TrainSettings
from pipelines.stages import Figures, Identity, Outcome, Record, run_stage
from pipelines.train_worker import chosen_recipe, work_on_rank

CODE = (
    "alexnet.augment",
    "alexnet.averaging",
    "alexnet.batches",
    "alexnet.norms",
    "alexnet.optimizer",
    "alexnet.order",
    "alexnet.recipes",
    "alexnet.replicas",
    "alexnet.towers",
    "alexnet.training",
)


def run(settings: TrainSettings, parent: stages.Parent | None = None) -> Outcome:
    """Train on the newest shards of the workdir, or find that it has been done."""
    shards = stages.require(settings.workdir, "preprocess").figures["shards"]
    manifest = read_manifest(shards)
    settings = _resolve(settings)
    store = tracking.connect(settings)
    identity = Identity(
        stage="train",
        settings=settings.results(),
        inputs={"shards": manifest.content()[:16]},
        code=code_version(CODE),
    )
    return run_stage(
        settings,
        store,
        identity,
        parent=parent,
        usable=lambda record: tracking.model_exists(store, record.figures["model"]),
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
    store: tracking.Store,
    run: tracking.Run,
    record: Record,
) -> Figures:
    recipe = chosen_recipe(settings)
    run.json(asdict(recipe), "recipe.json")
    run.data("shards", manifest.content(), manifest.folder, "training", f"{manifest.digest}")
    run.tags({"shards.digest": manifest.digest, "shards.content": manifest.content()})
    result = _train(settings, manifest, store, record)
    assert result.checkpoint
    with result.checkpoint.as_directory() as folder:
        model = AlexNet(recipe, len(manifest.labels))
        position = checkpoints.load_position(folder)
        checkpoints.load_weights(folder, model, averaged=settings.ema is not None)
    statistics = read_statistics(storage.join(manifest.folder, "statistics.npz"))
    uri = _log_model(run, model, recipe, manifest, statistics)
    run.figure(figures.learning_curves(position.history), "learning_curves.png")
    weights = model.state_dict()
    kernels = [weights[f"towers.{i}.conv1.weight"].numpy() for i in range(recipe.towers)]
    run.figure(figures.first_layer_kernels(kernels), "first_layer_kernels.png")
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
        "checkpoint": result.checkpoint.path,
        "model": uri,
    }


def _train(
    settings: TrainSettings, manifest: Manifest, store: tracking.Store, record: Record
) -> Result:
    """Run the Ray Train job; it finds its own checkpoints under its name."""
    cluster.connect()
    each = min(settings.gpus_per_worker, settings.towers)
    gpus = cluster.choose_gpus(settings.device, settings.num_workers, each)
    cpus = cluster.cpus_for(settings.num_workers, gpus)
    place = storage.join(settings.workdir, "training")
    if settings.force:
        storage.delete_folder(storage.join(place, record.key))
    if not storage.is_remote(place):
        os.makedirs(place, exist_ok=True)
    config = {
        "settings": settings.model_dump(),
        "shards": manifest.folder,
        "tracking_uri": store.uri,
        "run_id": record.run_id,
        "threads": cpus,
    }
    run_config = RunConfig(
        name=record.key,
        storage_path=place,
        failure_config=FailureConfig(max_failures=settings.max_failures),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
        logging_config=LoggingConfig(log_level="ERROR"),
    )
    try:
        with terminal.board() as board:
            return TorchTrainer(
                work_on_rank,
                train_loop_config=config | {"board": board},
                scaling_config=scaling(settings.num_workers, gpus, cpus),
                run_config=run_config,
            ).fit()
    except TrainingFailedError as error:
        raise _cause(error) from error


def scaling(workers: int, gpus: int, cpus: int) -> ScalingConfig:
    """What each worker gets to itself: both towers' GPUs and the CPUs that feed them."""
    return ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
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
    run: tracking.Run,
    model: AlexNet,
    recipe: Recipe,
    manifest: Manifest,
    statistics: Statistics,
) -> str:
    """Log the network, with its mean image inside, as a function of patches."""
    print("train: exporting the model", flush=True)
    mean = mean_patch(statistics.mean_image)
    middle = np.clip(mean.numpy().transpose(1, 2, 0), 0, 255).astype(np.uint8)
    facts = {
        "classes": [[label.wnid, label.name] for label in manifest.labels],
        "recipe": recipe.name,
        "shards": manifest.content(),
        "patch": PATCH,
    }
    with torch.no_grad():
        return run.model(PatchClassifier(model, mean), np.stack([middle, middle]), facts)


if __name__ == "__main__":
    command_line.script(TrainSettings, lambda settings: run(settings).figures, __doc__)
