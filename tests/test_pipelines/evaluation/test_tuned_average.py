"""Tuned weights in an evaluation: from the actors' tables to the predictions of the average."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
import torch
from factories import narrow_network

from alexnet import predictions
from alexnet.diagnostics.equivalence import he_init
from alexnet.model.classifier import CropClassifier
from alexnet.model.precision import Precision
from alexnet.recipes import PAPER, SOURCE145
from alexnet.shards.manifest import Manifest
from pipelines.clusters.task_errors import raise_errors
from pipelines.console.redact import SecretUri
from pipelines.evaluation.tuned_average import in_words, with_tuned_average
from pipelines.inference.actors import Evaluator
from pipelines.inference.predictor import Predictor
from pipelines.tracking.store import Store

STORE = Store(SecretUri("sqlite:////nowhere/mlflow.db"), "1")


@pytest.mark.slow
def test_the_predictions_are_those_with_the_found_weights_given(
    dataset: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {}
    for seed, recipe in enumerate((PAPER, SOURCE145)):
        network = narrow_network(recipe, seed=seed)
        he_init(network)
        models[f"models:/m-{seed}"] = CropClassifier(network, torch.full((3, 224, 224), 110.0))
    loaded = Predictor(models, torch.device("cpu"))
    monkeypatch.setattr(Predictor, "load", lambda *_: loaded)
    precisions: dict[str, Precision] = dict.fromkeys(models, "float32")

    def tables(actor: Evaluator) -> list[pa.Table]:
        groups = [asdict(group) for group in dataset.row_groups("val")]
        items = [{name: np.array([value]) for name, value in group.items()} for group in groups]
        return [raise_errors(actor(item)) for item in items]

    parts = tables(Evaluator(STORE, precisions, 1, by_model=True))
    ours, tuned = with_tuned_average(parts, 2, len(dataset.labels))
    expected = pa.concat_tables(tables(Evaluator(STORE, precisions, 1, tuned.coefficients)))
    assert ours.schema.names == predictions.SCHEMA.names
    for column in ("key", "label", "labels", "centre_labels"):
        assert ours[column].to_pylist() == expected[column].to_pylist()
    shown, wanted = (np.stack(t["probabilities"].to_numpy()) for t in (ours, expected))
    np.testing.assert_allclose(shown, wanted, atol=1e-6)
    assert expected["by_model"].null_count == len(expected)
    images = len(ours)
    best = np.stack(ours["labels"].to_numpy())[:, 0]
    wrong = int((best != ours["label"].to_numpy()).sum())
    assert (tuned.wrong, images) == (wrong, 12)
    assert in_words(tuned, images, 3).startswith(
        f"tuned coefficients {tuned.coefficients[0]:g}, {tuned.coefficients[1]:g}: "
        f"top-1 error {100 * wrong / 12:.2f} %, "
    )
