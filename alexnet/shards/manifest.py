"""The manifest of a data set: its shards with their sha256, its classes and its origin.

It is written last: a folder with a manifest is complete.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from alexnet import storage
from alexnet.errors import CorruptDatasetError, MissingDatasetError, one_line
from alexnet.shards.format import (
    FORMAT,
    REJECTS,
    ROW_GROUP_ROWS,
    SPLITS,
    STATISTICS,
    RowGroup,
    Shard,
)
from alexnet.sources.account import FileCounts
from alexnet.sources.labels import Label

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Content and origin of a data set."""

    folder: str
    plan_digest: str
    """``plan.plan_digest`` of the source and the settings; also the name of the folder."""
    source: str
    """Path of the raw images."""
    layout: str
    """Of the raw images: a ``sources.read.Layout``."""
    settings: Mapping[str, Any]
    labels: tuple[Label, ...]
    shards: Mapping[str, tuple[Shard, ...]]
    """By split."""
    rejected: Mapping[str, int]
    """Number of rejected images by split."""
    files: Mapping[str, str]
    """sha256 of each of ``EXTRA_FILES``."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Digests of the source's files and of the code; empty if they are not known."""
    source_files: FileCounts | None = None
    """What became of each file of the source; None if it is not known."""

    @property
    def rejects_path(self) -> str:
        """Path of the table of rejected images."""
        return storage.join(self.folder, REJECTS)

    @property
    def statistics_path(self) -> str:
        """Path of the training set's pixel statistics."""
        return storage.join(self.folder, STATISTICS)

    @property
    def is_raw(self) -> bool:
        """Whether images are stored raw, as far as the settings say."""
        return self.settings.get("encoding") == "raw"

    def rows(self, split: str) -> int:
        """Number of images in a split."""
        return sum(shard.rows for shard in self.shards[split])

    def content_digest(self, split: str | None = None) -> str:
        """sha256 of the labels and of the shards' sha256, in one split or in all."""
        splits = SPLITS if split is None else (split,)
        digests = [shard.sha256 for name in splits for shard in self.shards[name]]
        labels = [list(label) for label in self.labels]
        return hashlib.sha256(json.dumps([digests, labels]).encode()).hexdigest()

    def row_groups(self, split: str) -> list[RowGroup]:
        """The split's row groups in order; no file is opened."""
        groups = []
        for shard in self.shards[split]:
            path = storage.join(self.folder, shard.file)
            for start in range(0, shard.rows, ROW_GROUP_ROWS):
                rows = min(ROW_GROUP_ROWS, shard.rows - start)
                groups.append(RowGroup(path, start // ROW_GROUP_ROWS, rows))
        return groups


def manifest_path(folder: str) -> str:
    """Path of a data set's manifest."""
    return storage.join(folder, MANIFEST)


def write_manifest(manifest: Manifest) -> None:
    """Write ``manifest.json``; with it the data set is complete."""
    # Scripts read this file, so its keys keep their names: "digest" is the plan digest, "content"
    # the content digest and "form" the layout.
    value = {
        "format": FORMAT,
        "digest": manifest.plan_digest,
        "content": manifest.content_digest(),
        "source": manifest.source,
        "form": manifest.layout,
        "settings": dict(manifest.settings),
        "images": {split: manifest.rows(split) for split in SPLITS},
        "rejected": dict(manifest.rejected),
        "files": dict(manifest.files),
        "origin": dict(manifest.origin),
        "source_files": asdict(manifest.source_files) if manifest.source_files else None,
        "row_group_rows": ROW_GROUP_ROWS,
        "labels": [{"wnid": label.wnid, "name": label.name} for label in manifest.labels],
        "shards": {
            split: [
                {"file": s.file, "rows": s.rows, "bytes": s.bytes, "sha256": s.sha256}
                for s in manifest.shards[split]
            ]
            for split in SPLITS
        },
    }
    storage.write_json(manifest_path(manifest.folder), value)


def read_manifest(folder: str) -> Manifest:
    """The manifest of a complete data set.

    Raises:
        MissingDatasetError: there is no manifest.
        CorruptDatasetError: the manifest is damaged or of another version.
    """
    path = manifest_path(folder)
    if not storage.is_file(path):
        raise MissingDatasetError(f"{path}: no such manifest")
    try:
        value = storage.read_json(path)
        if (value["format"], value["row_group_rows"]) != (FORMAT, ROW_GROUP_ROWS):
            raise ValueError("written by another version")
        return Manifest(
            folder=folder,
            plan_digest=value["digest"],
            source=value["source"],
            layout=value["form"],
            settings=value["settings"],
            labels=tuple(Label(**label) for label in value["labels"]),
            shards={
                split: tuple(Shard(**shard) for shard in value["shards"][split]) for split in SPLITS
            },
            rejected=value["rejected"],
            files=value["files"],
            origin=value.get("origin", {}),
            source_files=FileCounts(**counts) if (counts := value.get("source_files")) else None,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDatasetError(
            f"{path}: not a manifest that this version can read ({one_line(error)})"
        ) from error
