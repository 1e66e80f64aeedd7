"""What MLflow's pages show: ranked models, descriptions, model cards, names of runs."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from plain_workflow import PlainWorkflow

from pipelines.settings import Settings
from pipelines.tracking import registry
from pipelines.tracking.descriptions import DESCRIPTION, NOTE
from pipelines.tracking.logged_models import log_model_metrics, log_model_params
from pipelines.tracking.run import Run, open_run
from pipelines.tracking.store import Store, connect


@pytest.fixture
def store(mlflow_workdir: str) -> Store:
    return connect(Settings(workdir=mlflow_workdir))


def new_model(store: Store) -> tuple[Run, str]:
    run = Run(store, open_run(store, "train", resume=None, parent=None))
    model = store.client.create_logged_model(store.experiment_id, "model", run.run_id)
    return run, str(model.model_id)


def test_models_are_ranked_by_their_errors(store: Store) -> None:
    made = [new_model(store) for _ in range(3)]
    for (run, model), error in zip(made, (20.0, 5.0, 10.0), strict=True):
        uri = f"models:/{model}"
        log_model_metrics(run, uri, {"top1_error": error, "images": 12.0}, "shards", "d" * 64)
        log_model_params(run, uri, {"recipe": "paper", "source": "s3://user:secret@b/raw"})
    ranked = store.client.search_logged_models(
        [store.experiment_id],
        order_by=[{"field_name": "metrics.top1_error", "ascending": True}],
    )
    assert [model.model_id for model in ranked] == [made[i][1] for i in (1, 2, 0)]
    assert {(m.key, m.value, m.dataset_name, m.dataset_digest) for m in ranked[0].metrics} == {
        ("top1_error", 5.0, "shards", "d" * 32),
        ("images", 12.0, "shards", "d" * 32),
    }
    assert ranked[0].params == {"recipe": "paper", "source": "s3://***@b/raw"}


def test_parameters_that_a_model_has_already_stay(store: Store) -> None:
    """MLflow copies those of the run, and has one value for each name."""
    run = Run(store, open_run(store, "train", resume=None, parent=None))
    known = {"epochs": "4"}
    model = store.client.create_logged_model(store.experiment_id, "model", run.run_id, params=known)
    for _ in range(2):
        log_model_params(run, f"models:/{model.model_id}", {"epochs": 5, "recipe": "paper"})
    params = store.client.get_logged_model(model.model_id).params
    assert params == known | {"recipe": "paper"}


def experiment_note(store: Store) -> str | None:
    tags: dict[str, str] = store.client.get_experiment(store.experiment_id).tags
    return tags.get(NOTE)


def test_an_experiment_says_what_its_columns_mean(store: Store) -> None:
    assert experiment_note(store) == DESCRIPTION
    assert "`top1_error`" in DESCRIPTION


def test_a_description_of_the_user_stays(store: Store, mlflow_workdir: str) -> None:
    store.client.set_experiment_tag(store.experiment_id, NOTE, "ours")
    assert experiment_note(connect(Settings(workdir=mlflow_workdir))) == "ours"


def test_an_experiment_of_an_earlier_version_gets_its_description(
    store: Store, mlflow_workdir: str
) -> None:
    store.client.delete_experiment_tag(store.experiment_id, NOTE)
    assert experiment_note(connect(Settings(workdir=mlflow_workdir))) == DESCRIPTION


def test_a_card_stays_between_the_newest_text_and_the_earlier_ones(store: Store) -> None:
    _, model = new_model(store)
    store.client.create_registered_model("alexnet")
    store.client.create_model_version("alexnet", f"models:/{model}", model_id=model)

    def description() -> str:
        return str(store.client.get_model_version("alexnet", "1").description)

    registry.describe(store, "alexnet", "1", "first")
    registry.describe(store, "alexnet", "1", "second")
    assert description() == "second\n\nfirst"
    registry.set_card(store, "alexnet", "1", "card")
    parts = ["second\n\nfirst", "card", ""]
    assert description() == registry.RULE.join(parts)
    for _ in range(2):
        registry.describe(store, "alexnet", "1", "third")
    registry.set_card(store, "alexnet", "1", "newer card")
    assert description() == registry.RULE.join(["third", "newer card", "second\n\nfirst"])


@pytest.mark.slow
def test_a_full_run_in_mlflow(
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workflow = PlainWorkflow(tmp_path, empty_database)
    workflow.install(monkeypatch)
    workflow.run(champion="always")
    lines = capsys.readouterr().out.splitlines()
    address = "full_run:   http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    assert lines[-1] == address
    assert lines[-2].startswith("full_run:   mlflow ui --backend-store-uri sqlite:///")
    client: MlflowClient = workflow.client
    runs = {run.data.tags["stage"]: run for run in client.search_runs(["1"])}
    assert runs["train"].info.run_name.startswith("train source145 ")
    assert runs["full_run"].info.run_name.startswith("full_run source145 source 20")
    assert runs["full_run"].data.tags["recipe"] == "source145"
    shards = runs["train"].data.tags["input.shards"]
    assert runs["full_run"].data.tags["input.shards"] == shards
    description = client.get_model_version("alexnet", "1").description
    decision, card, _ = description.split(registry.RULE)
    assert decision.startswith("| decision | |")
    assert card.startswith("| model card | alexnet/1 |")
    assert "2 classes: `blue`, `red`" in card
    assert "epochs 2" in card
