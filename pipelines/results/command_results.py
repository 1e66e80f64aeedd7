"""What the commands that are no stages return, as what stages return in ``results``."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines.results.stage_results import numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackResult:
    """The alias ``champion`` is the earlier version's again."""

    registered_model: str
    champion_version: str
    rolled_back: str
    """The version that had the alias."""
    reason: str

    def to_json(self) -> dict[str, Any]:
        """All fields, ``stage`` first."""
        return {"stage": "promote"} | asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareResult:
    """Two models on the same validation images, with ten views."""

    first: str
    second: str
    images: int
    first_error: float
    """Top-1, per cent."""
    second_error: float
    error_reduction: float
    """Percentage points; positive if the second model is better."""
    error_reduction_low: float
    """The ends of its interval of 95 %."""
    error_reduction_high: float
    mcnemar_p: float
    """p-value of the two-sided exact test of McNemar."""
    both_right: int
    only_first_right: int
    only_second_right: int
    both_wrong: int
    right_to_wrong: list[str]
    """Keys of the images that only the first model classifies correctly."""
    wrong_to_right: list[str]
    """Keys of the images that only the second model classifies correctly."""

    def to_json(self) -> dict[str, Any]:
        """All fields, ``stage`` first."""
        return {"stage": "compare"} | asdict(self)

    def metrics(self) -> dict[str, float]:
        """The numbers, as metrics of the MLflow run."""
        return numbers(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInferenceResult:
    """Predictions for all images of some inputs."""

    images: int
    rejected: int
    files_ignored: int
    """By a named rule, or because they are listed already."""
    seconds: float
    images_per_second: float
    """Of the images that this run predicted; 0 if there are none."""
    parts_made: int
    """By this run."""
    parts_kept: int
    """From earlier runs."""
    predictions: str
    """The folder of Parquet files."""
    page: str | None = None
    """The HTML page, if it was wanted."""
    model: str
    """MLflow's URI of the model, or of several."""

    def to_json(self) -> dict[str, Any]:
        """All fields, ``stage`` first."""
        return {"stage": "batch_inference"} | asdict(self)

    def metrics(self) -> dict[str, float]:
        """The numbers, as metrics of the MLflow run."""
        return numbers(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """Whether a stage has to run again."""

    stage: str
    state: Literal["fresh", "stale", "unfinished", "running", "never run"]
    reason: str
    """Why it is not fresh, or when it finished, in words."""
    key: str | None = None
    """The stage key of the result that this is about, and its MLflow run."""
    run_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusResult:
    """The stages of a workdir."""

    workdir: str
    fresh: bool
    """Whether all stages are."""
    store_checked: bool
    """Whether runs, models and aliases in MLflow were looked up: only in the workdir's own file."""
    running: list[str]
    """The commands that hold locks in the workdir, in words."""
    stages: list[StageStatus]

    def to_json(self) -> dict[str, Any]:
        """All fields, ``stage`` first."""
        return {"stage": "status"} | asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that differs between two runs."""

    kind: str
    """settings, data, code or results."""
    stage: str
    name: str
    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffResult:
    """How two runs differ."""

    first: str
    """MLflow's id of the run."""
    second: str
    stages: list[str]
    """That were compared."""
    differences: list[Difference]

    def to_json(self) -> dict[str, Any]:
        """All fields, ``stage`` first."""
        return {"stage": "diff"} | asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """Something that nothing needs."""

    kind: str
    name: str
    path: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbageResult:
    """What nothing in a workdir needs."""

    deleted: bool
    """Whether it was deleted."""
    bytes: int
    bytes_needed: int
    """Of what stays."""
    garbage: list[Garbage]

    def to_json(self) -> dict[str, Any]:
        """All fields, ``stage`` first."""
        return {"stage": "gc"} | asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link of a lineage."""

    kind: str
    name: str
    detail: str = ""
    problem: str = ""
    """Why it is broken and what helps; empty if it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageResult:
    """The links from a prediction or a model to the original bytes."""

    target: str
    checked: bool
    """Whether the prediction was to be done again."""
    links: list[Link]

    def to_json(self) -> dict[str, Any]:
        """All fields, ``stage`` first."""
        return {"stage": "lineage"} | asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class UiResult:
    """The address that opens the runs."""

    address: str

    def to_json(self) -> dict[str, Any]:
        """All fields, ``stage`` first."""
        return {"stage": "ui"} | asdict(self)
