"""The project's loader and others over the same JPEGs, whichever are installed.

    python tests/benchmarks/input_race.py --output input_race.json --table docs/benchmarks.md

The images of ``$ALEXNET_REAL_DATA/ilsvrc2012-ten``, or generated ones, are stored as 256x256 JPEGs,
as JPEG shards and as raw shards; each peer of ``race_peers.py`` converts the JPEGs to its own
format if it has one. Works: ``jpeg_float`` and ``raw_float`` are float batches of 128 random,
mirrored 224x224 crops without the mean, ``jpeg_uint8`` and ``raw_uint8`` are batches of whole
images. Where a loader leaves decoding to the user, Pillow decodes, as in its documentation; FFCV
has one compiled operation for crops. Each loader runs in its own process; the rounds are
interleaved. It is an error if a loader does not deliver each image once, or if the means of the
delivered values differ by more than one grey level. ``whole`` is images per second from the
start of an epoch to its end, ``steady`` without its first five batches; ``ratio`` is the median
over rounds of the project's ``whole`` rate divided by the peer's; above 1 the project is faster.

``pip install -e '.[race]'`` installs the peers but FFCV.
``--python ffcv=/path/to/python`` runs a peer with another Python, for those that need their own
environment: FFCV needs the packages ``libturbojpeg0-dev libopencv-dev pkg-config`` and NumPy 2.1.
``--table`` replaces the table in a file between the lines that mark it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ingest import fill_page_cache, make_shards
from race_peers import PEERS, installed

from alexnet.shards.codec import decode_into
from alexnet.shards.format import ROW_GROUP_ROWS, SCHEMA, write_shard
from alexnet.shards.manifest import Manifest, write_manifest
from pipelines.cluster import KEEP_FREED_MEMORY

HERE = Path(__file__).parent
WORKS = {
    "jpeg_float": tuple(peer for peer in PEERS if peer != "spdl_map"),
    "raw_float": ("project", "ffcv", "spdl_map"),
    "jpeg_uint8": ("project", "ffcv"),
    "raw_uint8": ("project", "ffcv"),
}
"""The peers of each work. On raw images, only FFCV has a format of its own."""

BEGIN, END = "<!-- input_race.py: begin -->", "<!-- input_race.py: end -->"


def make_data(images: int, folder: Path) -> None:
    """The same images as files, JPEG shards and raw shards; the label of each is its number."""
    (folder / "files").mkdir(parents=True)
    jpeg = make_shards(images, folder / "source", ["jpeg"])["jpeg"]
    for shard in jpeg.shards["train"]:
        for data in pq.read_table(Path(jpeg.folder, shard.file))["image"].to_pylist():
            number = len(os.listdir(folder / "files"))
            (folder / "files" / f"{number:06d}.jpg").write_bytes(data)
    paths = sorted((folder / "files").iterdir())
    for encoding in ("jpeg", "raw"):
        shards = []
        for first in range(0, len(paths), 512):
            rows = [row_of(path, encoding) for path in paths[first : first + 512]]
            table = pa.Table.from_pylist(rows, schema=SCHEMA)
            groups = (table.slice(n, ROW_GROUP_ROWS) for n in range(0, len(rows), ROW_GROUP_ROWS))
            shards.append(write_shard(str(folder / encoding), f"train/{first:06d}.parquet", groups))
        write_manifest(
            Manifest(
                folder=str(folder / encoding),
                plan_digest="",
                source="",
                layout=jpeg.layout,
                settings={"encoding": encoding},
                labels=(),
                shards={"train": tuple(shards), "val": ()},
                rejected={},
                files={},
            )
        )


def row_of(path: Path, encoding: str) -> dict[str, Any]:
    data = path.read_bytes()
    if encoding == "raw":
        pixels = np.empty((256, 256, 3), np.uint8)
        decode_into(np.frombuffer(data, np.uint8), pixels)
        data = pixels.tobytes()
    row = {"key": path.name, "label": int(path.stem), "wnid": "n01", "image": data}
    return row | {"width": 256, "height": 256, "sha256": ""}


def run(peer: str, work: str, folder: Path, epochs: int, python: str) -> dict[str, float]:
    """The result of a loader's process."""
    # The allocator is set as in every training worker, for all: it helps others, too.
    environment = os.environ | KEEP_FREED_MEMORY
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    command = [python, str(HERE / "race_peers.py"), peer, work, str(folder), str(epochs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(work, peer, {name: round(value, 2) for name, value in result.items()}, flush=True)
    return result


def compare(rounds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Medians of each peer, and ratios of the project to it."""
    means = {peer: results[0]["mean"] for peer, results in rounds.items()}
    if max(means.values()) - min(means.values()) > 1:
        raise SystemExit(f"the peers deliver different values: {means}")
    summary: dict[str, dict[str, Any]] = {}
    for peer, results in rounds.items():
        summary[peer] = {
            name: round(statistics.median(result[name] for result in results), 3)
            for name in results[0]
        }
        for rate in ("whole", "steady"):
            pairs = zip(rounds["project"], results, strict=True)
            ratios = [round(ours[rate] / theirs[rate], 2) for ours, theirs in pairs]
            summary[peer][f"ratio_{rate}"] = round(statistics.median(ratios), 2)
            summary[peer][f"ratios_{rate}"] = ratios
    return summary


def table(works: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| work | loader | images/s, whole epoch | project / loader (by round) | steady "
        "| CPU seconds for 1,000 images | anonymous memory, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for work, peers in works.items():
        for peer, result in peers.items():
            by_round = ", ".join(f"{ratio:.2f}" for ratio in result["ratios_whole"])
            ratio = f"{result['ratio_whole']:.2f} ({by_round})"
            cells = [
                work,
                peer,
                f"{result['whole']:,.0f}",
                "" if peer == "project" else ratio,
                "" if peer == "project" else f"{result['ratio_steady']:.2f}",
                f"{result['cpu_seconds_per_1000']:.2f}",
                f"{result['anonymous_mb']:,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def replace_table(path: Path, new: str) -> None:
    """Replace what is between the lines that mark the table."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"{path} has no {BEGIN} and {END}"
    path.write_text(f"{before}{BEGIN}\n{new}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=9216)
    parser.add_argument("--epochs", type=int, default=2, help="measured epochs in each process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--folder", type=Path, help="keep the data here for later races")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path, help="file with the table to replace")
    options = parser.parse_args()
    pythons = dict.fromkeys(PEERS, sys.executable)
    pythons |= dict(item.split("=", 1) for item in options.python)
    wanted = ["project", *(peer for peer in options.peers if peer != "project")]
    present = [peer for peer in wanted if installed(peer, pythons[peer])]
    print("not installed:", *(peer for peer in wanted if peer not in present), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = options.folder or Path(scratch)
        if not (folder / "raw" / "manifest.json").exists():
            make_data(options.images, folder)
        rounds: dict[str, dict[str, list[dict[str, float]]]] = {}
        for _ in range(options.rounds):
            for work in options.works:
                fill_page_cache(folder)
                for peer in (peer for peer in present if peer in WORKS[work]):
                    result = run(peer, work, folder, options.epochs, pythons[peer])
                    rounds.setdefault(work, {}).setdefault(peer, []).append(result)
    works = {work: compare(results) for work, results in rounds.items()}
    summary = {"cores": os.cpu_count(), "rounds": options.rounds, "works": works}
    print(json.dumps(summary, indent=2))
    if options.output:
        options.output.write_text(json.dumps(summary, indent=2) + "\n")
    if options.table:
        replace_table(options.table, table(works))


if __name__ == "__main__":
    main()
