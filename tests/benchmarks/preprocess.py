"""How fast raw images become shards, against two peers in the same minutes.

    python tests/benchmarks/preprocess.py --output preprocess.json

Copies (hard links) of the JPEGs in ``$ALEXNET_REAL_DATA/full-size``, or generated ones of that
size, are preprocessed by ``pipelines/preprocess.py``, by a hand-written Pool(2) script and by a
plain Ray Data job, in turns. Steady rate: images after the first finished file, over the time
from the first finished file to the last. ``bound`` is what two processes reach that only decode,
resize and encode. ``whole`` is the clock of the whole command, with Ray's start, imports and
MLflow.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

from alexnet.shards.codec import Encoding, encode
from alexnet.shards.decode import Decoded, decode

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS_PER_SHARD = 512
UNIQUE = 180
BOUND_SECONDS = 8.0


def jpegs(folder: Path) -> list[Path]:
    """Real full-size images if there are any, else generated ones: 500x375, about 110 kB."""
    real = os.environ.get("ALEXNET_REAL_DATA")
    if real and (found := sorted(Path(real, "full-size").glob("*/*"))):
        return found
    random = np.random.default_rng(0)
    made = []
    for number in range(UNIQUE):
        path = folder / "unique" / f"{number}.JPEG"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (75, 100, 3), np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + random.integers(-12, 13, pixels.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(path, "JPEG", quality=92)
        made.append(path)
    return made


def make_source(originals: list[Path], root: Path, images: int) -> Path:
    """A data set in the folders form: one image in twenty is for validation."""
    for number in range(images):
        original = originals[number % len(originals)]
        split = "val" if number // len(originals) % 20 == 19 or number < len(originals) else "train"
        folder = root / split / f"class{number % len(originals):03d}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            os.link(original, folder / f"{number:06d}.JPEG")
        except OSError:  # Another file system.
            shutil.copy(original, folder / f"{number:06d}.JPEG")
    return root


def steady_rate(files: list[Path]) -> float:
    """Images a second between the first finished file and the last."""
    ended = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in files)
    (first, _), (last, _) = ended[0], ended[-1]
    return float(sum(rows for _, rows in ended[1:]) / (last - first))


class Peak(threading.Thread):
    """The largest sum of the memory (PSS) of a process and all below it."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.pid = pid

    def run(self) -> None:
        while psutil.pid_exists(self.pid):
            total = 0
            try:
                root = psutil.Process(self.pid)
                for process in [root, *root.children(recursive=True)]:
                    try:
                        total += process.memory_full_info().pss
                    except psutil.Error:
                        continue
            except psutil.Error:
                return
            self.bytes = max(self.bytes, total)
            time.sleep(1.0)


def timed(command: list[str], *, memory: bool = False) -> tuple[float, int]:
    """Run a command; its seconds by the clock and, if asked for, its peak memory."""
    environment = {name: v for name, v in os.environ.items() if name != "RAY_ADDRESS"}
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = Peak(process.pid)
    if memory:
        peak.start()
    output, _ = process.communicate()
    seconds = time.monotonic() - begun
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output[-3000:]}")
    return seconds, peak.bytes


def ours(source: Path, work: Path, *, memory: bool = False) -> dict[str, float]:
    rows = str(ROWS_PER_SHARD)
    command = ["pipelines/preprocess.py", "--source", str(source), "--workdir", str(work)]
    seconds, peak = timed([*command, "--rows-per-shard", rows], memory=memory)
    files = sorted((work / "shards").glob("*/*/*.parquet"))
    return {"seconds": seconds, "steady": steady_rate(files), "peak": peak}


def pool(source: Path, work: Path) -> dict[str, float]:
    command = [str(HERE / "peer_pool.py"), str(source), str(work), str(ROWS_PER_SHARD)]
    seconds, _ = timed(command)
    return {"seconds": seconds, "steady": steady_rate(sorted(work.glob("*.parquet")))}


