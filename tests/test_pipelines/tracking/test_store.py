"""MLflow runs, metrics, inputs, artifacts and models in a local store; errors of the store."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pytest
import torch
from mlflow import MlflowClient

from alexnet.errors import UserError
from pipelines.console.log import log_file, stage_logger
from pipelines.console.redact import SecretUri
from pipelines.settings import Settings
from pipelines.tracking import evaluations, registry
from pipelines.tracking.run import DIGEST_LENGTH, Run, active_run, open_run, run_exists
from pipelines.tracking.store import MODEL_TRAINING, Store, connect
from pipelines.workdir import Workdir


@pytest.fixture
def store(mlflow_workdir: str) -> Store:
    return connect(Settings(workdir=mlflow_workdir))


@pytest.mark.slow
def test_a_new_store_is_created_in_the_workdir(tmp_path: Path) -> None:
    store = connect(Settings(workdir=str(tmp_path)))
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert (tmp_path / "mlflow.db").is_file()
    assert store.client.get_experiment(store.experiment_id).name == "alexnet"
    again = connect(Settings(workdir=str(tmp_path)))
    assert (again.uri, again.experiment_id) == (store.uri, store.experiment_id)
    assert not list(tmp_path.glob("*.tmp"))


def test_runs_are_stored_in_the_workdir(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store, "stage", resume=None, parent=None)
    with active_run(store, run_id) as run:
        run.log_params({"epochs": 3, "source": "s3://user:secret@bucket/raw"})
        run.log_metrics({"images": 12.0})
        run.log_json({"a": 1}, "a.json")
    logged = MlflowClient(store.uri).get_run(run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.params == {"epochs": "3", "source": "s3://***@bucket/raw"}
    assert logged.data.metrics["images"] == 12.0
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert list((tmp_path / "mlartifacts").rglob("a.json"))
    assert store.ui_command() == f"mlflow ui --backend-store-uri {store.uri}"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_status_of_a_failed_run(store: Store, error: BaseException, status: str) -> None:
    run_id = open_run(store, "stage", resume=None, parent=None)
    with pytest.raises(type(error)), active_run(store, run_id):
        raise error
    assert MlflowClient(store.uri).get_run(run_id).info.status == status
    assert mlflow.active_run() is None


@pytest.mark.parametrize("error", [None, OSError("the disk is full")])
def test_the_commands_log_file_is_an_artifact_of_the_run(
    store: Store, mlflow_workdir: str, tmp_path: Path, error: OSError | None
) -> None:
    run_id = open_run(store, "train", resume=None, parent=None)
    raises = pytest.raises(OSError, match="full") if error else contextlib.nullcontext()
    with raises, log_file(Workdir(mlflow_workdir), "train"), active_run(store, run_id):
        stage_logger("train").info("a line")
        if error:
            raise error
    (artifact,) = store.client.list_artifacts(run_id, "logs")
    (path,) = (tmp_path / "logs").iterdir()
    assert artifact.path == f"logs/{path.name}"
    (copy,) = (tmp_path / "mlartifacts").rglob(path.name)
    assert copy.read_text().endswith("INFO    alexnet.train: a line\n")


def test_a_run_without_log_lines_has_no_log_file(store: Store, mlflow_workdir: str) -> None:
    run_id = open_run(store, "train", resume=None, parent=None)
    with log_file(Workdir(mlflow_workdir), "train"), active_run(store, run_id):
        pass
    assert store.client.list_artifacts(run_id) == []


def test_an_unfinished_run_is_resumed(store: Store) -> None:
    first = open_run(store, "stage", resume=None, parent=None)
    assert open_run(store, "stage", resume=first, parent=None) == first
    assert run_exists(store, first)
    store.client.delete_run(first)
    assert not run_exists(store, first)
    assert open_run(store, "stage", resume=first, parent=None) != first


def test_a_nested_run_has_the_id_of_its_parent(store: Store) -> None:
    parent = open_run(store, "full_run", resume=None, parent=None)
    child = open_run(store, "stage", resume=None, parent=parent)
    assert store.client.get_run(child).data.tags["mlflow.parentRunId"] == parent


def test_data_sets_are_inputs_with_their_digest(store: Store) -> None:
    run_id = open_run(store, "stage", resume=None, parent=None)
    Run(store, run_id).log_dataset("shards", "ab" * 32, "/data/shards", "training", "rows")
    (logged,) = store.client.get_run(run_id).inputs.dataset_inputs
    assert logged.dataset.digest == ("ab" * 32)[:DIGEST_LENGTH]
    assert logged.tags[0].value == "training"


def test_what_a_resumed_run_logs_again_is_there_once(store: Store) -> None:
    """A stage that is killed before it has finished logs everything again in the same run."""
    run_id = open_run(store, "stage", resume=None, parent=None)
    first = pa.table({"key": ["a", "b"], "images": [1, 2]})
    last = pa.table({"key": ["b", 'ü "\n'], "images": [2, 3]})
    for table in (first, last):
        run = Run(store, run_id)
        run.log_params({"epochs": 3})
        run.log_dataset("raw", "cd" * 32, "/data/raw", "raw images", "rows")
        run.log_table(table, "rejects.json")
        run.log_table(table.slice(0, 0), "none.json")
    logged = store.client.get_run(run_id)
    assert [(i.dataset.name, len(i.tags)) for i in logged.inputs.dataset_inputs] == [("raw", 1)]
    rows = store.client.load_table(store.experiment_id, "rejects.json", [run_id])
    assert rows.to_dict("list") == last.to_pydict()
    assert len(store.client.load_table(store.experiment_id, "none.json", [run_id])) == 0
    assert json.loads(logged.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "rejects.json", "type": "table"},
        {"path": "none.json", "type": "table"},
    ]


class AlwaysTheFirst(torch.nn.Module):
    """Crops → probability 1 of the first of two classes."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        mean = crops.float().mean(dim=(1, 2, 3))
        return torch.stack([torch.ones_like(mean), torch.zeros_like(mean)], dim=1)


