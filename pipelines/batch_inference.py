"""Any folder of images → predictions in Parquet, one row for each file, unreadable ones included.

A pool of Ray actors loads the registered model; other tasks read and decode. Columns: path,
status (ok or rejected), reason, and the lists labels, names and probabilities, best first.

    python pipelines/batch_inference.py --images /data/photos --output /data/predictions
"""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext

from alexnet import storage
from alexnet.allocation import KEEP_FREED_MEMORY
from alexnet.errors import UserError, one_line
from alexnet.metrics import average, top_labels
from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.decode import Decoded, decode
from pipelines import cluster
from pipelines.console.cli import run_script
from pipelines.console.progress import Progress
from pipelines.inference.predictor import Predictor
from pipelines.settings import BatchInferenceSettings
from pipelines.stages import Figures
from pipelines.tracking import registry
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import Store, connect

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("names", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
    ]
)


def run(settings: BatchInferenceSettings) -> Figures:
    """Label every file below a folder."""
    begun = time.monotonic()
    if not storage.is_folder(settings.images):
        raise UserError(f"{settings.images}: no such folder; correct --images")
    files = _visible(settings.images)
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
        seconds = time.monotonic() - begun
        figures = {
            "images": len(files),
            "rejected": rejected,
            "seconds": round(seconds, 1),
            "images_per_second": round(len(files) / seconds, 1),
        }
        run.log_metrics(figures)
    return {"stage": "batch_inference", **figures, "predictions": output, "model": model.uri}


def _visible(folder: str) -> list[storage.File]:
    """Every file that no part of whose path below the folder is hidden."""
    return [
        file
        for file in storage.list_files(folder)
        if not any(part.startswith(".") for part in file.path[len(folder) :].split("/"))
    ]


def _predict(
    settings: BatchInferenceSettings,
    store: Store,
    model: registry.ModelInfo,
    files: list[storage.File],
    output: str,
) -> int:
    """Run the job, writing predictions as they come; returns the number of rejected files."""
    cluster.connect()
    # One CPU stays free for the tasks that read and decode.
    workers = (settings.num_workers, settings.num_workers)
    share = cluster.allocate_workers(workers, settings.device, 1, reserve=1)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    table = pa.table({"path": [f.path for f in files], "size": [f.size for f in files]})
    job = (
        ray.data.from_arrow(table)
        .repartition(max(1, min(len(files) // settings.batch_size, 1000)))
        .map_batches(read_and_decode, batch_size=settings.batch_size, batch_format="pyarrow")
        .map_batches(
            BatchPredictor,
            batch_size=settings.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=share.workers),
            fn_constructor_args=(
                store,
                model,
                settings.top_k,
                settings.views,
                share.cpus,
            ),
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            runtime_env={"env_vars": KEEP_FREED_MEMORY},
        )
    )
    job.set_name("batch_inference")
    progress, rejected = Progress("batch_inference", len(files), "images"), 0
    with storage.atomic_output(output) as file, pq.ParquetWriter(file, SCHEMA) as writer:
        for rows in job.iter_batches(batch_size=None, batch_format="pyarrow"):
            writer.write_table(rows.cast(SCHEMA))
            rejected += rows["status"].to_pylist().count("rejected")
            progress.add(len(rows), f"{rejected} rejected")
    progress.end()
    return rejected


def read_and_decode(files: pa.Table) -> pa.Table:
    """Paths and sizes → 256x256 pixels, or the reason why there are none."""
    pixels: list[bytes | None] = []
    reasons: list[str | None] = []
    for path, size in zip(files["path"].to_pylist(), files["size"].to_pylist(), strict=True):
        try:
            found = decode(storage.read_range(path, 0, size))
        except (OSError, EOFError) as error:
            pixels.append(None)
            reasons.append(f"unreadable: {one_line(error)}")
            continue
        if isinstance(found, Decoded):
            pixels.append(found.pixels.tobytes())
            reasons.append(None)
        else:
            pixels.append(None)
            reasons.append(f"{found.reason}: {found.detail}")
    return pa.table(
        {
            "path": files["path"],
            "reason": pa.array(reasons, pa.string()),
            "pixels": pa.array(pixels, pa.binary()),
        }
    )


class BatchPredictor:
    """The Ray Data actor: decoded images in, predictions out."""

    def __init__(
        self,
        store: Store,
        model: registry.ModelInfo,
        top_k: int,
        views: int,
        threads: int,
    ) -> None:
        self.predictor = Predictor.load(store, [model.uri], threads)
        self.names = np.array([name for _, name in model.classes], dtype=object)
        self.top_k, self.views = top_k, views

    def __call__(self, rows: pa.Table) -> pa.Table:
        """``path``, ``reason`` and ``pixels`` → ``SCHEMA``."""
        readable = rows["pixels"].is_valid().to_numpy()
        images = [
            np.frombuffer(pixels.as_buffer(), np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE, 3)
            for pixels in rows["pixels"]
            if pixels.is_valid
        ]
        found = iter(self._label(np.stack(images)) if images else [])
        columns = [next(found) if ok else ([], [], []) for ok in readable]
        return pa.table(
            {
                "path": rows["path"],
                "status": ["ok" if ok else "rejected" for ok in readable],
                "reason": rows["reason"],
                "labels": [labels for labels, _, _ in columns],
                "names": [names for _, names, _ in columns],
                "probabilities": [chances for _, _, chances in columns],
            },
            schema=SCHEMA,
        )

    def _label(self, images: NDArray[np.uint8]) -> list[tuple[Any, Any, Any]]:
        probabilities = average(list(self.predictor.views(images, self.views)))
        best = top_labels(probabilities, self.top_k)
        chances = np.take_along_axis(probabilities, best, axis=1)
        return list(zip(best, self.names[best], chances, strict=True))


if __name__ == "__main__":
    run_script(BatchInferenceSettings, run, __doc__)
