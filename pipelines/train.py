"""Parquet shards → a trained two-tower network, logged as a model in MLflow.

Ray Train runs --num-workers workers; each holds both towers, on two GPUs of its own or on the
CPU. A run that was killed resumes from its newest checkpoint when the same command is given
again.

    python pipelines/train.py --workdir /data/work --recipe source145 --num-workers 4 --device cuda
    python pipelines/train.py --check-devices --device cuda
"""

from dataclasses import asdict
from typing import NoReturn

import numpy as np
import torch

from alexnet import storage
from alexnet.model.classifier import CropClassifier
from alexnet.model.towers import AlexNet
from alexnet.plots import figures
from alexnet.provenance import code_version
from alexnet.recipes import CROP_SIZE, Recipe
from alexnet.shards.manifest import Manifest
from alexnet.training.checkpoint import load_train_state, load_weights, read_mean
from pipelines.console.cli import Summary, run_script
from pipelines.console.log import stage_logger
from pipelines.console.watchdog import Watchdog
from pipelines.preprocessing.source import is_sample
from pipelines.presets import describe, resolve_preset
from pipelines.results.datasets import locked_dataset
from pipelines.results.decorations import Decorated
from pipelines.results.records import StageKey, StageOutcome
from pipelines.results.stage_results import PreprocessResult, TrainResult
from pipelines.settings import TrainCommandSettings, TrainSettings
from pipelines.stage_keys.stage_code import BOUNDARY, CODE
from pipelines.stage_keys.stage_inputs import train_inputs
from pipelines.stages import Parent, run_stage
from pipelines.tracking import registry, server
from pipelines.tracking.logged_models import log_model_params
from pipelines.tracking.metric_writer import MetricWriter
from pipelines.tracking.run import MetricStore, Run
from pipelines.tracking.store import connect
from pipelines.training import device_check
from pipelines.training.checkpoint_folder import open_checkpoint
from pipelines.training.initial_weights import read_initial_weights
from pipelines.training.job import train_to_the_end
from pipelines.training.recipe import resolve_recipe, with_recipe_numbers
from pipelines.workdir import Workdir

FLUSH_TIMEOUT_S = 60
"""For the metrics that the workers could not write, if the server was away at the end."""


def command(settings: TrainCommandSettings) -> Summary:
    """What the options request: a check of the devices, or a training."""
    stage_settings = settings.part(TrainSettings)
    if settings.check_devices:
        # No shards are needed; the default data set is the sample.
        return device_check.run(resolve_preset(stage_settings, of_sample=True))
    return run(stage_settings)


def run(
    settings: TrainSettings,
    parent: Parent | None = None,
    preprocessed: StageOutcome[PreprocessResult] | None = None,
) -> StageOutcome[TrainResult]:
    """Train on a data set, by default the workdir's newest, unless it has been done."""
    with locked_dataset(settings, "train", preprocessed) as manifest:
        return _run(settings, parent, manifest)


def _run(
    settings: TrainSettings, parent: Parent | None, manifest: Manifest
) -> StageOutcome[TrainResult]:
    settings = resolve_preset(settings, of_sample=is_sample(manifest))
    recipe = resolve_recipe(settings)
    stage_logger("train").info("%s", _numbers(settings, recipe))
    settings = with_recipe_numbers(settings, recipe)
    source = settings.init_from
    initial = read_initial_weights(source, recipe, len(manifest.labels)) if source else None
    store = connect(settings)
    key = StageKey(
        stage="train",
        # The content decides, not its path.
        settings=settings.results() | ({"init_from": initial.digest} if initial else {}),
        inputs=train_inputs(manifest),
        code=code_version(CODE["train"], boundary=BOUNDARY),
    )

    def work(run: Run) -> Decorated[TrainResult]:
        checkpoint = train_to_the_end(
            settings,
            recipe,
            shards=manifest.folder,
            tracking_uri=store.uri,
            run_id=run.run_id,
            name=key.digest,
            initial=initial,
        )
        return log_model_and_curves(settings, recipe, manifest, run, checkpoint)

    return run_stage(
        settings,
        store,
        key,
        TrainResult,
        parent=parent,
        usable=lambda result: registry.model_exists(store, result.model),
        work=work,
        discard=lambda: storage.delete_folder(
            storage.join(Workdir(settings.workdir).checkpoints, key.digest)
        ),
    )


