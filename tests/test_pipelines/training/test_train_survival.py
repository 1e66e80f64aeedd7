"""Training whose workers, nodes and driver are killed.

Ray or the same command resumes it, and it ends with the weights of an uninterrupted training, bit
for bit; no step is logged twice. ``ALEXNET_KILLS`` is the number of processes to kill.
"""

import hashlib
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chaos import SMALL_NODE, ChaosRun, three_nodes
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from safetensors.numpy import load_file

from pipelines import preprocess
from pipelines.settings import PreprocessSettings

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.long,
]

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("ALEXNET_KILLS", "3"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with three_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def prepared(cluster: Cluster, raw_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with shards of 39 training images."""
    workdir = tmp_path_factory.mktemp("prepared")
    values = {"source": str(raw_images), "workdir": str(workdir), "rows_per_shard": 8}
    preprocess.run(PreprocessSettings.model_validate(values | {"max_reject_fraction": 0.1}))
    return workdir


def training(
    cluster: Cluster, prepared: Path, workdir: Path, workers: str, epochs: int = 2, *more: str
) -> ChaosRun:
    """Some epochs of ten updates; ``workdir`` is new and shares the shards of another."""
    workdir.mkdir()
    for shared in ("shards", "stages/preprocess"):
        (workdir / shared).parent.mkdir(exist_ok=True)
        (workdir / shared).symlink_to(prepared / shared)
    options = f"--workdir {workdir} --epochs {epochs} --num-workers {workers} --device cpu"
    options += " --batch-size 4 --learning-rate 0.001 --checkpoint-steps 2 --log-steps 1"
    options += " --log-seconds 0 --max-failures 9"
    return ChaosRun(
        cluster,
        [sys.executable, str(ROOT / "pipelines" / "train.py"), *options.split(), *more],
        worker="ray::RayTrainWorker",
        progress=lambda: max(
            (int(path.name.split("_")[1]) for path in workdir.glob("training/*/step_*[0-9]")),
            default=0,
        ),
    )


def weights_of(result: dict[str, Any]) -> dict[str, Any]:
    return load_file(Path(result["checkpoint"]) / "model.safetensors")


def weights_digest(result: dict[str, Any]) -> str:
    path = Path(result["checkpoint"]) / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def curve_of(workdir: Path, metric: str = "loss") -> list[tuple[int, float]]:
    """Step and value of each point that MLflow holds of a metric of the only training run."""
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    (run,) = client.search_runs(["1"], "tags.stage = 'train'")
    return [
        (point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)
    ]


def result_in_spite_of_kills(
    run: ChaosRun, victims: Sequence[str], before_start: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Kill the victims in turn, ``KILLS`` in all, at random moments after a checkpoint.

    Args:
        run: the training, not started. It is started again whenever its driver has ended.
        victims: what to kill.
        before_start: called before each start.
    """
    moments, turn = random.Random(2012), itertools.cycle(victims)
    kills = 0
    result = None
    while result is None:
        if run.process is None:
            before_start()
            run.start()
        if kills == KILLS or not run.wait_for_progress():
            result = run.result()
            assert result or "train.py:" not in run.errors, run.errors
            continue
        time.sleep(moments.uniform(0, 0.5))
        getattr(run, f"kill_{next(turn)}")()
        kills += 1
    assert kills == KILLS
    return result


def test_killed_at_random_moments_the_weights_are_those_of_uninterrupted_training(
    cluster: Cluster, prepared: Path, tmp_path: Path
) -> None:
    uninterrupted = training(cluster, prepared, tmp_path / "uninterrupted", "2")
    uninterrupted.start()
    expected = uninterrupted.result()
    assert expected, uninterrupted.errors

    run = training(cluster, prepared, tmp_path / "killed", "2")
    result = result_in_spite_of_kills(run, ["worker", "node", "driver"])
    assert "resuming from the checkpoint of step" in run.output
    assert result["steps"] == 20
    assert weights_digest(result) == weights_digest(expected)
    curve = curve_of(tmp_path / "killed")
    assert curve == curve_of(tmp_path / "uninterrupted")
    assert [step for step, _ in curve] == list(range(1, 21))
    checkpoints = sorted(path.name for path in (tmp_path / "killed").glob("training/*/step_*"))
    assert len(checkpoints) <= 2, "the best and the newest"
    assert checkpoints[-1] == "step_000000020"


def test_exact_training_is_the_same_for_any_workers_and_however_often_it_is_killed(
    cluster: Cluster, prepared: Path, tmp_path: Path
) -> None:
    """Each driver has another number of workers; SIGTERM is one of the ways in which it ends."""
    epochs = 2 + KILLS // 5  # Five checkpoints each; a kill follows a checkpoint.

    def with_workers(workers: str, name: str) -> ChaosRun:
        return training(cluster, prepared, tmp_path / name, workers, epochs, "--exact", "on")

    unbroken = with_workers("1", "unbroken")
    unbroken.start()
    expected = unbroken.result()
    assert expected, unbroken.errors

    cluster.add_node(**SMALL_NODE)
    run = with_workers("1", "killed")
    numbers, used = itertools.cycle("1324"), set()
    at = run.command.index("--num-workers") + 1

    def change_workers() -> None:
        run.command[at] = next(numbers)
        used.add(run.command[at])

    victims = ["worker", "driver", "node", "driver_softly"]
    result = result_in_spite_of_kills(run, victims, change_workers)
    assert len(used) == min(4, 1 + KILLS // 2)
    assert result["steps"] == 10 * epochs
    assert weights_digest(result) == weights_digest(expected)
    for metric in ("loss", "top1_error", "val_loss", "val_top1_error"):
        curve = curve_of(tmp_path / "killed", metric)
        assert curve == curve_of(tmp_path / "unbroken", metric), metric
    assert [step for step, _ in curve_of(tmp_path / "killed")] == list(range(1, 10 * epochs + 1))


def test_the_number_of_workers_follows_the_cluster(
    cluster: Cluster, prepared: Path, tmp_path: Path
) -> None:
    """Ray Train checks every minute whether more workers fit, so the training is longer."""
    run = training(cluster, prepared, tmp_path / "elastic", "1:3", epochs=8)
    run.start()
    assert run.wait_for_progress()
    run.remove_node()
    for _ in range(2):  # The first may be a checkpoint that was started before the loss.
        assert run.wait_for_progress(), run.errors
    cluster.add_node(**SMALL_NODE)
    result = run.result()
    assert result, run.errors
    counts = [
        line.split()[1] for line in run.output.splitlines() if "workers share each batch" in line
    ]
    assert counts == ["3", "2", "3"]
    assert result["steps"] == 80
    assert [step for step, _ in curve_of(tmp_path / "elastic")] == list(range(1, 81))


def test_a_training_begins_with_the_weights_of_a_checkpoint(
    cluster: Cluster, prepared: Path, tmp_path: Path
) -> None:
    """Updates with a rate of 1e-30 change no weight, so the last ones are the first ones."""
    first = training(cluster, prepared, tmp_path / "first", "2", 1)
    first.start()
    checkpoint = first.result()
    assert checkpoint, first.errors
    weights = weights_of(checkpoint)
    for kind, more in (("same", ()), ("conv6", ("--conv6", "on"))):
        options = ["--init-from", checkpoint["checkpoint"], "--learning-rate", "1e-30", *more]
        run = training(cluster, prepared, tmp_path / kind, "2", 1, *options)
        run.start()
        result = run.result()
        assert result, run.errors
        begun = weights_of(result)
        assert "beginning with weights of " in run.output
        drawn = {
            name.split(".")[-2]
            for name, tensor in weights.items()
            if not np.array_equal(begun[name], tensor)
        }
        assert drawn == (set() if kind == "same" else {"fc6", "fc7", "fc8"})
