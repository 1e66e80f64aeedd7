"""The file of predictions: its content, and that each image is in it exactly once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from factories import predictions_table

from alexnet import predictions
from alexnet.errors import InvalidPredictionsError
from alexnet.shards.format import write_table


def test_a_file_contains_what_was_written(tmp_path: Path) -> None:
    table = predictions_table([0, 1, 2], [0, 2, 2], keys=["c", "a", "b"], model="models:/m-7")
    path = str(tmp_path / "predictions.parquet")
    write_table(path, table)
    read = predictions.read(path)
    assert read.keys == ["a", "b", "c"], "sorted by key"
    assert read.labels.tolist() == [1, 2, 0]
    assert read.best.tolist() == [[2, 0, 1], [2, 0, 1], [0, 1, 2]]
    assert read.correct.tolist() == [False, True, True]
    np.testing.assert_allclose(read.probabilities[0], [0.6, 0.2, 0.2])
    assert read.centre_best.tolist() == read.best.tolist()
    assert (read.models, read.validation) == (("models:/m-7",), "same")
    assert read.wnids == ("n00000000", "n00000001", "n00000002")


@pytest.mark.parametrize(("classes", "has_top5"), [(1, False), (5, False), (6, True)])
def test_top5_needs_more_than_five_classes(classes: int, has_top5: bool) -> None:
    read = predictions.of_table(predictions_table([0], [0], classes=classes))
    assert read.has_top5 == has_top5
    assert read.best.shape == (1, min(5, classes))


@pytest.mark.parametrize("rows", [[0, 1, 1], [0, 1], [0, 1, 2, 2]])
def test_every_image_is_predicted_exactly_once(rows: list[int]) -> None:
    table = predictions_table([0, 1, 2], [0, 1, 2]).replace_schema_metadata(None)
    parts = [table.slice(row, 1) for row in rows]
    with pytest.raises(AssertionError, match="3 images"):
        predictions.merge(parts, 3, wnids=["a", "b", "c"], models=["m"], validation="v")


@pytest.mark.parametrize("content", [None, b"", b"PAR1", "other table"])
def test_other_files_are_reported(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "predictions.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        write_table(str(path), pa.table({"key": ["a"]}))
    with pytest.raises(InvalidPredictionsError) as caught:
        predictions.read(str(path))
    assert str(caught.value).startswith(f"{path}: not a file of predictions")
    assert "\n" not in str(caught.value)
