"""The workflow on a real Ray cluster of two nodes, from raw images to predictions.

The tests of this module share one workdir and run in order: some start from the results of the ones
before them. They depend on no other module.
"""

import contextlib
import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import ray.train
from mlflow import MlflowClient
from PIL import Image
from ray.cluster_utils import Cluster
from ray.train.torch import TorchConfig, TorchTrainer
from ray_clusters import cluster_of

from alexnet.errors import UserError
from pipelines import batch_inference, compare, evaluate, full_run, preprocess, train
from pipelines.clusters.allocation import actor_resources, choose_gpus, training_resources
from pipelines.configuration.command_settings import BatchInferenceSettings, CompareSettings
from pipelines.results.records import newest
from pipelines.results.stage_results import EvaluateResult, FullRunResult, TrainResult
from pipelines.settings import EvaluateSettings, FullRunSettings, PreprocessSettings, TrainSettings
from pipelines.training.job import scaling_config
from pipelines.workdir import Workdir

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CLASSES = ("blue", "green", "red")
TRAIN, VAL = 12, 4
"""Images of each class."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Two nodes; the second declares GPUs, which no process here touches."""
    small: dict[str, Any] = {"object_store_memory": 200 * 2**20}
    with cluster_of({"num_cpus": 2} | small, {"num_cpus": 4, "num_gpus": 4} | small) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise whose colour is their class, and a file that is no image."""
    root = tmp_path_factory.mktemp("raw")
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (280, 300 + number, 3), np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / f"{name}{number}.jpg")
    (root / "train" / "red" / "notes.jpg").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def settings(source: Path, tmp_path_factory: pytest.TempPathFactory) -> FullRunSettings:
    values = {
        "source": str(source),
        "workdir": str(tmp_path_factory.mktemp("work")),
        "rows_per_shard": 10,
        "max_reject_fraction": 0.1,
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.0005,
        "checkpoint_steps": 2,
        "log_steps": 1,
        "log_seconds": 0,
        "device": "cpu",
        # Six updates teach nothing: by itself, such a model does not become champion.
        "champion": "always",
    }
    return FullRunSettings.model_validate(values)


@pytest.fixture(scope="module")
def first(nodes: Cluster, settings: FullRunSettings) -> FullRunResult:
    """The first full run in the workdir."""
    return full_run.run(settings)


def client(settings: FullRunSettings) -> MlflowClient:
    return MlflowClient(f"sqlite:///{settings.workdir}/mlflow.db")


def weights_digest(checkpoint: str) -> str:
    path = Path(checkpoint) / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_full_run_goes_from_raw_images_to_a_champion(
    first: FullRunResult, settings: FullRunSettings
) -> None:
    done = first.stages
    assert list(done) == ["preprocess", "train", "evaluate", "promote"]
    assert first.skipped == []
    assert (first.images, first.rejected) == (3 * (TRAIN + VAL), 1)
    assert first.images_per_second == done["train"]["images_per_second"]
    assert done["train"]["steps"] == 2 * 3
    assert done["evaluate"]["images"] == 3 * VAL
    assert done["promote"]["champion"] is True

    shards = Path(done["preprocess"]["shards"])
    rows = pq.read_table(shards / "train").to_pydict()
    assert sorted(rows["key"]) == sorted(
        f"train/{name}/{name}{n}.jpg" for name in CLASSES for n in range(TRAIN)
    )
    assert all(CLASSES[label] == w for label, w in zip(rows["label"], rows["wnid"], strict=True))
    rejects = pq.read_table(shards / "rejects.parquet").to_pylist()
    assert [(r["key"], r["split"], r["reason"]) for r in rejects] == [
        ("train/red/notes.jpg", "train", "not an image")
    ]
    predictions = pq.read_table(done["evaluate"]["predictions"])
    assert sorted(predictions["key"].to_pylist()) == sorted(
        pq.read_table(shards / "val")["key"].to_pylist()
    )


def test_the_runs_in_mlflow(first: FullRunResult, settings: FullRunSettings) -> None:
    mlflow = client(settings)
    runs = {run.data.tags["stage"]: run for run in mlflow.search_runs(["1"])}
    assert set(runs) == {"full_run", *first.stages}
    parent = runs["full_run"].info.run_id
    for name, line in first.stages.items():
        run = runs[name]
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.info.status == "FINISHED"
        assert run.data.params["seed"] == "0"
        assert run.info.run_id == line["run_id"]
    steps = [m.step for m in mlflow.get_metric_history(runs["train"].info.run_id, "loss")]
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    inputs = runs["train"].inputs.dataset_inputs
    assert [i.dataset.name for i in inputs] == ["shards"]
    artifacts = {
        "preprocess": ["images.png", "mean_image.png", "original_sizes.png", "rejects.json"],
        "train": ["first_layer_kernels.png", "images", "learning_curves.png", "recipe.json"],
        "evaluate": [
            "classes.json",
            "confused_pairs.png",
            "confusion_matrix.png",
            "neighbours.png",
            "predictions.parquet",
            "predictions.png",
            "reliability.png",
        ],
        "promote": ["decision.json"],
    }
    for stage, files in artifacts.items():
        listed = {file.path for file in mlflow.list_artifacts(runs[stage].info.run_id)}
        assert set(files) <= listed
    version = mlflow.get_model_version_by_alias("alexnet", "champion")
    assert version.run_id == runs["train"].info.run_id


def test_a_second_full_run_skips_all_stages(
    first: FullRunResult, settings: FullRunSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    again = full_run.run(settings)
    assert again.skipped == list(first.stages)
    assert capsys.readouterr().out.count("skipped (unchanged since") == 4
    assert len(client(settings).search_runs(["1"])) == 5


def test_a_finished_stage_is_skipped_when_it_is_run_alone(
    first: FullRunResult, settings: FullRunSettings
) -> None:
    outcome = preprocess.run(settings.part(PreprocessSettings))
    assert outcome.skipped
    assert outcome.result.digest == first.stages["preprocess"]["digest"]


@pytest.mark.long
def test_a_killed_worker_changes_nothing(first: FullRunResult, settings: FullRunSettings) -> None:
    """SIGKILL after the first checkpoint within an epoch: same weights, each step logged once."""
    before = weights_digest(first.stages["train"]["checkpoint"])
    killed: list[int] = []
    ended = threading.Event()
    forced = settings.part(TrainSettings).model_copy(update={"force": True})

    def kill_after_first_checkpoint() -> None:
        folder = Path(Workdir(settings.workdir).checkpoints)
        started = time.time()
        while not ended.wait(0.05):
            states = folder.glob("*/*/train_state.json")
            if any(path.stat().st_mtime > started for path in states):
                killed.extend(kill_train_workers())
                return

    killer = threading.Thread(target=kill_after_first_checkpoint)
    killer.start()
    try:
        outcome = train.run(forced)
    finally:
        ended.set()
        killer.join()
    assert killed
    assert outcome.result.steps == first.stages["train"]["steps"]
    assert weights_digest(outcome.result.checkpoint) == before
    points = client(settings).get_metric_history(outcome.run_id, "loss")
    original = client(settings).get_metric_history(first.stages["train"]["run_id"], "loss")
    assert {p.step: p.value for p in points} == {p.step: p.value for p in original}
    assert len(points) == len(original)


def kill_train_workers() -> list[int]:
    killed = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::RayTrainWorker") and is_descendant(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
    return killed


def is_descendant(process: psutil.Process) -> bool:
    """Whether this process has started the process, directly or not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(parent.pid == os.getpid() for parent in process.parents())
    return False


