"""What a lineage is asked for: a model, or one prediction in a file of predictions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alexnet import predictions, storage
from alexnet.errors import UserError, one_line
from alexnet.predictions import Predictions
from pipelines.tracking import evaluations, registry
from pipelines.tracking.store import Store

_OF_EVALUATION, _OF_PART = b"alexnet", b"alexnet.model.uri"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One recorded prediction."""

    kind: Literal["evaluation", "part"]
    where: str
    """The file, or the run of the evaluation."""
    key: str
    """Of the image among the validation images, or its path in the output."""
    labels: tuple[int, ...]
    """Best first."""
    probabilities: tuple[float, ...]
    row: int = 0
    """In the file."""
    sha256: str | None = None
    """Of the image's bytes, if the file says so."""
    options: Mapping[str, str] = field(default_factory=dict)
    """How a part was predicted: values by the setting's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a lineage starts with."""

    models: tuple[str, ...]
    """URIs of logged models, ``models:/m-...``."""
    versions: tuple[str, ...] = ()
    """``<name>/<version>`` by which a file names its models."""
    shards: tuple[str, ...] = ()
    """Content digests of the models' data sets, as far as a file names them."""
    digests: tuple[str, ...] = ()
    """sha256 of the models' files, as far as a file names them."""
    validation: str | None = None
    """Content digest of the validation shards of an evaluation."""
    coefficients: tuple[float, ...] | None = None
    """The models' weights in the average of an evaluation; None for equal ones."""
    prediction: Prediction | None = None


def read_subject(store: Store, target: str, key: str | None) -> Subject:
    """What a name or a path means.

    Args:
        store: the tracking store.
        target: MLflow's URI of a model, or the path of a file of predictions.
        key: of the image, by default the first of the file.

    Raises:
        UserError: there is no such model, file or image.
    """
    if ":/" in target and not storage.is_remote(target):
        return _of_model(store, target, key)
    path = storage.absolute(target)
    if not storage.is_file(path):
        raise UserError(
            f"{target}: no such file and no MLflow URI (such as models:/alexnet@champion); give "
            "one of them"
        )
    try:
        with storage.open_input(path) as file:
            metadata = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: can't be read as Parquet ({one_line(error)})") from error
    if _OF_EVALUATION in metadata:
        read = predictions.read(path)
        return Subject(
            models=read.models,
            validation=read.validation,
            coefficients=read.coefficients,
            prediction=_pick(read, path, key),
        )
    if _OF_PART in metadata:
        return _of_part(path, {k.decode(): v.decode() for k, v in metadata.items()}, key)
    raise UserError(
        f"{path}: names no model, so it is no file of predictions; give predictions.parquet of an "
        "evaluation or part-*.parquet of batch inference"
    )


def _of_model(store: Store, uri: str, key: str | None) -> Subject:
    model = registry.get_model_info(store, uri)
    for evaluation in evaluations.find(store, models=model.uri):
        read = evaluations.read_predictions(store, evaluation.run_id)
        if read:
            where = f"evaluation {evaluation.run_id}"
            return Subject(
                models=(model.uri,),
                validation=read.validation,
                prediction=_pick(read, where, key),
            )
    return Subject(models=(model.uri,))


def _pick(read: Predictions, where: str, key: str | None) -> Prediction:
    if key is not None and key not in read.keys:
        raise UserError(f"{where}: has no prediction for {key}; correct --key")
    row = 0 if key is None else read.keys.index(key)
    return Prediction(
        kind="evaluation",
        where=where,
        key=read.keys[row],
        labels=tuple(read.best[row].tolist()),
        probabilities=tuple(read.probabilities[row].tolist()),
        row=row,
    )


def _of_part(path: str, metadata: Mapping[str, str], key: str | None) -> Subject:
    columns = ["path", "status", "labels", "probabilities", "sha256"]
    with storage.open_input(path) as file:
        table = pq.read_table(file, columns=columns)
    row = _row_of(table, key)
    if row < 0:
        raise UserError(f"{path}: has no prediction for {key or 'any image'}; correct --key")
    values: dict[str, Any] = table.slice(row, 1).to_pylist()[0]
    if values["status"] != "ok":
        raise UserError(f"{path}: {values['path']} was rejected; give another --key")
    options = {
        name.removeprefix("alexnet."): value
        for name, value in metadata.items()
        if name.startswith("alexnet.") and not name.startswith("alexnet.model.")
    }
    return Subject(
        models=tuple(metadata[_OF_PART.decode()].split()),
        versions=tuple(metadata.get("alexnet.model.version", "").split()),
        shards=tuple(metadata.get("alexnet.model.shards", "").split()),
        digests=tuple(metadata.get("alexnet.model.digest", "").split()),
        prediction=Prediction(
            kind="part",
            where=path,
            key=values["path"],
            labels=tuple(values["labels"]),
            probabilities=tuple(values["probabilities"]),
            row=row,
            sha256=values["sha256"],
            options=options,
        ),
    )


def _row_of(table: pa.Table, key: str | None) -> int:
    """The row of an image, by default of the first that was predicted; -1 if there is none."""
    column, value = ("status", "ok") if key is None else ("path", key)
    return int(pc.index(table[column], value).as_py())
