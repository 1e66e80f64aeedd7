"""Training under attack: killed workers, nodes and drivers, damaged checkpoints, a full disk.

Whatever is killed, the run goes on, by itself or by the same command, and ends with the weights
of an unbroken one, bit for bit; no step is logged twice. ``ALEXNET_KILLS`` says how many processes
are killed.
"""

import hashlib
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Semaphore
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as fs
import pytest
import ray.train
import torch
from chaos import SMALL_NODE, Attack, small_file_system, three_nodes
from factories import narrow_network
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from ray.train import Checkpoint
from torch import nn

from alexnet.errors import UserError
from alexnet.model.towers import AlexNet
from alexnet.recipes import SOURCE145
from alexnet.training.checkpoint import Snapshot, TrainState, save, snapshot
from alexnet.training.optimizer import build_optimizer
from pipelines import preprocess
from pipelines.settings import PreprocessSettings
from pipelines.training import checkpointing

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("ALEXNET_KILLS", "1"))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with three_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def prepared(nodes: Cluster, raw_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with shards of 39 training images."""
    workdir = tmp_path_factory.mktemp("prepared")
    values = {"source": str(raw_images), "workdir": str(workdir), "rows_per_shard": 8}
    preprocess.run(PreprocessSettings.model_validate(values | {"max_reject_fraction": 0.1}))
    return workdir


def attack_on(nodes: Cluster, prepared: Path, workdir: Path, workers: str) -> Attack:
    """Two epochs of ten updates; ``workdir`` is new and shares the shards of another."""
    workdir.mkdir()
    for shared in ("shards", "stages/preprocess"):
        (workdir / shared).parent.mkdir(exist_ok=True)
        (workdir / shared).symlink_to(prepared / shared)
    options = f"--workdir {workdir} --epochs 2 --batch-size 4 --learning-rate 0.001 --device cpu"
    more = f"--num-workers {workers} --checkpoint-steps 2 --log-steps 1 --max-failures 9"
    return Attack(
        nodes,
        [sys.executable, str(ROOT / "pipelines" / "train.py"), *options.split(), *more.split()],
        worker="ray::RayTrainWorker",
        progress=lambda: max(
            (int(path.name.split("_")[1]) for path in workdir.glob("training/*/step_*[0-9]")),
            default=0,
        ),
    )


def weights(figures: dict[str, Any]) -> str:
    path = Path(figures["checkpoint"]) / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def curve(workdir: Path) -> list[tuple[int, float]]:
    """Step and loss of each point that MLflow holds of the only training run."""
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    (run,) = client.search_runs(["1"], "tags.mlflow.runName = 'train'")
    return [
        (point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")
    ]


@pytest.mark.skipif("ALEXNET_KILLS" not in os.environ, reason="takes minutes: set ALEXNET_KILLS=3")
def test_killed_at_random_steps_the_weights_are_those_of_an_unbroken_run(
    nodes: Cluster, prepared: Path, tmp_path: Path
) -> None:
    unbroken = attack_on(nodes, prepared, tmp_path / "unbroken", "2")
    unbroken.start()
    expected = unbroken.end()
    assert expected, unbroken.errors

    attack = attack_on(nodes, prepared, tmp_path / "attacked", "2")
    moments = random.Random(2012)
    victims = itertools.cycle(["worker", "node", "driver"])
    kills = 0
    figures = None
    while figures is None:
        if attack.process is None:
            attack.start()
        if kills == KILLS or not attack.wait_for_progress():
            figures = attack.end()
            assert figures or "train.py:" not in attack.errors, attack.errors
            continue
        time.sleep(moments.uniform(0, 0.5))
        getattr(attack, f"kill_{next(victims)}")()
        kills += 1
    assert kills == KILLS
    assert "going on from the checkpoint of step" in attack.output
    assert figures["steps"] == 20
    assert weights(figures) == weights(expected)
    assert curve(tmp_path / "attacked") == curve(tmp_path / "unbroken")
    assert [step for step, _ in curve(tmp_path / "attacked")] == list(range(1, 21))
    left = sorted(path.name for path in (tmp_path / "attacked").glob("training/*/step_*"))
    assert len(left) <= 2, "the best and the newest"
    assert left[-1] == "step_000000020"


@pytest.mark.skipif("ALEXNET_KILLS" not in os.environ, reason="takes a minute: set ALEXNET_KILLS=1")
def test_a_run_shrinks_and_grows_with_the_cluster(
    nodes: Cluster, prepared: Path, tmp_path: Path
) -> None:
    attack = attack_on(nodes, prepared, tmp_path / "elastic", "1:3")
    attack.start()
    assert attack.wait_for_progress()
    attack.lose_node()
    for _ in range(2):  # The first may be a checkpoint that was begun before the loss.
        assert attack.wait_for_progress(), attack.errors
    nodes.add_node(**SMALL_NODE)
    figures = attack.end()
    assert figures, attack.errors
    said = [line for line in attack.output.splitlines() if "share each batch" in line]
    assert [line.split()[1] for line in said] == ["3", "2", "3"]
    assert "there is room for more workers" in attack.output
    assert figures["steps"] == 20
    assert [step for step, _ in curve(tmp_path / "elastic")] == list(range(1, 21))


class Storage:
    """Ray Train's part of reporting, played by the test."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.kept: list[Checkpoint] = []
        storage = SimpleNamespace(
            storage_filesystem=fs.LocalFileSystem(), experiment_fs_path=str(folder)
        )
        context = SimpleNamespace(get_storage=lambda: storage)
        patch.setattr(ray.train, "get_context", lambda: context)
        patch.setattr(ray.train, "report", self.report)
        patch.setattr(ray.train, "get_checkpoint", lambda: self.kept[-1] if self.kept else None)
        found = lambda: [SimpleNamespace(checkpoint=checkpoint) for checkpoint in self.kept]  # noqa: E731
        patch.setattr(ray.train, "get_all_reported_checkpoints", found)

    def report(self, metrics: dict[str, Any], **options: Any) -> None:
        self.kept.append(options["checkpoint_upload_fn"](None, options["checkpoint_dir_name"]))


def snapshot_at(network: AlexNet, step: int) -> Snapshot:
    nn.init.constant_(network.fc8.bias, float(step))
    optimizer = build_optimizer(network, SOURCE145)
    return snapshot(network, optimizer, TrainState(step=step), torch.zeros(3, 224, 224))


def write(network: AlexNet, *steps: int) -> None:
    for step in steps:
        position = TrainState(step=step, offset=1)
        checkpointing.report(Semaphore(), lambda step=step: snapshot_at(network, step), position)  # type: ignore[misc]


@pytest.mark.parametrize("damage", ["cut", "missing", "flipped"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    storage, network = Storage(tmp_path, monkeypatch), narrow_network(SOURCE145)
    write(network, 3, 6)
    newest = tmp_path / "step_000000006" / "velocity.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    if damage == "missing":
        newest.unlink()
    else:
        newest.write_bytes(data if damage == "flipped" else data[:-100])
    said: list[str] = []
    fresh = narrow_network(SOURCE145)
    optimizer = build_optimizer(fresh, SOURCE145)
    position = checkpointing.restore(fresh, optimizer, None, said.append)
    assert position.step == 3
    assert torch.equal(fresh.fc8.bias, torch.full_like(fresh.fc8.bias, 3.0))
    assert len(said) == 1
    assert str(newest) in said[0]
    (tmp_path / "step_000000003" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"velocity.safetensors.*begin again with --force"):
        checkpointing.restore(fresh, optimizer, None, said.append)
    storage.kept.clear()
    assert checkpointing.restore(fresh, optimizer, None, said.append) == TrainState()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, 60) as folder:
        yield folder


def test_a_full_disk_leaves_the_checkpoint_before_intact(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, network = Storage(small_disk, monkeypatch), narrow_network(SOURCE145)
    write(network, 3)
    size = sum(path.stat().st_size for path in small_disk.rglob("*.safetensors"))
    (small_disk / "other").write_bytes(bytes(60 * 2**20 - size - size // 2))
    with pytest.raises(UserError, match=r"step_000000006: .*No space left.*same command again"):
        write(network, 6)
    assert sorted(os.listdir(small_disk)) == ["other", "step_000000003"]
    assert len(storage.kept) == 1
    (small_disk / "other").unlink()
    write(network, 6)
    fresh = narrow_network(SOURCE145)
    optimizer = build_optimizer(fresh, SOURCE145)
    assert checkpointing.restore(fresh, optimizer, None, print).step == 6


def test_a_step_that_comes_again_gets_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path, monkeypatch)
    write(narrow_network(SOURCE145), 3, 3, 3)
    names = [os.path.basename(checkpoint.path) for checkpoint in storage.kept]
    assert names == ["step_000000003", "step_000000003_1", "step_000000003_2"]
    assert sorted(os.listdir(tmp_path)) == names


def test_what_killed_runs_left_is_cleared_away(tmp_path: Path) -> None:
    for name in ("step_000000002.part", "step_000000002", "step_000000004", "other"):
        (tmp_path / name).mkdir()
    checkpoint = Checkpoint(str(tmp_path / "step_000000004"))
    result: Any = SimpleNamespace(checkpoint=checkpoint, best_checkpoints=[(checkpoint, {})])
    checkpointing.prune_checkpoints(result, str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["other", "step_000000004"]


def test_position_names_every_file_by_its_bytes(tmp_path: Path) -> None:
    save(str(tmp_path), snapshot_at(narrow_network(SOURCE145), 3))
    named = json.loads((tmp_path / "position.json").read_text())["files"]
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tmp_path.glob("*.safetensors")
    }
    assert named == found
