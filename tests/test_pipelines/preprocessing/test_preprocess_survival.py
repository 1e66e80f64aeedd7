"""Preprocessing with killed processes, a full disk, damaged shards, two commands at once.

The same command ends with the bytes of an uninterrupted run and writes no finished shard again.
``ALEXNET_KILLS`` is the number of processes to kill.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chaos import ChaosRun, small_file_system, three_nodes
from PIL import Image
from ray.cluster_utils import Cluster

from alexnet.errors import UserError
from alexnet.shards.codec import Encoding
from alexnet.shards.finalize import finalize
from alexnet.shards.manifest import MANIFEST, read_manifest
from alexnet.shards.plan import parts_folder, write_plan
from alexnet.shards.write import make_shard
from alexnet.sources.read import read_source
from pipelines import preprocess
from pipelines.settings import PreprocessCommandSettings

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("ALEXNET_KILLS", "3"))
IMAGES = 480
ROWS_PER_SHARD = 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with three_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images large enough that the work takes some seconds; one file is no image."""
    root = tmp_path_factory.mktemp("raw")
    random_pixels = np.random.default_rng(0)
    originals = []
    outside = tmp_path_factory.mktemp("originals")
    for number in range(8):
        coarse = Image.fromarray(random_pixels.integers(0, 256, (15, 20, 3), np.uint8))
        path = outside / f"{number}.JPEG"
        coarse.resize((1600, 1200), Image.Resampling.BICUBIC).save(path, quality=90)
        originals.append(path)
    for number, original in zip(range(IMAGES), itertools.cycle(originals), strict=False):
        folder = root / ("val" if number % 10 == 9 else "train") / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(original, folder / f"{number:03d}.JPEG")
    (root / "train" / "class1" / "notes.JPEG").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the images without Ray: shards, rejects and statistics."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    raw = read_source(str(source))
    encoding = Encoding(kind="jpeg", jpeg_quality=95)
    tasks = write_plan(str(folder), raw, encoding, ROWS_PER_SHARD, 0)
    finalize(
        str(folder),
        {task: make_shard(task) for task in tasks},
        plan_digest="",
        source="",
        layout=raw.layout,
        settings={},
        labels=raw.labels,
    )
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a data set except the manifest, which names the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def command(source: Path, workdir: Path) -> list[str]:
    options = ["--source", str(source), "--workdir", str(workdir)]
    script = str(ROOT / "pipelines" / "preprocess.py")
    return [sys.executable, script, *options, "--rows-per-shard", str(ROWS_PER_SHARD)]


def settings(source: Path, workdir: Path, **more: Any) -> PreprocessCommandSettings:
    values = {"source": str(source), "workdir": str(workdir), "rows_per_shard": ROWS_PER_SHARD}
    return PreprocessCommandSettings.model_validate(values | more)


def run_command(source: Path, workdir: Path, **more: Any) -> dict[str, Any]:
    """The JSON line of the command, run in this process."""
    return preprocess.command(settings(source, workdir, **more)).to_json()


def finished_shards(workdir: Path) -> dict[str, int]:
    """The modification time of each finished shard."""
    times = {}
    for result in workdir.glob("shards/*/parts/*-*.json"):
        try:
            shard = result.parents[1] / json.loads(result.read_text())["file"]
            times[shard.name + shard.parent.name] = shard.stat().st_mtime_ns
        except (FileNotFoundError, ValueError):
            continue  # The command ended and deleted the file in the meantime.
    return times


def chaos_run(cluster: Cluster, source: Path, workdir: Path) -> ChaosRun:
    return ChaosRun(
        cluster,
        command(source, workdir),
        worker="ray::Map",
        progress=lambda: len(finished_shards(workdir)),
    )


