"""MLflow through the tracking module: a local store, a server that does not answer, secrets."""

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from alexnet.errors import UserError
from pipelines.settings import Settings
from pipelines.tracking import registry
from pipelines.tracking.run import DIGEST_LENGTH, Run, active_run, open_run
from pipelines.tracking.store import Store, connect


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return connect(Settings(workdir=str(tmp_path)))


def test_runs_lie_in_the_workdir(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store, "stage", resume=None, parent=None)
    with active_run(store, run_id) as run:
        run.log_params({"epochs": 3, "source": "s3://user:secret@bucket/raw"})
        run.log_metrics({"images": 12.0})
        run.log_json({"a": 1}, "a.json")
    found = MlflowClient(store.uri).get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"epochs": "3", "source": "s3://***@bucket/raw"}
    assert found.data.metrics["images"] == 12.0
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert list((tmp_path / "mlartifacts").rglob("a.json"))
    assert store.ui_command() == f"mlflow ui --backend-store-uri {store.uri}"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_that_breaks_says_so(store: Store, error: BaseException, status: str) -> None:
    run_id = open_run(store, "stage", resume=None, parent=None)
    with pytest.raises(type(error)), active_run(store, run_id):
        raise error
    assert MlflowClient(store.uri).get_run(run_id).info.status == status
    assert mlflow.active_run() is None


def test_an_unfinished_run_is_gone_on_with(store: Store) -> None:
    first = open_run(store, "stage", resume=None, parent=None)
    assert open_run(store, "stage", resume=first, parent=None) == first
    store.client.delete_run(first)
    assert open_run(store, "stage", resume=first, parent=None) != first


def test_nested_runs_know_their_parent(store: Store) -> None:
    parent = open_run(store, "full_run", resume=None, parent=None)
    child = open_run(store, "stage", resume=None, parent=parent)
    assert store.client.get_run(child).data.tags["mlflow.parentRunId"] == parent


def test_data_sets_are_inputs_with_their_digest(store: Store) -> None:
    run_id = open_run(store, "stage", resume=None, parent=None)
    Run(store, run_id).log_dataset("shards", "ab" * 32, "/data/shards", "training", "rows")
    (found,) = store.client.get_run(run_id).inputs.dataset_inputs
    assert found.dataset.digest == ("ab" * 32)[:DIGEST_LENGTH]
    assert found.tags[0].value == "training"


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
