"""Raw images → 256x256 Parquet shards with a manifest, rejects and statistics.

Reads the official ILSVRC2012 archives in place, Kaggle's form or {train,val}/<class>/ folders.
Every task of the Ray Data job makes one shard; a run that was killed goes on with the missing
ones. The result lies in <workdir>/shards/<digest>/.

    python pipelines/preprocess.py --source /data/ilsvrc2012 --workdir /data/work
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
from ray.data import DataContext

from alexnet import figures, sample, sharding, shards, storage
from alexnet.errors import UserError
from alexnet.images import decode_stored
from alexnet.sharding import Encoding, Unit
from alexnet.shards import SPLITS, Manifest
from alexnet.sources import Source, read_source
from alexnet.statistics import read_statistics
from pipelines import cluster, command_line, imagenette, stages, tracking
from pipelines.progress import Progress
from pipelines.settings import PreprocessSettings
from pipelines.stages import Figures, Identity, Outcome, Record, code_version, run_stage

CODE = (
    "alexnet.archives",
    "alexnet.images",
    "alexnet.index",
    "alexnet.labels",
    "alexnet.sharding",
    "alexnet.shards",
    "alexnet.sources",
    "alexnet.statistics",
)
CONTACT_SHEET = 40


def run(settings: PreprocessSettings, parent: stages.Parent | None = None) -> Outcome:
    """Preprocess, or find that it has been done."""
    storage.make_folder(settings.workdir)
    place = _source_place(settings)
    source = read_source(place)
    store = tracking.connect(settings)
    identity = Identity(
        stage="preprocess",
        settings=settings.results(),
        inputs={"source": place, "files": source.fingerprint[:16]},
        code=code_version(CODE),
    )
    return run_stage(
        settings,
        store,
        identity,
        parent=parent,
        usable=lambda record: storage.is_file(_manifest_path(record.figures["shards"])),
        work=lambda run, record: _work(settings, place, source, run, record),
    )


def _source_place(settings: PreprocessSettings) -> str:
    """The source given, or the preset's own."""
    if settings.source:
        if not storage.exists(settings.source):
            raise UserError(f"{settings.source}: no such folder; correct --source")
        return settings.source
    if settings.preset == "sample":
        place = storage.join(settings.workdir, "sample")
        sample.write_sample(place)
        return place
    if settings.preset == "imagenette":
        return imagenette.fetch(settings.workdir)
    raise UserError(
        "--source is required with --preset ilsvrc2012: the folder with the official archives, "
        "which image-net.org gives to registered users"
    )


def _work(
    settings: PreprocessSettings,
    place: str,
    source: Source,
    run: tracking.Run,
    record: Record,
) -> Figures:
    digest = sharding.plan_digest(source, settings.results())
    folder = storage.join(settings.workdir, "shards", digest)
    run.tags({"shards.digest": digest})
    run.data(place, source.fingerprint, place, "raw images", f"form: {source.form}")
    units = _prepare(settings, folder, source, record)
    missing = [unit for unit in units if not sharding.is_done(unit)]
    seconds = _make_shards(units, missing)
    manifest = sharding.assemble(
        folder,
        units,
        digest=digest,
        source=place,
        form=source.form,
        settings=settings.results(),
        labels=source.labels,
    )
    made = sum(unit.rows for unit in missing)
    result = {
        "stage": "preprocess",
        "images": sum(manifest.rows(split) for split in SPLITS),
        "train_images": manifest.rows("train"),
        "val_images": manifest.rows("val"),
        "classes": len(manifest.labels),
        "rejected": sum(manifest.rejected.values()),
        "shards_made": len(missing),
        "shards_kept": len(units) - len(missing),
        "images_per_second": round(made / seconds, 1) if missing else 0.0,
        "bytes": sum(s.bytes for split in SPLITS for s in manifest.shards[split]),
        "digest": digest,
        "shards": folder,
    }
    _document(run, manifest, result)
    return result


