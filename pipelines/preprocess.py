"""Raw images → 256x256 Parquet shards with a manifest, rejects and statistics.

Reads the official ILSVRC2012 archives in place, Kaggle's form, {train,val}/<class>/ folders or
Hugging Face's Parquet files. Every task of the Ray Data job makes one shard; a run that was
killed goes on with the missing ones. The result lies in <workdir>/shards/<digest>/.

    python pipelines/preprocess.py --source /data/ilsvrc2012 --workdir /data/work
    python pipelines/preprocess.py --source /data/ilsvrc2012 --dry-run
    python pipelines/preprocess.py --source /data/ilsvrc2012 --workdir /data/work --verify
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from alexnet import storage
from alexnet.errors import UserError
from alexnet.provenance import code_version
from alexnet.shards.codec import Encoding
from alexnet.shards.finalize import corrupt_shards, finalize, finished
from alexnet.shards.format import SPLITS, read_manifest
from alexnet.shards.plan import ShardTask, plan_digest, write_plan
from alexnet.sources import parquet_extract
from alexnet.sources.imagenette import fetch
from alexnet.sources.md5 import OFFICIAL, verify
from alexnet.sources.read import Source, read_source
from alexnet.sources.sample import write_sample
from pipelines import stages
from pipelines.console.cli import run_script
from pipelines.console.lock import exclusive_lock
from pipelines.console.progress import Progress
from pipelines.preprocessing.dry_run import inspect
from pipelines.preprocessing.job import RejectCounter, make_shards, start_early
from pipelines.preprocessing.report import show_result, show_source
from pipelines.settings import PreprocessCommandSettings, PreprocessSettings
from pipelines.stages import Figures, Outcome, Parent, StageKey, StageRecord, run_stage
from pipelines.tracking.run import Run
from pipelines.tracking.store import connect

CODE = ("alexnet.sources.read", "alexnet.shards.finalize", "pipelines.preprocessing.worker")
"""Entry modules of the code that decides what the shards are."""

MB = 10**6
COPIES = 4
"""Parquet files that are copied at once; each takes some 100 MB of memory."""


def command(settings: PreprocessCommandSettings) -> Mapping[str, Any]:
    """What the script does: look, make, or make sure."""
    if settings.check_md5:
        _check_md5(_source_place(settings))
    if settings.dry_run:
        place = _source_place(settings)
        return inspect(settings, place, read_source(place), _encoding(settings))
    outcome = run(settings.part(PreprocessSettings))
    return outcome.figures | (_verify(settings, outcome) if settings.verify else {})


def run(settings: PreprocessSettings, parent: Parent | None = None) -> Outcome:
    """Preprocess, or find that it has been done."""
    storage.make_folder(settings.workdir)
    place = _source_place(settings)
    source = _read(settings, place)
    if stages.latest(settings.workdir, "preprocess") is None:
        start_early()
    identity = StageKey(
        stage="preprocess",
        settings=settings.results(),
        inputs={"source": place, "files": source.fingerprint[:16]},
        code=code_version(CODE, boundary=stages.BOUNDARY),
    )
    return run_stage(
        settings,
        connect(settings),
        identity,
        parent=parent,
        usable=lambda record: storage.is_file(_manifest_path(record.figures["shards"])),
        work=lambda run, record: _work(settings, place, source, run, record),
    )


def _read(settings: PreprocessSettings, place: str) -> Source:
    """Index the source, or find its index in the workdir."""
    return read_source(place, storage.join(settings.workdir, "index"))


def _source_place(settings: PreprocessSettings) -> str:
    """The source given, or the preset's own."""
    if settings.source:
        if not storage.exists(settings.source):
            raise UserError(f"{settings.source}: no such folder; correct --source")
        return settings.source
    if settings.preset == "sample":
        place = storage.join(settings.workdir, "sample")
        write_sample(place)
        return place
    if settings.preset == "imagenette":
        return fetch(settings.workdir)
    raise UserError(
        "--source is required with --preset ilsvrc2012: the folder with the official archives, "
        "which image-net.org gives to registered users"
    )


