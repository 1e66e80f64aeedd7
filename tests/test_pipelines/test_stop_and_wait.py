"""Commands that are interrupted, and commands that wait for a busy cluster: real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from mlflow import MlflowClient
from PIL import Image
from ray.cluster_utils import Cluster
from ray_clusters import cluster_of

from pipelines.console.interrupt import MESSAGE

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

PIPELINES = Path(__file__).parents[2] / "pipelines"
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source``: 16 training and 4 validation images; ``work`` is the workdir of all tests."""
    root = tmp_path_factory.mktemp("stop")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name in ("blue", "red"):
            (root / "source" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (256, 256, 3), np.uint8)
                Image.fromarray(pixels).save(root / "source" / split / name / f"{number}.png")
    return root


class Command:
    """A command whose lines are read as they come."""

    def __init__(self, script: str, *options: str, cluster: Cluster | None = None) -> None:
        address = {"RAY_ADDRESS": cluster.address} if cluster else {}
        self.process = subprocess.Popen(
            [sys.executable, str(PIPELINES / script), *options],
            env=os.environ | address,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []

    def wait_for(self, pattern: str) -> None:
        """Read lines up to one that matches."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return
        raise AssertionError("\n".join(self.lines))

    def interrupt(self, number: int) -> int:
        """Send a signal; wait until the process and all that it has started have ended."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        status = self.end()
        _, left = psutil.wait_procs(started, timeout=10)
        assert [p.name() for p in left if p.status() != psutil.STATUS_ZOMBIE] == []
        return status

    def end(self) -> int:
        """Read the remaining lines; returns the exit status."""
        rest, _ = self.process.communicate(timeout=TIMEOUT_S)
        self.lines += rest.splitlines()
        return self.process.returncode


def full_run(folder: Path) -> Command:
    work = ["--source", str(folder / "source"), "--workdir", str(folder / "work")]
    numbers = "--epochs 1 --batch-size 4 --learning-rate 0.0005 --log-steps 1 --checkpoint-steps 1"
    numbers += " --log-seconds 0"
    more = ["--device", "cpu", "--champion", "always"]
    return Command("full_run.py", *work, *numbers.split(), *more)


def statuses(folder: Path) -> dict[str, str]:
    client = MlflowClient(f"sqlite:///{folder}/work/mlflow.db")
    return {run.data.tags["stage"]: run.info.status for run in client.search_runs(["1"])}


@pytest.mark.parametrize(
    ("moment", "number", "status", "killed"),
    [
        ("preprocess: running", signal.SIGTERM, 143, None),
        pytest.param("train: epoch 1/1, 8/16", signal.SIGINT, 130, "train", marks=pytest.mark.long),
        pytest.param("evaluate: running", signal.SIGINT, 130, None, marks=pytest.mark.long),
    ],
)
def test_one_signal_ends_a_full_run_at_any_stage(
    folder: Path, moment: str, number: int, status: int, killed: str | None
) -> None:
    command = full_run(folder)
    command.wait_for(moment)
    assert command.interrupt(number) == status
    assert command.lines[-1] == f"full_run.py: {MESSAGE}"
    assert "Traceback" not in "\n".join(command.lines)
    runs = statuses(folder)
    assert "RUNNING" not in runs.values()
    if killed:
        assert runs["full_run"] == runs[killed] == "KILLED"


def test_sigterm_saves_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    """Without it, the first checkpoint would be that of the epoch's end."""
    options = f"--source {folder / 'source'} --workdir {tmp_path} --batch-size 2 --log-steps 1"
    options += " --log-seconds 0 --learning-rate 0.0001 --device cpu --epochs 2"
    command = Command("full_run.py", *options.split())
    command.wait_for("train: epoch 1/2, 4/16")
    assert command.interrupt(signal.SIGTERM) == 143
    assert command.lines[-1] == f"full_run.py: {MESSAGE}"
    assert "Traceback" not in "\n".join(command.lines)
    (saved,) = [line for line in command.lines if line.startswith("train: saved ")]
    checkpoint = Path(saved.removeprefix("train: saved "))
    step = json.loads((checkpoint / "train_state.json").read_text())["step"]
    assert 2 < step < 8
    if "ALEXNET_LONG_TESTS" in os.environ:
        resumed = Command("full_run.py", *options.split())
        resumed.wait_for(f"train: resuming from the checkpoint of step {step}, epoch 1")
        assert resumed.interrupt(signal.SIGINT) == 130


@pytest.mark.long
def test_the_same_command_finishes_what_was_interrupted(folder: Path) -> None:
    command = full_run(folder)
    assert command.end() == 0, command.lines
    result = json.loads(command.lines[-1])
    assert result["skipped"] == ["preprocess", "train"]
    assert set(statuses(folder).values()) == {"FINISHED"}


@contextmanager
def busy(cluster: Cluster, cpus: int) -> Iterator[None]:
    """Another user of the cluster holds CPUs."""

    class User:
        def ready(self) -> None:
            pass

    user = ray.remote(num_cpus=cpus)(User).remote()
    ray.get(user.ready.remote())
    yield
    ray.kill(user)


@pytest.fixture
def one_cpu() -> Iterator[Cluster]:
    with cluster_of({"num_cpus": 1, "object_store_memory": 200 * 2**20}) as cluster:
        yield cluster


@pytest.mark.long
def test_a_cluster_with_one_cpu(folder: Path, one_cpu: Cluster, tmp_path: Path) -> None:
    """Inference has room for the tasks that feed it; what never fits is refused; a wait is told."""
    work = ["--workdir", str(folder / "work"), "--device", "cpu"]
    images = ["--images", str(folder / "source" / "val"), "--output", str(tmp_path / "out")]
    inference = Command("batch_inference.py", *work, *images, cluster=one_cpu)
    assert inference.end() == 0, inference.lines
    assert json.loads(inference.lines[-1])["images"] == 4

    training = Command("train.py", *work, "--num-workers", "2", "--seed", "1", cluster=one_cpu)
    assert training.end() == 2
    assert training.lines[-1] == (
        "train.py: --num-workers 2 --device cpu: 2 workers of 1 CPU each don't fit into the "
        "cluster's nodes, which have 1 CPU and 0 GPUs; give --num-workers 1"
    )

    with busy(one_cpu, 1):
        for script in ("train.py", "evaluate.py"):
            waiting = Command(script, *work, "--seed", "1", "--force", cluster=one_cpu)
            waiting.wait_for(r"waiting for .*1 worker of 1 CPU; the cluster has 1 CPU, 0 free")
            assert waiting.interrupt(signal.SIGTERM) == 143
            assert waiting.lines[-1] == f"{script}: {MESSAGE}"
    end = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 1 and time.monotonic() < end:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 1, "interrupted commands hold nothing"
