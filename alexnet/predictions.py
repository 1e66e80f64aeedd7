"""The predictions for all validation images: a Parquet file that names classes and models.

``SCHEMA`` has one row for each image, sorted by key. The file's metadata contain what the columns
don't: the classes, the models that were averaged and the content digest of the validation shards.
Two files with the same digest are predictions for the same images.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alexnet import storage
from alexnet.errors import InvalidPredictionsError, one_line
from alexnet.metrics import has_top5, top_labels

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("labels", pa.list_(pa.int64())),
        ("probabilities", pa.list_(pa.float32())),
        ("centre_labels", pa.list_(pa.int64())),
    ]
)
"""The best labels, best first, and their probabilities with ten views, and the best labels with the
centre view."""

_METADATA = b"alexnet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The predictions for N images; K = min(5, classes)."""

    keys: list[str]
    labels: NDArray[np.int64]
    """(N,), the true ones."""
    best: NDArray[np.int64]
    """(N, K) labels, best first, with ten views."""
    probabilities: NDArray[np.float32]
    """(N, K), of ``best``."""
    centre_best: NDArray[np.int64]
    """(N, K) labels, best first, with the centre view."""
    wnids: tuple[str, ...]
    """By class index."""
    models: tuple[str, ...]
    """URIs of the models whose probabilities were averaged."""
    validation: str
    """Content digest of the validation shards."""
    coefficients: tuple[float, ...] | None = None
    """The models' weights in the average; None for equal ones."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,): whether the best label of ten views is the true one."""
        return np.asarray(self.best[:, 0] == self.labels)

    @property
    def has_top5(self) -> bool:
        """Whether the top-5 error says anything."""
        return has_top5(len(self.wnids))


def rank(
    keys: pa.ChunkedArray,
    labels: pa.ChunkedArray,
    ten_views: NDArray[np.float32],
    centre_view: NDArray[np.float32],
) -> pa.Table:
    """The best labels of some images, a table of ``SCHEMA``.

    Args:
        keys: (N,).
        labels: (N,), the true ones.
        ten_views: (N, classes), the mean probabilities.
        centre_view: (N, classes).
    """
    best = top_labels(ten_views)
    return pa.table(
        {
            "key": keys,
            "label": labels,
            "labels": list(best),
            "probabilities": list(np.take_along_axis(ten_views, best, axis=1)),
            "centre_labels": list(top_labels(centre_view)),
        }
    )


def merge(
    parts: Sequence[pa.Table],
    rows: int,
    *,
    wnids: Sequence[str],
    models: Sequence[str],
    validation: str,
    coefficients: Sequence[float] | None = None,
) -> pa.Table:
    """Predictions for parts of the images as one table, with metadata, sorted by key.

    Args:
        parts: tables of ``SCHEMA``.
        rows: number of validation images. Each of them must be in the parts exactly once.
        wnids: of the classes.
        models: URIs of the models that were averaged.
        validation: content digest of the validation shards.
        coefficients: the models' weights in the average, if they are not equal.
    """
    table = pa.concat_tables(parts).cast(SCHEMA).sort_by("key")
    distinct = len(table["key"].unique())
    assert (len(table), distinct) == (rows, rows), (
        f"{rows} images, {len(table)} predictions of {distinct} of them"
    )
    metadata: dict[str, object] = {
        "wnids": list(wnids),
        "models": list(models),
        "validation": validation,
    }
    if coefficients:
        metadata["coefficients"] = list(coefficients)
    return table.replace_schema_metadata({_METADATA: json.dumps(metadata)})


def read(path: str) -> Predictions:
    """The predictions in a file.

    Raises:
        InvalidPredictionsError: it is missing, damaged, or no file of this kind.
    """
    try:
        with storage.open_input(path) as file:
            return of_table(pq.read_table(file))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InvalidPredictionsError(
            f"{path}: not a file of predictions that evaluation has written ({one_line(error)})"
        ) from error


def of_table(table: pa.Table) -> Predictions:
    """The predictions in a result of ``merge``.

    Raises:
        ValueError: the table has no such columns or no such metadata.
    """
    encoded = (table.schema.metadata or {}).get(_METADATA)
    if encoded is None:
        raise ValueError("it does not name the classes and the models")
    metadata = json.loads(encoded)
    coefficients = metadata.get("coefficients")

    def matrix(column: str) -> NDArray[np.generic]:
        return np.stack(table[column].to_numpy())

    return Predictions(
        keys=table["key"].to_pylist(),
        labels=table["label"].to_numpy().astype(np.int64),
        best=matrix("labels").astype(np.int64),
        probabilities=matrix("probabilities").astype(np.float32),
        centre_best=matrix("centre_labels").astype(np.int64),
        wnids=tuple(metadata["wnids"]),
        models=tuple(metadata["models"]),
        validation=metadata["validation"],
        coefficients=tuple(coefficients) if coefficients else None,
    )