def _check_md5(place: str) -> None:
    """Read the official archives through and compare their md5 sums."""
    for name, md5 in OFFICIAL.items():
        path = storage.join(place, name)
        total = max(0, storage.size(path))
        progress = Progress(f"preprocess: md5 of {name}", total // MB, "MB")
        verify(path, md5, partial(_show_bytes, progress))
        progress.end()


def _show_bytes(progress: Progress, done: int, total: int) -> None:
    progress.add(done // MB - progress.done)


def _work(
    settings: PreprocessSettings,
    place: str,
    source: Source,
    run: Run,
    record: StageRecord,
) -> Figures:
    digest = plan_digest(source, settings.results())
    folder = storage.join(settings.workdir, "shards", digest)
    run.set_tags({"shards.digest": digest})
    show_source(run, place, source)
    _clear_unless_resumable(settings, folder, source, record)
    units = _plan(settings, folder, source)
    kept = finished(folder, units)
    if kept:
        print(f"preprocess: {len(kept)} of {len(units)} shards are there from an earlier run")
    rejects = RejectCounter([], settings.max_reject_fraction, len(source.index))
    for report in kept.values():
        rejects.add(report)
    missing = [unit for unit in units if unit not in kept]
    made, seconds = make_shards(missing, rejects)
    manifest = finalize(
        folder,
        kept | made,
        digest=digest,
        source=place,
        form=source.form,
        settings=settings.results(),
        labels=source.labels,
    )
    figures = {
        "stage": "preprocess",
        "images": sum(manifest.rows(split) for split in SPLITS),
        "train_images": manifest.rows("train"),
        "val_images": manifest.rows("val"),
        "classes": len(manifest.labels),
        "rejected": sum(manifest.rejected.values()),
        "shards_made": len(made),
        "shards_kept": len(kept),
        "images_per_second": round(sum(u.rows for u in made) / seconds, 1) if made else 0.0,
        "bytes": sum(s.bytes for split in SPLITS for s in manifest.shards[split]),
        "digest": digest,
        "shards": folder,
    }
    run.log_metrics({k: v for k, v in figures.items() if isinstance(v, int | float)})
    show_result(run, manifest, source)
    return figures


def _clear_unless_resumable(
    settings: PreprocessSettings, folder: str, source: Source, record: StageRecord
) -> None:
    """Keep finished shards only if they were made from the same files by the same code."""
    origin = {"files": source.fingerprint, "code": record.code}
    path = storage.join(folder, "parts", "origin.json")
    unfinished = storage.is_file(path) and storage.read_json(path) == origin
    if settings.force or not unfinished:
        storage.delete_folder(folder)
        storage.write_json(path, origin)


def _plan(settings: PreprocessSettings, folder: str, source: Source) -> list[ShardTask]:
    """Write the plan; images inside Parquet files are first copied to where they can be reached."""
    if source.form == "parquet":
        place = storage.join(folder, "parts", "spool")
        _copy_images(parquet_extract.files(source.index), place)
        source = replace(source, index=parquet_extract.to_byte_ranges(source.index, place))
    return write_plan(folder, source, _encoding(settings), settings.rows_per_shard, settings.seed)


def _copy_images(paths: list[str], place: str) -> None:
    """Copy the images of Parquet files into a folder, some files at a time."""
    sizes = [storage.size(path) for path in paths]
    progress = Progress("preprocess: images copied from Parquet files", sum(sizes) // MB, "MB")
    done = 0
    with ThreadPoolExecutor(COPIES) as threads:
        copies = threads.map(partial(parquet_extract.copy, folder=place), paths)
        for size, _ in zip(sizes, copies, strict=True):
            done += size
            progress.add(done // MB - progress.done)
    progress.end()


def _encoding(settings: PreprocessSettings) -> Encoding:
    return Encoding(kind=settings.encoding, jpeg_quality=settings.jpeg_quality)


def _verify(settings: PreprocessCommandSettings, outcome: Outcome) -> Figures:
    """Hash every shard; make those again that are damaged."""
    manifest = read_manifest(outcome.figures["shards"])
    with exclusive_lock(settings.workdir, "preprocess"):
        damaged = {shard.file: shard for shard in corrupt_shards(manifest)}
        for file in damaged:
            print(f"preprocess: {file} is gone or damaged; making it again", flush=True)
        if damaged:
            storage.delete_folder(storage.join(manifest.folder, "parts"))
            source = _read(settings, _source_place(settings))
            units = _plan(settings, manifest.folder, source)
            again = [unit for unit in units if unit.file in damaged]
            made, _ = make_shards(again, RejectCounter([], 1, len(source.index)))
            storage.delete_folder(storage.join(manifest.folder, "parts"))
            if any(report.shard != damaged[report.shard.file] for report in made.values()):
                raise UserError(
                    f"{manifest.source}: its images are no longer those that the shards were made "
                    "of; run pipelines/preprocess.py --force"
                )
    count = sum(len(manifest.shards[split]) for split in SPLITS)
    print(f"preprocess: {count} shards verified, {len(damaged)} made again", flush=True)
    return {"shards_verified": count, "shards_remade": len(damaged)}


def _manifest_path(folder: str) -> str:
    return storage.join(folder, "manifest.json")


if __name__ == "__main__":
    run_script(PreprocessCommandSettings, command, __doc__)
