"""MLflow's UI in a browser: what people open after a run is there, without an error.

The screenshots are kept in the folder that ``ALEXNET_SCREENSHOTS`` names.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import chromium
import numpy as np
import pytest
from PIL import Image

from alexnet.plots import figures
from pipelines.settings import Settings
from pipelines.tracking.run import Run
from pipelines.tracking.step_images import StepImages
from pipelines.tracking.store import Store, connect
from pipelines.tracking.ui_server import serve
from pipelines.workdir import Workdir

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        chromium.program() is None,
        reason="no Chromium is installed (Debian: apt install chromium)",
    ),
]

OWN_ERRORS = ("/ajax-api/2.0/mlflow/users/current", "ResizeObserver loop completed")
"""Of MLflow itself on every page: a request that only a server with a login answers, and a notice
of the browser."""


@pytest.fixture
def store(finished_workdir: Path) -> Store:
    """Of a finished full run whose training has a figure and pictures of two steps."""
    store = connect(Settings(workdir=str(finished_workdir)))
    run_id = run_of(store, "train")
    for step in (1, 2):
        colour = np.full((90, 160, 3), 100 * step, np.uint8)
        StepImages(store.uri, run_id).log("activations", step, Image.fromarray(colour))
    history = [{"epoch": 1.0, "train_loss": 1.0}, {"epoch": 2.0, "train_loss": 0.5}]
    Run(store, run_id).log_figure(figures.learning_curves(history), "learning_curves.png")
    return store


def run_of(store: Store, stage: str) -> str:
    (run,) = store.client.search_runs([store.experiment_id], f"tags.stage = '{stage}'")
    return str(run.info.run_id)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[chromium.Browser]:
    with chromium.chromium(tmp_path / "profile") as browser:
        yield browser


@pytest.mark.long
def test_runs_charts_images_and_models_open_without_an_error(
    store: Store, finished_workdir: Path, browser: chromium.Browser, tmp_path: Path
) -> None:
    shots = Path(os.environ.get("ALEXNET_SCREENSHOTS", tmp_path))
    shots.mkdir(exist_ok=True)
    train, full_run = run_of(store, "train"), run_of(store, "full_run")
    names = [store.client.get_run(run).info.run_name for run in (train, full_run)]
    with serve(store, Workdir(str(finished_workdir)), None) as server:
        root = f"{server.address}/#/experiments/{store.experiment_id}"
        browser.open(store.runs_address(server.address), names[1])
        browser.screenshot(shots / "runs.png")
        browser.open(f"{root}/runs/{train}", names[0], "epochs", "loss")
        browser.screenshot(shots / "run.png")
        browser.open(f"{root}/runs/{train}/model-metrics", "loss", "activations")
        browser.wait_for("document.querySelectorAll('.main-svg').length > 0")
        browser.screenshot(shots / "charts.png")
        browser.open(f"{root}/runs/{train}/artifacts/learning_curves.png", "learning_curves.png")
        browser.wait_for("[...document.images].some(i => i.naturalWidth === 900)")
        browser.screenshot(shots / "image.png")
        browser.open(f"{root}/models?workflowType=machine_learning", names[0], "Ready")
        browser.screenshot(shots / "models.png")
        browser.open(f"{server.address}/#/models/alexnet/versions/1", "Version 1", "champion")
        browser.screenshot(shots / "version.png")
    errors = [error for error in browser.errors if not any(own in error for own in OWN_ERRORS)]
    assert errors == []
