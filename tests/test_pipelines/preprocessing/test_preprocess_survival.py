"""Preprocessing under attack: killed processes, a full disk, damaged shards, two at once.

Whatever happens, the same command ends with the bytes of an unbroken run and makes no finished
shard again. ``ALEXNET_KILLS`` says how many processes are killed.
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
from chaos import Attack, small_file_system, three_nodes
from PIL import Image
from ray.cluster_utils import Cluster

from alexnet.errors import UserError
from alexnet.shards.codec import Encoding
from alexnet.shards.finalize import finalize
from alexnet.shards.format import read_manifest
from alexnet.shards.plan import write_plan
from alexnet.shards.write import make_shard
from alexnet.sources.read import read_source
from pipelines import preprocess
from pipelines.settings import PreprocessCommandSettings

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("ALEXNET_KILLS", "3"))
IMAGES = 480
ROWS_PER_SHARD = 8


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with three_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images large enough that the work takes some seconds; one file is no image."""
    root = tmp_path_factory.mktemp("raw")
    random_pixels = np.random.default_rng(0)
    originals = []
    for number in range(8):
        coarse = Image.fromarray(random_pixels.integers(0, 256, (15, 20, 3), np.uint8))
        path = root / f"{number}.JPEG"
        coarse.resize((1600, 1200), Image.Resampling.BICUBIC).save(path, quality=90)
        originals.append(path)
    for number, original in zip(range(IMAGES), itertools.cycle(originals), strict=False):
        folder = root / ("val" if number % 10 == 9 else "train") / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(original, folder / f"{number:03d}.JPEG")
    (root / "train" / "class1" / "notes.JPEG").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def unbroken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the images without Ray: shards, rejects and statistics."""
    folder = tmp_path_factory.mktemp("unbroken")
    raw = read_source(str(source))
    encoding = Encoding(kind="jpeg", jpeg_quality=95)
    units = write_plan(str(folder), raw, encoding, ROWS_PER_SHARD, 0)
    finalize(
        str(folder),
        {unit: make_shard(unit) for unit in units},
        digest="",
        source="",
        form=raw.form,
        settings={},
        labels=raw.labels,
    )
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a data set but the manifest, which names its place."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def command(source: Path, workdir: Path) -> list[str]:
    options = ["--source", str(source), "--workdir", str(workdir)]
    script = str(ROOT / "pipelines" / "preprocess.py")
    return [sys.executable, script, *options, "--rows-per-shard", str(ROWS_PER_SHARD)]


def settings(source: Path, workdir: Path, **more: Any) -> PreprocessCommandSettings:
    values = {"source": str(source), "workdir": str(workdir), "rows_per_shard": ROWS_PER_SHARD}
    return PreprocessCommandSettings.model_validate(values | more)


def finished_shards(workdir: Path) -> dict[str, int]:
    """Time of change of each shard whose report is there."""
    found = {}
    for report in workdir.glob("shards/*/parts/*-*.json"):
        try:
            shard = report.parents[1] / json.loads(report.read_text())["file"]
            found[shard.name + shard.parent.name] = shard.stat().st_mtime_ns
        except (FileNotFoundError, ValueError):
            continue  # The run ended and tidied up while we looked.
    return found


def attack_on(nodes: Cluster, source: Path, workdir: Path) -> Attack:
    return Attack(
        nodes,
        command(source, workdir),
        worker="ray::Map",
        progress=lambda: len(finished_shards(workdir)),
    )


def test_killed_at_random_moments_the_bytes_are_those_of_an_unbroken_run(
    nodes: Cluster, source: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    moments = random.Random(2012)
    victims = itertools.cycle(["worker", "node", "driver"])
    kills = lost = run = 0
    while kills < KILLS:
        run += 1
        workdir = tmp_path / str(run)
        attack = attack_on(nodes, source, workdir)
        kept: dict[str, int] = {}
        figures = None
        while figures is None:
            if attack.process is None:
                attack.start()
            if kills == KILLS or not attack.wait_for_progress():
                figures = attack.end()
                # A driver that had joined the cluster through a killed node dies without a word.
                # That it has the choice comes of all nodes having one address here.
                assert figures or "preprocess.py:" not in attack.errors, attack.errors
                lost += figures is None
                assert lost <= kills
                continue
            time.sleep(moments.uniform(0, 0.5))
            if attack.is_over():
                continue
            victim = next(victims)
            getattr(attack, f"kill_{victim}")()
            kills += 1
            if victim == "driver":
                now = finished_shards(workdir)
                assert all(now[name] == made for name, made in kept.items()), "made again"
                kept = now
        assert figures["shards_kept"] >= len(kept)
        assert figures["shards_made"] + figures["shards_kept"] == len(unbroken) - 2
        (folder,) = (workdir / "shards").iterdir()
        for name, made in kept.items():
            (shard,) = [p for p in folder.glob("*/*") if p.name + p.parent.name == name]
            assert shard.stat().st_mtime_ns == made, "a finished shard was made again"
        assert contents(folder) == unbroken
    assert run <= KILLS


def test_two_runs_at_once_make_one_data_set(
    nodes: Cluster, source: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    runs = [attack_on(nodes, source, tmp_path / "work") for _ in range(2)]
    for run in runs:
        run.start()
    figures = [run.end() for run in runs]
    assert sorted(f["skipped"] for f in figures if f) == [False, True]
    assert any("waiting for another run" in run.output for run in runs)
    (folder,) = (tmp_path / "work" / "shards").iterdir()
    assert contents(folder) == unbroken


def test_damaged_shards_are_found_and_made_again(
    nodes: Cluster, source: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    figures = preprocess.command(settings(source, tmp_path))
    folder = Path(figures["shards"])
    manifest = (folder / "manifest.json").read_bytes()
    changed, gone = folder / "train/part-00003.parquet", folder / "val/part-00001.parquet"
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(data)
    gone.unlink()

    found = preprocess.command(settings(source, tmp_path, verify=True))
    assert found["skipped"] is True
    assert (found["shards_verified"], found["shards_remade"]) == (len(unbroken) - 2, 2)
    assert contents(folder) == unbroken
    assert (folder / "manifest.json").read_bytes() == manifest
    again = preprocess.command(settings(source, tmp_path, verify=True))
    assert again["shards_remade"] == 0
    assert read_manifest(str(folder)).rows("train") == IMAGES * 9 // 10


def test_images_in_parquet_files_give_the_same_rows(
    nodes: Cluster, source: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for split, name in (("train", "train"), ("val", "validation")):
        files = sorted((source / split).glob("*/*"))
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
        labels = [int(path.parent.name[-1]) for path in files]
        table = pa.table({"image": images, "label": labels})
        pq.write_table(table, packed / f"{name}-00000-of-00001.parquet", row_group_size=50)
    look = preprocess.command(settings(packed, tmp_path / "work", dry_run=True))
    assert look["estimated_bytes"] > 0
    figures = preprocess.command(settings(packed, tmp_path / "work"))
    assert (figures["train_images"], figures["rejected"]) == (IMAGES * 9 // 10, 1)

    def rows(shard_bytes: list[bytes]) -> list[tuple[Any, ...]]:
        tables = [pq.read_table(pa.BufferReader(data)) for data in shard_bytes]
        columns = pa.concat_tables(tables).to_pydict()
        return sorted(zip(columns["label"], columns["sha256"], columns["image"], strict=True))

    found = [path.read_bytes() for path in Path(figures["shards"]).glob("*/*.parquet")]
    assert rows(found) == rows([data for name, data in unbroken.items() if "/" in name])
    assert not (Path(figures["shards"]) / "parts").exists()


def test_too_many_rejects_stop_the_run_with_a_list(
    nodes: Cluster, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = settings(source, tmp_path, max_reject_fraction=0.001)
    with pytest.raises(UserError, match=r"more than --max-reject-fraction 0\.001"):
        preprocess.command(strict)
    assert "train/class1/notes.JPEG: not an image" in capsys.readouterr().out
    assert finished_shards(tmp_path)
    figures = preprocess.command(settings(source, tmp_path, max_reject_fraction=0.01))
    assert figures["rejected"] == 1
    assert figures["shards_kept"] > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, 6) as folder:
        yield folder


def test_a_full_disk_is_one_line_and_leaves_a_workdir_to_go_on_with(
    nodes: Cluster, source: Path, unbroken: dict[str, bytes], small_disk: Path
) -> None:
    with pytest.raises(OSError, match=r"No space left.*finished shards are kept"):
        preprocess.command(settings(source, small_disk))
    larger = ["mount", "-o", "remount,size=200m", str(small_disk)]
    subprocess.run(larger, check=True)
    figures = preprocess.command(settings(source, small_disk))
    assert figures["shards_kept"] > 0
    assert contents(Path(figures["shards"])) == unbroken
