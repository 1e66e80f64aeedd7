"""The training loop of one worker, with a fake of Ray Train: no cluster is started."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from factories import CLASSES, loader_of, train_context
from fake_device import FakeDeviceMode, fake_device
from fake_ray_train import FakeRayTrain
from ray.train import Checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from alexnet import metrics
from alexnet.errors import UserError
from alexnet.metrics import LossAndErrors
from alexnet.model.towers import AlexNet, initialize
from alexnet.recipes import SOURCE145
from alexnet.shards.manifest import Manifest
from alexnet.shards.pixel_stats import read_statistics
from alexnet.training.checkpoint import (
    load_train_state,
    load_weights,
    read_mean,
    read_recipe,
    read_tensors,
)
from alexnet.training.validation import validate
from pipelines.console.progress import Update
from pipelines.console.redact import SecretUri
from pipelines.settings import TrainSettings
from pipelines.tracking.node_metrics import host_name
from pipelines.training import state, worker
from pipelines.training.initial_weights import read_initial_weights
from pipelines.training.recipe import resolve_recipe
from pipelines.training.state import LoopConfig
from pipelines.training.worker import train_loop_per_worker

NARROW = replace(SOURCE145, hidden=48)


class Trainings:
    """Trainings of a narrow network, whose checkpoints are kept by step."""

    def __init__(self, dataset: Manifest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dataset, self.folder = dataset, folder
        self.ray_train = FakeRayTrain(folder, monkeypatch)
        self.lines: list[str | Update] = []
        monkeypatch.setattr(state, "get_devices", lambda: [torch.device("cpu")])
        monkeypatch.setattr(state, "open_metric_writer", lambda *_: None)
        monkeypatch.setattr(state, "open_pictures", lambda *_: None)

    def run(
        self,
        name: str,
        resume_from: Path | None = None,
        *,
        initial: str | None = None,
        **options: Any,
    ) -> dict[int, Path]:
        """Train for two epochs of five updates; returns the new checkpoints by step."""
        values = {"epochs": 2, "batch_size": 8, "learning_rate": 0.001, "checkpoint_steps": 3}
        settings = TrainSettings.model_validate(values | options)
        fake = self.ray_train
        fake.folder, fake.metrics = self.folder / name, []
        fake.checkpoints = [Checkpoint.from_directory(str(resume_from))] if resume_from else []
        loop = LoopConfig(
            settings=settings,
            recipe=replace(resolve_recipe(settings), hidden=48),
            shards=self.dataset.folder,
            tracking_uri=SecretUri(""),
            run_id="",
            cpus=1,
            driver_host=host_name(),
            initial=initial,
            worker_log=SimpleNamespace(emit=SimpleNamespace(remote=self.lines.append)),
        )
        train_loop_per_worker({"loop": loop})
        new = fake.checkpoints[-len(fake.metrics) :]
        return {
            metrics["step"]: Path(checkpoint.path)
            for metrics, checkpoint in zip(fake.metrics, new, strict=True)
        }


@pytest.fixture
def trainings(dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    return Trainings(dataset, tmp_path, monkeypatch)


class Points:
    """A fake ``MetricWriter`` that keeps the points of the curves."""

    dropped = 0

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def write(self, values: dict[str, float], step: int) -> None:
        self.points.append((step, values))

    def pending(self) -> list[Any]:
        return []

    def flush(self, _: float) -> int:
        return 0


@pytest.fixture
def points(trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> Points:
    writer = Points()
    monkeypatch.setattr(state, "open_metric_writer", lambda *_: writer)
    return writer


@pytest.mark.slow
@pytest.mark.parametrize("log_seconds", [0.0, 1e6])
def test_no_update_waits_for_the_devices_also_not_at_the_points_of_the_curves(
    trainings: Trainings, points: Points, monkeypatch: pytest.MonkeyPatch, log_seconds: float
) -> None:
    """On devices with a queue, a point is read when the next one is due, and all before a save."""
    options: dict[str, Any] = {"log_steps": 1, "checkpoint_steps": None}
    waits: list[list[Any]] = []
    written: list[int] = []
    with FakeDeviceMode() as mode:

        def validate_after_training(*arguments: Any) -> LossAndErrors:
            waits.append(list(mode.waits))
            written.append(len(points.points))
            return validate(*arguments)

        devices = [fake_device(0), fake_device(1)]
        monkeypatch.setattr(worker, "validate", validate_after_training)
        monkeypatch.setattr(torch.cuda, "default_generators", mode.generators)
        monkeypatch.setattr(state, "get_devices", lambda: devices)
        checkpoints = trainings.run("devices", epochs=1, log_seconds=log_seconds, **options)
    assert waits == [[]]
    logged = [(step, point["loss"]) for step, point in points.points if "loss" in point]
    assert written == [len(logged)]
    # The speed is known when the first point is read, at the second one.
    assert [step for step, _ in logged] == ([1, 2, 5] if log_seconds else [1, 2, 3, 4, 5])
    assert all(point["images_per_second"] > 0 for _, point in points.points if "loss" in point)
    assert list(checkpoints) == [5]
    epoch = load_train_state(str(checkpoints[5])).history[0]
    assert epoch["train_loss"] == pytest.approx(
        sum(loss * count for (_, loss), count in zip(logged, rows_of(logged), strict=True)) / 39
    )


def rows_of(logged: list[tuple[int, float]]) -> list[int]:
    """Training rows of each window: updates of 8 images, the last of 7."""
    steps = [0, *(step for step, _ in logged)]
    return [min(39, 8 * b) - 8 * a for a, b in itertools.pairwise(steps)]


@pytest.mark.slow
def test_a_checkpoint_after_some_minutes(trainings: Trainings, points: Points) -> None:
    """Every minute is over at once here, so one is due at each point of the curves."""
    options: dict[str, Any] = {"checkpoint_steps": None, "log_steps": 2, "log_seconds": 0.0}
    often = trainings.run("often", epochs=1, checkpoint_minutes=1e-9, **options)
    assert list(often) == [2, 4, 5]
    rarely = trainings.run("rarely", epochs=1, **options)
    assert list(rarely) == [5]
    assert_equal_tensors(often[5], rarely[5])


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by file and name."""
    return {
        f"{path.name}/{name}": tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def assert_equal_tensors(first: Path, second: Path) -> None:
    """Two checkpoints have the same tensors, bit for bit."""
    tensors1, tensors2 = tensors(first), tensors(second)
    assert tensors1.keys() == tensors2.keys()
    assert all(torch.equal(tensors1[name], tensors2[name]) for name in tensors1)


def history_without_speed(checkpoint: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in record.items() if name != "images_per_second"}
        for record in load_train_state(str(checkpoint)).history
    ]


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "shuffled in every epoch": {"shuffle": "every-epoch"},
    "all rows shuffled": {"shuffle_rows": "all"},
    "average": {"ema": 0.7},
    "warm-up": {"warmup_epochs": 1},
    "bf16": {"precision": "bf16"},
    "one tower": {"towers": 1, "normalization": "off", "overlapping_pooling": "off"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name not in ("default", "average")))
        for name in OPTIONS
    ],
)
def test_resumed_training_equals_uninterrupted_training(trainings: Trainings, name: str) -> None:
    uninterrupted = trainings.run("uninterrupted", **OPTIONS[name])
    assert list(uninterrupted) == [3, 5, 6, 9, 10]
    resumed = trainings.run("resumed", uninterrupted[3], **OPTIONS[name])
    assert list(resumed) == [5, 6, 9, 10]
    for step in resumed:
        assert_equal_tensors(resumed[step], uninterrupted[step])
    assert history_without_speed(resumed[10]) == history_without_speed(uninterrupted[10])
    assert "resuming from the checkpoint of step 3, epoch 1" in trainings.lines


