"""Weights that a training begins with: read by the command, part of the training's identity."""

import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import CLASSES, narrow_network
from plain_workflow import PlainWorkflow
from safetensors.torch import load_file

from alexnet.model.towers import AlexNet
from alexnet.recipes import SOURCE145
from alexnet.training.checkpoint import TrainState, save_checkpoint, take_snapshot
from alexnet.training.optimizer import build_optimizer
from alexnet.variants import with_conv6
from alexnet.weights.read import read_checkpoint
from pipelines import train
from pipelines.settings import TrainSettings
from pipelines.training import initial_weights
from pipelines.training.initial_weights import InitialWeights, begin_with, read_initial_weights

MEAN = torch.rand(3, 224, 224)


def save(folder: Path, network: AlexNet) -> None:
    folder.mkdir(exist_ok=True)
    optimizer = build_optimizer(network, network.recipe)
    save_checkpoint(str(folder), take_snapshot(network, optimizer, TrainState(), MEAN))


def test_layers_are_used_or_drawn_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, narrow_network(SOURCE145, seed=1))
    network = narrow_network(with_conv6(SOURCE145, pretrained=True), seed=2)
    drawn = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = read_initial_weights(str(tmp_path), network.recipe, len(CLASSES))
    written = weights.write(str(tmp_path / "new"))
    assert capsys.readouterr().out == (
        f"train: beginning with weights of a checkpoint, {tmp_path}: conv1, conv2, conv3, conv4, "
        "conv5; conv6, fc6, fc7, fc8 are drawn; crops minus the mean that belongs to them\n"
    )
    mean = begin_with(network, written)
    assert mean is not None
    assert torch.equal(mean, MEAN)
    expected = load_file(tmp_path / "model.safetensors")
    for name, tensor in network.state_dict().items():
        used = name.split(".")[-2] in ("conv1", "conv2", "conv3", "conv4", "conv5")
        assert torch.equal(tensor, expected[name] if used else drawn[name]), name


def test_weights_of_a_started_training_are_not_written_again(tmp_path: Path) -> None:
    path = InitialWeights(content=b"first").write(str(tmp_path))
    assert InitialWeights(content=b"second").write(str(tmp_path)) == path
    assert Path(path).read_bytes() == b"first"


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read"),
        (b"", "not Caffe's AlexNet: no layer conv1 with weights"),
        (b"\x0a\x07Alex", "not a whole caffemodel"),
        (pickle.dumps({"model_state": Hostile()}), "nothing of it was executed"),
        (b"PK\x03\x04", "not a readable state dict of torch"),
    ],
)
def test_a_bad_file_ends_the_command_with_status_2_and_one_line(
    content: bytes | None,
    words: str,
    finished_workdir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "weights"
    if content is not None:
        path.write_bytes(content)
    before = sorted(finished_workdir.glob("training/*"))
    arguments = ["--workdir", str(finished_workdir), "--init-from", str(path)]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        train.main()
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert lines[-1].startswith("train.py: ")
    assert str(path) in lines[-1]
    assert words in lines[-1]
    assert "Traceback" not in "".join(lines)
    assert sorted(finished_workdir.glob("training/*")) == before


def test_the_content_of_the_weights_decides_whether_to_train_again(
    finished_workdir: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "workflow").mkdir()
    workflow = PlainWorkflow(tmp_path / "workflow", empty_database)
    workflow.install(monkeypatch)
    monkeypatch.setattr(
        train,
        "read_initial_weights",
        lambda path, *_: InitialWeights(content=Path(path).read_bytes()),
    )
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"weights")
    shutil.copy(first, second)

    def skipped(init_from: Path | None) -> bool:
        path = init_from and str(init_from)
        values = {"workdir": str(finished_workdir), "epochs": 1, "init_from": path}
        return train.run(TrainSettings.model_validate(values)).skipped

    assert not skipped(first)
    assert skipped(first)
    assert skipped(second), "the same content at another place"
    second.write_bytes(b"other weights")
    assert not skipped(second)
    assert not skipped(None)


def test_differences_of_other_programs_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = narrow_network(SOURCE145)
    save(tmp_path / "own", network)
    own = read_checkpoint(str(tmp_path / "own"), network.recipe)
    other = type(own)(
        kind="a caffemodel", tensors=own.tensors, recipe="caffe", differences=("larger crops",)
    )
    monkeypatch.setattr(initial_weights, "read_file", lambda *_: other)
    file = tmp_path / "net.caffemodel"
    file.write_bytes(b"")
    weights = read_initial_weights(str(file), network.recipe, len(CLASSES))
    assert not capsys.readouterr().out, "the training may be skipped"
    weights.write(str(tmp_path))
    said = capsys.readouterr().out.splitlines()
    weights.write(str(tmp_path))
    assert not capsys.readouterr().out, "a resumed training does not begin with them"
    assert said[0].endswith("fc8; crops minus the data set's mean image")
    assert said[1] == (
        "train: they were trained with another normalization, that of --recipe caffe; larger crops"
    )
