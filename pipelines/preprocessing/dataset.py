"""From an indexed source to a complete data set, and the repair of a damaged one."""

from collections.abc import Mapping, Set

from alexnet import storage
from alexnet.errors import SourceChangedError
from alexnet.shards.finalize import corrupt_shards, finalize, finished_results, missing_files
from alexnet.shards.format import SPLITS, Shard
from alexnet.shards.manifest import Manifest, read_manifest
from alexnet.shards.plan import origin_path, parts_folder, plan_digest
from alexnet.sources.read import Source
from pipelines.console.lock import exclusive_lock
from pipelines.console.log import stage_logger
from pipelines.console.progress import Progress
from pipelines.preprocessing.job import RejectCounter, make_shards
from pipelines.preprocessing.shard_plan import dataset_folder, plan_shards
from pipelines.preprocessing.source import MB, index_source, source_uri
from pipelines.results.datasets import readable_manifest
from pipelines.results.stage_results import PreprocessResult, VerifyResult
from pipelines.settings import PreprocessSettings
from pipelines.workdir import Workdir


def create_dataset(
    settings: PreprocessSettings, uri: str, source: Source, code: str
) -> tuple[PreprocessResult, Manifest]:
    """Create the missing shards of a data set, then its statistics and its manifest.

    A complete data set of the same files and the same code is kept, even if its stage's record or
    MLflow run was lost; only shards that are missing are created again.

    Args:
        settings: of the stage.
        uri: of the source.
        source: its index.
        code: version of the code: finished shards of another version are not kept.
    """
    folder = dataset_folder(settings, source)
    origin = {"files": source.source_fingerprint, "code": code}
    if complete := _complete_dataset(folder, origin):
        count = sum(len(complete.shards[split]) for split in SPLITS)
        missing = set(missing_files(complete))
        kept = count - len(missing)
        stage_logger("preprocess").info("%d of %d shards exist from an earlier run", kept, count)
        if missing:
            _recreate_shards(settings, source, complete, missing)
        return _result(complete, made=len(missing), kept=kept), complete
    _delete_unless_resumable(folder, origin)
    return _create_shards(settings, uri, source, folder, origin)


def _create_shards(
    settings: PreprocessSettings,
    uri: str,
    source: Source,
    folder: str,
    origin: Mapping[str, str],
) -> tuple[PreprocessResult, Manifest]:
    tasks = plan_shards(settings, folder, source)
    kept = finished_results(folder, tasks)
    if kept:
        stage_logger("preprocess").info(
            "%d of %d shards exist from an earlier run", len(kept), len(tasks)
        )
    rejects = RejectCounter([], settings.max_reject_fraction, len(source.index))
    for shard in kept.values():
        rejects.add(shard)
    made, seconds = make_shards([task for task in tasks if task not in kept], rejects)
    manifest = finalize(
        folder,
        kept | made,
        plan_digest=plan_digest(source, settings.results()),
        source=Workdir(settings.workdir).relative(uri),
        layout=source.layout,
        settings=settings.results(),
        labels=source.labels,
        origin=origin,
        account=source.account,
    )
    rate = sum(task.rows for task in made) / seconds if made else 0.0
    return _result(manifest, made=len(made), kept=len(kept), images_per_second=rate), manifest


def _result(
    manifest: Manifest, *, made: int = 0, kept: int = 0, images_per_second: float = 0.0
) -> PreprocessResult:
    files = manifest.source_files
    assert files, "data sets of an older version have another origin"
    return PreprocessResult(
        images=sum(manifest.rows(split) for split in SPLITS),
        train_images=manifest.rows("train"),
        val_images=manifest.rows("val"),
        classes=len(manifest.labels),
        rejected=sum(manifest.rejected.values()),
        shards_made=made,
        shards_kept=kept,
        images_per_second=round(images_per_second, 1),
        bytes=sum(shard.bytes for split in SPLITS for shard in manifest.shards[split]),
        digest=manifest.plan_digest,
        shards=manifest.folder,
        content=manifest.content_digest(),
        files_found=files.found,
        files_used=files.used,
        files_ignored=sum(files.ignored.values()),
        ignored_by_rule=dict(files.ignored),
    )


def _complete_dataset(folder: str, origin: Mapping[str, str]) -> Manifest | None:
    """The manifest in a folder, if the data set has this origin; shards may be missing."""
    manifest = readable_manifest(folder)
    if manifest is None or manifest.origin != origin:
        return None
    missing = manifest.files.keys() & missing_files(manifest)
    return None if missing else manifest


def verify_dataset(settings: PreprocessSettings, folder: str) -> VerifyResult:
    """Hash every shard of a data set, and create damaged ones again.

    Raises:
        SourceChangedError: the source gives other bytes now.
    """
    log = stage_logger("preprocess")
    manifest = read_manifest(folder)
    lock = Workdir.shards_lock(folder)
    with exclusive_lock(Workdir(settings.workdir), lock, "preprocess"):
        damaged = {shard.file for shard in _corrupt_shards(manifest)}
        for file in sorted(damaged):
            log.info("%s is missing or damaged; creating it again", file)
        if damaged:
            source = index_source(settings, source_uri(settings))
            _recreate_shards(settings, source, manifest, damaged)
    count = sum(len(manifest.shards[split]) for split in SPLITS)
    log.info("%d shards verified, %d created again", count, len(damaged))
    return VerifyResult(shards_verified=count, shards_remade=len(damaged))


def _corrupt_shards(manifest: Manifest) -> list[Shard]:
    total = sum(shard.bytes for split in SPLITS for shard in manifest.shards[split])
    done = 0
    with Progress("preprocess", total // MB, "MB", task="sha256 of the shards") as progress:

        def count(shard: Shard) -> None:
            nonlocal done
            done += shard.bytes
            progress.advance_to(done // MB)

        return corrupt_shards(manifest, count)


def _recreate_shards(
    settings: PreprocessSettings, source: Source, manifest: Manifest, files: Set[str]
) -> None:
    """Create some shards of a complete data set again.

    Raises:
        SourceChangedError: the source gives other bytes now.
    """
    parts = parts_folder(manifest.folder)
    storage.delete_folder(parts)
    tasks = [task for task in plan_shards(settings, manifest.folder, source) if task.file in files]
    made, _ = make_shards(tasks, RejectCounter([], 1, len(source.index)))
    storage.delete_folder(parts)
    expected = {shard for split in SPLITS for shard in manifest.shards[split]}
    if not {result.shard for result in made.values()} <= expected:
        raise SourceChangedError(
            f"{manifest.source}: its images are no longer those that the shards were made of"
        )


def _delete_unless_resumable(folder: str, origin: Mapping[str, str]) -> None:
    """Keep finished shards only if they were made from the same files by the same code."""
    path = origin_path(folder)
    try:
        unfinished = storage.is_file(path) and storage.read_json(path) == origin
    except ValueError:  # Damaged.
        unfinished = False
    if not unfinished:
        storage.delete_folder(folder)
        storage.write_json(path, origin)
