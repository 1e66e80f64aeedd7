"""The speed of the shard loader, compared with other loaders at the same time.

    python tests/benchmarks/ingest.py --output ingest.json

The images of ``$ALEXNET_REAL_DATA/ilsvrc2012-ten``, or generated ones, are stored by the project's
code as JPEG shards and as raw shards. Each loader runs in its own process and makes float batches
of 128 random 224x224 crops, with flips, colour noise and the mean subtracted, (128, 3, 224, 224) on
the CPU, for some epochs. The rounds are interleaved. The other loaders are
``DataLoader(ImageFolder)`` with two workers, over files with the bytes of the JPEG shards, and
plain Ray Data over the shards, which does not shuffle.

Results of the last epoch: ``epoch`` is images divided by seconds from the start of the iteration to
its end. ``steady`` does not include the first few batches. That is an advantage for loaders that
have prepared many more batches by then: Ray Data makes whole blocks before it yields a batch, and
the project's loader of raw shards has read 4,096 rows ahead. ``startup`` is the time to the first
batch of the first epoch, including the start of workers. ``ratios`` are medians over rounds of the
project's rate divided by the other's. ``uncropped`` is the project's loader alone, as it is used
with GPUs, which do the cropping and the rest; ``all_rows`` has ``shuffle_rows="all"``. FFCV and
others are in ``input_race.py``.

As measured with 9,216 images of 24 kB on two cores, before local shards were mapped, epoch and
steady: 4.4 and 4.5 times the DataLoader, 4.2 and 2.7 times Ray Data over JPEG shards, 6.4 and 5.2
times over raw ones. Raw shards are 1.5 and 1.9 times as fast as JPEG shards, and 2.3 and 3.1 times
in the loader alone. So Ray Data's iterator is not used for training. It would also need an exact
position to resume from.

``memory`` compares peak resident memory (MB) with manifests that contain the same shards once and
several times. ``mixing`` is the number of row groups and shards that the rows of one batch of 128
come from, in a data set of ILSVRC2012's size, and in a uniform shuffle of it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from preprocess import jpegs, make_source

from alexnet.recipes import PAPER
from alexnet.shards.codec import Encoding
from alexnet.shards.format import ROW_GROUP_ROWS
from alexnet.shards.loader import ShardLoader
from alexnet.shards.manifest import Manifest, read_manifest, write_manifest
from alexnet.shards.order import epoch_order
from alexnet.shards.plan import write_plan
from alexnet.shards.write import make_shard
from alexnet.sources.read import read_source
from alexnet.training.augment import pca_axes
from alexnet.training.crops import Augmentation, crop_buffers, crops_while_decoding
from pipelines.cluster import KEEP_FREED_MEMORY

HERE = Path(__file__).parent
BATCH = 128
BATCHES_BEFORE_STEADY = 5
"""Batches before the steady rate is measured."""
ROWS_PER_SHARD = 512
COVARIANCE = np.array([[4800.0, 4300, 3700], [4300, 4700, 4400], [3700, 4400, 5100]])


def make_shards(
    images: int,
    folder: Path,
    kinds: Sequence[Literal["jpeg", "raw"]] = ("jpeg", "raw"),
    rows_per_shard: int = ROWS_PER_SHARD,
) -> dict[str, Manifest]:
    """The same training images as JPEG and as raw shards."""
    real = os.environ.get("ALEXNET_REAL_DATA")
    source_path = Path(real, "ilsvrc2012-ten") if real else folder / "source"
    if not source_path.is_dir():
        make_source(jpegs(folder), source_path, images * 20 // 19 + 400)
    source = read_source(str(source_path))
    manifests: dict[str, Manifest] = {}
    for kind in kinds:
        root, encoding = str(folder / kind), Encoding(kind=kind, jpeg_quality=95)
        tasks = write_plan(root, source, encoding, rows_per_shard, 0)
        tasks = [task for task in tasks if task.split == "train"][: -(-images // rows_per_shard)]
        manifests[kind] = Manifest(
            folder=root,
            plan_digest="",
            source=str(source_path),
            layout=source.layout,
            settings={},
            labels=source.labels,
            shards={"train": tuple(make_shard(task).shard for task in tasks), "val": ()},
            rejected={},
            files={},
        )
        write_manifest(manifests[kind])
    return manifests


def write_files(manifest: Manifest, folder: Path) -> None:
    """Write the rows of JPEG shards as files in the folders of ``ImageFolder``."""
    for shard in manifest.shards["train"]:
        rows = pq.read_table(Path(manifest.folder, shard.file), columns=["wnid", "image"])
        for number, row in enumerate(rows.to_pylist()):
            path = folder / row["wnid"] / f"{Path(shard.file).stem}-{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"])


def measure(epoch: Callable[[int], Iterable[int]], epochs: int) -> None:
    """Print a loader's rates. ``epoch`` yields the number of images of each batch."""
    startup = None
    for number in range(epochs):
        done, done_before_steady, started = 0, 0, time.monotonic()
        steady_start = started
        for batch, images in enumerate(epoch(number)):
            done += images
            if startup is None:
                startup = time.monotonic() - started
            if batch == BATCHES_BEFORE_STEADY - 1:
                done_before_steady, steady_start = done, time.monotonic()
        ended = time.monotonic()
    result = {
        "images": done,
        "startup": startup,
        "epoch": done / (ended - started),
        "steady": (done - done_before_steady) / (ended - steady_start),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }
    print(json.dumps(result))


