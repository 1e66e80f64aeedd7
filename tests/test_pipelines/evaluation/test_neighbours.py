"""Nearest training images agree with a direct computation."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from factories import CLASSES, narrow_network, random_crops

from alexnet.model.classifier import CropClassifier
from alexnet.plots import evaluation
from alexnet.recipes import SOURCE145
from alexnet.shards.codec import read_images
from alexnet.shards.manifest import Manifest
from alexnet.shards.pixel_stats import read_statistics
from alexnet.training.augment import centre_crops, mean_crop
from pipelines.evaluation import neighbours
from pipelines.evaluation.neighbours import find_neighbours
from pipelines.settings import Settings
from pipelines.tracking import registry
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import connect


@pytest.mark.slow
def test_they_are_the_nearest_by_the_features_of_fc7(
    dataset: Manifest, mlflow_workdir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "CANDIDATES", 20)
    store = connect(Settings(workdir=mlflow_workdir))
    network = narrow_network(SOURCE145).eval()
    mean = mean_crop(read_statistics(dataset.statistics_path).mean_image)
    metadata = {"classes": [[name, name] for name in CLASSES]}
    run_id = open_run(store, "train", resume=None, parent=None)
    with active_run(store, run_id) as run, torch.no_grad():
        uri = run.log_model(CropClassifier(network, mean), random_crops(2).numpy(), metadata)
    found = find_neighbours(store, registry.get_model_info(store, uri), dataset)
    assert found.candidates == 20
    assert found.queries.images.shape == (5, 256, 256, 3)

    units: list[torch.Tensor] = []
    network.fc8.register_forward_pre_hook(lambda _, inputs: units.append(inputs[0]))

    def features(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            network(centre_crops(torch.from_numpy(images), mean))
        return units[-1].double().numpy()

    with ThreadPoolExecutor(1) as threads:
        pixels = [read_images(group, [], threads)[1] for group in dataset.row_groups("train")]
    candidates = features(np.concatenate(pixels)[:20])
    queries = features(found.queries.images)
    for query, nearest in zip(queries, found.nearest, strict=True):
        assert nearest.images.shape == (6, 256, 256, 3)
        distances = np.linalg.norm(features(nearest.images) - query, axis=1)
        expected = np.sort(np.linalg.norm(candidates - query, axis=1))[:6]
        np.testing.assert_allclose(distances, expected, rtol=1e-5)
    figure = evaluation.nearest_images(
        found.queries.images,
        ["a"] * 5,
        [nearest.images for nearest in found.nearest],
        [["a", "b", "c", "d", "e", "f"]] * 5,
        20,
    )
    assert len(figure.axes) == 5 * 7
    figure.savefig(f"{mlflow_workdir}/figure.png")
