"""A trained model → its errors on every validation image, centre view and ten views.

Several models are averaged, as the paper's five and seven networks were.

    python pipelines/evaluate.py --workdir /data/work
    python pipelines/evaluate.py --workdir /data/work --model models:/alexnet/1 models:/alexnet/2
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext

from alexnet import storage
from alexnet.errors import UserError
from alexnet.metrics import ErrorCounts, confusion, count_errors
from alexnet.plots import figures
from alexnet.provenance import code_version
from alexnet.shards.codec import read_images
from alexnet.shards.format import write_table
from alexnet.shards.manifest import Manifest
from pipelines import cluster, stages
from pipelines.allocation import actor_resources, request_in_words
from pipelines.cluster import KEEP_FREED_MEMORY
from pipelines.console.cli import run_script
from pipelines.console.log import stage_logger
from pipelines.console.progress import Progress
from pipelines.console.stderr_filter import without_actor_pool_note
from pipelines.datasets import locked_dataset
from pipelines.decorations import Decorated, Decorations
from pipelines.inference.actors import Evaluator
from pipelines.records import StageKey, StageOutcome, newest
from pipelines.results import EvaluateResult, PreprocessResult, TrainResult
from pipelines.settings import EvaluateSettings
from pipelines.stages import Parent, run_stage
from pipelines.task_errors import raise_errors
from pipelines.tracking import registry
from pipelines.tracking.run import Run
from pipelines.tracking.store import connect
from pipelines.workdir import Workdir

CODE = ("pipelines.inference.actors", "alexnet.metrics")
"""Entry modules of the code that decides what the errors are."""

PANEL_IMAGES = 8
"""Images in the figure of predictions."""


def run(
    settings: EvaluateSettings,
    parent: Parent | None = None,
    preprocessed: StageOutcome[PreprocessResult] | None = None,
    trained: StageOutcome[TrainResult] | None = None,
) -> StageOutcome[EvaluateResult]:
    """Evaluate the given models or a trained one, by default the newest, unless it was done."""
    with locked_dataset(settings, "evaluate", preprocessed) as manifest:
        return _run(settings, parent, manifest, trained)


def _run(
    settings: EvaluateSettings,
    parent: Parent | None,
    manifest: Manifest,
    trained: StageOutcome[TrainResult] | None,
) -> StageOutcome[EvaluateResult]:
    workdir = Workdir(settings.workdir)
    if trained is None and not settings.model:
        trained = newest(workdir, TrainResult, "evaluate")
    store = connect(settings)
    uris = settings.model or ([trained.result.model] if trained else [])
    models = [registry.get_model_info(store, uri) for uri in uris]
    for model in models:
        _check_classes(model, manifest)
    key = StageKey(
        stage="evaluate",
        settings={},
        inputs={
            "models": " ".join(model.uri for model in models),
            "validation": manifest.content_digest("val")[:16],
        },
        code=code_version(CODE, boundary=stages.BOUNDARY),
    )
    return run_stage(
        settings,
        store,
        key,
        EvaluateResult,
        parent=parent,
        usable=lambda result: storage.is_file(result.predictions),
        work=lambda run: evaluate_models(
            settings, manifest, models, run, workdir.predictions(key.digest)
        ),
    )


def _check_classes(model: registry.ModelInfo, manifest: Manifest) -> None:
    known = [wnid for wnid, _ in model.classes]
    if known != [label.wnid for label in manifest.labels]:
        raise UserError(
            f"{model.uri} was trained on {len(known)} other classes than the "
            f"{len(manifest.labels)} of {manifest.folder}; give a --model trained on these"
        )


def evaluate_models(
    settings: EvaluateSettings,
    manifest: Manifest,
    models: list[registry.ModelInfo],
    run: Run,
    path: str,
) -> Decorated[EvaluateResult]:
    """Predict all validation images and write the predictions to ``path``."""
    content = manifest.content_digest("val")
    uris = [model.uri for model in models]
    predictions = _predict(settings, manifest, uris, run)
    assert len(predictions) == manifest.rows("val")
    assert len(predictions["key"].unique()) == len(predictions)
    write_table(path, predictions)
    centre, ten = _errors(predictions, "centre_labels"), _errors(predictions, "labels")
    result = EvaluateResult(
        images=ten.images,
        top1_error=round(ten.top1_error, 3),
        top5_error=round(ten.top5_error, 3),
        centre_top1_error=round(centre.top1_error, 3),
        centre_top5_error=round(centre.top5_error, 3),
        top1_accuracy=round(100 - ten.top1_error, 3),
        models=uris,
        validation=content,
        predictions=path,
    )
    stage_logger("evaluate").info(
        "%s images, error %.2f %% top-1 and %.2f %% top-5 with ten views "
        "(%.2f %% and %.2f %% with the centre view)",
        f"{ten.images:,}",
        ten.top1_error,
        ten.top5_error,
        centre.top1_error,
        centre.top5_error,
    )
    return Decorated(result, _decorations(run, manifest, predictions, result))


def _predict(settings: EvaluateSettings, manifest: Manifest, uris: list[str], run: Run) -> pa.Table:
    """The predictions for all validation row groups, by a pool of Ray actors; sorted by key."""
    cluster.connect()
    resources = actor_resources(settings.num_workers, settings.device, tasks=False)
    DataContext.get_current().enable_progress_bars = False
    items = [asdict(group) for group in manifest.row_groups("val")]
    job = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Evaluator,
        batch_size=1,
        compute=ActorPoolStrategy(size=resources.workers),
        fn_constructor_args=(run.store, uris, resources.threads),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        runtime_env={"env_vars": KEEP_FREED_MEMORY},
    )
    job.set_name("evaluate")
    tables = []
    progress = Progress(
        "evaluate",
        manifest.rows("val"),
        "images",
        waiting_for=lambda: "results of " + request_in_words(resources),
    )
    with without_actor_pool_note(), progress:
        for table in job.iter_batches(batch_size=None, batch_format="pyarrow"):
            tables.append(raise_errors(table))
            progress.add(len(table))
    return pa.concat_tables(tables).sort_by("key")


def _errors(predictions: pa.Table, column: str) -> ErrorCounts:
    """The errors of the best labels in one column."""
    best_labels = np.stack(predictions[column].to_numpy())
    return count_errors(best_labels, predictions["label"].to_numpy())


def _decorations(
    run: Run, manifest: Manifest, predictions: pa.Table, result: EvaluateResult
) -> Decorations:
    models = " ".join(result.models)
    return {
        "the validation images": lambda: run.log_dataset(
            "shards", result.validation, manifest.folder, "validation", "val split"
        ),
        "the tags": lambda: run.set_tags(
            {"validation.content": result.validation, "models": models}
        ),
        "confusion_matrix.png": lambda: _log_confusion(run, manifest, predictions),
        "predictions.png": lambda: _log_panel(run, manifest, predictions),
    }


def _log_confusion(run: Run, manifest: Manifest, predictions: pa.Table) -> None:
    names = [label.name for label in manifest.labels]
    best = np.stack(predictions["labels"].to_numpy())
    counts = confusion(predictions["label"].to_numpy(), best[:, 0], len(names))
    run.log_figure(figures.confusion_matrix(counts, names), "confusion_matrix.png")


def _log_panel(run: Run, manifest: Manifest, predictions: pa.Table) -> None:
    names = [label.name for label in manifest.labels]
    with ThreadPoolExecutor(2) as decoders:
        rows, images = read_images(manifest.row_groups("val")[0], ["key"], decoders)
    keys = rows["key"][:PANEL_IMAGES]
    shown = predictions.take(pc.index_in(keys, predictions["key"])).to_pylist()
    best_names = [
        [(names[k], p) for k, p in zip(row["labels"], row["probabilities"], strict=True)]
        for row in shown
    ]
    true_names = [names[row["label"]] for row in shown]
    panel = figures.predictions_panel(images[:PANEL_IMAGES], true_names, best_names)
    run.log_figure(panel, "predictions.png")


def main() -> NoReturn:
    """The command."""
    run_script(EvaluateSettings, run, __doc__)


if __name__ == "__main__":
    main()