def measure_project(options: argparse.Namespace) -> None:
    """Measure the project's loader, as ``alexnet.training`` uses it."""
    manifest, crop = read_manifest(options.project), not options.uncropped
    loader = ShardLoader(
        manifest=replace(
            manifest, shards={"train": manifest.shards["train"] * options.repeat, "val": ()}
        ),
        batch_size=BATCH,
        seed=0,
        shuffle_rows=options.shuffle_rows,
    )
    axes, mean = pca_axes(PAPER, COVARIANCE), torch.full((3, 224, 224), 120.0)
    buffers = crop_buffers()

    def epoch(number: int) -> Iterator[int]:
        how = Augmentation(recipe=PAPER, pca_axes=axes, seed=0, epoch=number)
        start_crops = crops_while_decoding(how, mean, buffers) if crop else None
        for batch in loader.epoch(number, 0, start_crops):
            if crop:
                assert (batch.images.shape[1:], batch.images.dtype) == (mean.shape, torch.float32)
            yield len(batch.images)

    measure(epoch, options.epochs)


def run(script: str, *arguments: str) -> dict[str, float]:
    """The result of a loader's process."""
    environment = {name: v for name, v in os.environ.items() if name != "RAY_ADDRESS"}
    if "--project" in arguments:
        environment |= KEEP_FREED_MEMORY  # As in every training worker.
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(script, *arguments, {name: round(value, 2) for name, value in result.items()}, flush=True)
    return result


def fill_page_cache(*folders: Path) -> None:
    """Read all files once, so that the disk's speed has no effect."""
    for folder in folders:
        for path in folder.rglob("*.*"):
            path.read_bytes()


