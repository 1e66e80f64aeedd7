"""Errors of predictions, in numbers, words and tables."""

import json
from pathlib import Path

import numpy as np
import pytest
from factories import predictions_table

from alexnet.metrics import confusion
from alexnet.predictions import Predictions, of_table
from alexnet.shards.format import read_row_group
from alexnet.shards.manifest import Manifest
from pipelines.evaluation import evaluation_report as report
from pipelines.settings import Settings
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import connect


def predicted(wrong: int, images: int = 20, classes: int = 7) -> Predictions:
    labels = [index % classes for index in range(images)]
    best = [(label + (index < wrong)) % classes for index, label in enumerate(labels)]
    return of_table(predictions_table(labels, best, classes=classes))


def test_errors_and_their_intervals() -> None:
    result = report.summarize(predicted(5), "/work/predictions.parquet")
    assert (result.images, result.top1_error, result.top1_accuracy) == (20, 25.0, 75.0)
    # Wilson's interval of 5 of 20.
    assert (result.top1_error_low, result.top1_error_high) == (11.186, 46.87)
    assert result.centre_top1_error_high == 46.87
    assert result.top5_error is not None
    assert result.top5_error_high is not None
    assert result.calibration_error == pytest.approx(15, abs=0.01), "0.6 and 75 % right"
    assert result.predictions == "/work/predictions.parquet"


@pytest.mark.parametrize(("classes", "reported"), [(1, False), (3, False), (5, False), (6, True)])
def test_with_five_classes_or_fewer_there_is_no_top5_error(classes: int, reported: bool) -> None:
    result = report.summarize(predicted(0 if classes == 1 else 5, classes=classes), "")
    values = (
        result.top5_error,
        result.top5_error_low,
        result.top5_error_high,
        result.centre_top5_error,
        result.centre_top5_error_low,
        result.centre_top5_error_high,
    )
    assert [value is not None for value in values] == [reported] * 6
    assert ("top-5" in " ".join(report.in_words(result))) == reported


@pytest.mark.parametrize(("images", "small"), [(18, True), (360, True), (2000, False)])
def test_small_validation_sets_are_said_to_be_small(images: int, small: bool) -> None:
    lines = report.in_words(report.summarize(predicted(images // 2, images), ""))
    assert ("small validation set" in " ".join(lines)) == small
    if images == 18:
        assert lines[-1].endswith("interval of the top-1 error is 41.9 percentage points wide")


def test_the_table_of_classes() -> None:
    labels = [0, 0, 0, 0, 1, 1, 2]
    best = [0, 1, 1, 2, 1, 1, 0]
    predictions = of_table(predictions_table(labels, best, classes=4))
    names = ["a", "b", "c", "d"]
    counts = confusion(predictions.labels, predictions.best[:, 0], 4)
    rows = report.class_table(predictions, names, counts).to_pylist()
    assert [(row["name"], row["images"], row["top1_error"]) for row in rows] == [
        ("c", 1, 100.0),
        ("a", 4, 75.0),
        ("b", 2, 0.0),
    ], "classes without images are left out"
    assert [row["most often taken for"] for row in rows] == ["a", "b", ""]
    assert rows[1]["top5_error"] is None
    assert rows[1]["low"] < 75 < rows[1]["high"]


def test_what_a_run_shows(dataset: Manifest, mlflow_workdir: str, tmp_path: Path) -> None:
    keys = [
        key
        for group in dataset.row_groups("val")
        for key in read_row_group(group, ["key"])["key"].to_pylist()
    ]
    table = predictions_table([0, 1, 2, 3] * 3, [0] * 12, classes=4, keys=keys)
    store = connect(Settings(workdir=mlflow_workdir))
    run_id = open_run(store, "evaluate", resume=None, parent=None)
    with active_run(store, run_id) as run:
        for decorate in report.decorations(run, dataset, of_table(table)).values():
            decorate()
    files = {file.path for file in store.client.list_artifacts(run_id)}
    assert files == {
        "classes.json",
        "confused_pairs.json",
        "confusion_matrix.png",
        "confused_pairs.png",
        "reliability.png",
        "predictions.png",
    }
    pairs = json.loads(
        Path(store.client.download_artifacts(run_id, "confused_pairs.json")).read_text()
    )
    assert [row[1:] for row in pairs["data"]] == [[dataset.labels[0].name, 3, 3]] * 3


def test_images_are_found_by_their_keys(dataset: Manifest) -> None:
    group = dataset.row_groups("val")[-1]
    keys = read_row_group(group, ["key"])["key"].to_pylist()
    first = read_row_group(dataset.row_groups("val")[0], ["key"])["key"][0].as_py()
    images = report.images_of(dataset, [keys[-1], first])
    assert images.shape == (2, 256, 256, 3)
    np.testing.assert_array_equal(images[1], report.images_of(dataset, [first])[0])
    assert (images[0] != images[1]).any()
