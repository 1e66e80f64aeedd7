"""Fixtures and settings for all test modules."""

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import factories
import hypothesis
import pytest
import torch

from alexnet.shards.manifest import Manifest
from alexnet.sources.sample import write_sample
from pipelines.console.log import show_in_terminal

# Examples have no time limit: on a busy computer one can take a hundred times longer than alone.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The networks of most tests are too small for more than one thread."""
    torch.set_num_threads(1)


@pytest.fixture
def own_threads() -> Iterator[None]:
    """For a test that sets torch's number of threads; it is restored afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _unfreeze_garbage() -> Iterator[None]:
    """Commands and workers call ``gc.freeze``; a library of the tests warns of that at exit."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _lines_in_terminal() -> None:
    """The lines that stages log are printed, as by a command."""
    show_in_terminal()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a cluster are the last, so that no other finds Ray started by a wider fixture."""
    items.sort(key=lambda item: item.get_closest_marker("cluster") is not None)
    if "ALEXNET_LONG_TESTS" not in os.environ:
        skip = pytest.mark.skip(reason="takes minutes: set ALEXNET_LONG_TESTS=1")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _no_tracking_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own tracking store and experiment must not be used."""
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(autouse=True)
def _ray_only_in_cluster_tests(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test without the marker ``cluster`` can neither start Ray nor use a started one."""
    ray: Any = sys.modules.get("ray")
    if ray is None or request.node.get_closest_marker("cluster"):
        return
    assert not ray.is_initialized(), "a fixture of this test has started Ray"

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a test that starts Ray needs the marker cluster")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.fixture(scope="session")
def raw_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 12 validation images in the folders layout; one of them is truncated."""
    root = tmp_path_factory.mktemp("raw-images")
    factories.write_images(root)
    return root


@pytest.fixture(scope="session")
def dataset(raw_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The same images as shards: 39 training rows in five row groups, 12 validation rows in two."""
    return factories.make_dataset(raw_images, tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def sample_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample's archives; writing them takes seconds."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(str(folder))
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables without runs; creating them takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_workdir(empty_database: Path, tmp_path: Path) -> str:
    """``tmp_path`` as a workdir whose tracking store exists and is empty."""
    shutil.copy(empty_database, tmp_path)
    return str(tmp_path)


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """The folder of a ``PlainWorkflow`` that has run once; tests use copies of it."""
    from plain_workflow import PlainWorkflow

    workflow = PlainWorkflow(tmp_path_factory.mktemp("plain"), empty_database)
    with pytest.MonkeyPatch.context() as patch:
        workflow.install(patch)
        workflow.run(champion="always")
    return workflow.folder


@pytest.fixture
def finished_workdir(plain_run: Path, tmp_path: Path) -> Path:
    """A copy of a workdir in which all stages have finished."""
    return shutil.copytree(plain_run / "work", tmp_path / "work")
