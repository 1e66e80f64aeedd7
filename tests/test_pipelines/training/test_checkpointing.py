"""Checkpoints of a Ray Train job: damaged ones, a full disk, names, files of killed runs."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Semaphore

import pytest
import torch
from chaos import small_file_system
from factories import narrow_network
from fake_ray_train import FakeRayTrain
from torch import nn

from alexnet.errors import UserError
from alexnet.model.towers import AlexNet
from alexnet.recipes import SOURCE145
from alexnet.training.checkpoint import Snapshot, TrainState, save_checkpoint, take_snapshot
from alexnet.training.optimizer import build_optimizer
from pipelines.training import checkpointing
from pipelines.training.checkpoint_folder import list_checkpoints, prune_checkpoints


def snapshot_at(network: AlexNet, step: int) -> Snapshot:
    """A snapshot in which the biases of fc8 are the step."""
    nn.init.constant_(network.fc8.bias, float(step))
    optimizer = build_optimizer(network, SOURCE145)
    return take_snapshot(network, optimizer, TrainState(step=step), torch.zeros(3, 224, 224))


def report(network: AlexNet, *steps: int) -> None:
    """Write a checkpoint of each step."""
    for step in steps:
        train_state = TrainState(step=step, offset=1)
        checkpointing.report(
            Semaphore(),
            lambda step=step: snapshot_at(network, step),  # type: ignore[misc]
            train_state,
        )


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped bit"])
def test_an_older_checkpoint_replaces_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    ray_train = FakeRayTrain(tmp_path, monkeypatch)
    report(narrow_network(SOURCE145), 3, 6)
    newest = tmp_path / "step_000000006" / "velocity.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    if damage == "missing":
        newest.unlink()
    else:
        newest.write_bytes(data if damage == "flipped bit" else data[:-100])
    lines: list[str] = []
    network = narrow_network(SOURCE145)
    optimizer = build_optimizer(network, SOURCE145)
    train_state = checkpointing.restore(network, optimizer, None, lines.append)
    assert train_state.step == 3
    assert torch.equal(network.fc8.bias, torch.full_like(network.fc8.bias, 3.0))
    (line,) = lines
    assert str(newest) in line
    assert line.endswith("trying an older checkpoint")
    (tmp_path / "step_000000003" / "model.safetensors").write_bytes(b"")
    assert checkpointing.restore(network, optimizer, None, lines.append) == TrainState()
    assert lines[-1] == "no checkpoint can be read; starting at the beginning"
    ray_train.checkpoints.clear()
    assert checkpointing.restore(network, optimizer, None, lines.append) == TrainState()
    assert len(lines) == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, 60) as folder:
        yield folder


def test_a_full_disk_leaves_the_checkpoint_before_intact(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_train, network = FakeRayTrain(small_disk, monkeypatch), narrow_network(SOURCE145)
    report(network, 3)
    size = sum(path.stat().st_size for path in small_disk.rglob("*.safetensors"))
    (small_disk / "other").write_bytes(bytes(60 * 2**20 - size - size // 2))
    with pytest.raises(UserError, match=r"step_000000006: .*No space left.*same command again"):
        report(network, 6)
    assert sorted(os.listdir(small_disk)) == ["other", "step_000000003"]
    assert len(ray_train.checkpoints) == 1
    (small_disk / "other").unlink()
    report(network, 6)
    restored = narrow_network(SOURCE145)
    optimizer = build_optimizer(restored, SOURCE145)
    assert checkpointing.restore(restored, optimizer, None, print).step == 6


def test_a_second_checkpoint_of_a_step_gets_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_train = FakeRayTrain(tmp_path, monkeypatch)
    report(narrow_network(SOURCE145), 3, 3, 3)
    names = [os.path.basename(checkpoint.path) for checkpoint in ray_train.checkpoints]
    assert names == ["step_000000003", "step_000000003_1", "step_000000003_2"]
    assert sorted(os.listdir(tmp_path)) == names


def test_earlier_checkpoints_are_read_if_the_job_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_train, network = FakeRayTrain(tmp_path, monkeypatch), narrow_network(SOURCE145)
    report(network, 3, 6, 9)
    ray_train.checkpoints.clear()
    (tmp_path / "step_000000006" / "train_state.json").write_text("[]")
    optimizer = build_optimizer(network, SOURCE145)
    earlier = list_checkpoints(str(tmp_path))
    assert checkpointing.restore(network, optimizer, None, print, earlier).step == 9
    assert checkpointing.restore(network, optimizer, None, print, earlier[1:]).step == 3
    shutil.rmtree(tmp_path / "step_000000009")
    assert checkpointing.restore(network, optimizer, None, print, earlier).step == 3


def test_checkpoints_are_listed_by_step_and_number(tmp_path: Path) -> None:
    order = ["step_000000012", "step_000000010_10", "step_000000010_2", "step_000000010"]
    for name in (*sorted(order), "step_000000013.part", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_000000014").write_bytes(b"")
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert [os.path.basename(path) for path in list_checkpoints(str(tmp_path))] == order
    assert list_checkpoints(str(tmp_path / "missing")) == []


def write_checkpoints(folder: Path, errors: Mapping[int, float | None]) -> None:
    """A checkpoint of each step, with its validation error or within an epoch."""
    network = narrow_network(SOURCE145)
    optimizer = build_optimizer(network, SOURCE145)
    for step, error in errors.items():
        history = [{"val_top1_error": error or 0.0}]
        state = TrainState(step=step, offset=0 if error else 5, history=history)
        path = folder / f"step_{step:09d}"
        path.mkdir()
        save_checkpoint(
            str(path), take_snapshot(network, optimizer, state, torch.zeros(3, 224, 224))
        )


def test_the_newest_whole_checkpoint_and_the_best_are_kept(tmp_path: Path) -> None:
    prune_checkpoints(str(tmp_path))
    write_checkpoints(tmp_path, {2: 30.0, 4: 20.0, 6: 40.0, 7: None, 8: 10.0})
    (tmp_path / "step_000000009.part").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "step_000000008" / "model.safetensors").unlink()
    prune_checkpoints(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["other", "step_000000004", "step_000000007"]
    for path in tmp_path.glob("step_*/train_state.json"):
        path.write_bytes(b"")
    prune_checkpoints(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["other", "step_000000004", "step_000000007"]