def _prepare(
    settings: PreprocessSettings, folder: str, source: Source, record: Record
) -> list[Unit]:
    """Write the plan; keep finished shards only if they were made from the same files and code."""
    origin = {"files": source.fingerprint, "code": record.code}
    origin_path = storage.join(folder, "parts", "origin.json")
    unfinished = storage.is_file(origin_path) and storage.read_json(origin_path) == origin
    if settings.force or not unfinished:
        storage.delete_folder(folder)
    encoding = Encoding(kind=settings.encoding, jpeg_quality=settings.jpeg_quality)
    units = sharding.write_plan(folder, source, encoding, settings.rows_per_shard, settings.seed)
    storage.write_json(origin_path, origin)
    return units


def _make_shards(units: list[Unit], missing: list[Unit]) -> float:
    """Run the Ray Data job over the units that are not done; returns its seconds."""
    kept = len(units) - len(missing)
    if kept:
        print(f"preprocess: {kept} of {len(units)} shards are there from an earlier run")
    if not missing:
        return 0.0
    cluster.connect()
    DataContext.get_current().enable_progress_bars = False
    begun = time.monotonic()
    progress = Progress("preprocess", sum(unit.rows for unit in missing), "images")
    items = [{"unit": asdict(unit)} for unit in missing]
    job = ray.data.from_items(items, override_num_blocks=len(items)).map(make_shard)
    rejected = 0
    for report in job.iter_rows():
        rejected += report["rejected"]
        progress.add(report["rows"] + report["rejected"], f"{rejected} rejected")
    progress.end()
    return time.monotonic() - begun


def make_shard(row: Mapping[str, Any]) -> dict[str, Any]:
    """The Ray Data task: one unit of work in, one line of its report out."""
    value = row["unit"]
    unit = Unit(**(value | {"encoding": Encoding(**value["encoding"])}))
    report = sharding.make_shard(unit)
    return {"rows": report["rows"], "rejected": len(report["rejects"])}


def _document(run: tracking.Run, manifest: Manifest, result: Figures) -> None:
    """What a person looks at in MLflow."""
    run.metrics({k: v for k, v in result.items() if isinstance(v, int | float)})
    run.data(
        "shards", manifest.content(), manifest.folder, "shards", f"{manifest.rows('train')} train"
    )
    rejects = pq.read_table(storage.join(manifest.folder, "rejects.parquet"))
    run.table(rejects, "rejects.json")
    first = manifest.row_groups("train")[0]
    rows = shards.read_row_group(first, ["image", "label", "width", "height"]).slice(
        0, CONTACT_SHEET
    )
    images = np.stack([decode_stored(image.as_buffer()) for image in rows["image"]])
    captions = [manifest.labels[label].name for label in rows["label"].to_pylist()]
    run.figure(figures.contact_sheet(images, captions, "Training images, 256x256"), "images.png")
    statistics = read_statistics(storage.join(manifest.folder, "statistics.npz"))
    run.figure(
        figures.mean_image(statistics.mean_image, statistics.rgb_covariance), "mean_image.png"
    )
    widths, heights = _original_sizes(manifest)
    run.figure(figures.original_sizes(widths, heights), "original_sizes.png")


def _original_sizes(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Width and height of the originals, from at most 32 shards, each a fair sample."""
    paths = [storage.join(manifest.folder, s.file) for s in manifest.shards["train"][:32]]
    columns = []
    for path in paths:
        with storage.open_input(path) as file:
            columns.append(pq.read_table(file, columns=["width", "height"]))
    return (
        np.concatenate([table["width"].to_numpy() for table in columns]),
        np.concatenate([table["height"].to_numpy() for table in columns]),
    )


def _manifest_path(folder: str) -> str:
    return storage.join(folder, "manifest.json")


if __name__ == "__main__":
    command_line.script(PreprocessSettings, lambda settings: run(settings).figures, __doc__)
