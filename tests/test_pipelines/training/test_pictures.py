"""Pictures of a training: drawn in the background, never twice, and never at the cost of work."""

import threading
from collections.abc import Callable

import pytest
import torch
from factories import narrow_network
from PIL import Image

from alexnet.recipes import SOURCE145
from alexnet.shards.manifest import Manifest
from alexnet.shards.pixel_stats import read_statistics
from alexnet.training.augment import mean_crop
from pipelines.settings import Settings
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.step_images import StepImages
from pipelines.tracking.store import connect
from pipelines.training.pictures import Pictures

KEYS = ["learning_curves", "first_layer_kernels", "activations", "layers"]
HISTORY = [{"epoch": 1.0, "train_loss": 1.5, "val_loss": 1.4, "learning_rate": 0.01}]
GRADIENTS = {"conv1": [1.0, 2.0], "fc8": [3.0]}


class Sink:
    """Keeps pictures in memory; ``before_log`` may block or fail."""

    def __init__(self, before_log: Callable[[], None] = lambda: None) -> None:
        self.logged: list[tuple[str, int]] = []
        self.before_log = before_log

    def known(self) -> set[tuple[str, int]]:
        return set(self.logged)

    def log(self, key: str, step: int, image: Image.Image) -> None:
        self.before_log()
        assert image.size[0] == 900
        self.logged.append((key, step))


class Training:
    """A network and its pictures."""

    def __init__(self, dataset: Manifest, sink: Sink) -> None:
        self.lines: list[str] = []
        mean = mean_crop(read_statistics(dataset.statistics_path).mean_image)
        self.pictures = Pictures(sink, dataset, mean, self.lines.append)
        self.network = narrow_network(SOURCE145)

    def epoch(self, step: int, *, last: bool = False) -> None:
        self.pictures.after_epoch(self.network, step, HISTORY, GRADIENTS, last=last)


def test_the_first_and_the_last_epoch_have_pictures_and_others_if_it_is_not_too_often(
    dataset: Manifest,
) -> None:
    sink = Sink()
    training = Training(dataset, sink)
    state = torch.get_rng_state()
    training.epoch(5)
    training.pictures.finish()
    training.epoch(10)  # Just after the first.
    training.epoch(15, last=True)
    training.pictures.finish()
    assert sink.logged == [(key, step) for step in (5, 15) for key in KEYS]
    assert torch.equal(torch.get_rng_state(), state)
    assert training.lines == []


def test_pictures_that_are_there_from_before_a_restart_are_not_logged_again(
    dataset: Manifest,
) -> None:
    sink = Sink()
    sink.logged = [("activations", 5), ("layers", 4)]
    training = Training(dataset, sink)
    training.epoch(5, last=True)
    training.pictures.finish()
    assert sorted(sink.logged) == sorted([("layers", 4), *((key, 5) for key in KEYS)])


def test_a_store_that_fails_costs_one_line_and_the_pictures(dataset: Manifest) -> None:
    def fail() -> None:
        raise OSError("no\nserver at http://user:secret@host/")

    training = Training(dataset, Sink(fail))
    for step in (5, 10):
        training.epoch(step, last=True)
    training.pictures.finish()
    (line,) = training.lines
    assert "pictures of step 5 could not be logged" in line
    assert "\n" not in line
    assert "secret" not in line


def test_the_training_does_not_wait_for_a_store_that_hangs(
    dataset: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.training.pictures.TIMEOUT_S", 0.2)
    server = threading.Event()
    sink = Sink(lambda: void(server.wait(60)))
    training = Training(dataset, sink)
    training.epoch(5)
    training.epoch(10)
    training.epoch(15, last=True)
    training.pictures.finish()
    assert sink.logged == []
    server.set()


def void(_: object) -> None:
    """Turn a function with a result into one without."""


def test_images_of_a_run_are_found_by_key_and_step(mlflow_workdir: str) -> None:
    store = connect(Settings(workdir=mlflow_workdir))
    run_id = open_run(store, "train", resume=None, parent=None)
    with active_run(store, run_id):
        images = StepImages(store.uri, run_id)
        assert images.known() == set()
        for key, step in (("layers", 0), ("a/b c", 12)):
            images.log(key, step, Image.new("RGB", (20, 10)))
        assert images.known() == {("layers", 0), ("a/b c", 12)}
    assert store.client.get_run(run_id).data.tags["mlflow.loggedImages"] == "True"