@pytest.mark.slow
def test_a_training_begins_with_given_weights_and_their_mean(
    trainings: Trainings, tmp_path: Path
) -> None:
    before = trainings.run("before", epochs=1)[5]
    mean = read_mean(str(before)) + 3
    save_file({"mean": mean}, before / "mean.safetensors")
    given = read_initial_weights(str(before), NARROW, len(CLASSES)).write(str(tmp_path / "after"))
    # So small a rate changes nothing but the last digits.
    after = trainings.run("after", initial=given, learning_rate=1e-12)
    assert torch.equal(read_mean(str(after[10])), mean)
    expected = load_file(before / "model.safetensors")
    for name, weights in load_file(after[10] / "model.safetensors").items():
        torch.testing.assert_close(weights, expected[name], rtol=1e-5, atol=1e-7)
    resumed = trainings.run("resumed", after[3], initial=given, learning_rate=1e-12)
    assert_equal_tensors(resumed[10], after[10])


@pytest.mark.slow
def test_the_average_is_validated_and_does_not_change_the_training(trainings: Trainings) -> None:
    plain = trainings.run("plain", epochs=1, checkpoint_steps=1)
    averaged = trainings.run("averaged", epochs=1, ema=0.4)
    with_average, without = tensors(averaged[5]), tensors(plain[5])
    assert without.keys() < with_average.keys()
    assert all(torch.equal(with_average[name], without[name]) for name in without)

    # The average of all updates, from the weights of each.
    network = AlexNet(NARROW, len(CLASSES))
    initialize(network, NARROW, 0)
    expected = {name: p.detach().double() for name, p in network.named_parameters()}
    for step in range(1, 6):
        decay = min(0.4, (1 + step) / (10 + step))
        for name, weights in load_file(plain[step] / "model.safetensors").items():
            expected[name] = decay * expected[name] + (1 - decay) * weights
    for name, weights in load_file(averaged[5] / "average.safetensors").items():
        torch.testing.assert_close(weights.double(), expected[name], rtol=1e-5, atol=1e-6)

    losses = {}
    context = train_context(trainings.dataset, NARROW, seed=0)
    for is_average in (False, True):
        load_weights(str(averaged[5]), network, averaged=is_average)
        losses[is_average] = validate(network, loader_of(trainings.dataset), context).mean_loss
    assert losses[True] != losses[False]
    assert load_train_state(str(averaged[5])).history[-1]["val_loss"] == losses[True]
    assert load_train_state(str(plain[5])).history[-1]["val_loss"] == losses[False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("default", "warm-up", "one tower", "all rows shuffled"),
        pytest.param(("default", "bf16"), marks=pytest.mark.long),
    ],
)
def test_each_option_changes_the_trained_weights(
    trainings: Trainings, names: tuple[str, ...]
) -> None:
    weights = [
        tensors(trainings.run(name, epochs=1, **OPTIONS[name])[5])["model.safetensors/fc8.weight"]
        for name in names
    ]
    assert not any(
        torch.equal(first, second)
        for number, first in enumerate(weights)
        for second in weights[:number]
    )


