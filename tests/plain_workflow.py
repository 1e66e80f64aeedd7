"""The workflow without Ray and without a network, for tests of what it remembers.

Shards are written in this process. A training counts epochs in a file where Ray Train would keep
checkpoints, and a model names what it was made of. Records, manifests and everything in MLflow are
real.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import predictions_table
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache as artifact_places
from PIL import Image

from alexnet import predictions
from alexnet.shards.format import write_table
from alexnet.shards.manifest import Manifest, read_manifest
from alexnet.shards.plan import ShardTask
from alexnet.shards.write import ShardResult, make_shard
from pipelines import cluster, evaluate, full_run, preprocess, train
from pipelines.evaluation import evaluation_report
from pipelines.preprocessing import dataset
from pipelines.preprocessing import stage as preprocess_stage
from pipelines.preprocessing.job import RejectCounter
from pipelines.results.stage_results import EvaluateResult, FullRunResult, TrainResult
from pipelines.settings import EvaluateSettings, FullRunSettings, TrainSettings
from pipelines.tracking import evaluations
from pipelines.tracking.metric_writer import Point
from pipelines.tracking.registry import ModelInfo
from pipelines.tracking.run import MetricStore, Run
from pipelines.training.initial_weights import InitialWeights
from pipelines.workdir import Workdir

CLASSES = ("blue", "red")
STAGES = ["preprocess", "train", "evaluate", "promote"]


def write_source(folder: Path, version: int) -> None:
    """Two images of each class and split; names and sizes are those of every version."""
    random = np.random.default_rng(version)
    for split in ("train", "val"):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(2):
                pixels = random.integers(0, 256, (40, 50, 3), np.uint8)
                path = folder / split / name / f"{number}.bmp"
                Image.fromarray(pixels).save(path)
                os.utime(path, ns=(version, version))


IMAGES = 40
"""Predictions of an evaluation."""


def right_of(model: Mapping[str, Any], validation: str, code: str) -> int:
    """How many predictions are right: another number for most models, data sets and codes.

    Half of them would be chance.
    """
    text = json.dumps([dict(model), validation, code], sort_keys=True)
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) % (IMAGES // 2 + 1) + IMAGES // 2


class PlainWorkflow:
    """Full runs on one source, and a list of the work that they do."""

    def __init__(self, folder: Path, database: Path) -> None:
        """``database``: an empty one of MLflow, which is copied."""
        self.folder = folder
        self.source, self.workdir = folder / "source", folder / "work"
        self.code = dict.fromkeys(STAGES, "0")
        """Version of each stage's code."""
        self.made: list[str] = []
        """Shards written, in order."""
        self.epochs: list[tuple[str, int]] = []
        """Epochs trained: what the training was started with, and the number from 1 on."""
        self.trainings = 0
        """Started from the beginning."""
        self.evaluated = 0
        self.on_work: Callable[[str], None] = lambda what: None
        """Called before each piece of work; it may raise an exception."""
        write_source(self.source, 1)
        self.workdir.mkdir()
        shutil.copy(database, self.workdir)

    def run(self, **settings: Any) -> FullRunResult:
        """A full run, as of a new process: MLflow keeps places of artifacts in memory."""
        artifact_places.clear()
        values = {"source": str(self.source), "workdir": str(self.workdir), "epochs": 2} | settings
        return full_run.run(FullRunSettings.model_validate(values))

    def content(self, result: FullRunResult) -> str:
        """Content digest of the shards that a run reports, as they are on disk."""
        return read_manifest(result.stages["preprocess"]["shards"]).content_digest()

    @property
    def client(self) -> MlflowClient:
        uri = f"sqlite:///{self.workdir}/mlflow.db"
        return MlflowClient(uri, uri)

    def model(self, result: FullRunResult) -> dict[str, Any]:
        """What the model that a run reports was made of, read from its artifacts."""
        model_id = result.stages["train"]["model"].removeprefix("models:/")
        folder = Path(self.client.get_logged_model(model_id).artifact_location)
        made_of: dict[str, Any] = json.loads((folder / "MLmodel").read_text())["metadata"]
        return {name: value for name, value in made_of.items() if name != "classes"}

    def curve(self, result: FullRunResult) -> list[tuple[int, float]]:
        """The points of the training that a run reports."""
        points = self.client.get_metric_history(result.stages["train"]["run_id"], "loss")
        return [(point.step, point.value) for point in points]

    def alias(self, name: str) -> str | None:
        """The URI of the model that an alias points to."""
        models = self.client.search_registered_models()
        aliases = models[0].aliases if models else {}
        if name not in aliases:
            return None
        return str(self.client.get_model_version("alexnet", aliases[name]).source)

    def make_shards(
        self, missing: list[ShardTask], rejects: RejectCounter
    ) -> tuple[dict[ShardTask, ShardResult], float]:
        """Replaces the Ray Data job."""
        made = {}
        for task in missing:
            self.on_work(f"shard {task.file}")
            made[task] = make_shard(task)
            self.made.append(task.file)  # Finished: a kill before this line leaves no result.
        return made, 1.0

    def train_to_the_end(
        self,
        settings: TrainSettings,
        recipe: object,
        *,
        shards: str,
        tracking_uri: str,
        run_id: str,
        name: str,
        initial: InitialWeights | None = None,
    ) -> str:
        """Replaces the Ray Train job."""
        folder = Path(Workdir(settings.workdir).checkpoints) / name
        folder.mkdir(parents=True, exist_ok=True)
        state = folder / "state.json"
        metrics = MetricStore(tracking_uri, run_id)
        if not state.exists():
            self.trainings += 1
            made_of = {
                "epochs": settings.epochs,
                "content": read_manifest(shards).content_digest(),
                "code": self.code["train"],
                "training": self.trainings,
            }
            state.write_text(json.dumps([made_of, 0]))
        made_of, done = json.loads(state.read_text())
        for epoch in range(done + 1, (settings.epochs or 0) + 1):
            self.on_work(f"epoch {epoch}")
            self.epochs.append((json.dumps(made_of), epoch))
            if metrics.last_step("loss") < epoch:
                metrics.write([Point(epoch, 0, {"loss": float(made_of["training"])})])
            state.write_text(json.dumps([made_of, epoch]))
        return str(folder)

    def log_model_and_curves(
        self, settings: TrainSettings, recipe: object, manifest: Manifest, run: Run, *more: Any
    ) -> TrainResult:
        """Replaces the export of the network."""
        checkpoint = more[-1]
        made_of, _ = json.loads((Path(checkpoint) / "state.json").read_text())
        self.on_work("model")
        client = run.store.client
        model = client.create_logged_model(run.store.experiment_id, "model", run.run_id)
        metadata = made_of | {"classes": [[name, name] for name in CLASSES]}
        description = {
            "flavors": {"python_function": {"loader_module": "none"}},
            "metadata": metadata,
            "model_id": model.model_id,
            "run_id": run.run_id,
        }
        logged = self.folder / "logged"
        logged.mkdir(exist_ok=True)
        (logged / "MLmodel").write_text(json.dumps(description))
        client.log_model_artifacts(model.model_id, str(logged))
        client.finalize_logged_model(model.model_id, "READY")
        return TrainResult(
            images=1,
            epochs=made_of["epochs"],
            steps=1,
            images_per_second=1.0,
            train_loss=1.0,
            val_top1_error=50.0,
            val_top5_error=0.0,
            checkpoint=checkpoint,
            model=f"models:/{model.model_id}",
        )

    def evaluate_models(
        self,
        settings: EvaluateSettings,
        manifest: Manifest,
        models: list[ModelInfo],
        run: Run,
        path: str,
    ) -> EvaluateResult:
        """Replaces the evaluation by actors."""
        self.on_work("evaluation")
        self.evaluated += 1
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        made_of = dict(run.store.model_info(models[0].uri).metadata)
        del made_of["classes"]
        validation = manifest.content_digest("val")
        right = right_of(made_of, validation, self.code["evaluate"])
        labels = [0, 1] * (IMAGES // 2)
        table = predictions_table(
            labels,
            [label if index < right else 1 - label for index, label in enumerate(labels)],
            classes=2,
            model=models[0].uri,
            validation=validation,
        )
        evaluations.tag(run, [model.uri for model in models], validation)
        write_table(path, table)
        evaluations.log_predictions(run, table)
        return evaluation_report.summarize(predictions.of_table(table), path)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Replace what needs Ray or a network in the workflow."""
        patch.setattr(dataset, "make_shards", self.make_shards)
        patch.setattr(cluster, "connect_in_background", lambda: None)
        patch.setattr(preprocess_stage, "log_result", lambda *_: None)
        patch.setattr(train, "train_to_the_end", self.train_to_the_end)
        patch.setattr(train, "log_model_and_curves", self.log_model_and_curves)
        patch.setattr(evaluate, "evaluate_models", self.evaluate_models)
        for stage, module in (("preprocess", preprocess), ("train", train), ("evaluate", evaluate)):
            patch.setattr(module, "code_version", lambda *_, stage=stage, **__: self.code[stage])
