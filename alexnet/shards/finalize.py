"""From finished shards to a complete data set, and the check that it still is one.

Every finished unit has left a shard and a report, in ``parts/``. When all are there they are
added up: rejects, statistics, and the manifest last, which declares the data set complete.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from alexnet import storage
from alexnet.errors import UserError
from alexnet.shards.format import (
    COMPANIONS,
    SPLITS,
    Manifest,
    Shard,
    rejects_table,
    write_manifest,
    write_table,
)
from alexnet.shards.pixel_stats import PixelSums, finish, read_sums, write_statistics
from alexnet.shards.plan import ShardTask
from alexnet.shards.write import Report, read_report
from alexnet.sources.labels import Label

# Reports are small and shards are hashed outside Python's lock; object stores answer slowly.
_THREADS = 16


def finished(folder: str, units: Sequence[ShardTask]) -> dict[ShardTask, Report]:
    """Reports of the units that are done: report and shard exist and agree on the size."""
    sizes = {
        file.path: file.size
        for part in ("parts", *SPLITS)
        for file in storage.list_files(storage.join(folder, part))
    }
    reported = [unit for unit in units if unit.report in sizes]
    with ThreadPoolExecutor(_THREADS) as threads:
        reports = dict(zip(reported, threads.map(read_report, reported), strict=True))
    return {
        unit: report
        for unit, report in reports.items()
        if report.agrees(sizes.get(storage.join(folder, unit.file)))
    }


def finalize(
    folder: str,
    reports: Mapping[ShardTask, Report],
    *,
    digest: str,
    source: str,
    form: str,
    settings: Mapping[str, Any],
    labels: tuple[Label, ...],
) -> Manifest:
    """Add up the reports of all units; write rejects, statistics, then the manifest.

    Raises:
        UserError: a split has no readable image.
    """
    units = sorted(reports, key=lambda unit: unit.group)
    made: dict[str, tuple[Shard, ...]] = {}
    rejected: dict[str, int] = {}
    for split in SPLITS:
        mine = [reports[unit] for unit in units if unit.split == split]
        made[split] = tuple(report.shard for report in mine if report.shard.rows)
        rejected[split] = sum(len(report.rejects) for report in mine)
        if not made[split]:
            first = mine[0].rejects[0]
            raise UserError(
                f"{source}: none of the {rejected[split]} files of split {split} can be read as an "
                f"image; the first, {first['key']}, is rejected as {first['reason']}"
            )
    sums = PixelSums.zero()
    for unit in units:
        if unit.split == "train":
            sums.merge(read_sums(unit.sums))
    _remove_leftovers(folder, made)
    found = (reject for unit in units for reject in reports[unit].rejects)
    write_table(storage.join(folder, "rejects.parquet"), rejects_table(found))
    write_statistics(storage.join(folder, "statistics.npz"), finish(sums))
    manifest = Manifest(
        folder=folder,
        digest=digest,
        source=source,
        form=form,
        settings=settings,
        labels=labels,
        shards=made,
        rejected=rejected,
        files={name: _sha256(storage.join(folder, name)) for name in COMPANIONS},
    )
    write_manifest(manifest)
    storage.delete_folder(storage.join(folder, "parts"))
    return manifest


def _remove_leftovers(folder: str, made: Mapping[str, Sequence[Shard]]) -> None:
    """Delete what killed processes had begun to write beside the shards."""
    for split in SPLITS:
        known = {storage.join(folder, shard.file) for shard in made[split]}
        for file in storage.list_files(storage.join(folder, split)):
            if file.path not in known:
                storage.delete_file(file.path)


def corrupt_shards(manifest: Manifest) -> list[Shard]:
    """Shards that are gone or whose bytes are no longer those that the manifest names.

    Raises:
        UserError: one of the files beside the shards is damaged, which can't be made by itself.
    """
    for name, sha256 in manifest.files.items():
        path = storage.join(manifest.folder, name)
        if _sha256(path) != sha256:
            raise UserError(
                f"{path}: is gone or damaged; run pipelines/preprocess.py --force to make the "
                "data set again"
            )
    present = [shard for split in SPLITS for shard in manifest.shards[split]]
    with ThreadPoolExecutor(_THREADS) as threads:
        paths = [storage.join(manifest.folder, shard.file) for shard in present]
        found = list(threads.map(_sha256, paths))
    return [shard for shard, sha256 in zip(present, found, strict=True) if sha256 != shard.sha256]


def _sha256(path: str) -> str:
    """Of a file's bytes; empty when it is gone or can't be read."""
    try:
        return storage.sha256(path)
    except OSError:
        return ""