@pytest.mark.slow
def test_a_model_that_is_logged_again_replaces_the_first(store: Store) -> None:
    other = open_run(store, "train", resume=None, parent=None)
    run_id = open_run(store, "train", resume=None, parent=None)
    example, metadata = np.zeros((2, 224, 224, 3), np.uint8), {"classes": [["a", "a"], ["b", "b"]]}
    uris = []
    for stage in (other, run_id, run_id):
        with active_run(store, stage) as run:
            uris.append(run.log_model(AlwaysTheFirst(), example, metadata))
    assert len(set(uris)) == 3
    assert [registry.model_exists(store, uri) for uri in uris] == [True, False, True]
    info = registry.get_model_info(store, uris[2])
    assert (info.run_id, info.precision) == (run_id, "float32")
    with active_run(store, other) as run:
        unknown = run.log_model(AlwaysTheFirst(), example, metadata | {"precision": "int4"})
    with pytest.raises(UserError, match="its precision is int4"):
        registry.get_model_info(store, unknown)


@pytest.mark.slow
def test_a_place_for_artifacts_that_is_not_writable_is_named_with_a_remedy(
    mlflow_workdir: str,
) -> None:
    (Path(mlflow_workdir) / "mlartifacts").write_text("a file, so no folder can be made in it")
    store = connect(Settings(workdir=mlflow_workdir))
    run_id = open_run(store, "train", resume=None, parent=None)
    example, metadata = np.zeros((2, 224, 224, 3), np.uint8), {"classes": [["a", "a"], ["b", "b"]]}
    store_artifact: dict[str, Callable[[Run], object]] = {
        "model": lambda run: run.log_model(AlwaysTheFirst(), example, metadata),
        "predictions": lambda run: evaluations.log_predictions(run, pa.table({"a": [1]})),
    }
    for log in store_artifact.values():
        with (
            pytest.raises(UserError, match=r"artifacts can't be stored \(.*mlartifacts") as caught,
            active_run(store, run_id) as run,
        ):
            log(run)
        assert "finished work is kept" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["50%20%", "a?b #c'"])
