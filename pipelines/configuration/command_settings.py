"""The settings of the commands that are no stages, as those of stages in ``settings``."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipelines.configuration.setting_types import (
    Device,
    Inputs,
    ModelUris,
    OneOrTen,
    PathOrUri,
    Precision,
    Workers,
    option,
)
from pipelines.configuration.setting_types import TwoEvaluations as TwoNames
from pipelines.settings import Settings


def _one(value: list[str]) -> list[str]:
    if len(value) != 1:
        raise ValueError("give exactly one")
    return value


OneName = Annotated[list[Annotated[str, Field(min_length=1)]], AfterValidator(_one)]


class CompareSettings(Settings):
    """Settings of ``compare``."""

    evaluations: TwoNames = option(
        ...,
        "two evaluated models: MLflow URIs, keys of evaluations, or files of predictions",
        positional=True,
    )


class DiffSettings(Settings):
    """Settings of ``diff``."""

    runs: TwoNames = option(..., "two runs: MLflow ids, names or stage keys", positional=True)


class UiSettings(Settings):
    """Settings of ``ui``."""

    port: int | None = option(
        None, "to listen on; by default 5000, or a free one if it is not free", ge=1, le=65535
    )


class BatchInferenceSettings(Settings):
    """Settings of ``batch_inference``."""

    images: Inputs = option(
        ..., "folders, files, globs, lists (.txt, .csv, .parquet), .tar or .parquet files, shards"
    )
    output: PathOrUri = option(..., "folder for the predictions, new or of the same command before")
    model: ModelUris = option(
        ["models:/alexnet@champion"], "MLflow models; several are averaged, in one pass"
    )
    top_k: int = option(5, "labels for each image", result=True, ge=1)
    min_probability: float = option(0.0, "omit labels with less", result=True, ge=0, le=1)
    views: OneOrTen = option(10, "crops averaged: ten, or the central one", result=True)
    features: Literal["fc6", "fc7"] | None = option(
        None, "also write a layer's activations, as the next one reads them", result=True
    )
    exif_orientation: Literal["apply", "ignore"] = option(
        "apply", "turn photographs as their EXIF says, or ignore it as in 2012", result=True
    )
    precision: Precision = option("float32", "how the models multiply", result=True)
    rows_per_part: int = option(1024, "files in a part of the output", result=True, ge=1, le=65536)
    format: Literal["csv", "jsonl"] | None = option(None, "write each part also as text")
    html: bool = option(False, "also write a page with thumbnails")
    device: Device = option("auto", "where to compute; auto: GPUs if there are any")
    num_workers: Workers = option(1, "actors that hold the models; 1:4: as for training")
    batch_size: int | None = option(None, "images at once; by default by the device", ge=1)
    force: bool = option(False, "delete what was written to the output before, and begin anew")


class StatusSettings(Settings):
    """Settings of ``status``."""

    json_: bool = Field(False, alias="json", description="print the JSON object only, no table")


class GarbageSettings(Settings):
    """Settings of ``gc``."""

    dry_run: bool = option(False, "only list what nothing needs; this is the default")
    delete: bool = option(False, "delete it")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.dry_run and self.delete:
            raise ValueError("--dry-run and --delete exclude each other")
        return self


class LineageSettings(Settings):
    """Settings of ``lineage``."""

    targets: OneName = option(
        ...,
        "an MLflow model, predictions.parquet of an evaluation, or part-*.parquet",
        positional=True,
    )
    key: str | None = option(
        None, "the image: its key or path in the predictions; by default the first", min_length=1
    )
    check: bool = option(False, "do the prediction again from the source's bytes and compare")
