"""Evaluation computes what the validation during training does, in the same precision."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from factories import loader_of, narrow_network, random_crops, train_context
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet import features
from alexnet.diagnostics.equivalence import he_init
from alexnet.metrics import LossAndErrors
from alexnet.model.classifier import CropClassifier
from alexnet.model.exported import as_function
from alexnet.model.precision import Precision
from alexnet.recipes import SOURCE145, ablate
from alexnet.shards.codec import read_images
from alexnet.shards.manifest import Manifest
from alexnet.training.augment import CENTRE_VIEW, centre_view
from alexnet.training.validation import validate
from alexnet.variants import with_conv6
from pipelines.clusters.task_errors import raise_errors
from pipelines.console.redact import SecretUri
from pipelines.inference.actors import Evaluator
from pipelines.inference.predictor import Predictor
from pipelines.tracking.store import Store

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")


@pytest.fixture
def _restored_flags() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.slow
@pytest.mark.usefixtures("_restored_flags")
def test_the_centre_view_is_that_of_the_validation(dataset: Manifest) -> None:
    network = narrow_network(SOURCE145)
    he_init(network)
    context = train_context(dataset, SOURCE145)
    classifier = CropClassifier(network, context.means[0])
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        classifier, (random_crops(2),), dynamic_shapes=({0: batch},)
    ).module()
    predictor = Predictor({"m": exported}, torch.device("cpu"))
    losses = []
    for precision in PRECISIONS[::2]:
        evaluated = LossAndErrors()
        for group in dataset.row_groups("val"):
            with ThreadPoolExecutor(1) as decoders:
                rows, images = read_images(group, ["label"], decoders)
            centre = predictor.views(images, {"m": precision})[CENTRE_VIEW]
            evaluated.count(centre, rows["label"].to_numpy().astype(np.int64))
        validated = validate(
            network, loader_of(dataset), replace(context, bf16=precision == "bf16")
        )
        assert evaluated == validated
        losses.append(validated.loss)
    assert losses[0] != losses[1]


class Flags(nn.Module):
    """Records whether TF32 is allowed when it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, crops: Tensor) -> Tensor:
        self.seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return torch.ones(len(crops), 2) / 2


@pytest.mark.usefixtures("_restored_flags")
@pytest.mark.parametrize("precision", PRECISIONS[:2])
def test_each_model_computes_with_its_own_tf32_flags(precision: Precision) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "float32"
    models = {"one": Flags(), "other": Flags()}
    others: Precision = "float32" if precision == "tf32" else "tf32"
    precisions = {"one": precision, "other": others}
    images = np.zeros((1, 256, 256, 3), np.uint8)
    Predictor(models, torch.device("cpu")).views(images, precisions)
    is_tf32 = precision == "tf32"
    assert models["one"].seen == [(is_tf32, is_tf32)] * 10
    assert models["other"].seen == [(not is_tf32, not is_tf32)] * 10
    function = as_function(models["one"], "one", None, precision=precision)
    function(random_crops(1))
    assert models["one"].seen[-1] == (is_tf32, is_tf32)


def classifiers() -> dict[str, CropClassifier]:
    """Networks of different layers, of which one is the paper's "1 CNN*"."""
    recipes = {
        "145": SOURCE145,
        "146": with_conv6(SOURCE145, pretrained=True),
        "148": ablate(SOURCE145, normalization=False),
        "one tower": ablate(SOURCE145, towers=1),
    }
    found = {}
    for seed, (name, recipe) in enumerate(recipes.items()):
        network = narrow_network(recipe, seed=seed)
        he_init(network)
        found[name] = CropClassifier(network, torch.full((3, 224, 224), 110.0 + seed))
    return found


def some_images() -> NDArray[np.uint8]:
    return np.random.default_rng(8).integers(0, 256, (2, 256, 256, 3), np.uint8)


@pytest.mark.parametrize("coefficients", [None, [0.5, 0.0, 2.0, 1.5]])
def test_models_of_different_layers_are_averaged(coefficients: list[float] | None) -> None:
    models = classifiers()
    precisions: dict[str, Precision] = dict.fromkeys(models, "float32")
    cpu = torch.device("cpu")
    together = Predictor(models, cpu).views(some_images(), precisions, coefficients)
    alone = [
        Predictor({name: model}, cpu).views(some_images(), {name: "float32"})
        for name, model in models.items()
    ]
    expected = np.average(np.stack(alone), axis=0, weights=coefficients)
    np.testing.assert_allclose(together, expected, atol=1e-6)
    np.testing.assert_allclose(together.sum(axis=2), 1, atol=1e-5)
    assert np.ptp(np.stack(alone), axis=0).max() > 0.1, "the models differ"


@pytest.mark.slow
def test_features_of_an_evaluation(
    dataset: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are what fc8 reads for the centre view, and are written image by image."""
    model = classifiers()["146"]
    program = torch.export.export(
        model, (random_crops(2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    ).module()
    loaded = Predictor({"models:/m-1": program}, torch.device("cpu"))
    monkeypatch.setattr(Predictor, "load", lambda *_: loaded)
    store = Store(SecretUri("sqlite:////nowhere/mlflow.db"), "1")
    precisions: dict[str, Precision] = {"models:/m-1": "float32"}
    with_features = Evaluator(store, precisions, 1, layer="fc7")
    without = Evaluator(store, precisions, 1)
    path = str(tmp_path / "features.parquet")
    expected = []
    model.network.fc8.register_forward_hook(lambda _, inputs, __: expected.append(inputs[0]))
    with features.features_file(path, layer="fc7", model="models:/m-1") as keep:
        for group in dataset.row_groups("val"):
            items = {name: np.array([value]) for name, value in asdict(group).items()}
            table = raise_errors(with_features(items))
            assert raise_errors(without(items))["features"].null_count == len(table)
            keep(table)
            with ThreadPoolExecutor(1) as decoders:
                _, images = read_images(group, ["key"], decoders)
            model(centre_view(torch.from_numpy(images)))
    written = pq.read_table(path)
    assert written["key"].to_pylist() == [
        row["key"]
        for group in dataset.row_groups("val")
        for row in pq.ParquetFile(group.path).read_row_group(group.number).to_pylist()
    ]
    assert written.schema.names == ["key", "label", "features"]
    found = np.stack(written["features"].to_numpy())
    np.testing.assert_allclose(found, torch.cat(expected).detach().numpy(), rtol=1e-4, atol=1e-4)
    assert found.shape == (12, 48)
