"""What stages and the full run return: one dataclass for each, from which its JSON line is made.

The results of stages are also stored in the workdir's records, become the MLflow run's metrics,
and are what the next stage reads.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pipelines.settings import StageName

IN_WORKDIR = {"in_workdir": True}
"""Marks a path: records store it relative to the workdir, so that a workdir can be moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """The result of a stage. Values are those of JSON."""

    stage: ClassVar[StageName]
    has_curves: ClassVar[frozenset[str]] = frozenset()
    """Fields that the run has curves of already: they are not logged once more."""

    def to_json(self) -> dict[str, Any]:
        """All fields, ``stage`` first."""
        return {"stage": self.stage} | asdict(self)

    def metrics(self) -> dict[str, float]:
        """The numbers, as metrics of the stage's MLflow run."""
        values = numbers(asdict(self))
        return {name: value for name, value in values.items() if name not in self.has_curves}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessResult(StageResult):
    """A complete data set."""

    stage: ClassVar[StageName] = "preprocess"

    images: int
    train_images: int
    val_images: int
    classes: int
    rejected: int
    shards_made: int
    """By this run."""
    shards_kept: int
    """From an interrupted run."""
    images_per_second: float
    """Of the shards made; 0 if none were."""
    bytes: int
    """Of all shards."""
    digest: str
    """Of the plan; the last part of ``shards``."""
    shards: str = field(metadata=IN_WORKDIR)
    """The data set's folder."""
    content: str
    """Content digest of the shards."""
    files_found: int = 0
    """In the source's folder and in its archives; the sum of used, rejected and ignored ones."""
    files_used: int = 0
    """In the shards, or read for labels, or archives and Parquet files that contain images."""
    files_ignored: int = 0
    ignored_by_rule: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult(StageResult):
    """A trained model."""

    stage: ClassVar[StageName] = "train"
    has_curves: ClassVar[frozenset[str]] = frozenset(
        {"images_per_second", "train_loss", "val_top1_error", "val_top5_error"}
    )

    images: int
    """Training images seen in all epochs."""
    epochs: int
    steps: int
    images_per_second: float
    """Of the last epoch, like the losses and errors."""
    train_loss: float
    val_top1_error: float
    """Per cent, centre view."""
    val_top5_error: float | None
    """None with five classes or fewer."""
    checkpoint: str = field(metadata=IN_WORKDIR)
    """The last checkpoint's folder."""
    model: str
    """MLflow's URI of the logged model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateResult(StageResult):
    """The errors of one model, or of the average of several; per cent."""

    stage: ClassVar[StageName] = "evaluate"

    images: int
    top1_error: float
    """Ten views."""
    top1_error_low: float
    """The ends of the error's interval of 95 %."""
    top1_error_high: float
    top5_error: float | None
    """None with five classes or fewer, and so are its interval and those of the centre view."""
    top5_error_low: float | None
    top5_error_high: float | None
    centre_top1_error: float
    centre_top1_error_low: float
    centre_top1_error_high: float
    centre_top5_error: float | None
    centre_top5_error_low: float | None
    centre_top5_error_high: float | None
    top1_accuracy: float
    calibration_error: float
    """Expected calibration error of ten views, percentage points."""
    models: list[str]
    """MLflow's URIs."""
    validation: str
    """Content digest of the validation shards."""
    predictions: str = field(metadata=IN_WORKDIR)
    """A Parquet file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteResult(StageResult):
    """A registered version."""

    stage: ClassVar[StageName] = "promote"

    registered_model: str
    version: str
    champion: bool
    """Whether the version has the alias ``champion``."""
    reason: str
    model: str
    """``models:/<name>/<version>``."""
    champion_version: str | None
    """The version that has the alias ``champion`` now."""
    compared_with: str | None = None
    """The version that had the alias before."""
    comparable: bool = True
    """False if that version has no predictions for the same validation images."""
    both_right: int | None = None
    """Images that both versions classify correctly; None, like the following, without a
    comparison."""
    only_version_right: int | None = None
    only_champion_right: int | None = None
    both_wrong: int | None = None
    error_reduction: float | None = None
    """Percentage points of top-1 error; positive if this version is better."""
    error_reduction_low: float | None = None
    """The ends of its interval of 95 %."""
    error_reduction_high: float | None = None
    mcnemar_p: float | None = None
    """p-value of the two-sided exact test of McNemar."""
    chance_p: float | None = None
    """p-value of the test against chance; None if there was a champion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunResult:
    """What a source holds, and an estimate of the work; nothing was written."""

    images: int
    train_images: int
    val_images: int
    classes: int
    shards: int
    source_bytes: int
    estimated_bytes: int
    estimated_seconds: float
    files_found: int
    """In the source's folder and in its archives; the sum of used, rejected and ignored ones."""
    files_used: int
    """Images and files with labels, archives and Parquet files."""
    files_ignored: int
    ignored_by_rule: dict[str, int]
    rejected: int
    """Empty files and links to nothing; what else can't be read is known only after decoding."""
    sampled: int
    """Images that were read for the estimate."""
    sample_rejected: int
    """How many of these can't be read."""

    def to_json(self) -> dict[str, Any]:
        """All fields, ``stage`` first."""
        return {"stage": "preprocess", "dry_run": True} | asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """The shards of a data set that were hashed, and those that were created again."""

    shards_verified: int
    shards_remade: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRunResult:
    """The stages that ran or were skipped."""

    images: int | None = None
    """Of preprocess, if it was one of the stages; so are the rejected ones."""
    rejected: int | None = None
    images_per_second: float | None = None
    """Of the training, if it was one of the stages."""
    seconds: float
    workdir: str
    skipped: list[StageName]
    stages: dict[StageName, dict[str, Any]] = field(default_factory=dict)
    """Each stage's JSON line."""

    def to_json(self) -> dict[str, Any]:
        """All fields that have a value, ``stage`` first."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {"stage": "full_run"} | values


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are numbers, as metrics."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