@pytest.mark.slow
def test_the_order_of_the_images_changes_in_the_second_epoch(trainings: Trainings) -> None:
    once, reshuffled = (
        trainings.run(shuffle, epochs=2, shuffle=shuffle) for shuffle in ("once", "every-epoch")
    )
    assert_equal_tensors(once[5], reshuffled[5])
    last = [tensors(run[10])["model.safetensors/fc8.weight"] for run in (once, reshuffled)]
    assert not torch.equal(*last)


@pytest.mark.slow
def test_the_checkpoint_holds_recipe_and_mean(trainings: Trainings) -> None:
    folder = trainings.run("one", epochs=1, towers=1)[5]
    recipe = read_recipe(str(folder))
    assert (recipe["towers"], recipe["batch_size"], recipe["epochs"]) == (1, 8, 1)
    statistics = read_statistics(trainings.dataset.statistics_path)
    mean = read_tensors(str(folder), "mean.safetensors")["mean"]
    middle = torch.from_numpy(statistics.mean_image[16:240, 16:240])
    assert torch.equal(mean, middle.permute(2, 0, 1))


@pytest.mark.parametrize("counted", [5, 3])
def test_with_as_many_classes_as_are_counted_there_is_no_top5_error(
    trainings: Trainings, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are four classes."""
    monkeypatch.setattr(metrics, "TOP_K", counted)
    folder = trainings.run("one", epochs=1)[5]
    (record,) = load_train_state(str(folder)).history
    assert ("val_top5_error" in record) == (counted < 4)


def test_a_network_that_diverges_in_the_last_update_is_not_validated(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of that update is that of the weights before it, and finite."""
    forward = AlexNet.forward

    def diverged_outside_training(self: AlexNet, *inputs: Tensor, **keys: Any) -> Tensor:
        logits = forward(self, *inputs, **keys)
        return logits if self.training else logits * torch.nan

    monkeypatch.setattr(AlexNet, "forward", diverged_outside_training)
    with pytest.raises(UserError, match=r"^the validation loss is nan in epoch 1, step 5: "):
        trainings.run("diverged")


def test_the_driver_is_told_how_far_the_training_is(trainings: Trainings, points: Points) -> None:
    trainings.run("run", log_steps=2, log_seconds=0, checkpoint_steps=100)
    updates = [line for line in trainings.lines if isinstance(line, Update)]
    rows = trainings.dataset.rows("train")
    assert [update.done for update in updates] == [16, 32, rows, rows + 8, rows + 24, 2 * rows]
    assert {update.total for update in updates} == {2 * rows}
    assert [update.parts[0] for update in updates] == [
        *["epoch 1/2"] * 2,
        "epoch 1/2 validation",
        *["epoch 2/2"] * 2,
        "epoch 2/2 validation",
    ]
    losses = [values["loss"] for _, values in points.points if "loss" in values]
    assert all(
        f"loss {loss:.3f}" in update.parts for update, loss in zip(updates, losses, strict=True)
    )
    assert updates[0].line.startswith(f"epoch 1/2, 16/{rows} images, loss ")
    assert updates[-1].bar("train", 200).startswith("train 100%|")
