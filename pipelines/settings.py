"""Every setting of every stage, defined once: its type, its bounds, its default and its help.

A stage's class holds the settings it reads; ``full_run`` has them all. A setting marked with
``result`` decides a stage's result: if it changes, the stage runs again. The other settings decide
only where and how fast the stage runs.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from alexnet import storage
from pipelines.configuration.execution_settings import ExecutionSettings
from pipelines.configuration.network_settings import NetworkSettings
from pipelines.configuration.reading_settings import ReadingSettings
from pipelines.configuration.setting_types import (
    Coefficients,
    Device,
    Epochs,
    ModelUris,
    Origins,
    PathOrUri,
    PresetName,
    RegisteredName,
    StageKeyText,
    Switch,
    TrackingUri,
    WorkdirPath,
    Workers,
    option,
)

S = TypeVar("S", bound="Settings")

StageName = Literal["preprocess", "train", "evaluate", "promote"]


class Settings(BaseModel):
    """What all stages share."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, validate_default=True
    )

    workdir: WorkdirPath = option(
        "work", "folder for shards, checkpoints, records and the tracking store"
    )
    tracking_uri: TrackingUri | None = option(
        None, "MLflow tracking store; by default an SQLite file in the workdir", repr=False
    )
    experiment: str = option("alexnet", "MLflow experiment", min_length=1, max_length=500)
    quiet: bool = option(False, "print the JSON object only; warnings and errors all the same")

    _origins: Origins = PrivateAttr(default_factory=Origins)

    def results(self) -> dict[str, Any]:
        """The settings that decide the stage's result."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra["result"]
        }

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not defaults."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    @property
    def origins(self) -> Mapping[str, str]:
        """Where settings were given: ``--epochs`` or a file's name."""
        return self._origins.given

    def with_origins(self, origins: Mapping[str, str]) -> Self:
        """The same settings, given there."""
        copy = self.model_copy()
        copy._origins = Origins(origins)
        return copy

    def part(self, kind: type[S]) -> S:
        """These settings as those of one stage."""
        given = {name: value for name, value in self.given.items() if name in kind.model_fields}
        # The default is relative to the working directory in which it became absolute.
        given["workdir"] = self.workdir
        return kind.model_validate(given).with_origins(self.origins)

    @model_validator(mode="after")
    def _remote_workdir_needs_a_server(self) -> Self:
        if storage.is_remote(self.workdir) and self.tracking_uri is None:
            raise ValueError(
                f"{self.workdir} can't hold an SQLite file; give --tracking-uri of an MLflow server"
            )
        return self


class StageSettings(Settings):
    """What the stages of the workflow share."""

    preset: PresetName | None = option(
        None,
        "named defaults, see pipelines/presets.py; by default sample for the embedded sample and "
        "none for other images",
    )
    seed: int = option(
        0, "decides the shuffle, initial weights, crops and dropout", result=True, ge=0, lt=2**32
    )
    force: bool = option(False, "do the work even if nothing has changed")


class PreprocessSettings(StageSettings):
    """Settings of ``preprocess``."""

    source: PathOrUri | None = option(
        None,
        "folder with the official archives, Kaggle's form, Parquet files, Tiny-ImageNet or "
        "{train,val}/<class>/",
    )
    encoding: Literal["jpeg", "raw"] = option(
        "jpeg", "how 256x256 images are stored: JPEG, or 196,608 raw bytes", result=True
    )
    jpeg_quality: int = option(95, "quality of stored JPEGs", result=True, ge=1, le=100)
    rows_per_shard: int = option(1024, "images in a shard", result=True, ge=1, le=65536)
    max_reject_fraction: float = option(
        0.01, "stop when a larger part of the images can't be read", ge=0, le=1
    )
    allow_leftover: bool = option(
        False, "go on although files of the source are left over or missing"
    )


class PreprocessCommandSettings(PreprocessSettings):
    """Settings of ``preprocess`` run by itself."""

    dry_run: bool = option(False, "print what the source holds and the work it would take, no more")
    check_md5: bool = option(False, "first compare the official archives with their md5 sums")
    verify: bool = option(
        False, "compare every finished shard with the manifest and make damaged ones again"
    )