def ray_data(source: Path, work: Path) -> dict[str, float]:
    seconds, _ = timed([str(HERE / "peer_ray_data.py"), str(source), str(work)])
    return {"seconds": seconds, "steady": steady_rate(sorted(work.rglob("*.parquet")))}


def work_only(paths: list[Path], start: Any, rates: Any) -> None:
    """One process of ``bound``: bytes in memory, nothing written."""
    data = [path.read_bytes() for path in paths]
    done = 0
    decode(data[0])
    start.wait()
    begun = time.monotonic()
    while time.monotonic() - begun < BOUND_SECONDS:
        decoded = decode(data[done % len(data)])
        assert isinstance(decoded, Decoded)
        encode(decoded.pixels, Encoding(kind="jpeg", jpeg_quality=95))
        done += 1
    rates.put(done / (time.monotonic() - begun))


def bound(paths: list[Path]) -> float:
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    start, rates = context.Barrier(2), context.Queue()
    processes = [context.Process(target=work_only, args=(paths, start, rates)) for _ in range(2)]
    for process in processes:
        process.start()
    total = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    del os.environ["OMP_NUM_THREADS"]
    return float(total)


def median(results: list[dict[str, float]], key: str) -> float:
    return round(statistics.median(result[key] for result in results), 2)


def ratio(mine: list[dict[str, float]], theirs: list[dict[str, float]], key: str) -> float:
    """The median of the ratios of runs that stood side by side; above 1: ours is faster."""
    pairs = zip(mine, theirs, strict=True)
    found = [a[key] / b[key] if key == "steady" else b[key] / a[key] for a, b in pairs]
    return round(statistics.median(found), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--whole", type=int, default=12000, help="images of the whole command")
    parser.add_argument("--memory", type=int, default=16000, help="images of the memory run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        originals = jpegs(folder)
        small = make_source(originals, folder / "small", options.images)
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "pool": [], "ray_data": []}
        bounds = []

        def once(name: str, run: Any, source: Path, **options: Any) -> dict[str, float]:
            work = folder / "work"
            found: dict[str, float] = run(source, work, **options)
            shutil.rmtree(work)
            print(name, {key: round(value, 2) for key, value in found.items()}, flush=True)
            return found

        for _ in range(options.repeats):
            bounds.append(bound(originals))
            runs["ours"].append(once("ours", ours, small))
            runs["pool"].append(once("pool", pool, small))
            runs["ray_data"].append(once("ray data", ray_data, small))
        result: dict[str, Any] = {
            "images": options.images,
            "cores": os.cpu_count(),
            "steady_images_per_second": {name: median(r, "steady") for name, r in runs.items()},
            "bound_images_per_second": round(statistics.median(bounds), 1),
            "steady_to_pool": ratio(runs["ours"], runs["pool"], "steady"),
            "steady_to_ray_data": ratio(runs["ours"], runs["ray_data"], "steady"),
            "share_of_bound": round(
                statistics.median(
                    run["steady"] / most for run, most in zip(runs["ours"], bounds, strict=True)
                ),
                3,
            ),
        }
        if options.whole:
            large = make_source(originals, folder / "large", options.whole)
            mine, theirs = [], []
            for _ in range(options.repeats):
                mine.append(once("ours, whole", ours, large))
                theirs.append(once("pool, whole", pool, large))
            result["whole"] = {
                "images": options.whole,
                "seconds": {"ours": median(mine, "seconds"), "pool": median(theirs, "seconds")},
                "to_pool": ratio(mine, theirs, "seconds"),
            }
        if options.memory:
            largest = make_source(originals, folder / "largest", options.memory)
            fewer = make_source(originals, folder / "fewer", options.memory // 4)
            few = once("memory, few", ours, fewer, memory=True)
            many = once("memory, many", ours, largest, memory=True)
            result["memory"] = {
                "few_images": options.memory // 4,
                "many_images": options.memory,
                "few_gb": round(few["peak"] / 1e9, 3),
                "many_gb": round(many["peak"] / 1e9, 3),
                "ratio": round(many["peak"] / few["peak"], 3),
            }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
