"""Any folder of images → predictions in Parquet, one row for each file, unreadable ones included.

A pool of Ray actors loads the registered model; other tasks read and decode. Columns: path,
status (ok or rejected), reason, and the lists labels, names and probabilities, best first.

    python pipelines/batch_inference.py --images /data/photos --output /data/predictions
"""

import math
import time
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.visible import visible_files
from pipelines import cluster
from pipelines.allocation import actor_resources, request_in_words
from pipelines.cluster import KEEP_FREED_MEMORY
from pipelines.console.cli import run_script
from pipelines.console.progress import Progress
from pipelines.console.stderr_filter import without_actor_pool_note
from pipelines.inference.actors import PREDICTIONS_SCHEMA, BatchPredictor, read_and_decode
from pipelines.results import BatchInferenceResult
from pipelines.settings import BatchInferenceSettings
from pipelines.task_errors import raise_errors
from pipelines.tracking import registry
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import Store, connect

MAX_BLOCKS = 1000
"""Blocks that the list of files is divided into; each has at least one batch."""


def run(settings: BatchInferenceSettings) -> BatchInferenceResult:
    """Predict every file below a folder."""
    started = time.monotonic()
    if not storage.is_folder(settings.images):
        raise UserError(f"{settings.images}: no such folder; correct --images")
    files = visible_files(settings.images)
    if not files:
        raise UserError(f"{settings.images}: holds no files; correct --images")
    output = storage.join(settings.output, "predictions.parquet")
    if storage.exists(output):
        raise UserError(f"{output}: exists already; give another --output or delete it")
    store = connect(settings)
    model = registry.get_model_info(store, settings.model)
    storage.make_folder(settings.output)
    run_id = open_run(store, "batch_inference", resume=None, parent=None)
    with active_run(store, run_id) as run:
        run.log_params(settings.model_dump(exclude={"tracking_uri"}))
        run.set_tags({"stage": "batch_inference", "models": model.uri})
        rejected = _predict(settings, store, model, files, output)
        seconds = time.monotonic() - started
        result = BatchInferenceResult(
            images=len(files),
            rejected=rejected,
            seconds=round(seconds, 1),
            images_per_second=round(len(files) / seconds, 1),
            predictions=output,
            model=model.uri,
        )
        run.log_metrics(result.metrics())
    return result


def _predict(
    settings: BatchInferenceSettings,
    store: Store,
    model: registry.ModelInfo,
    files: list[storage.File],
    output: str,
) -> int:
    """Write predictions as they are computed; returns the number of rejected files."""
    cluster.connect()
    resources = actor_resources(settings.num_workers, settings.device, tasks=True)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    job = (
        ray.data.from_arrow(_blocks(files, settings.batch_size))
        .map_batches(
            read_and_decode,
            fn_kwargs={"upright": settings.exif_orientation == "apply"},
            batch_size=settings.batch_size,
            batch_format="pyarrow",
            num_cpus=min(1, resources.cpus),
        )
        .map_batches(
            BatchPredictor,
            batch_size=settings.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=resources.workers),
            fn_constructor_args=(store, model, settings.top_k, settings.views, resources.threads),
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            runtime_env={"env_vars": KEEP_FREED_MEMORY},
        )
    )
    job.set_name("batch_inference")
    progress, rejected = (
        Progress(
            "batch_inference",
            len(files),
            "images",
            waiting_for=lambda: "results of " + request_in_words(resources),
        ),
        0,
    )
    with (
        storage.atomic_output(output) as file,
        pq.ParquetWriter(file, PREDICTIONS_SCHEMA) as writer,
        without_actor_pool_note(),
        progress,
    ):
        for rows in job.iter_batches(batch_size=None, batch_format="pyarrow"):
            writer.write_table(raise_errors(rows))
            rejected += rows["status"].to_pylist().count("rejected")
            progress.add(len(rows), f"{rejected} rejected")
    return rejected


def _blocks(files: list[storage.File], batch_size: int) -> list[pa.Table]:
    """The list of files in blocks of whole batches.

    ``Dataset.repartition`` would need a CPU of its own, which may not be free beside the actors.
    """
    table = pa.table({"path": [f.path for f in files], "size": [f.size for f in files]})
    batches = math.ceil(len(files) / batch_size)
    rows = batch_size * math.ceil(batches / MAX_BLOCKS)
    return [table.slice(first, rows) for first in range(0, len(files), rows)]


def main() -> NoReturn:
    """The command."""
    run_script(BatchInferenceSettings, run, __doc__)


if __name__ == "__main__":
    main()