class TrainSettings(ExecutionSettings, NetworkSettings, ReadingSettings, StageSettings):
    """Settings of ``train``."""

    epochs: int | None = option(
        None, "passes over the training images; by default the recipe's", result=True, ge=1
    )
    batch_size: int | None = option(
        None, "images in an update, over all workers; by default the recipe's", result=True, ge=1
    )
    learning_rate: float | None = option(
        None, "first learning rate; by default the recipe's", result=True, gt=0, le=10
    )
    lr_drops: Epochs | None = option(
        None,
        "epochs after which the learning rate is divided by 10; by default the recipe's rule",
        result=True,
    )
    warmup_epochs: int = option(
        0, "epochs in which the learning rate rises to its first value", result=True, ge=0
    )
    ema: float | None = option(
        None,
        "decay of a running average of the weights that is validated and kept, such as 0.9999",
        result=True,
        gt=0,
        lt=1,
    )
    checkpoint_steps: int | None = option(
        None,
        "updates between checkpoints within an epoch, besides those of --checkpoint-minutes; by "
        "default only these",
        ge=1,
    )
    checkpoint_minutes: float = option(
        10, "minutes after which a checkpoint is due at the next point of the curves", gt=0
    )
    log_steps: int = option(10, "updates between two points of the training curves", ge=1)
    log_seconds: float = option(
        1.0, "seconds between two points at least; 0: --log-steps alone determine them", ge=0
    )
    max_failures: int = option(3, "restarts after lost workers or nodes before giving up", ge=0)

    @model_validator(mode="after")
    def _all_rows_need_local_shards(self) -> Self:
        if self.shuffle_rows == "all" and storage.is_remote(self.workdir):
            raise ValueError(
                f"--shuffle-rows all: needs shards on local disks, not in {self.workdir}; give "
                "--shuffle-rows windows"
            )
        return self

    @property
    def gpus_wanted(self) -> int:
        """GPUs that a worker can use: one for each tower, if it may have two."""
        return min(self.gpus_per_worker, self.towers)


class TrainCommandSettings(TrainSettings):
    """Settings of ``train`` run by itself."""

    check_devices: bool = option(
        False, "print what the devices are worth to the two towers, and train nothing"
    )


class EvaluateSettings(StageSettings):
    """Settings of ``evaluate``."""

    model: ModelUris | None = option(
        None,
        "MLflow models; several are averaged; by default the newest trained one",
    )
    coefficients: Coefficients | None = option(
        None, "weight of each model in the average; by default all have the same"
    )
    tune_coefficients: Switch = option(
        False,
        "on: choose these weights by the top-5 error on the validation images, as in 2012; needs "
        "400 MB for each model with ILSVRC2012",
    )
    features: Literal["fc6", "fc7"] | None = option(
        None, "also write a layer's activations for the centre view, of one model"
    )
    device: Device = option("auto", "where to compute; auto: GPUs if there are any")
    num_workers: Workers = option(1, "actors that hold the models; 1:4: as for training")

    @model_validator(mode="after")
    def _fit_the_models(self) -> Self:
        models = len(self.model or ["the newest"])
        if self.coefficients and len(self.coefficients) != models:
            raise ValueError(
                f"--coefficients: {len(self.coefficients)} for {models} models; give one for each"
            )
        if self.features and models > 1:
            raise ValueError(
                "--features: those of several models are not comparable; give one --model"
            )
        if self.tune_coefficients and (self.coefficients or models == 1):
            raise ValueError("--tune-coefficients: is for several --model, without --coefficients")
        return self


class PromoteSettings(StageSettings):
    """Settings of ``promote``."""

    registered_model: RegisteredName = option("alexnet", "name in the model registry", result=True)
    champion: Literal["better", "always", "never"] = option(
        "better", "when the alias champion moves to this model", result=True
    )
    margin: float = option(
        0.0, "percentage points by which the error must be lower", result=True, ge=0, lt=100
    )
    significance: float = option(
        0.05, "McNemar's p must be below this for a lower error to count", result=True, gt=0, le=1
    )


class PromoteCommandSettings(PromoteSettings):
    """Settings of ``promote`` run by itself."""

    evaluation: StageKeyText | None = option(
        None, "key of the evaluation to promote, its folder in the workdir; by default the newest"
    )
    rollback: str | None = option(
        None,
        "the reason why the alias champion returns to the version before; nothing is promoted",
        min_length=1,
    )


class FullRunSettings(PreprocessSettings, TrainSettings, EvaluateSettings, PromoteSettings):
    """Settings of ``full_run``: those of all stages, and which of them to run."""

    only: StageName | None = option(None, "run this stage alone")
    from_: StageName | None = Field(
        None, alias="from", description="run this stage and those after it"
    )

    @model_validator(mode="after")
    def _one_selection(self) -> Self:
        if self.only and self.from_:
            raise ValueError("--only and --from exclude each other")
        return self
