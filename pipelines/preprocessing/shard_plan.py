"""The plan of a data set: its folder, how its images are stored, and the task of each shard."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from alexnet import storage
from alexnet.shards.codec import Encoding
from alexnet.shards.plan import ShardTask, extracted_folder, plan_digest, write_plan
from alexnet.sources import parquet_extract
from alexnet.sources.read import Source
from pipelines.console.progress import Progress
from pipelines.preprocessing.source import MB
from pipelines.settings import PreprocessSettings
from pipelines.workdir import Workdir

PARALLEL_EXTRACTIONS = 4
"""Parquet files whose images are extracted at the same time; each takes some 100 MB of memory."""


def dataset_folder(settings: PreprocessSettings, source: Source) -> str:
    """The folder of the data set that is made from a source."""
    return Workdir(settings.workdir).shards(plan_digest(source, settings.results()))


def encoding_of(settings: PreprocessSettings) -> Encoding:
    """How the settings have images stored."""
    return Encoding(kind=settings.encoding, jpeg_quality=settings.jpeg_quality)


def plan_shards(settings: PreprocessSettings, folder: str, source: Source) -> list[ShardTask]:
    """Write the plan. Images inside Parquet files are extracted first, into byte ranges."""
    if source.layout == "parquet":
        extracted = extracted_folder(folder)
        _extract_images(parquet_extract.parquet_files(source.index), extracted)
        source = replace(source, index=parquet_extract.to_byte_ranges(source.index, extracted))
    return write_plan(folder, source, encoding_of(settings), settings.rows_per_shard, settings.seed)


def _extract_images(paths: list[str], folder: str) -> None:
    """Copy the images of Parquet files into a folder, some files at a time."""
    sizes = [storage.size(path) for path in paths]
    progress = Progress(
        "preprocess", sum(sizes) // MB, "MB", task="images copied from Parquet files"
    )
    done = 0
    with progress, ThreadPoolExecutor(PARALLEL_EXTRACTIONS) as threads:
        copies = threads.map(partial(parquet_extract.extract_images, folder=folder), paths)
        for size, _ in zip(sizes, copies, strict=True):
            done += size
            progress.advance_to(done // MB)
