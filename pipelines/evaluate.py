"""A trained model → its errors on every validation image, centre view and ten views.

Several models are averaged, as the paper's five and seven networks were.

    python pipelines/evaluate.py --workdir /data/work
    python pipelines/evaluate.py --workdir /data/work --model models:/alexnet/1 models:/alexnet/2
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext

from alexnet import storage
from alexnet.allocation import KEEP_FREED_MEMORY
from alexnet.errors import UserError
from alexnet.metrics import Errors, average, confusion, top_labels
from alexnet.plots import figures
from alexnet.provenance import code_version
from alexnet.shards.codec import decode_images
from alexnet.shards.format import Manifest, RowGroup, read_manifest, read_row_group, write_table
from alexnet.training.augment import CENTRE_VIEW
from pipelines import cluster, stages
from pipelines.console.cli import run_script
from pipelines.console.progress import Progress
from pipelines.inference.predictor import Predictor
from pipelines.settings import EvaluateSettings
from pipelines.stages import Figures, Outcome, StageKey, StageRecord, run_stage
from pipelines.tracking import registry
from pipelines.tracking.run import Run
from pipelines.tracking.store import Store, connect

CODE = ("pipelines.inference.predictor", "alexnet.metrics")
"""Entry modules of the code that decides what the errors are."""
PANEL = 8


def run(settings: EvaluateSettings, parent: stages.Parent | None = None) -> Outcome:
    """Evaluate the newest trained model or those given, or find that it has been done."""
    manifest = read_manifest(stages.require(settings.workdir, "preprocess").figures["shards"])
    store = connect(settings)
    uris = settings.model or [stages.require(settings.workdir, "train").figures["model"]]
    models = [registry.get_model_info(store, uri) for uri in uris]
    for model in models:
        _check_classes(model, manifest)
    identity = StageKey(
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
        identity,
        parent=parent,
        usable=lambda record: storage.is_file(record.figures["predictions"]),
        work=lambda run, record: _work(settings, manifest, models, store, run, record),
    )


def _check_classes(model: registry.ModelInfo, manifest: Manifest) -> None:
    known = [wnid for wnid, _ in model.classes]
    if known != [label.wnid for label in manifest.labels]:
        raise UserError(
            f"{model.uri} was trained on {len(known)} other classes than the "
            f"{len(manifest.labels)} of {manifest.folder}; give a --model trained on these"
        )


def _work(
    settings: EvaluateSettings,
    manifest: Manifest,
    models: list[registry.ModelInfo],
    store: Store,
    run: Run,
    record: StageRecord,
) -> Figures:
    run.log_dataset(
        "shards", manifest.content_digest("val"), manifest.folder, "validation", "val split"
    )
    run.set_tags({"validation.content": manifest.content_digest("val")})
    run.set_tags({"models": " ".join(model.uri for model in models)})
    predictions = _predict(settings, manifest, [model.uri for model in models], store)
    assert len(predictions) == manifest.rows("val")
    assert len(predictions["key"].unique()) == len(predictions)
    path = storage.join(settings.workdir, "evaluations", record.key, "predictions.parquet")
    write_table(path, predictions)
    centre, ten = _errors(predictions, "centre_labels"), _errors(predictions, "labels")
    result = {
        "stage": "evaluate",
        "images": ten.images,
        "top1_error": round(ten.top1_error, 3),
        "top5_error": round(ten.top5_error, 3),
        "centre_top1_error": round(centre.top1_error, 3),
        "centre_top5_error": round(centre.top5_error, 3),
        "top1_accuracy": round(100 - ten.top1_error, 3),
    }
    run.log_metrics({k: v for k, v in result.items() if isinstance(v, int | float)})
    _draw(run, manifest, predictions)
    print(
        f"evaluate: {ten.images:,} images, error {ten.top1_error:.2f} % top-1 and "
        f"{ten.top5_error:.2f} % top-5 with ten views ({centre.top1_error:.2f} % and "
        f"{centre.top5_error:.2f} % with the centre view)",
        flush=True,
    )
    return result | {
        "models": [model.uri for model in models],
        "validation": manifest.content_digest("val"),
        "predictions": path,
    }


def _predict(
    settings: EvaluateSettings, manifest: Manifest, uris: list[str], store: Store
) -> pa.Table:
    """Run the models over all validation row groups on a pool of Ray actors."""
    cluster.connect()
    share = cluster.allocate_workers(settings.num_workers, settings.device, 1)
    DataContext.get_current().enable_progress_bars = False
    groups = manifest.row_groups("val")
    items = [{"path": g.path, "number": g.number, "rows": g.rows} for g in groups]
    job = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        EvaluateGroups,
        batch_size=1,
        compute=ActorPoolStrategy(size=share.workers),
        fn_constructor_args=(store, uris, share.cpus),
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        runtime_env={"env_vars": KEEP_FREED_MEMORY},
    )
    job.set_name("evaluate")
    progress = Progress("evaluate", manifest.rows("val"), "images")
    tables = []
    for table in job.iter_batches(batch_size=None, batch_format="pyarrow"):
        tables.append(table)
        progress.add(len(table))
    progress.end()
    return pa.concat_tables(tables).sort_by("key")


class EvaluateGroups:
    """The Ray Data actor: row groups of the validation split in, one row for each image out."""

    def __init__(self, store: Store, uris: list[str], threads: int) -> None:
        self.predictor = Predictor.load(store, uris, threads)
        self.decoders = ThreadPoolExecutor(threads)

    def __call__(self, items: Mapping[str, NDArray[Any]]) -> pa.Table:
        """One row group: ``path``, ``number``, ``rows``."""
        group = RowGroup(str(items["path"][0]), int(items["number"][0]), int(items["rows"][0]))
        rows = read_row_group(group, ["key", "label", "image"])
        stored = [image.as_buffer() for image in rows["image"]]
        by_view = self.predictor.views(decode_images(stored, self.decoders))
        ten, centre = average(list(by_view)), by_view[CENTRE_VIEW]
        best = top_labels(ten)
        return pa.table(
            {
                "key": rows["key"],
                "label": rows["label"],
                "labels": list(best),
                "probabilities": list(np.take_along_axis(ten, best, axis=1)),
                "centre_labels": list(top_labels(centre)),
            }
        )


def _errors(predictions: pa.Table, column: str) -> Errors:
    """Errors from the best labels of each image."""
    labels = predictions["label"].to_numpy()
    hits = np.stack(predictions[column].to_numpy()) == labels[:, None]
    return Errors(len(labels), math.nan, int((~hits[:, 0]).sum()), int((~hits.any(1)).sum()))


def _draw(run: Run, manifest: Manifest, predictions: pa.Table) -> None:
    names = [label.name for label in manifest.labels]
    labels = predictions["label"].to_numpy()
    best = np.stack(predictions["labels"].to_numpy())
    counts = confusion(labels, best[:, 0], len(names))
    run.log_figure(figures.confusion_matrix(counts, names), "confusion_matrix.png")
    rows = read_row_group(manifest.row_groups("val")[0], ["key", "image"]).slice(0, PANEL)
    with ThreadPoolExecutor(2) as decoders:
        images = decode_images([image.as_buffer() for image in rows["image"]], decoders)
    shown = predictions.take(pc.index_in(rows["key"], predictions["key"])).to_pylist()
    top = [
        [(names[k], p) for k, p in zip(row["labels"], row["probabilities"], strict=True)]
        for row in shown
    ]
    truths = [names[row["label"]] for row in shown]
    run.log_figure(figures.predictions_panel(images, truths, top), "predictions.png")


if __name__ == "__main__":
    run_script(EvaluateSettings, lambda settings: run(settings).figures, __doc__)