@pytest.mark.long
def test_killed_at_random_moments_the_bytes_are_those_of_an_uninterrupted_run(
    cluster: Cluster, source: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    moments = random.Random(2012)
    victims = itertools.cycle(["worker", "node", "driver"])
    kills = failures = workdirs = 0
    while kills < KILLS:
        workdirs += 1
        workdir = tmp_path / str(workdirs)
        run = chaos_run(cluster, source, workdir)
        kept: dict[str, int] = {}
        result = None
        while result is None:
            if run.process is None:
                run.start()
            if kills == KILLS or not run.wait_for_progress():
                result = run.result()
                # A driver that joined the cluster through a killed node ends without a message. It
                # can join through any node, since all have one address here.
                assert result or "preprocess.py:" not in run.errors, run.errors
                failures += result is None
                assert failures <= kills
                continue
            time.sleep(moments.uniform(0, 0.5))
            if run.has_ended():
                continue
            victim = next(victims)
            getattr(run, f"kill_{victim}")()
            kills += 1
            if victim == "driver":
                times = finished_shards(workdir)
                assert all(times[name] == time for name, time in kept.items()), "written again"
                kept = times
        assert result["shards_kept"] >= len(kept)
        assert result["shards_made"] + result["shards_kept"] == len(uninterrupted) - 2
        (folder,) = (workdir / "shards").iterdir()
        for name, modified in kept.items():
            (shard,) = [p for p in folder.glob("*/*") if p.name + p.parent.name == name]
            assert shard.stat().st_mtime_ns == modified, "a finished shard was written again"
        assert contents(folder) == uninterrupted
    assert workdirs <= KILLS


@pytest.mark.long
def test_two_commands_at_once_make_one_data_set(
    cluster: Cluster, source: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    runs = [chaos_run(cluster, source, tmp_path / "work") for _ in range(2)]
    for run in runs:
        run.start()
    results = [run.result() for run in runs]
    assert sorted(result["skipped"] for result in results if result) == [False, True]
    assert any("preprocess: waiting for preprocess (process" in run.output for run in runs)
    (folder,) = (tmp_path / "work" / "shards").iterdir()
    assert contents(folder) == uninterrupted


@pytest.mark.long
def test_damaged_shards_are_detected_and_written_again(
    cluster: Cluster,
    source: Path,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(run_command(source, tmp_path)["shards"])
    manifest = (folder / "manifest.json").read_bytes()
    changed, deleted = folder / "train/part-00003.parquet", folder / "val/part-00001.parquet"
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    deleted.unlink()

    verified = run_command(source, tmp_path, verify=True)
    assert (verified["skipped"], verified["shards_made"]) == (False, 1), "the deleted one"
    count = len(uninterrupted) - 2
    assert (verified["shards_verified"], verified["shards_remade"]) == (count, 1)
    printed = capsys.readouterr().out
    assert "train/part-00003.parquet is missing or damaged; creating it again" in printed
    assert f"preprocess: {count} shards verified, 1 created again" in printed
    assert contents(folder) == uninterrupted
    assert (folder / "manifest.json").read_bytes() == manifest
    assert run_command(source, tmp_path, verify=True)["shards_remade"] == 0
    assert read_manifest(str(folder)).rows("train") == IMAGES * 9 // 10


@pytest.mark.long
def test_images_in_parquet_files_give_the_same_rows(
    cluster: Cluster, source: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for split, name in (("train", "train"), ("val", "validation")):
        files = sorted((source / split).glob("*/*"))
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
        labels = [int(path.parent.name[-1]) for path in files]
        table = pa.table({"image": images, "label": labels})
        pq.write_table(table, packed / f"{name}-00000-of-00001.parquet", row_group_size=50)
    dry_run = run_command(packed, tmp_path / "work", dry_run=True)
    assert dry_run["estimated_bytes"] > 0
    result = run_command(packed, tmp_path / "work")
    assert (result["train_images"], result["rejected"]) == (IMAGES * 9 // 10, 1)

    def rows(shard_bytes: list[bytes]) -> list[tuple[Any, ...]]:
        tables = [pq.read_table(pa.BufferReader(data)) for data in shard_bytes]
        columns = pa.concat_tables(tables).to_pydict()
        return sorted(zip(columns["label"], columns["sha256"], columns["image"], strict=True))

    shards = [path.read_bytes() for path in Path(result["shards"]).glob("*/*.parquet")]
    assert rows(shards) == rows([data for name, data in uninterrupted.items() if "/" in name])
    assert not Path(parts_folder(result["shards"])).exists()


@pytest.mark.long
def test_too_many_rejects_stop_the_run_with_a_list(
    cluster: Cluster, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"more than --max-reject-fraction 0\.001"):
        run_command(source, tmp_path, max_reject_fraction=0.001)
    assert "train/class1/notes.JPEG: not an image" in capsys.readouterr().out
    assert finished_shards(tmp_path)
    result = run_command(source, tmp_path, max_reject_fraction=0.01)
    assert result["rejected"] == 1
    assert result["shards_kept"] > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, 6) as folder:
        yield folder


@pytest.mark.long
def test_a_full_disk_is_one_line_and_the_same_command_resumes(
    cluster: Cluster, source: Path, uninterrupted: dict[str, bytes], small_disk: Path
) -> None:
    with pytest.raises(OSError, match=r"No space left.*finished shards are kept"):
        run_command(source, small_disk)
    larger = ["mount", "-o", "remount,size=200m", str(small_disk)]
    subprocess.run(larger, check=True)
    result = run_command(source, small_disk)
    assert result["shards_kept"] > 0
    assert contents(Path(result["shards"])) == uninterrupted
