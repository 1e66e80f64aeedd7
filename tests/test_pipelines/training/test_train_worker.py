"""The loop of one worker, with Ray's part played by the test: no cluster is started."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as fs
import pytest
import ray.train
import torch
from factories import CLASSES
from ray.train import Checkpoint
from safetensors.torch import load_file
from torch import Tensor

from alexnet.model.towers import AlexNet, initialize
from alexnet.recipes import RECIPES, SOURCE145
from alexnet.shards.format import Manifest
from alexnet.shards.pixel_stats import read_statistics
from alexnet.training.augment import mean_crop, pca_axes
from alexnet.training.checkpoint import load_position, load_weights, read_recipe, read_tensors
from alexnet.training.loop import TrainContext, validate
from pipelines.settings import TrainSettings
from pipelines.training import state as state_module
from pipelines.training.worker import train_loop_per_worker

NARROW = replace(SOURCE145, hidden=48)


class Runs:
    """Trains, and keeps every checkpoint under the number of its step."""

    def __init__(self, dataset: Manifest, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.dataset, self.folder, self.patch = dataset, folder, patch
        self.said: list[str] = []
        self.board = SimpleNamespace(say=SimpleNamespace(remote=self.said.append))
        self.storage = SimpleNamespace(
            storage_filesystem=fs.LocalFileSystem(), experiment_fs_path=str(folder)
        )
        context = SimpleNamespace(
            get_world_rank=lambda: 0, get_world_size=lambda: 1, get_storage=lambda: self.storage
        )
        patch.setitem(RECIPES, "source145", NARROW)
        patch.setattr(ray.train, "get_context", lambda: context)
        patch.setattr(state_module, "get_devices", lambda: [torch.device("cpu")])
        patch.setattr(state_module, "open_metric_writer", lambda *_: None)

    def run(self, name: str, since: Path | None = None, **settings: Any) -> dict[int, Path]:
        """Two epochs of 5 updates, from the start or from a checkpoint."""
        found: dict[int, Path] = {}

        def report(metrics: dict[str, int], **options: Any) -> None:
            written = options["checkpoint_upload_fn"](None, options["checkpoint_dir_name"])
            found[metrics["step"]] = Path(written.path)

        checkpoint = Checkpoint.from_directory(str(since)) if since else None
        self.storage.experiment_fs_path = str(self.folder / name)
        self.patch.setattr(ray.train, "report", report)
        self.patch.setattr(ray.train, "get_checkpoint", lambda: checkpoint)
        self.patch.setattr(ray.train, "get_all_reported_checkpoints", list)
        values = {"epochs": 2, "batch_size": 8, "learning_rate": 0.001, "checkpoint_steps": 3}
        train_loop_per_worker(
            {
                "settings": TrainSettings.model_validate(values | settings).model_dump(),
                "shards": self.dataset.folder,
                "tracking_uri": "",
                "run_id": "",
                "threads": 1,
                "gpus": 0,
                "board": self.board,
            }
        )
        return found


@pytest.fixture
def runs(dataset: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(dataset, tmp_path, monkeypatch)


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by file and name."""
    return {
        f"{path.name}/{name}": tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def same(first: Path, second: Path) -> bool:
    mine, other = tensors(first), tensors(second)
    assert mine.keys() == other.keys()
    return all(torch.equal(mine[name], other[name]) for name in mine)


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "average": {"ema": 0.7},
    "warm-up": {"warmup_epochs": 1},
    "bf16": {"precision": "bf16"},
    "one tower": {"towers": 1, "normalization": "off", "overlapping_pooling": "off"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(runs: Runs, name: str) -> None:
    whole = runs.run("whole", **OPTIONS[name])
    assert list(whole) == [3, 5, 6, 9, 10]
    again = runs.run("again", whole[3], **OPTIONS[name])
    assert list(again) == [5, 6, 9, 10]
    assert all(same(again[step], whole[step]) for step in again)
    histories = [load_position(str(run[10])).history for run in (whole, again)]
    for mine, other in zip(*histories, strict=True):
        assert {k: v for k, v in mine.items() if k != "images_per_second"} == {
            k: v for k, v in other.items() if k != "images_per_second"
        }


def test_the_average_is_judged_and_the_weights_learn_as_without_it(runs: Runs) -> None:
    plain = runs.run("plain", epochs=1, checkpoint_steps=1)
    averaged = runs.run("averaged", epochs=1, ema=0.4)
    mine, other = tensors(averaged[5]), tensors(plain[5])
    assert other.keys() < mine.keys()
    assert all(torch.equal(mine[name], other[name]) for name in other)

    # The average of all updates, from the weights of each.
    network = AlexNet(NARROW, len(CLASSES))
    initialize(network, NARROW, 0)
    expected = {name: p.detach().double() for name, p in network.named_parameters()}
    for step in range(1, 6):
        kept = min(0.4, (1 + step) / (10 + step))
        for name, weights in load_file(plain[step] / "model.safetensors").items():
            expected[name] = kept * expected[name] + (1 - kept) * weights
    for name, weights in load_file(averaged[5] / "average.safetensors").items():
        torch.testing.assert_close(weights.double(), expected[name], rtol=1e-5, atol=1e-6)

    errors = {}
    for kind in (False, True):
        load_weights(str(averaged[5]), network, averaged=kind)
        errors[kind] = validate(network, runs.dataset, setup_of(runs.dataset)).mean_loss
    assert errors[True] != errors[False]
    history = load_position(str(averaged[5])).history
    assert history[-1]["val_loss"] == errors[True]
    plain_history = load_position(str(plain[5])).history
    assert plain_history[-1]["val_loss"] == errors[False]


def setup_of(dataset: Manifest) -> TrainContext:
    statistics = read_statistics(str(Path(dataset.folder) / "statistics.npz"))
    return TrainContext(
        recipe=NARROW,
        means=[mean_crop(statistics.mean_image)],
        axes=pca_axes(NARROW, statistics.rgb_covariance),
        seed=0,
    )


def test_other_options_change_what_is_learned(runs: Runs) -> None:
    found = {
        name: tensors(runs.run(name, epochs=1, **options)[5])["model.safetensors/fc8.weight"]
        for name, options in OPTIONS.items()
        if name != "average"
    }
    weights = list(found.values())
    assert not any(
        torch.equal(first, second)
        for number, first in enumerate(weights)
        for second in weights[:number]
    )


def test_the_checkpoint_holds_recipe_and_mean(runs: Runs) -> None:
    folder = runs.run("one", epochs=1, towers=1)[5]
    recipe = read_recipe(str(folder))
    assert (recipe["towers"], recipe["batch_size"], recipe["epochs"]) == (1, 8, 1)
    statistics = read_statistics(str(Path(runs.dataset.folder) / "statistics.npz"))
    mean = read_tensors(str(folder), "mean.safetensors")["mean"]
    middle = torch.from_numpy(statistics.mean_image[16:240, 16:240])
    assert torch.equal(mean, middle.permute(2, 0, 1))