def mixing(groups: int, rows_per_shard: int) -> dict[str, Any]:
    """Row groups and shards among the rows of a batch; shuffled per window and uniformly."""
    sizes = [ROW_GROUP_ROWS] * groups
    (order, _), (uniform, _) = epoch_order(sizes, 0, 0), epoch_order(sizes, 0, 0, "all")

    def distinct(rows: NDArray[np.int64], size: int) -> float:
        whole = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH)
        sources = np.sort(whole // size, axis=1)
        return round(float((np.diff(sources, axis=1) > 0).sum(axis=1).mean() + 1), 2)

    return {
        "rows": len(order),
        "rows_per_shard": rows_per_shard,
        "row_groups": {
            "project": distinct(order, ROW_GROUP_ROWS),
            "uniform": distinct(uniform, ROW_GROUP_ROWS),
        },
        "shards": {
            "project": distinct(order, rows_per_shard),
            "uniform": distinct(uniform, rows_per_shard),
        },
    }


def median(rounds: list[dict[str, float]], key: str) -> float:
    return round(statistics.median(result[key] for result in rounds), 2)


def ratio(first: list[dict[str, float]], second: list[dict[str, float]], key: str) -> float:
    """The median ratio of the speeds in the same rounds; above 1 the first loader is faster."""
    pairs = zip(first, second, strict=True)
    return round(statistics.median(a[key] / b[key] for a, b in pairs), 3)


def compare(images: int, repeats: int, epochs: int, memory: int) -> dict[str, Any]:
    """Rates, ratios and memory of all loaders."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifests = make_shards(images, folder)
        write_files(manifests["jpeg"], folder / "files")
        jpeg, raw, files, count = str(folder / "jpeg"), str(folder / "raw"), "files", str(epochs)

        def ours(shards: str, *more: str) -> tuple[str, ...]:
            return "ingest.py", "--project", shards, "--epochs", count, *more

        loaders = {
            "project_jpeg": ours(jpeg),
            "project_raw": ours(raw),
            "project_jpeg_uncropped": ours(jpeg, "--uncropped"),
            "project_raw_uncropped": ours(raw, "--uncropped"),
            "project_jpeg_all_rows": ours(jpeg, "--shuffle-rows=all"),
            "project_raw_all_rows": ours(raw, "--shuffle-rows=all"),
            "data_loader": ("peer_dataloader.py", str(folder / files), count),
            "ray_data_jpeg": ("peer_ray_ingest.py", jpeg, count),
            "ray_data_raw": ("peer_ray_ingest.py", raw, count),
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in loaders}
        for _ in range(repeats):
            for name, command in loaders.items():
                fill_page_cache(Path(command[2 if name.startswith("project") else 1]))
                runs[name].append(run(*command))
        result: dict[str, Any] = {
            "images": manifests["jpeg"].rows("train"),
            "bytes_per_jpeg": sum(shard.bytes for shard in manifests["jpeg"].shards["train"])
            // manifests["jpeg"].rows("train"),
            "cores": os.cpu_count(),
            "rounds": repeats,
        }
        for key in ("steady", "epoch", "startup"):
            result[key] = {name: median(results, key) for name, results in runs.items()}
        result["ratios"] = {
            f"{first} / {second}": {
                key: ratio(runs[first], runs[second], key) for key in ("steady", "epoch")
            }
            for first, second in (
                ("project_jpeg", "data_loader"),
                ("project_jpeg", "ray_data_jpeg"),
                ("project_raw", "ray_data_raw"),
                ("project_raw", "project_jpeg"),
                ("project_raw_uncropped", "project_jpeg_uncropped"),
                ("project_jpeg_all_rows", "project_jpeg"),
                ("project_raw_all_rows", "project_raw"),
            )
        }
        if memory > 1:
            result["memory"] = {}
            for name in ("project_jpeg", "project_raw"):
                once, often = (run(*loaders[name], f"--repeat={n}") for n in (1, memory))
                result["memory"][name] = {
                    "images": [once["images"], often["images"]],
                    "peak_mb": [round(once["peak_mb"]), round(often["peak_mb"])],
                    "ratio": round(often["peak_mb"] / once["peak_mb"], 3),
                }
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=2, help="epochs in each process")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, default=4, help="how many times as many images")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--project", help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--uncropped", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--shuffle-rows", default="windows", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.project:
        measure_project(options)
        return
    result = compare(options.images, options.repeats, options.epochs, options.memory)
    result["mixing"] = mixing(20_000, ROWS_PER_SHARD)
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
