"""Which stages have finished, and why a stage must run again.

A stage is identified by its settings, the digests of its inputs and the version of the code that
computes its result. When it ends, a record of these and of its result is written to the workdir.
A stage whose record exists is skipped; otherwise the newest record of the stage tells what has
changed. A record of a stage that started and did not finish holds the MLflow run to resume.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

from alexnet import storage
from alexnet.errors import UserError
from pipelines.console.lock import exclusive_lock
from pipelines.console.log import stage_logger
from pipelines.console.progress import duration
from pipelines.results import StageResult
from pipelines.settings import StageSettings
from pipelines.tracking.run import Run, active_run, open_run, run_exists
from pipelines.tracking.store import Store
from pipelines.workdir import Workdir

BOUNDARY = (
    "alexnet.plots",
    "pipelines.cluster",
    "pipelines.console",
    "pipelines.settings",
    "pipelines.tracking",
)
"""Code that changes no result: a stage's code version leaves it out. What the settings decide is
in the stage's key by value."""

RECORD_FORMAT = 2
"""Records of another format are passed over, as if the stage had not run."""

Parent = Callable[[], str]
"""Returns the id of the full run's MLflow run, and creates that run at the first call."""

R = TypeVar("R", bound=StageResult)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKey:
    """What decides a stage's result."""

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Digests of what the stage reads, or names whose meaning never changes."""
    code: str
    """From ``alexnet.provenance.code_version``."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits."""
        text = json.dumps([self.stage, self.settings, self.inputs, self.code], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome(Generic[R]):
    """A stage's result, and whether an earlier run computed it."""

    key: StageKey
    result: R
    seconds: float
    run_id: str
    skipped: bool

    def to_json(self) -> dict[str, Any]:
        """The JSON line of the stage."""
        ran = {"seconds": self.seconds, "run_id": self.run_id, "skipped": self.skipped}
        return self.result.to_json() | ran


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """A stage that has started, and has finished if ``finished`` is set."""

    key: StageKey
    run_id: str
    """The stage's MLflow run."""
    started: float
    """Seconds since 1970, like ``finished``."""
    finished: float | None = None
    seconds: float = 0.0
    """The stage's duration."""
    result: Mapping[str, Any] | None = None
    """The fields of the stage's ``StageResult``."""

    def result_as(self, kind: type[R]) -> R:
        """The result of a finished stage.

        Raises:
            UserError: the record is damaged.
        """
        try:
            return kind(**(self.result or {}))
        except TypeError as error:
            raise UserError(
                f"the record {self.key.digest} of {self.key.stage} can't be read ({error}); "
                "run the stage again with --force"
            ) from error

    def outcome(self, kind: type[R]) -> StageOutcome[R]:
        """The outcome of a finished stage that is not run again.

        Raises:
            UserError: the record is damaged.
        """
        return StageOutcome(
            key=self.key,
            result=self.result_as(kind),
            seconds=self.seconds,
            run_id=self.run_id,
            skipped=True,
        )


def find_reusable(
    workdir: Workdir, key: StageKey, *, force: bool, usable: Callable[[StageRecord], bool]
) -> tuple[StageRecord | None, str]:
    """Whether a stage can be skipped.

    Args:
        workdir: that holds the records.
        key: of the stage as it would run now.
        force: run it in any case.
        usable: whether a finished record's results still exist.

    Returns:
        The finished record to use, or None, and the reason in words.
    """
    record = _read(workdir.record(key.stage, key.digest))
    if force:
        return None, "--force"
    if record and record.finished:
        if usable(record):
            done = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.finished))
            return record, f"nothing has changed since it ran on {done}"
        return None, "its result no longer exists"
    if record:
        return None, "it started and did not finish"
    previous = latest(workdir, key.stage)
    return None, _difference(previous.key, key) if previous else "it has not run yet"


