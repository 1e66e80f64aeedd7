"""A dry run: what a source holds, and an estimate of the work; nothing is written."""

import os
import random
import time
from collections import Counter
from typing import NamedTuple

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.shards.codec import Encoding, encode
from alexnet.shards.decode import Decoded, Rejection, decode
from alexnet.shards.format import SPLITS
from alexnet.sources import parquet_extract
from alexnet.sources.read import Source, read_image, without_content
from pipelines.console.output import printable
from pipelines.console.progress import duration
from pipelines.preprocessing.shard_plan import encoding_of
from pipelines.preprocessing.source import check_account
from pipelines.results.stage_results import DryRunResult
from pipelines.settings import PreprocessSettings

SAMPLED_IMAGES = 64
"""Images that are read for the estimate."""
LISTED_REJECTS = 5


def inspect(settings: PreprocessSettings, uri: str, source: Source) -> DryRunResult:
    """Print images by class and split, the shards that they would fill, size and time.

    Size and time are estimated from some random images, which are read, decoded and encoded
    here; the time is for this machine's cores.

    Raises:
        UserError: files are left over or missing, and the settings don't allow that, or none of
            the random images can be read.
    """
    splits, labels = source.index["split"].to_pylist(), source.index["label"].to_pylist()
    counts = Counter(zip(splits, labels, strict=True))
    images = Counter(splits)
    print(printable(f"{uri}: {source.layout}"))
    print(f"{'class':<20}{'train':>10}{'val':>10}  name")
    for number, label in enumerate(source.labels):
        train, val = (counts[split, number] for split in SPLITS)
        print(printable(f"{label.wnid:<20}{train:>10,}{val:>10,}  {label.name}"))
    shards = {split: -(-images[split] // settings.rows_per_shard) for split in SPLITS}
    total = images.total()
    check_account(settings, uri, source, print)
    sample = _measure_sample(source, encoding_of(settings), settings.seed)
    if sample.rejects:
        print(
            f"{len(sample.rejects)} of {sample.images} random images can't be read; with more than "
            f"--max-reject-fraction {settings.max_reject_fraction} of all, the run would stop:"
        )
        for line in sample.rejects[:LISTED_REJECTS]:
            print(printable(f"  {line}"))
    if len(sample.rejects) == sample.images:
        raise UserError(
            f"{uri}: none of {sample.images} random images can be read; the first is "
            f"{sample.rejects[0]}"
        )
    files = source.account.counts(len(without_content(source)))
    size, seconds = sample.bytes_per_image, sample.seconds_per_image
    cores = os.cpu_count() or 1
    result = DryRunResult(
        images=total,
        train_images=images["train"],
        val_images=images["val"],
        classes=len(source.labels),
        shards=sum(shards.values()),
        source_bytes=_source_bytes(source),
        estimated_bytes=round(total * size),
        estimated_seconds=round(total * seconds / cores, 3),
        files_found=files.found,
        files_used=files.used,
        files_ignored=sum(files.ignored.values()),
        ignored_by_rule=dict(files.ignored),
        rejected=files.rejected,
        sampled=sample.images,
        sample_rejected=len(sample.rejects),
    )
    print(
        f"{images['train']:,} train and {images['val']:,} val images would fill "
        f"{shards['train']:,} and {shards['val']:,} shards, about "
        f"{result.estimated_bytes / 1e9:,.2f} GB, in about "
        f"{duration(total * seconds / cores)} on this machine's {cores} cores"
    )
    return result


def _source_bytes(source: Source) -> int:
    if source.layout == "parquet":
        return sum(storage.size(path) for path in parquet_extract.parquet_files(source.index))
    return sum(max(0, size) for size in source.index["size"].to_pylist())


class _Sample(NamedTuple):
    """Some random images."""

    images: int
    rejects: list[str]
    """Key, reason and detail of those that can't be read."""
    bytes_per_image: float
    """In a shard; a rejected image has none."""
    seconds_per_image: float


def _measure_sample(source: Source, encoding: Encoding, seed: int) -> _Sample:
    count = min(SAMPLED_IMAGES, len(source.index))
    rows = random.Random(seed).sample(range(len(source.index)), count)
    stored = 0
    rejects = []
    started = time.perf_counter()
    for row in source.index.take(rows).to_pylist():
        try:
            decoded = decode(read_image(source, row))
        except (FileNotFoundError, PermissionError, EOFError) as error:
            decoded = Rejection("unreadable", one_line(error))
        if isinstance(decoded, Decoded):
            stored += len(encode(decoded.pixels, encoding))
        else:
            rejects.append(f"{row['key']}: {decoded.reason} ({decoded.detail})")
    seconds = time.perf_counter() - started
    return _Sample(count, rejects, stored / count, seconds / count)
