"""From the index of raw images to shards: a plan, its units of work, and the manifest.

The plan is the whole index in the order in which it will be written, one row group for each
shard: a seeded global shuffle, so that any shard is a fair sample. It is named by a digest of
what it depends on. One unit of work makes one shard and depends on the plan alone; beside the
shard it leaves a report, and a unit whose report and shard exist is not done again. When all
are there, ``assemble`` adds up the reports and writes the manifest last.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alexnet import shards, statistics, storage
from alexnet.archives import read_image_bytes
from alexnet.errors import UserError
from alexnet.images import Rejection, decode, encode_jpeg
from alexnet.labels import Label
from alexnet.shards import SPLITS, Manifest, Shard
from alexnet.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How the 256x256 images are stored."""

    kind: str
    """``jpeg`` or ``raw``."""
    jpeg_quality: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The work that makes one shard."""

    folder: str
    """Of the data set."""
    split: str
    number: int
    """Of the shard within its split."""
    group: int
    """Row group of the plan."""
    rows: int
    """Images in the plan, rejected ones included."""
    encoding: Encoding

    @property
    def file(self) -> str:
        """The shard's path below the data set's folder."""
        return f"{self.split}/part-{self.number:05d}.parquet"

    @property
    def report(self) -> str:
        """Where the unit's report goes; its sums have the same name but for the ending."""
        return storage.join(self.folder, "parts", f"{self.split}-{self.number:05d}.json")


