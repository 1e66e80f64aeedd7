"""``alexnet lineage``: each link from a prediction to the original bytes, and the broken one."""

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from factories import narrow_network, random_crops
from mlflow import MlflowClient
from plain_workflow import write_source

from alexnet import predictions
from alexnet.errors import UserError
from alexnet.inference.inputs import list_items
from alexnet.inference.listing import update_listing
from alexnet.inference.parts import PartOptions, PartWriter
from alexnet.inference.rows import RowOptions
from alexnet.metrics import average, top_labels
from alexnet.model.classifier import CropClassifier
from alexnet.recipes import SOURCE145
from alexnet.shards.codec import read_images
from alexnet.shards.finalize import finalize
from alexnet.shards.format import write_table
from alexnet.shards.manifest import Manifest
from alexnet.shards.plan import plan_digest, write_plan
from alexnet.shards.write import make_shard
from alexnet.sources.read import read_source
from alexnet.training.augment import CENTRE_VIEW
from pipelines import lineage
from pipelines.configuration.command_settings import LineageSettings
from pipelines.console.cli import CheckFailedError
from pipelines.inference import origin
from pipelines.inference.origin import ModelOrigin, Origin
from pipelines.inference.predictor import BatchPredictor, Predictor
from pipelines.preprocessing.shard_plan import encoding_of
from pipelines.results.command_results import LineageResult
from pipelines.settings import PreprocessSettings
from pipelines.tracking import evaluations, registry
from pipelines.tracking.run import Run, active_run, open_run
from pipelines.tracking.store import connect

pytestmark = pytest.mark.slow


@dataclass
class World:
    """A workdir with a data set, a real model and its predictions."""

    folder: Path
    model: str
    key: str
    content: str

    @property
    def workdir(self) -> Path:
        return self.folder / "work"

    @property
    def predictions(self) -> str:
        return str(self.folder / "predictions.parquet")

    @property
    def part(self) -> str:
        return str(self.folder / "out" / "part-000000.parquet")

    @property
    def client(self) -> MlflowClient:
        uri = f"sqlite:///{self.workdir}/mlflow.db"
        return MlflowClient(uri, uri)

    def follow(self, target: str, **settings: Any) -> LineageResult:
        values = {"workdir": str(self.workdir), "targets": [target]} | settings
        try:
            return lineage.run(LineageSettings.model_validate(values))
        except CheckFailedError as error:
            return cast(LineageResult, error.result)


def make_data_set(source_folder: Path, workdir: Path) -> Manifest:
    settings = PreprocessSettings(source=str(source_folder), workdir=str(workdir))
    source = read_source(str(source_folder))
    folder = str(workdir / "shards" / plan_digest(source, settings.results()))
    tasks = write_plan(folder, source, encoding_of(settings), 1024, 0)
    return finalize(
        folder,
        {task: make_shard(task) for task in tasks},
        plan_digest=plan_digest(source, settings.results()),
        source=str(source_folder),
        layout=source.layout,
        settings=settings.results(),
        labels=source.labels,
        account=source.account,
    )


def evaluate(store: Any, uri: str, manifest: Manifest, run: Run) -> Any:
    """The table that ``evaluate`` would write."""
    predictor = Predictor({uri: registry.load_classifier(store, uri)}, torch.device("cpu"))
    (group,) = manifest.row_groups("val")
    with ThreadPoolExecutor(1) as threads:
        rows, images = read_images(group, ["key", "label"], threads)
    by_view = predictor.views(images, {uri: "float32"})
    ten_views = average(list(by_view))
    best = top_labels(ten_views)
    columns = {
        "labels": list(best),
        "probabilities": list(np.take_along_axis(ten_views, best, axis=1)),
        "centre_labels": list(top_labels(by_view[CENTRE_VIEW])),
    }
    table = rows
    for name, values in columns.items():
        table = table.append_column(name, [values])
    content = manifest.content_digest("val")
    table = predictions.merge(
        [table],
        len(rows),
        wnids=[label.wnid for label in manifest.labels],
        models=[uri],
        validation=content,
    )
    evaluations.tag(run, [uri], content)
    run.set_tags({"stage": "evaluate"})
    evaluations.log_predictions(run, table)
    return table