def test_a_model_in_a_workdir_of_any_name_is_loaded(mlflow_workdir: str, name: str) -> None:
    workdir = Path(mlflow_workdir) / name
    workdir.mkdir()
    (Path(mlflow_workdir) / "mlflow.db").rename(workdir / "mlflow.db")
    store = connect(Settings(workdir=str(workdir)))
    example = np.zeros((2, 224, 224, 3), np.uint8)
    metadata = {"classes": [["$a", "`"], ["|", "é"]], "precision": "bf16"}
    with active_run(store, open_run(store, "train", resume=None, parent=None)) as run:
        uri = run.log_model(AlwaysTheFirst(), example, metadata)
    version = registry.register(store, "alexnet", uri, {})
    registry.set_alias(store, "alexnet", "champion", version.version)
    info = registry.get_model_info(store, "models:/alexnet@champion")
    assert info.classes == (("$a", "`"), ("|", "é"))
    assert info.precision == "bf16"
    for model in (uri, info.uri, "models:/alexnet@champion"):
        network = registry.load_classifier(store, model)
        assert network(torch.zeros((2, 224, 224, 3), dtype=torch.uint8)).shape == (2, 2)


def test_a_server_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    uri = "http://user:secret@127.0.0.1:9/"
    with pytest.raises(UserError, match="does not answer") as caught:
        connect(Settings(workdir=str(tmp_path), tracking_uri=uri))
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["models:/alexnet@champion", "models:/nothing/1", "runs:/0/model"])
def test_a_model_that_does_not_exist_is_named(store: Store, uri: str) -> None:
    with pytest.raises(UserError, match="no AlexNet model") as caught:
        registry.get_model_info(store, uri)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_is_named(store: Store, tmp_path: Path) -> None:
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(UserError, match="is deleted"):
        connect(Settings(workdir=str(tmp_path)))


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match=r"mlflow.db: file is not a database; .*move it away"):
        connect(Settings(workdir=str(tmp_path)))
    assert path.read_bytes() == b"not a database" * 100


def test_artifacts_of_other_places_stay_where_they_are(mlflow_workdir: str, tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{mlflow_workdir}/mlflow.db")
    own = client.create_experiment("own", "/srv/mlartifacts")
    bucket = client.create_experiment("bucket", "s3://bucket/mlartifacts", dict([MODEL_TRAINING]))
    old = client.create_experiment("old", "/old/work/mlartifacts", dict([MODEL_TRAINING]))
    run_id = client.create_run(old).info.run_id
    Run(Store(SecretUri(f"sqlite:///{mlflow_workdir}/mlflow.db"), old), run_id).log_dataset(
        "shards", "ab" * 32, "/old/work/shards/1", "training", "rows"
    )
    store = connect(Settings(workdir=mlflow_workdir))
    places = [store.client.get_experiment(i).artifact_location for i in (own, bucket, old)]
    assert places == ["/srv/mlartifacts", "s3://bucket/mlartifacts", f"{tmp_path}/mlartifacts"]
    run = store.client.get_run(run_id)
    assert run.info.artifact_uri == f"{tmp_path}/mlartifacts/{run_id}/artifacts"
    (logged,) = run.inputs.dataset_inputs
    assert logged.dataset.source == f'{{"uri": "{tmp_path}/shards/1"}}'


def test_another_name_of_the_same_folder_is_no_move(mlflow_workdir: str, tmp_path: Path) -> None:
    store = connect(Settings(workdir=mlflow_workdir))
    (tmp_path / "mlartifacts").mkdir()
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    connect(Settings(workdir=str(link)))
    place = store.client.get_experiment(store.experiment_id).artifact_location
    assert place == f"{tmp_path}/mlartifacts"
