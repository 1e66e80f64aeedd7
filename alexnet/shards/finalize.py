"""The last step of a data set: from all shards' results to rejects, statistics and the manifest.

Also the check whether the files of a complete data set are still those that the manifest lists.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from alexnet import storage
from alexnet.errors import CorruptDatasetError, UserError
from alexnet.shards.format import (
    EXTRA_FILES,
    REJECTS,
    SPLITS,
    STATISTICS,
    Shard,
    rejects_table,
    write_table,
)
from alexnet.shards.manifest import Manifest, write_manifest
from alexnet.shards.pixel_stats import PixelSums, compute_statistics, read_sums, write_statistics
from alexnet.shards.plan import ShardTask, parts_folder
from alexnet.shards.write import ShardResult, finished_result
from alexnet.sources.account import Account
from alexnet.sources.labels import Label

# Threads that read results and hash shards: an object store answers slowly, and hashing releases
# Python's global lock.
_THREADS = 16


def finished_results(folder: str, tasks: Sequence[ShardTask]) -> dict[ShardTask, ShardResult]:
    """Results of those tasks that are finished; lists the data set's folder only once."""
    folders = [parts_folder(folder), *(storage.join(folder, split) for split in SPLITS)]
    sizes = {file.path: file.size for part in folders for file in storage.list_files(part)}

    def size_of(path: str) -> int:
        return sizes.get(path, -1)

    with ThreadPoolExecutor(_THREADS) as threads:
        results = list(threads.map(lambda task: finished_result(task, size_of), tasks))
    return {task: result for task, result in zip(tasks, results, strict=True) if result is not None}


def finalize(
    folder: str,
    results: Mapping[ShardTask, ShardResult],
    *,
    plan_digest: str,
    source: str,
    layout: str,
    settings: Mapping[str, Any],
    labels: tuple[Label, ...],
    origin: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> Manifest:
    """Write the rejects, the statistics and, last, the manifest; delete temporary files.

    Args:
        folder: of the data set.
        results: of all tasks.
        plan_digest: of the source and the settings.
        source: path of the raw images.
        layout: of the raw images.
        settings: that the shards depend on.
        labels: of all classes.
        origin: digests of the source's files and of the code.
        account: of the source's files.

    Raises:
        UserError: a split has no readable image.
    """
    tasks = sorted(results, key=lambda task: task.row_group)
    shards: dict[str, tuple[Shard, ...]] = {}
    rejected: dict[str, int] = {}
    for split in SPLITS:
        of_split = [results[task] for task in tasks if task.split == split]
        shards[split] = tuple(result.shard for result in of_split if result.shard.rows)
        rejected[split] = sum(len(result.rejects) for result in of_split)
        if not shards[split]:
            first = of_split[0].rejects[0]
            raise UserError(
                f"{source}: none of the {rejected[split]} files of split {split} can be read as an "
                f"image; the first, {first['key']}, is rejected as {first['reason']}"
            )
    rows = sum(shard.rows for split in SPLITS for shard in shards[split])
    assert account is None or account.images == rows + sum(rejected.values())
    sums = PixelSums.zero()
    for task in tasks:
        if task.split == "train":
            sums.merge(read_sums(task.sums_path))
    _delete_temporary_files(folder, shards)
    rejects = (reject for task in tasks for reject in results[task].rejects)
    write_table(storage.join(folder, REJECTS), rejects_table(rejects))
    write_statistics(storage.join(folder, STATISTICS), compute_statistics(sums))
    manifest = Manifest(
        folder=folder,
        plan_digest=plan_digest,
        source=source,
        layout=layout,
        settings=settings,
        labels=labels,
        shards=shards,
        rejected=rejected,
        files={name: _sha256(storage.join(folder, name)) for name in EXTRA_FILES},
        origin=origin or {},
        source_files=account.counts(sum(rejected.values())) if account else None,
    )
    write_manifest(manifest)
    storage.delete_folder(parts_folder(folder))
    return manifest


def _delete_temporary_files(folder: str, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Delete incomplete files of killed processes from the folders of the shards."""
    for split in SPLITS:
        shard_paths = {storage.join(folder, shard.file) for shard in shards[split]}
        for file in storage.list_files(storage.join(folder, split)):
            if file.path not in shard_paths:
                storage.delete_file(file.path)


def missing_files(manifest: Manifest) -> list[str]:
    """Names of files that are missing, and of shards that don't have their size; reads no file."""
    listed = storage.list_files(manifest.folder)
    sizes = {file.path: file.size for file in listed}

    def size_of(name: str) -> int:
        return sizes.get(storage.join(manifest.folder, name), -1)

    shards = [shard for split in SPLITS for shard in manifest.shards[split]]
    missing = [name for name in manifest.files if size_of(name) < 0]
    return missing + [shard.file for shard in shards if size_of(shard.file) != shard.bytes]


def corrupt_shards(
    manifest: Manifest, on_hashed: Callable[[Shard], None] = lambda _: None
) -> list[Shard]:
    """Shards that are missing or whose sha256 is not the one in the manifest.

    Args:
        manifest: of the data set.
        on_hashed: called after each shard.

    Raises:
        CorruptDatasetError: one of ``EXTRA_FILES`` is missing or damaged; unlike a shard it can't
            be recreated alone.
    """
    for name, sha256 in manifest.files.items():
        path = storage.join(manifest.folder, name)
        if _sha256(path) != sha256:
            raise CorruptDatasetError(f"{path}: is missing or damaged")
    shards = [shard for split in SPLITS for shard in manifest.shards[split]]
    corrupt = []
    with ThreadPoolExecutor(_THREADS) as threads:
        paths = [storage.join(manifest.folder, shard.file) for shard in shards]
        for shard, sha256 in zip(shards, threads.map(_sha256, paths), strict=True):
            on_hashed(shard)
            if sha256 != shard.sha256:
                corrupt.append(shard)
    return corrupt


def _sha256(path: str) -> str:
    """sha256 of a file; empty if it is missing or can't be read."""
    try:
        return storage.sha256(path)
    except OSError:
        return ""
