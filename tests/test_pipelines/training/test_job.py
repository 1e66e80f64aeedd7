"""The Ray Train job's resources over lost nodes and repeated commands; Ray is replaced."""

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import ScalingConfig, TrainingFailedError

from alexnet.errors import UserError
from alexnet.recipes import SOURCE145
from pipelines import cluster
from pipelines.clusters import allocation
from pipelines.settings import TrainSettings
from pipelines.training import job


class FakeRay:
    """A cluster of nodes that loses some whenever a training is started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workdir: Path) -> None:
        self.workdir = workdir
        self.nodes = [(8.0, 2.0)] * 4
        self.losses: list[list[tuple[float, float]]] = []
        """The nodes that are left after each attempt."""
        self.attempts: list[tuple[Any, dict[str, float] | None]] = []
        """Workers and resources of each."""
        fake = self

        class Trainer:
            def __init__(self, *_: Any, scaling_config: ScalingConfig, **__: Any) -> None:
                workers = scaling_config.num_workers
                fake.attempts.append((workers, scaling_config.resources_per_worker))

            def fit(self) -> None:
                if fake.losses:
                    fake.nodes = fake.losses.pop(0)
                    raise TrainingFailedError("a node was lost")

        class Lines:
            def __enter__(self) -> str:
                return "an actor"

            def __exit__(self, *_: object) -> None: ...

        monkeypatch.setattr(job, "TorchTrainer", Trainer)
        monkeypatch.setattr(job, "worker_log", lambda *_: Lines())
        monkeypatch.setattr(job, "list_checkpoints", lambda _: ["step_000000001"])
        monkeypatch.setattr(cluster, "connect", lambda: None)
        monkeypatch.setattr(cluster, "started_here", lambda: True)
        monkeypatch.setattr(ray, "nodes", self.as_ray_lists_them)
        monkeypatch.setattr(allocation, "available_resources_per_node", self.free)
        monkeypatch.setattr(allocation, "SETTLE_S", 0.0)

    def as_ray_lists_them(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": c, "GPU": g}} for c, g in self.nodes]

    def free(self) -> dict[int, dict[str, float]]:
        return dict(enumerate(node["Resources"] for node in self.as_ray_lists_them()))

    def train(self, **settings: Any) -> None:
        values = {"workdir": str(self.workdir), "num_workers": 4} | settings
        job.train_to_the_end(
            TrainSettings.model_validate(values),
            SOURCE145,
            shards="shards",
            tracking_uri="sqlite:///x.db",
            run_id="run",
            name="key",
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRay:
    return FakeRay(monkeypatch, tmp_path)


TWO_GPUS = {"CPU": 8, "GPU": 2}


def test_a_training_keeps_its_kind_of_device_when_nodes_are_lost(fake: FakeRay) -> None:
    fake.losses = [[(8.0, 2.0)] * 3, [(8.0, 0.0)] * 4]
    fake.train()
    assert fake.attempts == [(4, TWO_GPUS)] * 3, "it waits for a node instead"


def test_the_same_command_keeps_the_kind_of_device(fake: FakeRay) -> None:
    fake.train()
    fake.nodes = [(8.0, 1.0)] * 4
    with pytest.raises(UserError, match=r"^this training began with 2 GPUs .* or --device cpu$"):
        fake.train()
    fake.train(device="cpu")
    assert fake.attempts[1:] == [(4, {"CPU": 8})]


def test_gpus_that_come_later_are_not_taken_without_a_word(
    fake: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.nodes = [(8.0, 0.0)] * 4
    fake.train()
    fake.nodes = [(8.0, 2.0)] * 4
    fake.train()
    assert fake.attempts == [(4, {"CPU": 8})] * 2
    line = "train: continuing with the CPU, as it began; --device changes that\n"
    assert capsys.readouterr().out == line
    fake.train(device="cuda")
    assert fake.attempts[2] == (4, TWO_GPUS)
