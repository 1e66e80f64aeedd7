"""Names are text wherever they are written: a data set with any names is preprocessed whole."""

import contextlib
import io
import json
import os
import shutil
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from alexnet.shards.manifest import read_manifest
from alexnet.shards.plan import ShardTask
from alexnet.shards.write import ShardResult, make_shard
from alexnet.storage.names import path_bytes
from pipelines import cluster, preprocess
from pipelines.preprocessing import dataset
from pipelines.settings import PreprocessCommandSettings, PreprocessSettings
from pipelines.tracking.store import connect

FORBIDDEN = b"/\0"

NAMES = st.one_of(
    st.binary(min_size=1, max_size=20),
    st.text(min_size=1, max_size=20).map(lambda text: text.encode("utf-8", "replace")),
).map(lambda name: b"c" + bytes(byte for byte in name if byte not in FORBIDDEN) + b"c")
"""No name begins or ends like those that systems leave behind."""


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_source(root: bytes, names: Sequence[bytes]) -> set[bytes]:
    """Each name as a class and as a file; returns the paths below the root.

    The last file of the first class is no image.
    """
    paths = [
        os.path.join(split, folder, name + b".jpg")
        for split in (b"train", b"val")
        for folder in names
        for name in names
    ]
    for seed, path in enumerate(paths):
        os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
        with open(os.path.join(root, path), "wb") as file:
            file.write(b"no image" if seed == len(names) - 1 else jpeg(seed))
    return set(paths)


def make_shards(
    missing: Sequence[ShardTask], *_: Any
) -> tuple[dict[ShardTask, ShardResult], float]:
    """The work of the Ray job, in this process."""
    return {task: make_shard(task) for task in missing}, 1.0


@pytest.mark.slow
@settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(NAMES, min_size=2, max_size=4, unique=True))
@example([b"$$", b"caf\xe9", rb"caf\xe9", "猫\u202e🚀".encode()])
@example([b"<b>`x`<!--|*_[a](b)", b"a\nforged: line\x1b[31m", b"50%20%", b"a b'\"?#&;$(id)"])
@example([string.printable.replace("/", "").encode(), b"c", "é".encode(), "e\u0301".encode()])
def test_any_names_are_preprocessed_whole(
    mlflow_workdir: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: list[bytes],
) -> None:
    monkeypatch.setattr(dataset, "make_shards", make_shards)
    monkeypatch.setattr(cluster, "connect_in_background", lambda: None)
    base = Path(mlflow_workdir) / "example"
    shutil.rmtree(base, ignore_errors=True)
    root = os.path.join(os.fsencode(base), names[0])
    paths = write_source(root, names)
    workdir = base / names[-1].decode("utf-8", "ignore")
    workdir.mkdir(exist_ok=True)
    shutil.copy(Path(mlflow_workdir) / "mlflow.db", workdir)
    values = {
        "source": os.fsdecode(root),
        "workdir": str(workdir),
        "experiment": names[-1].decode("utf-8", "replace"),
        "max_reject_fraction": 0.5,
    }
    capsys.readouterr()
    outcome = preprocess.run(PreprocessSettings.model_validate(values))
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "could not be logged" in line]
    assert all(line.startswith(("preprocess: ", "tracking: ")) for line in lines)
    assert (outcome.result.images, outcome.result.rejected) == (len(paths) - 1, 1)

    manifest = read_manifest(outcome.result.shards)
    assert {path_bytes(label.wnid) for label in manifest.labels} == set(names)
    keys = pq.read_table(manifest.rejects_path)["key"].to_pylist()
    for split in ("train", "val"):
        for shard in manifest.shards[split]:
            keys += pq.read_table(f"{manifest.folder}/{shard.file}")["key"].to_pylist()
    assert len(set(keys)) == len(paths)
    store = connect(PreprocessSettings.model_validate(values))
    artifacts = {file.path for file in store.client.list_artifacts(outcome.run_id)}
    assert {"images.png", "rejects.png", "rejects.json", "mean_image.png"} <= artifacts
    rejected = store.client.download_artifacts(outcome.run_id, "rejects.json")
    assert len(json.loads(Path(rejected).read_text())["data"]) == 1

    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(workdir / "shards")
    preprocess.command(PreprocessCommandSettings.model_validate(values | {"dry_run": True}))
    printed = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in printed)
    header = next(number for number, line in enumerate(printed) if line.startswith("class "))
    table = printed[header + 1 : header + 1 + len(names)]
    assert len([line for line in table if f"{len(names)}" in line]) == len(names)