def _numbers(settings: TrainSettings, recipe: Recipe) -> str:
    """The numbers of the training, and what set them."""
    names = ("epochs", "batch_size", "learning_rate")
    values = {"recipe": recipe.name} | {name: getattr(recipe, name) for name in names}
    if settings.lr_drops:
        values["lr_drops"] = " ".join(map(str, settings.lr_drops))
    return describe(settings, values, default=f"recipe {recipe.name}")


def _log_inputs(run: Run, manifest: Manifest) -> None:
    content = manifest.content_digest()
    run.log_dataset("shards", content, manifest.folder, "training", manifest.plan_digest)
    run.set_tags({"shards.digest": manifest.plan_digest, "shards.content": content})


def log_model_and_curves(
    settings: TrainSettings,
    recipe: Recipe,
    manifest: Manifest,
    run: Run,
    checkpoint: str,
) -> Decorated[TrainResult]:
    """Log the last metrics of the curves and the model of the last checkpoint."""
    server.wait_for(run.store.uri)
    with open_checkpoint(checkpoint).as_directory() as folder:
        network = AlexNet(recipe, len(manifest.labels))
        state = load_train_state(folder)
        load_weights(folder, network, averaged=settings.ema is not None)
        mean = read_mean(folder)
    writer = MetricWriter(MetricStore(run.store.uri, run.run_id), state.pending_metrics)
    if pending := writer.flush(FLUSH_TIMEOUT_S):
        stage_logger("train").info("%d metrics could not be written to MLflow", pending)
    model = _log_model(run, CropClassifier(network, mean), settings, manifest)
    last = state.history[-1]
    result = TrainResult(
        images=state.epoch * manifest.rows("train"),
        epochs=state.epoch,
        steps=state.step,
        images_per_second=round(last["images_per_second"], 1),
        train_loss=round(last["train_loss"], 4),
        val_top1_error=round(last["val_top1_error"], 3),
        val_top5_error=round(last["val_top5_error"], 3) if "val_top5_error" in last else None,
        checkpoint=checkpoint,
        model=model,
    )
    weights = network.state_dict()
    kernels = [weights[f"towers.{i}.conv1.weight"].numpy() for i in range(recipe.towers)]
    return Decorated(
        result,
        {
            "the shards": lambda: _log_inputs(run, manifest),
            "the model's parameters": lambda: log_model_params(
                run, model, _model_params(settings, recipe, manifest)
            ),
            "recipe.json": lambda: run.log_json(asdict(recipe), "recipe.json"),
            "learning_curves.png": lambda: run.log_figure(
                figures.learning_curves(state.history), "learning_curves.png"
            ),
            "first_layer_kernels.png": lambda: run.log_figure(
                figures.first_layer_kernels(kernels), "first_layer_kernels.png"
            ),
        },
    )


def _model_params(settings: TrainSettings, recipe: Recipe, manifest: Manifest) -> dict[str, object]:
    """By what versions are told apart on the Models page."""
    return {
        "recipe": recipe.name,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "seed": settings.seed,
        "shards": manifest.content_digest()[:16],
    }


def _log_model(
    run: Run, classifier: CropClassifier, settings: TrainSettings, manifest: Manifest
) -> str:
    """Log the network and its mean image as a function of crops; returns the model's URI."""
    stage_logger("train").info("exporting the model")
    example = np.clip(classifier.mean.numpy().transpose(1, 2, 0), 0, 255).astype(np.uint8)
    metadata = {
        "classes": [[label.wnid, label.name] for label in manifest.labels],
        "recipe": classifier.network.recipe.name,
        "precision": settings.precision,
        "shards": manifest.content_digest(),
        "crop_size": CROP_SIZE,
    }
    with torch.no_grad(), Watchdog("train", lambda: "exporting the model"):
        return run.log_model(classifier, np.stack([example, example]), metadata)


def main() -> NoReturn:
    """The command."""
    run_script(TrainCommandSettings, command, __doc__)


if __name__ == "__main__":
    main()