@pytest.mark.long
def test_a_changed_setting_runs_the_stages_that_depend_on_it(
    first: FullRunResult, settings: FullRunSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers share the batches of an epoch."""
    changed = settings.model_copy(update={"epochs": 1, "num_workers": (2, 2)})
    result = full_run.run(changed)
    assert result.skipped == ["preprocess"]
    assert "train: running (setting epochs changed from 2 to 1)" in capsys.readouterr().out
    trained = result.stages["train"]
    assert (trained["epochs"], trained["steps"], trained["images"]) == (1, 3, 3 * TRAIN)
    assert result.stages["evaluate"]["images"] == 3 * VAL


@pytest.mark.long
def test_forced_preprocessing_gives_the_same_bytes(
    first: FullRunResult, settings: FullRunSettings
) -> None:
    folder = Path(first.stages["preprocess"]["shards"])
    before = {path.name: path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}
    only = settings.model_copy(update={"only": "preprocess", "force": True})
    result = full_run.run(only)
    assert list(result.stages) == ["preprocess"]
    assert result.stages["preprocess"]["shards_made"] > 0
    assert {path.name: path.read_bytes() for path in sorted(folder.rglob("*.parquet"))} == before


@pytest.mark.long
def test_several_models_are_averaged(first: FullRunResult, settings: FullRunSettings) -> None:
    newest_model = newest(Workdir(settings.workdir), TrainResult, "evaluate").result.model
    models = [first.stages["train"]["model"], newest_model]
    assert models[0] != models[1]
    chosen = settings.part(EvaluateSettings).model_copy(update={"model": models})
    result = evaluate.run(chosen).result
    assert result.models == models
    assert result.images == 3 * VAL


def rows_of(output: Path) -> list[dict[str, Any]]:
    parts = [pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))]
    return [row for part in parts for row in part.to_pylist()]


def test_two_models_are_compared(first: FullRunResult, settings: FullRunSettings) -> None:
    """By the newest model's key and the first model's URI; the workdir has their images."""
    key = newest(Workdir(settings.workdir), EvaluateResult, "compare").key.digest
    names = [first.stages["train"]["model"], key]
    chosen = CompareSettings(workdir=settings.workdir, evaluations=names)
    result = compare.run(chosen)
    assert (result.images, result.first, result.second) == (3 * VAL, *names)
    assert result.first_error == first.stages["evaluate"]["top1_error"]


def test_batch_inference_gives_a_row_for_every_file(
    first: FullRunResult, settings: FullRunSettings, source: Path, tmp_path: Path
) -> None:
    chosen = BatchInferenceSettings(
        images=[str(source)],
        output=str(tmp_path / "out"),
        workdir=settings.workdir,
        device="cpu",
        views=1,
        top_k=2,
        batch_size=8,
    )
    result = batch_inference.run(chosen)
    assert (result.images, result.rejected) == (3 * (TRAIN + VAL) + 1, 1)
    rows = rows_of(tmp_path / "out")
    assert sorted(row["path"] for row in rows) == sorted(map(str, source.rglob("*.jpg")))
    for row in rows:
        if row["path"].endswith("notes.jpg"):
            assert row["status"] == "rejected"
            assert row["reason"].startswith("not an image")
            assert row["labels"] == []
        else:
            assert row["status"] == "ok"
            assert row["names"] == [CLASSES[label] for label in row["labels"]]
            assert len(row["labels"]) == 2
            assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
    assert batch_inference.run(chosen).parts_made == 0


def test_the_registered_model_agrees_with_the_evaluation(
    first: FullRunResult, settings: FullRunSettings, source: Path, tmp_path: Path
) -> None:
    """Ten views of the same files give the same labels in both stages."""
    done = first.stages
    chosen = BatchInferenceSettings(
        images=[str(source / "val")],
        output=str(tmp_path / "out"),
        workdir=settings.workdir,
        model=[done["promote"]["model"]],
        device="cpu",
        top_k=3,
    )
    batch_inference.run(chosen)
    predicted = {
        row["path"].removeprefix(f"{source}/"): row["labels"][0]
        for row in rows_of(tmp_path / "out")
    }
    evaluated = pq.read_table(done["evaluate"]["predictions"]).to_pylist()
    # Stored JPEGs differ a little from the originals, which may change a best label.
    same = [predicted[row["key"]] == row["labels"][0] for row in evaluated]
    assert sum(same) >= len(same) - 1


def test_every_worker_holds_two_gpus_and_shares_none(nodes: Cluster, tmp_path: Path) -> None:
    def loop(config: dict[str, Any]) -> None:
        rank = ray.train.get_context().get_world_rank()
        (Path(config["folder"]) / str(rank)).write_text(",".join(map(str, ray.get_gpu_ids())))

    TorchTrainer(
        loop,
        train_loop_config={"folder": str(tmp_path)},
        scaling_config=scaling_config((2, 2), training_resources((2, 2), "cuda", 2)),
        torch_config=TorchConfig(backend="gloo"),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path / "ray")),
    ).fit()
    held = [set((tmp_path / str(rank)).read_text().split(",")) for rank in range(2)]
    assert [len(ids) for ids in held] == [2, 2]
    assert not held[0] & held[1]


def test_resources_in_use_are_not_free(nodes: Cluster) -> None:
    class Worker:
        def ready(self) -> None:
            pass

    assert actor_resources((1, 4), "cuda", gpus_per_worker=2).workers == 2
    worker = ray.remote(num_cpus=1, num_gpus=2)(Worker).remote()
    ray.get(worker.ready.remote())
    end = time.monotonic() + 10
    resources = actor_resources((1, 4), "cuda", gpus_per_worker=2)
    while resources.workers > 1 and time.monotonic() < end:
        time.sleep(0.1)  # Ray updates the free resources with a delay.
        resources = actor_resources((1, 4), "cuda", gpus_per_worker=2)
    assert resources.workers == 1
    assert training_resources((1, 4), "cuda", 2).workers == 2, "what may become free"
    ray.kill(worker)


def test_what_never_fits_into_a_real_cluster_is_one_line(nodes: Cluster) -> None:
    with pytest.raises(UserError, match=r"3 workers of 1 CPU and 2 GPUs each don't fit"):
        choose_gpus("cuda", 3, 2)
