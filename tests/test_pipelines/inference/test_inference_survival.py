"""Bulk inference with killed processes, a full disk, two commands at once, files added later.

The same command ends with the bytes of an uninterrupted run, has each file once, and writes no
finished part again. ``ALEXNET_KILLS`` is the number of processes to kill; with 20 there are 20,000
files.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from chaos import ChaosRun, small_file_system, three_nodes
from mlflow import MlflowClient
from PIL import Image
from ray.cluster_utils import Cluster

from alexnet.errors import UserError
from pipelines import batch_inference
from pipelines.configuration.command_settings import BatchInferenceSettings
from pipelines.results.command_results import BatchInferenceResult
from pipelines.settings import Settings
from pipelines.tracking import registry
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import connect

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("ALEXNET_KILLS", "3"))
IMAGES = 20_000 if KILLS >= 20 else 600
ROWS_PER_PART = IMAGES // 40
UNREADABLE = ("~notes.jpg", "~empty.jpg")


class Colours(torch.nn.Module):
    """Crops → shares of red, green and blue; it takes some work, like a network."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, 224, 224, 3) → (N, 3)."""
        return (crops.float().mean(dim=(1, 2)) / 32).softmax(dim=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with three_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hard links to a few images, and two files that are none."""
    root = tmp_path_factory.mktemp("images")
    random_pixels = np.random.default_rng(0)
    originals = tmp_path_factory.mktemp("originals")
    for number in range(50):
        coarse = Image.fromarray(random_pixels.integers(0, 256, (3, 4, 3), np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(originals / f"{number}.jpg")
    for number in range(IMAGES - len(UNREADABLE)):
        folder = root / f"{number % 7}"
        folder.mkdir(exist_ok=True)
        os.link(originals / f"{number % 50}.jpg", folder / f"{number:05d}.jpg")
    for name in UNREADABLE:
        (root / name).write_bytes(name.encode())
    return root


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a registered model, the champion."""
    folder = tmp_path_factory.mktemp("work")
    store = connect(Settings(workdir=str(folder)))
    example = np.zeros((2, 224, 224, 3), np.uint8)
    metadata = {"classes": [["n0", "red"], ["n1", "green"], ["n2", "blue"]], "shards": "abc"}
    with active_run(store, open_run(store, "train", resume=None, parent=None)) as run:
        uri = run.log_model(Colours(), example, metadata)
    version = registry.register(store, "alexnet", uri, {})
    registry.set_alias(store, "alexnet", "champion", version.version)
    return folder


def settings(workdir: Path, images: Path, output: Path, **more: Any) -> BatchInferenceSettings:
    values: dict[str, Any] = {
        "images": [str(images)],
        "output": str(output),
        "workdir": str(workdir),
    }
    values |= {"views": 1, "top_k": 2, "rows_per_part": ROWS_PER_PART, "device": "cpu"}
    return BatchInferenceSettings.model_validate(values | more)


def run(workdir: Path, images: Path, output: Path, **more: Any) -> BatchInferenceResult:
    return batch_inference.run(settings(workdir, images, output, **more))


def parts(output: Path) -> dict[str, bytes]:
    """All that is part of the result."""
    names = [*output.glob("part-*"), output / "manifest.json"]
    return {path.name: path.read_bytes() for path in names}


@pytest.fixture(scope="module")
def uninterrupted(
    cluster: Cluster, workdir: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The output of one worker that nothing interrupts."""
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    result = run(workdir, images, output, num_workers=1)
    assert (result.images, result.rejected) == (IMAGES, len(UNREADABLE))
    return parts(output)


def command(workdir: Path, images: Path, output: Path) -> list[str]:
    script = str(ROOT / "pipelines" / "batch_inference.py")
    options = ["--images", str(images), "--output", str(output), "--workdir", str(workdir)]
    options += ["--views", "1", "--top-k", "2", "--rows-per-part", str(ROWS_PER_PART)]
    return [sys.executable, script, *options, "--device", "cpu", "--num-workers", "1:3"]


def finished(output: Path) -> dict[str, int]:
    """The modification time of each finished part."""
    times = {}
    for result in output.glob("_listing/part-*.json"):
        part = output / f"{result.stem}.parquet"
        if part.exists():
            times[part.name] = part.stat().st_mtime_ns
    return times


@pytest.mark.long
def test_killed_at_random_moments_the_bytes_are_those_of_an_uninterrupted_run(
    cluster: Cluster,
    workdir: Path,
    images: Path,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
) -> None:
    moments = random.Random(2012)
    victims = itertools.cycle(["driver", "worker", "node"])
    kills = outputs = 0
    while kills < KILLS:
        outputs += 1
        output = tmp_path / str(outputs)
        chaos = ChaosRun(
            cluster,
            command(workdir, images, output),
            worker="ray::Map",
            progress=lambda output=output: len(finished(output)),  # type: ignore[misc]
        )
        kept: dict[str, int] = {}
        result = None
        while result is None:
            if chaos.process is None:
                chaos.start()
            if kills == KILLS or not chaos.wait_for_progress():
                result = chaos.result()
                assert result is not None or "failed" not in chaos.errors, chaos.errors
                continue
            time.sleep(moments.random() * 0.2)
            getattr(chaos, f"kill_{next(victims)}")()
            kills += 1
            if chaos.process is None:
                kept |= {n: t for n, t in finished(output).items() if n not in kept}
        assert result["images"] == IMAGES
        for name, modified in kept.items():
            assert (output / name).stat().st_mtime_ns == modified, "a finished part was rewritten"
        assert parts(output) == uninterrupted
        assert not list(output.rglob("*.tmp"))
    paths = [
        path
        for name in sorted(uninterrupted)
        if name.endswith(".parquet")
        for path in pq.read_table(output / name)["path"].to_pylist()
    ]
    assert sorted(paths) == sorted(str(path) for path in images.rglob("*.jpg"))


@pytest.mark.long
def test_files_that_are_added_become_further_parts(
    cluster: Cluster, workdir: Path, images: Path, tmp_path: Path
) -> None:
    copy, output = tmp_path / "images", tmp_path / "out"
    shutil.copytree(images / "0", copy)
    first = run(workdir, copy, output, num_workers="1:3")
    before = parts(output)
    assert run(workdir, copy, output).parts_made == 0
    assert parts(output) == before
    for number in range(3):
        shutil.copy(images / "1" / f"{7 * number + 1:05d}.jpg", copy / f"00000{number}-new.jpg")
    second = run(workdir, copy, output)
    assert (second.images, second.parts_made) == (first.images + 3, 1)
    after = parts(output)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    manifest = json.loads(after["manifest.json"])
    assert sum(part["rows"] for part in manifest["parts"]) == second.images
    (copy / f"{0:05d}.jpg").unlink()
    with pytest.raises(UserError, match="1 missing now"):
        run(workdir, copy, output)
    assert parts(output) == after
    with pytest.raises(UserError, match="begun with --top-k 2, not 3"):
        run(workdir, copy, output, top_k=3)
    forced = run(workdir, copy, output, top_k=3, force=True)
    assert (forced.images, forced.parts_kept) == (second.images - 1, 0)


@pytest.mark.long
def test_two_commands_at_once_make_one_output(
    cluster: Cluster, workdir: Path, images: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    runs = [
        ChaosRun(cluster, command(workdir, images, output), worker="", progress=lambda: 0)
        for _ in range(2)
    ]
    for one in runs:
        one.start()
    results = [one.result() for one in runs]
    made = sorted(result["parts_made"] for result in results if result)
    assert made == [0, len(uninterrupted) - 1]
    assert parts(output) == uninterrupted


def test_a_run_in_mlflow_and_a_page(
    cluster: Cluster, workdir: Path, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    result = run(workdir, images / "0", output, html=True, format="jsonl", features=None)
    assert result.page
    assert Path(result.page).read_text(encoding="utf-8").count("data:image/jpeg")
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    (logged, *_) = client.search_runs(["1"], "tags.stage = 'batch_inference'", max_results=1)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["images"] == result.images
    assert logged.data.tags["predictions"] == str(output)
    names = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert {"labels.png", "confidences.png", "images.png", "rejects_by_reason.json"} <= names
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["models"][0]["version"] == "alexnet/1"
    assert manifest["models"][0]["shards"] == "abc"


@pytest.mark.long
def test_an_interrupted_command_leaves_no_process(
    workdir: Path, images: Path, tmp_path: Path
) -> None:
    """With a cluster of its own."""
    output = tmp_path / "out"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # Without an address the command would join the cluster of this test module.
    process = subprocess.Popen(
        command(workdir, images, output),
        env=environment | {"RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 120
    while not finished(output) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert printed.splitlines()[-1].endswith("the same command resumes where this one stopped")
    _, alive = psutil.wait_procs(children, timeout=15)
    assert alive == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, 1) as folder:
        yield folder


@pytest.mark.long
def test_a_full_disk_is_one_line_and_the_same_command_resumes(
    cluster: Cluster,
    workdir: Path,
    images: Path,
    uninterrupted: dict[str, bytes],
    small_disk: Path,
) -> None:
    output = small_disk / "out"
    filling = small_disk / "filling"
    needed = sum(map(len, uninterrupted.values()))
    filling.write_bytes(b"x" * (2**20 - needed))
    with pytest.raises(OSError, match="No space left"):
        run(workdir, images, output, num_workers="1:3")
    filling.unlink()
    larger = ["mount", "-o", "remount,size=200m", str(small_disk)]
    subprocess.run(larger, check=True)
    assert run(workdir, images, output, num_workers="1:3").parts_kept > 0
    assert parts(output) == uninterrupted