def run_stage(
    settings: StageSettings,
    store: Store,
    key: StageKey,
    kind: type[R],
    *,
    parent: Parent | None,
    usable: Callable[[R], bool],
    work: Callable[[Run], R],
) -> StageOutcome[R]:
    """Do a stage's work inside an MLflow run, unless it has been done.

    Args:
        settings: of the stage; they become the run's parameters.
        store: where the run goes.
        key: of the stage as it would run now.
        kind: of the result.
        parent: the full run, if this stage is part of one.
        usable: whether the result of an earlier run still exists, apart from its MLflow run.
        work: computes the result.
    """
    workdir, log = Workdir(settings.workdir), stage_logger(key.stage)

    def still_exists(record: StageRecord) -> bool:
        return run_exists(store, record.run_id) and usable(record.result_as(kind))

    with exclusive_lock(workdir, key.stage):
        record, reason = find_reusable(workdir, key, force=settings.force, usable=still_exists)
        if record:
            log.info("skipped, %s", reason)
            return record.outcome(kind)
        log.info("running, %s", reason)
        record = start(
            workdir,
            key,
            lambda unfinished: open_run(
                store, key.stage, resume=unfinished, parent=parent() if parent else None
            ),
        )
        with active_run(store, record.run_id) as run:
            run.log_params(settings.model_dump(exclude={"tracking_uri", "force"}))
            run.set_tags({"stage": key.stage, "stage.key": key.digest, "stage.reason": reason})
            result = work(run)
            seconds = round(time.time() - record.started, 1)
            run.log_metrics(result.metrics() | {"seconds": seconds})
            run.set_description(_description(result))
        finish(workdir, record, seconds, asdict(result))
        log.info("done in %s", duration(seconds))
        return StageOutcome(
            key=key, result=result, seconds=seconds, run_id=record.run_id, skipped=False
        )


def _description(result: StageResult) -> str:
    """The result in Markdown: the first thing that the run's page shows."""
    words = []
    for name, value in result.to_json().items():
        text = f"{value:,}" if type(value) in (int, float) else value
        text = ", ".join(text) if isinstance(text, list) else str(text)
        words.append(f"{name.replace('_', ' ')} `{text}`")
    return " · ".join(words)


def start(workdir: Workdir, key: StageKey, new_run: Callable[[str | None], str]) -> StageRecord:
    """Record that a stage has started.

    Args:
        workdir: that holds the records.
        key: of the stage.
        new_run: opens the MLflow run; it is given the id of an unfinished run to resume, or None.
    """
    path = workdir.record(key.stage, key.digest)
    old = _read(path)
    run_id = new_run(old.run_id if old and not old.finished else None)
    record = StageRecord(key=key, run_id=run_id, started=time.time())
    _write(path, record)
    return record


def finish(
    workdir: Workdir, record: StageRecord, seconds: float, result: Mapping[str, Any]
) -> None:
    """Record a stage's result; from now on it can be skipped."""
    path = workdir.record(record.key.stage, record.key.digest)
    _write(path, replace(record, finished=time.time(), seconds=seconds, result=result))


def latest(workdir: Workdir, stage: str) -> StageRecord | None:
    """The record of a stage that finished last."""
    files = storage.list_files(workdir.records(stage))
    records = [record for file in files if (record := _read(file.path)) and record.finished]
    return max(records, key=lambda record: record.finished or 0, default=None)


def require(workdir: Workdir, kind: type[R]) -> StageOutcome[R]:
    """The outcome of the stage's run that finished last.

    Raises:
        UserError: the stage has not finished in this workdir yet.
    """
    record = latest(workdir, kind.stage)
    if record is None:
        raise UserError(
            f"{workdir.path}: {kind.stage} has not finished here; run pipelines/{kind.stage}.py "
            "first"
        )
    return record.outcome(kind)


def _difference(previous: StageKey, key: StageKey) -> str:
    """What has changed since an earlier run, in words."""
    for kind, old, new in (
        ("setting", previous.settings, key.settings),
        ("input", previous.inputs, key.inputs),
    ):
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if changed:
            name = changed[0]
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"{kind} {name} changed from {old.get(name)} to {new.get(name)}{more}"
    assert previous.code != key.code
    return "its code has changed"


def _write(path: str, record: StageRecord) -> None:
    storage.write_json(path, {"format": RECORD_FORMAT} | asdict(record))


def _read(path: str) -> StageRecord | None:
    if not storage.is_file(path):
        return None
    try:
        value = storage.read_json(path)
        if value.pop("format", None) != RECORD_FORMAT:
            return None
        return StageRecord(**(value | {"key": StageKey(**value["key"])}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a stage's record ({error}); delete it") from error
