"""What the workflow remembers: full runs whose settings, sources, code and registry change.

Ray and the network are replaced: shards are written in this process, and a trained model is a name
that is made of its settings and shards. Records, manifests and MLflow's runs are real.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import evaluate_result, predictions_table
from PIL import Image

from alexnet.shards.format import write_table
from alexnet.shards.manifest import read_manifest
from alexnet.shards.plan import ShardTask
from alexnet.shards.write import ShardResult, make_shard
from pipelines import evaluate, full_run, preprocess, train
from pipelines.preprocessing import dataset
from pipelines.preprocessing.job import RejectCounter
from pipelines.results import EvaluateResult, FullRunResult, TrainResult
from pipelines.settings import FullRunSettings
from pipelines.tracking import registry
from pipelines.tracking.registry import ModelInfo, Version

pytestmark = pytest.mark.slow

CLASSES = ("blue", "red")


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


class Registry:
    """A model registry in memory."""

    def __init__(self) -> None:
        self.versions: list[str] = []
        """Sources, by version from 1 on."""
        self.tags: dict[str, dict[str, str]] = {}
        self.aliases: dict[str, str] = {}

    def register(self, store: object, name: str, uri: str, tags: dict[str, str]) -> Version:
        if uri not in self.versions:
            self.versions.append(uri)
        version = str(self.versions.index(uri) + 1)
        self.tags[version] = tags
        return Version(version, tags, uri)

    def by_alias(self, store: object, name: str, alias: str) -> Version | None:
        version = self.aliases.get(alias)
        return Version(version, self.tags[version]) if version else None

    def set_alias(self, store: object, name: str, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def champion(self) -> str:
        """The URI of the model that is champion."""
        return self.versions[int(self.aliases["champion"]) - 1]


class Workflow:
    """Full runs on one source."""

    def __init__(self, folder: Path, models: Registry) -> None:
        self.folder, self.models = folder, models
        self.source, self.workdir = folder / "source", folder / "work"
        self.made: list[str] = []
        """Shards written, in order."""
        write_source(self.source, 1)

    def run(self, **settings: Any) -> FullRunResult:
        values = {"source": str(self.source), "workdir": str(self.workdir)} | settings
        return full_run.run(FullRunSettings.model_validate(values))

    def content(self, result: FullRunResult) -> str:
        """Content digest of the shards that a run reports, as they are on disk."""
        return read_manifest(result.stages["preprocess"]["shards"]).content_digest()


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    models = Registry()
    workflow = Workflow(tmp_path, models)

    def make_shards(
        missing: list[ShardTask], rejects: RejectCounter
    ) -> tuple[dict[ShardTask, ShardResult], float]:
        workflow.made += [task.file for task in missing]
        return {task: make_shard(task) for task in missing}, 1.0

    def train_to_the_end(settings: Any, recipe: Any, *, shards: str, **_: Any) -> str:
        content = read_manifest(shards).content_digest()[:8]
        return f"models:/m-{settings.epochs}-{content}"

    def trained(settings: Any, *arguments: Any) -> TrainResult:
        return TrainResult(
            images=1,
            epochs=settings.epochs,
            steps=1,
            images_per_second=1.0,
            train_loss=1.0,
            val_top1_error=50.0,
            val_top5_error=0.0,
            checkpoint=str(Path(settings.workdir) / "training" / "x"),
            model=arguments[-1],
        )

    def evaluated(
        settings: Any, manifest: Any, infos: list[ModelInfo], run: Any, path: str
    ) -> EvaluateResult:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content, uris = manifest.content_digest("val"), [info.uri for info in infos]
        table = predictions_table(
            [0, 1] * 20, [0, 1] * 20, classes=2, model=uris[0], validation=content
        )
        write_table(path, table)
        return evaluate_result(models=uris, validation=content, predictions=path)

    def model_info(store: object, uri: str) -> ModelInfo:
        return ModelInfo(uri, "run", tuple((name, name) for name in CLASSES))

    monkeypatch.setattr(dataset, "make_shards", make_shards)
    monkeypatch.setattr(preprocess, "start_ray_early", lambda: None)
    monkeypatch.setattr(preprocess, "log_result", lambda *_: None)
    monkeypatch.setattr(train, "train_to_the_end", train_to_the_end)
    monkeypatch.setattr(train, "log_model_and_curves", trained)
    monkeypatch.setattr(evaluate, "evaluate_models", evaluated)
    for name, function in (
        ("get_model_info", model_info),
        ("model_exists", lambda store, uri: True),
        ("register", models.register),
        ("by_alias", models.by_alias),
        ("set_alias", models.set_alias),
        ("last_set", lambda store, name, alias: models.aliases.get(alias)),
        ("set_tags", lambda store, name, version, tags: None),
        ("describe", lambda store, name, version, text: None),
    ):
        monkeypatch.setattr(registry, name, function)
    return workflow


def test_a_second_run_skips_everything(workflow: Workflow) -> None:
    workflow.run()
    result = workflow.run()
    assert result.skipped == ["preprocess", "train", "evaluate", "promote"]


def test_earlier_settings_give_the_earlier_model(workflow: Workflow) -> None:
    first = workflow.run(epochs=1, champion="always")
    second = workflow.run(epochs=2, champion="always")
    third = workflow.run(epochs=1, champion="always")
    models = [run.stages["train"]["model"] for run in (first, second, third)]
    assert models[0] == models[2] != models[1]
    for run, model in zip((first, second, third), models, strict=True):
        assert run.stages["evaluate"]["models"] == [model]
    assert third.skipped == ["preprocess", "train", "evaluate"], "the champion is another"
    assert workflow.models.champion() == models[0]


def test_an_earlier_source_gives_the_earlier_shards(workflow: Workflow) -> None:
    contents = []
    for version in (1, 2, 1):
        write_source(workflow.source, version)
        result = workflow.run()
        contents.append(workflow.content(result))
        assert result.stages["preprocess"]["content"] == contents[-1]
    assert contents[0] == contents[2] != contents[1]


def test_a_failure_after_the_manifest_costs_no_shard(
    workflow: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space for a figure")

    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "log_result", fail)
        with pytest.raises(OSError, match="figure"):
            workflow.run()
    made = len(workflow.made)
    result = workflow.run()
    assert len(workflow.made) == made
    assert result.stages["preprocess"]["shards_kept"] == made


@pytest.mark.parametrize(
    "change",
    [
        lambda workflow: shutil.rmtree(workflow.workdir / "stages"),
        lambda workflow: (workflow.workdir / "mlflow.db").unlink(),
        lambda workflow: workflow.source.rename(workflow.folder / "moved"),
    ],
    ids=["records lost", "tracking store lost", "source moved"],
)
def test_a_complete_data_set_is_kept(
    workflow: Workflow, change: Callable[[Workflow], object]
) -> None:
    workflow.run()
    made = len(workflow.made)
    change(workflow)
    if not workflow.source.exists():
        workflow.source = workflow.folder / "moved"
    workflow.run()
    assert len(workflow.made) == made


def test_force_makes_the_shards_again(workflow: Workflow) -> None:
    workflow.run()
    made = len(workflow.made)
    workflow.run(force=True)
    assert len(workflow.made) == 2 * made


def test_an_alias_that_was_moved_is_set_again(workflow: Workflow) -> None:
    workflow.run(champion="always")
    workflow.models.versions.append("models:/m-other")
    workflow.models.tags["2"] = {}
    workflow.models.aliases["champion"] = "2"
    result = workflow.run(champion="always")
    assert "promote" not in result.skipped
    assert workflow.models.aliases["champion"] == "1"


def test_a_moved_workdir_uses_its_own_files(workflow: Workflow) -> None:
    workflow.run()
    made = len(workflow.made)
    workflow.workdir = workflow.workdir.rename(workflow.folder / "elsewhere")
    result = workflow.run(tracking_uri=f"sqlite:///{workflow.folder}/other.db")
    assert len(workflow.made) == made
    assert result.stages["preprocess"]["shards"].startswith(str(workflow.workdir))
    assert result.stages["evaluate"]["predictions"].startswith(str(workflow.workdir))
    records = (workflow.workdir / "stages").rglob("*.json")
    results = [path.read_text().partition('"result"')[2] for path in records]
    assert not any(str(workflow.folder) in text for text in results)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 3}', b"\xff"])
def test_a_damaged_record_is_computed_again(workflow: Workflow, damage: bytes) -> None:
    workflow.run()
    made = len(workflow.made)
    for path in (workflow.workdir / "stages").rglob("*.json"):
        path.write_bytes(damage)
        (path.parent / ".DS_Store").write_bytes(b"\0")
        (path.parent / "x.json.1.tmp").write_bytes(b"{")
    assert workflow.run().skipped == []
    assert len(workflow.made) == made
    assert len(workflow.run().skipped) == 4


def test_a_stage_alone_says_what_it_uses(
    workflow: Workflow, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow.run(epochs=1)
    workflow.run(epochs=2)
    workflow.run(only="promote")
    assert "promote: using the newest result of evaluate: " in capsys.readouterr().out