def plan_digest(source: Source, settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name the shards of a source under some settings.

    They depend on the images' keys, classes and sizes, not on where the source lies.
    """
    digest = hashlib.sha256(repr((shards.FORMAT, sorted(settings.items()))).encode())
    digest.update(repr([tuple(label) for label in source.labels]).encode())
    for column in ("key", "wnid", "size"):
        digest.update("\n".join(map(str, source.index[column].to_pylist())).encode() + b"\0")
    return digest.hexdigest()[:16]


def write_plan(
    folder: str, source: Source, encoding: Encoding, rows_per_shard: int, seed: int
) -> list[Unit]:
    """Shuffle, cut into shards, and write the plan where every worker finds it."""
    units: list[Unit] = []
    shuffled = _shuffle(source.index, seed)
    with (
        storage.atomic_output(_plan_path(folder)) as file,
        pq.ParquetWriter(file, shuffled.schema) as writer,
    ):
        for split in SPLITS:
            rows = shuffled.filter(pc.equal(shuffled["split"], split))
            for number, start in enumerate(range(0, len(rows), rows_per_shard)):
                part = rows.slice(start, rows_per_shard)
                writer.write_table(part, row_group_size=rows_per_shard)
                units.append(
                    Unit(
                        folder=folder,
                        split=split,
                        number=number,
                        group=len(units),
                        rows=len(part),
                        encoding=encoding,
                    )
                )
    return units


def _shuffle(index: pa.Table, seed: int) -> pa.Table:
    """Rows in the order of a keyed hash of their keys: the same on any machine, any version."""
    salt = seed.to_bytes(8, "big")
    hashes = [
        hashlib.blake2b(key.encode(), digest_size=16, key=salt).digest()
        for key in index["key"].to_pylist()
    ]
    order = pc.sort_indices(pa.array(hashes, pa.binary(16)))
    return index.take(order)


def is_done(unit: Unit) -> bool:
    """Whether a unit's shard and report exist and agree on the shard's size."""
    if not storage.is_file(unit.report):
        return False
    report = storage.read_json(unit.report)
    size = storage.size(storage.join(unit.folder, unit.file))
    return bool(report["rows"] == 0 or size == report["bytes"])


def make_shard(unit: Unit) -> dict[str, Any]:
    """Read, decode, resize, encode and write the images of one unit.

    Returns:
        The unit's report: the shard's ``file``, ``rows``, ``bytes`` and ``sha256``, and its
        ``rejects``, a list of ``key``, ``split``, ``reason`` and ``detail``.
    """
    with storage.open_input(_plan_path(unit.folder)) as file:
        plan = pq.ParquetFile(file).read_row_group(unit.group)
    sums = statistics.Sums.zero()
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    for planned in plan.to_pylist():
        row = _make_row(planned, unit.encoding, sums)
        if isinstance(row, Rejection):
            found = {"reason": row.reason, "detail": row.detail}
            rejects.append({"key": planned["key"], "split": unit.split} | found)
        else:
            rows.append(row)
    size, sha256 = 0, ""
    if rows:
        table = pa.Table.from_pylist(rows, schema=shards.SCHEMA)
        size, sha256 = shards.write_shard(storage.join(unit.folder, unit.file), table)
    if unit.split == "train":
        statistics.write_sums(_sums_path(unit), sums)
    shard = Shard(unit.file, len(rows), size, sha256)
    report = asdict(shard) | {"rejects": rejects}
    storage.write_json(unit.report, report)
    return report


def _make_row(
    planned: Mapping[str, Any], encoding: Encoding, sums: statistics.Sums
) -> dict[str, Any] | Rejection:
    try:
        data = read_image_bytes(planned["path"], planned["offset"], planned["size"])
    except (OSError, EOFError) as error:
        return Rejection("unreadable", storage.one_line(error))
    decoded = decode(data)
    if isinstance(decoded, Rejection):
        return decoded
    sums.add(decoded.pixels)
    if encoding.kind == "raw":
        image = decoded.pixels.tobytes()
    else:
        image = encode_jpeg(decoded.pixels, quality=encoding.jpeg_quality)
    return {
        "key": planned["key"],
        "label": planned["label"],
        "wnid": planned["wnid"],
        "image": image,
        "width": decoded.width,
        "height": decoded.height,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def assemble(
    folder: str,
    units: list[Unit],
    *,
    digest: str,
    source: str,
    form: str,
    settings: Mapping[str, Any],
    labels: tuple[Label, ...],
) -> Manifest:
    """Add up the reports of finished units; write rejects, statistics, then the manifest.

    Raises:
        UserError: a split has no readable image.
    """
    reports = [(unit, storage.read_json(unit.report)) for unit in units]
    made: dict[str, tuple[Shard, ...]] = {}
    rejected: dict[str, int] = {}
    for split in SPLITS:
        mine = [report for unit, report in reports if unit.split == split]
        made[split] = tuple(
            Shard(**{name: report[name] for name in ("file", "rows", "bytes", "sha256")})
            for report in mine
            if report["rows"]
        )
        rejected[split] = sum(len(report["rejects"]) for report in mine)
        if not made[split]:
            first = mine[0]["rejects"][0]
            raise UserError(
                f"{source}: none of the {rejected[split]} files of split {split} can be read as an "
                f"image; the first, {first['key']}, is rejected as {first['reason']}"
            )
    sums = statistics.Sums.zero()
    for unit, _ in reports:
        if unit.split == "train":
            sums.merge(statistics.read_sums(_sums_path(unit)))
    found = (reject for _, report in reports for reject in report["rejects"])
    shards.write_table(storage.join(folder, "rejects.parquet"), shards.rejects_table(found))
    statistics.write_statistics(storage.join(folder, "statistics.npz"), statistics.finish(sums))
    manifest = Manifest(
        folder=folder,
        digest=digest,
        source=source,
        form=form,
        settings=settings,
        labels=labels,
        shards=made,
        rejected=rejected,
    )
    shards.write_manifest(manifest)
    storage.delete_folder(storage.join(folder, "parts"))
    return manifest


def _plan_path(folder: str) -> str:
    return storage.join(folder, "parts", "plan.parquet")


def _sums_path(unit: Unit) -> str:
    return unit.report.removesuffix(".json") + ".npz"
