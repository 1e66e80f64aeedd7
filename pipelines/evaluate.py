"""A trained model → its errors on every validation image, centre view and ten views.

Each model multiplies in the precision in which it was trained and validated.
Errors have intervals of 95 % (Wilson). Several models are averaged, as the paper's five and seven
networks were.

    python pipelines/evaluate.py --workdir /data/work
    python pipelines/evaluate.py --workdir /data/work --model models:/alexnet/1 models:/alexnet/2

``--tune-coefficients on`` chooses the models' weights in the average by the errors.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import NoReturn

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from alexnet import features, predictions, storage, tuning
from alexnet.errors import UserError
from alexnet.model.precision import Precision
from alexnet.provenance import code_version
from alexnet.shards.format import write_table
from alexnet.shards.manifest import Manifest
from pipelines import cluster
from pipelines.cluster import KEEP_FREED_MEMORY
from pipelines.clusters.allocation import actor_resources, request_in_words
from pipelines.clusters.task_errors import raise_errors
from pipelines.console.cli import run_script
from pipelines.console.log import stage_logger
from pipelines.console.progress import Progress
from pipelines.console.stderr_filter import without_actor_pool_note
from pipelines.evaluation import evaluation_report as report
from pipelines.evaluation import tuned_average
from pipelines.evaluation.neighbours import neighbours_figure
from pipelines.inference.actors import Evaluator
from pipelines.results.datasets import locked_dataset
from pipelines.results.decorations import Decorated
from pipelines.results.records import StageKey, StageOutcome, newest
from pipelines.results.stage_results import EvaluateResult, PreprocessResult, TrainResult
from pipelines.settings import EvaluateSettings
from pipelines.stage_keys.stage_code import BOUNDARY, CODE
from pipelines.stage_keys.stage_inputs import evaluate_inputs
from pipelines.stages import Parent, run_stage
from pipelines.tracking import evaluations, registry
from pipelines.tracking.logged_models import log_model_metrics
from pipelines.tracking.run import Run
from pipelines.tracking.store import connect
from pipelines.workdir import Workdir


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
    for number, model in enumerate(models):
        _check_classes(model, manifest)
        if model.uri in [other.uri for other in models[:number]]:
            raise UserError(f"--model: {uris[number]} is given twice; give each model once")
    key = StageKey(
        stage="evaluate",
        settings=_averaging(settings),
        inputs=evaluate_inputs([model.uri for model in models], manifest),
        code=code_version(CODE["evaluate"], boundary=BOUNDARY),
    )
    return run_stage(
        settings,
        store,
        key,
        EvaluateResult,
        parent=parent,
        usable=lambda result: (
            storage.is_file(result.predictions)
            and (not settings.features or storage.is_file(features.beside(result.predictions)))
        ),
        work=lambda run: evaluate_models(
            settings, manifest, models, run, workdir.predictions(key.digest)
        ),
    )


def _averaging(settings: EvaluateSettings) -> dict[str, object]:
    """The settings that decide the result, if they are given."""
    names = ("coefficients", "tune_coefficients", "features")
    return {name: getattr(settings, name) for name in names if getattr(settings, name)}


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
    evaluations.tag(run, uris, content)
    precisions = {model.uri: model.precision for model in models}
    with (
        nullcontext()
        if settings.features is None
        else features.features_file(
            features.beside(path), layer=settings.features, model=uris[0]
        ) as keep
    ):
        parts = _predict(settings, manifest, precisions, run, keep)
    coefficients: Sequence[float] | None = settings.coefficients
    if settings.tune_coefficients:
        classes = len(manifest.labels)
        averaged, tuned = tuned_average.with_tuned_average(parts, len(models), classes)
        parts = [averaged]
        coefficients = tuned.coefficients
        run.set_tags({"tuned_coefficients": " ".join(map(str, coefficients))})
        line = tuned_average.in_words(tuned, manifest.rows("val"), classes)
        stage_logger("evaluate").info("%s", line)
    table = predictions.merge(
        parts,
        manifest.rows("val"),
        wnids=[label.wnid for label in manifest.labels],
        models=uris,
        validation=content,
        coefficients=coefficients,
    )
    write_table(path, table)
    evaluations.log_predictions(run, table)
    predicted = predictions.of_table(table)
    result = report.summarize(predicted, path)
    for line in report.in_words(result):
        stage_logger("evaluate").info("%s", line)
    return Decorated(
        result,
        {
            "the errors of the model": lambda: _log_model_errors(run, result),
            **report.decorations(run, manifest, predicted),
            "neighbours.png": lambda: _log_neighbours(run, models, manifest),
        },
    )


def _log_model_errors(run: Run, result: EvaluateResult) -> None:
    """Log the errors of one model; those of an average are the errors of no model."""
    if len(result.models) == 1:
        log_model_metrics(run, result.models[0], result.metrics(), "shards", result.validation)


def _log_neighbours(run: Run, models: list[registry.ModelInfo], manifest: Manifest) -> None:
    """Log the nearest images by the features of one model; those of several are not comparable."""
    if len(models) == 1:
        figure = neighbours_figure(run.store, models[0], manifest)
        run.log_figure(figure, "neighbours.png")


def _predict(
    settings: EvaluateSettings,
    manifest: Manifest,
    models: Mapping[str, Precision],
    run: Run,
    keep: Callable[[pa.Table], None] | None,
) -> list[pa.Table]:
    """The predictions for all validation row groups, by a pool of Ray actors.

    With those of each model if coefficients are to be tuned. ``keep`` takes those with features, if
    they are wanted.
    """
    cluster.connect()
    resources = actor_resources(settings.num_workers, settings.device)
    DataContext.get_current().enable_progress_bars = False
    items = [asdict(group) for group in manifest.row_groups("val")]
    job = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Evaluator,
        batch_size=1,
        compute=ActorPoolStrategy(size=resources.workers),
        fn_constructor_args=(
            run.store,
            models,
            resources.threads,
            settings.coefficients,
            settings.features,
        ),
        fn_constructor_kwargs={"by_model": settings.tune_coefficients},
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        runtime_env={"env_vars": KEEP_FREED_MEMORY},
    )
    job.set_name("evaluate")
    extra = [tuning.BY_MODEL.name] if settings.tune_coefficients else []
    tables, columns = [], predictions.SCHEMA.names + extra
    progress = Progress(
        "evaluate",
        manifest.rows("val"),
        "images",
        waiting_for=lambda: "the first results of " + request_in_words(resources),
    )
    with progress, without_actor_pool_note():
        for table in job.iter_batches(batch_size=None, batch_format="pyarrow"):
            table = raise_errors(table)
            if keep:
                keep(table)
            tables.append(table.select(columns))
            progress.add(len(table))
    return tables


def main() -> NoReturn:
    """The command."""
    run_script(EvaluateSettings, run, __doc__)


if __name__ == "__main__":
    main()