def predict_part(store: Any, model: registry.ModelInfo, world: World) -> None:
    """The part that ``batch_inference`` would write."""
    out = world.folder / "out"
    update_listing(str(out), list_items([str(world.folder / "source" / "val")], {}), 1024, {})  # type: ignore[arg-type]
    settings = {
        "views": 10,
        "top_k": 2,
        "exif_orientation": "apply",
        "precision": "float32",
    }
    made_of = ModelOrigin(
        uri=model.uri,
        version="alexnet/1",
        digest=registry.model_digest(store, model.uri),
        shards=model.shards,
    )
    metadata = origin.as_metadata(Origin(images=[], settings=settings, models=[made_of], code="0"))
    rows = RowOptions(
        names=tuple(name for _, name in model.classes), top_k=2, min_probability=0, view="ten"
    )
    options = PartOptions(
        output=str(out),
        rows=rows,
        features=False,
        upright=True,
        text_format=None,
        thumbnails=False,
        metadata=metadata,
    )
    loaded = Predictor({model.uri: registry.load_classifier(store, model.uri)}, torch.device("cpu"))
    predictor = BatchPredictor(loaded, 2, views=10, layer=None, precision="float32")
    PartWriter(options, lambda: predictor, 4, 1).write(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> World:
    folder = tmp_path_factory.mktemp("lineage")
    workdir = folder / "work"
    workdir.mkdir()
    shutil.copy(empty_database, workdir)
    write_source(folder / "source", 1)
    manifest = make_data_set(folder / "source", workdir)
    settings = LineageSettings(workdir=str(workdir), targets=["x"])
    store = connect(settings)
    run_id = open_run(store, "train", resume=None, parent=None)
    network = narrow_network(SOURCE145, 2)
    classifier = CropClassifier(network, torch.full((3, 224, 224), 120.0))
    metadata = {
        "classes": [[label.wnid, label.name] for label in manifest.labels],
        "recipe": "source145",
        "shards": manifest.content_digest(),
        "crop_size": 224,
    }
    with active_run(store, run_id) as run:
        uri = run.log_model(classifier, random_crops(2).numpy(), metadata)
    with active_run(store, open_run(store, "evaluate", resume=None, parent=None)) as run:
        table = evaluate(store, uri, manifest, run)
    write_table(str(folder / "predictions.parquet"), table)
    registry.register(store, "alexnet", uri, {})
    registry.set_alias(store, "alexnet", "champion", "1")
    key = table["key"][0].as_py()
    world = World(folder, uri, key, manifest.content_digest())
    predict_part(store, registry.get_model_info(store, "models:/alexnet@champion"), world)
    return world


@pytest.fixture
def world(made: World) -> World:
    """A world that the test does not change."""
    return made


def kinds(result: LineageResult) -> list[str]:
    return [link.kind for link in result.links]


def problems(result: LineageResult) -> dict[str, str]:
    return {link.kind: link.problem for link in result.links if link.problem}


CHAIN = ["version", "model", "run", "data set", "shard", "source", "image", "sha256"]


def test_from_each_kind_of_target_to_the_bytes(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in (world.predictions, "models:/alexnet@champion", world.model):
        result = world.follow(target, check=True)
        assert problems(result) == {}
        assert kinds(result) == ["prediction", *CHAIN, "check"]
        named = {link.kind: link.name for link in result.links}
        original = Path(named["image"])
        assert named["version"] == "alexnet/1"
        assert named["model"] == world.model
        assert named["sha256"] == hashlib.sha256(original.read_bytes()).hexdigest()
        assert named["check"] == world.key
        assert str(original).endswith(world.key.removeprefix("val/"))
    assert "member" not in capsys.readouterr().out
    json.dumps(result.to_json())


def test_a_part_of_batch_inference(world: World) -> None:
    result = world.follow(world.part, check=True)
    assert problems(result) == {}
    assert kinds(result) == ["prediction", *CHAIN, "image", "check"]
    path = pq.read_table(world.part)["path"][2].as_py()
    result = world.follow(world.part, key=path)
    assert path in result.links[0].detail
    assert result.links[-1].kind == "sha256"


def test_another_image(world: World) -> None:
    keys = pq.read_table(world.predictions)["key"].to_pylist()
    result = world.follow(world.predictions, key=keys[-1], check=True)
    assert result.links[-1].name == keys[-1] != world.key
    assert problems(result) == {}
    with pytest.raises(UserError, match="has no prediction for nothing; correct --key"):
        world.follow(world.predictions, key="nothing")


def test_a_changed_prediction_is_found(world: World, tmp_path: Path) -> None:
    table = pq.read_table(world.predictions)
    wrong = [[p + 0.25 for p in row] for row in table["probabilities"].to_pylist()]
    index = table.schema.get_field_index("probabilities")
    changed = table.set_column(
        index, table.schema.field(index), pa.array(wrong, table.schema.field(index).type)
    )
    pq.write_table(changed, tmp_path / "changed.parquet")
    result = world.follow(str(tmp_path / "changed.parquet"), check=True)
    assert problems(result).keys() == {"check"}
    assert "are [" in problems(result)["check"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing.parquet", "no such file and no MLflow URI"),
        ("models:/alexnet@nobody", "no AlexNet model can be loaded from there"),
        ("{shard}", "names no model, so it is no file of predictions"),
        ("{database}", "can't be read as Parquet"),
    ],
)
def test_targets_that_are_none(target: str, message: str, world: World) -> None:
    shard = next(world.workdir.glob("shards/*/val/*.parquet"))
    target = target.format(shard=shard, database=world.workdir / "mlflow.db")
    with pytest.raises(UserError, match=message):
        world.follow(target)


def replace_image(world: World) -> None:
    image = world.folder / "source" / world.key
    image.write_bytes(image.read_bytes()[:-1] + b"\x01")


def delete_run(world: World) -> None:
    world.client.delete_run(world.client.get_logged_model(world.model[8:]).source_run_id)


@pytest.mark.parametrize(
    ("damage", "kind", "remedy"),
    [
        (delete_run, "run", "mlflow runs restore --run-id"),
        (replace_image, "sha256", "restore the original file"),
        (
            lambda world: shutil.rmtree(world.workdir / "shards"),
            "data set",
            "give the --workdir that contains it",
        ),
        (
            lambda world: (world.folder / "source").rename(world.folder / "elsewhere"),
            "source",
            "restore it there",
        ),
        (
            lambda world: next(world.workdir.glob("shards/*/val/*.parquet")).unlink(),
            "shard",
            "--verify",
        ),
        (
            lambda world: world.client.delete_logged_model(world.model[8:]),
            "model",
            "pipelines/train.py",
        ),
    ],
)
def test_the_broken_link_is_named_with_what_helps(
    damage: Callable[[World], object],
    kind: str,
    remedy: str,
    made: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A moved copy of the world; its manifest still names the first source."""
    shutil.copytree(made.folder, tmp_path / "copy")
    world = World(tmp_path / "copy", made.model, made.key, made.content)
    for manifest in world.workdir.glob("shards/*/manifest.json"):
        text = manifest.read_text()
        manifest.write_text(text.replace(str(made.folder), str(world.folder)))
    assert problems(world.follow(world.predictions)) == {}
    damage(world)
    found = problems(world.follow(world.predictions, check=True))
    assert kind in found, found
    assert remedy in found[kind]


def test_a_deleted_version_is_a_broken_link_of_a_part(made: World, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "copy")
    world = World(tmp_path / "copy", made.model, made.key, made.content)
    world.client.delete_model_version("alexnet", "1")
    assert "no longer exists in the registry" in problems(world.follow(world.part))["version"]
    assert "version" not in problems(world.follow(world.predictions))
