"""The speed of bulk inference, compared with three other programs at the same time.

    python tests/benchmarks/inference.py --output inference.json

The images are hard links to the JPEGs in ``$ALEXNET_REAL_DATA/full-size``, or to generated JPEGs of
that size; the model is an AlexNet with initial weights. Rounds are interleaved: this project, then
its peers (``peer_inference.py``). The steady rate is the number of images in all parts but the
first two, divided by the time from the end of the second part to the end of the last: two parts are
written at the same time. ``start`` is the rest of the command's time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from preprocess import jpegs, run_timed

from alexnet.model.classifier import CropClassifier
from alexnet.model.towers import AlexNet, initialize
from alexnet.recipes import SOURCE145
from pipelines.cluster import KEEP_FREED_MEMORY
from pipelines.settings import Settings
from pipelines.tracking import registry
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import connect

HERE = Path(__file__).parent


def register_model(workdir: Path) -> None:
    network = AlexNet(SOURCE145, 1000)
    initialize(network, SOURCE145, 0)
    classifier = CropClassifier(network, torch.full((3, 224, 224), 115.0))
    store = connect(Settings(workdir=str(workdir)))
    classes = [[f"n{number:08d}", f"class {number}"] for number in range(1000)]
    with (
        torch.no_grad(),
        active_run(store, open_run(store, "train", resume=None, parent=None)) as run,
    ):
        uri = run.log_model(classifier, np.zeros((2, 224, 224, 3), np.uint8), {"classes": classes})
    version = registry.register(store, "alexnet", uri, {})
    registry.set_alias(store, "alexnet", "champion", version.version)


def make_folder(originals: list[Path], folder: Path, images: int) -> Path:
    folder.mkdir()
    for number in range(images):
        original = originals[number % len(originals)]
        try:
            os.link(original, folder / f"{number:06d}.jpg")
        except OSError:  # Another file system.
            shutil.copy(original, folder / f"{number:06d}.jpg")
    return folder


def run_project(
    workdir: Path, folder: Path, views: int, rows: int, *, memory: bool = False
) -> dict[str, float]:
    output = workdir / "out"
    command = ["pipelines/batch_inference.py", "--workdir", str(workdir), "--images", str(folder)]
    command += ["--output", str(output), "--views", str(views), "--rows-per-part", str(rows)]
    seconds, peak = run_timed(command, memory=memory)
    parts = sorted(
        (path.stat().st_mtime, pq.read_metadata(path).num_rows)
        for path in output.glob("part-*.parquet")
    )
    shutil.rmtree(output)
    later = sum(count for _, count in parts[2:])
    rate = later / (parts[-1][0] - parts[1][0])
    images = sum(count for _, count in parts)
    return {"rate": rate, "start": seconds - images / rate, "peak": peak}


def run_peer(kind: str, workdir: Path, folder: Path, views: int) -> dict[str, float]:
    """A peer; the bare model also keeps freed memory, which makes it faster."""
    variables = dict(KEEP_FREED_MEMORY) if kind == "model" else {}
    done = subprocess.run(
        [sys.executable, str(HERE / "peer_inference.py"), kind, workdir, folder, str(views)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return {"rate": json.loads(done.stdout.splitlines()[-1])["images_per_second"]}


def median(runs: list[dict[str, float]], key: str) -> float:
    return round(statistics.median(run[key] for run in runs), 2)


def compare(
    workdir: Path, folder: Path, views: int, rows: int, peers: list[str], rounds: int
) -> dict[str, Any]:
    """Interleaved rounds of the project and of some peers."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("project", *peers)}
    for _ in range(rounds):
        runs["project"].append(run_project(workdir, folder, views, rows))
        for peer in peers:
            runs[peer].append(run_peer(peer, workdir, folder, views))
        print({name: round(run[-1]["rate"], 1) for name, run in runs.items()}, flush=True)
    pairs = {
        peer: [a["rate"] / b["rate"] for a, b in zip(runs["project"], runs[peer], strict=True)]
        for peer in peers
    }
    return {
        "images_per_second": {name: median(run, "rate") for name, run in runs.items()},
        "ratio_to": {peer: round(statistics.median(ratios), 3) for peer, ratios in pairs.items()},
        "start_seconds": median(runs["project"], "start"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="with one view; 0: none")
    parser.add_argument("--ten-views", type=int, default=400, help="images with ten views; 0: none")
    parser.add_argument(
        "--memory", type=int, default=20000, help="images of the memory run; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch)
        register_model(workdir)
        originals = jpegs(workdir)
        result: dict[str, Any] = {"cores": os.cpu_count(), "load_average": os.getloadavg()}
        if options.ten_views:
            folder = make_folder(originals, workdir / "ten", options.ten_views)
            rows = options.ten_views // 10
            result["ten_views"] = compare(workdir, folder, 10, rows, ["model"], options.rounds)
        if options.images:
            folder = make_folder(originals, workdir / "one", options.images)
            peers, rows = ["loader", "ray"], options.images // 10
            result["one_view"] = compare(workdir, folder, 1, rows, peers, options.rounds)
        if options.memory:
            many = make_folder(originals, workdir / "many", options.memory)
            tenth = make_folder(originals, workdir / "tenth", options.memory // 10)
            runs = [
                run_project(workdir, folder, 1, options.memory // 40, memory=True)
                for folder in (tenth, many)
            ]
            peaks = [run["peak"] for run in runs]
            result["memory"] = {
                "images": [options.memory // 10, options.memory],
                "gigabytes": [round(peak / 1e9, 3) for peak in peaks],
                "ratio": round(peaks[1] / peaks[0], 3),
                "start_seconds": [round(run["start"], 1) for run in runs],
            }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
