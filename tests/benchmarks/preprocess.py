"""The speed of preprocessing, compared with two other programs at the same time.

    python tests/benchmarks/preprocess.py --output preprocess.json

The source consists of hard links to the JPEGs in ``$ALEXNET_REAL_DATA/full-size``, or to generated
JPEGs of that size. It is preprocessed in turn by ``pipelines/preprocess.py``, by a simple script
with Pool(2) and by a plain Ray Data job. The steady rate is the number of images after the first
finished file, divided by the time from the first finished file to the last. ``bound`` is the rate
of two processes that only decode, resize and encode. ``whole`` is the time of the whole command,
with Ray's start, imports and MLflow, beside the script and, where they are installed, the writers
of LitData, Streaming and FFCV (``peer_writers.py``; ``--python ffcv=/path/to/python`` runs one with
another Python).
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
from race_peers import installed

from alexnet.shards.codec import Encoding, encode
from alexnet.shards.decode import Decoded, decode

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS_PER_SHARD = 512
UNIQUE = 180
BOUND_SECONDS = 8.0
WRITERS = ("litdata", "streaming", "ffcv")


def jpegs(folder: Path) -> list[Path]:
    """Real full-size images if there are any, else generated ones of 500x375 and about 110 kB."""
    real = os.environ.get("ALEXNET_REAL_DATA")
    if real and (paths := sorted(Path(real, "full-size").glob("*/*"))):
        return paths
    random = np.random.default_rng(0)
    generated = []
    for number in range(UNIQUE):
        path = folder / "unique" / f"{number}.JPEG"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (75, 100, 3), np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + random.integers(-12, 13, pixels.shape), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(path, "JPEG", quality=92)
        generated.append(path)
    return generated


def make_source(originals: list[Path], root: Path, images: int) -> Path:
    """A source in the folders layout. One of twenty images is for validation."""
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
    """Images per second between the first finished file and the last."""
    finished = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in files)
    (first, _), (last, _) = finished[0], finished[-1]
    return float(sum(rows for _, rows in finished[1:]) / (last - first))


class PeakMemory(threading.Thread):
    """The maximum of the memory (sum of PSS) of a process and its descendants."""

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


def run_timed(
    command: list[str], *, memory: bool = False, python: str = sys.executable
) -> tuple[float, int]:
    """Run a command. Returns its seconds and, if requested, its peak memory in bytes."""
    environment = {name: v for name, v in os.environ.items() if name != "RAY_ADDRESS"}
    started = time.monotonic()
    process = subprocess.Popen(
        [python, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = PeakMemory(process.pid)
    if memory:
        peak.start()
    output, _ = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output[-3000:]}")
    return seconds, peak.bytes


def run_project(source: Path, work: Path, *, memory: bool = False) -> dict[str, float]:
    rows = str(ROWS_PER_SHARD)
    command = ["pipelines/preprocess.py", "--source", str(source), "--workdir", str(work)]
    seconds, peak = run_timed([*command, "--rows-per-shard", rows], memory=memory)
    files = sorted((work / "shards").glob("*/*/*.parquet"))
    return {"seconds": seconds, "steady": steady_rate(files), "peak": peak}


def run_pool(source: Path, work: Path) -> dict[str, float]:
    command = [str(HERE / "peer_pool.py"), str(source), str(work), str(ROWS_PER_SHARD)]
    seconds, _ = run_timed(command)
    return {"seconds": seconds, "steady": steady_rate(sorted(work.glob("*.parquet")))}


def run_ray_data(source: Path, work: Path) -> dict[str, float]:
    seconds, _ = run_timed([str(HERE / "peer_ray_data.py"), str(source), str(work)])
    return {"seconds": seconds, "steady": steady_rate(sorted(work.rglob("*.parquet")))}


def run_writer(source: Path, work: Path, *, peer: str, python: str) -> dict[str, float]:
    command = [str(HERE / "peer_writers.py"), peer, str(source), str(work)]
    return {"seconds": run_timed(command, python=python)[0]}


def decode_and_encode(paths: list[Path], start: Any, rates: Any) -> None:
    """One process of ``bound``: reads from memory, writes nothing."""
    data = [path.read_bytes() for path in paths]
    done = 0
    decode(data[0])
    start.wait()
    started = time.monotonic()
    while time.monotonic() - started < BOUND_SECONDS:
        decoded = decode(data[done % len(data)])
        assert isinstance(decoded, Decoded)
        encode(decoded.pixels, Encoding(kind="jpeg", jpeg_quality=95))
        done += 1
    rates.put(done / (time.monotonic() - started))


def bound(paths: list[Path]) -> float:
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    start, rates = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=decode_and_encode, args=(paths, start, rates)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    total = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    del os.environ["OMP_NUM_THREADS"]
    return float(total)


def median(results: list[dict[str, float]], key: str) -> float:
    return round(statistics.median(result[key] for result in results), 2)


def ratio(project: list[dict[str, float]], other: list[dict[str, float]], key: str) -> float:
    """The median ratio of the speeds in consecutive runs; above 1 the project is faster."""
    pairs = zip(project, other, strict=True)
    ratios = [a[key] / b[key] if key == "steady" else b[key] / a[key] for a, b in pairs]
    return round(statistics.median(ratios), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--whole", type=int, default=12000, help="images of the whole command")
    parser.add_argument("--memory", type=int, default=16000, help="images of the memory run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        originals = jpegs(folder)
        small = make_source(originals, folder / "small", options.images)
        runs: dict[str, list[dict[str, float]]] = {"project": [], "pool": [], "ray_data": []}
        bounds = []

        def once(name: str, run: Any, source: Path, **options: Any) -> dict[str, float]:
            work = folder / "work"
            result: dict[str, float] = run(source, work, **options)
            shutil.rmtree(work)
            print(name, {key: round(value, 2) for key, value in result.items()}, flush=True)
            return result

        for _ in range(options.repeats):
            bounds.append(bound(originals))
            runs["project"].append(once("project", run_project, small))
            runs["pool"].append(once("pool", run_pool, small))
            runs["ray_data"].append(once("ray data", run_ray_data, small))
        result: dict[str, Any] = {
            "images": options.images,
            "cores": os.cpu_count(),
            "steady_images_per_second": {name: median(r, "steady") for name, r in runs.items()},
            "bound_images_per_second": round(statistics.median(bounds), 1),
            "steady_to_pool": ratio(runs["project"], runs["pool"], "steady"),
            "steady_to_ray_data": ratio(runs["project"], runs["ray_data"], "steady"),
            "share_of_bound": round(
                statistics.median(
                    run["steady"] / rate for run, rate in zip(runs["project"], bounds, strict=True)
                ),
                3,
            ),
        }
        if options.whole:
            large = make_source(originals, folder / "large", options.whole)
            pythons = dict.fromkeys(WRITERS, sys.executable)
            pythons |= dict(item.split("=", 1) for item in options.python)
            peers = [peer for peer in WRITERS if installed(peer, pythons[peer])]
            whole: dict[str, list[dict[str, float]]] = {}
            for _ in range(options.repeats):
                for name, run in (("project", run_project), ("pool", run_pool)):
                    whole.setdefault(name, []).append(once(f"{name}, whole", run, large))
                for peer in peers:
                    how = {"peer": peer, "python": pythons[peer]}
                    whole.setdefault(peer, []).append(once(peer, run_writer, large, **how))
            result["whole"] = {
                "images": options.whole,
                "seconds": {name: median(results, "seconds") for name, results in whole.items()},
                "ratios": {
                    name: ratio(whole["project"], results, "seconds")
                    for name, results in whole.items()
                },
            }
        if options.memory:
            largest = make_source(originals, folder / "largest", options.memory)
            fewer = make_source(originals, folder / "fewer", options.memory // 4)
            few = once("memory, few", run_project, fewer, memory=True)
            many = once("memory, many", run_project, largest, memory=True)
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
