"""Records of stages in the workdir: what a stage was started with, and its result.

A record that can't be read is passed over, as if the stage had not run: everything that it names
can be computed again.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

from alexnet import storage
from alexnet.errors import UserError
from pipelines.configuration.setting_types import on_or_off
from pipelines.console.log import stage_logger
from pipelines.results.stage_results import IN_WORKDIR, StageResult
from pipelines.workdir import Workdir

RECORD_FORMAT = 3
"""Records of another format are passed over."""

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
    reason: str = field(default="", compare=False)
    """Why the stage ran or was skipped, in words."""

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
    forced_by: str | None = None
    """The ID of the ``--force`` that started the stage anew; None without one."""
    discard: bool = False
    """What earlier runs of the stage have left must be deleted before the stage resumes."""

    def outcome(self, kind: type[R], workdir: Workdir) -> "StageOutcome[R] | None":
        """The outcome of a finished stage that is not run again; None if it can't be read.

        Args:
            kind: of the result.
            workdir: below which the result's paths are.
        """
        if self.finished is None or self.result is None:
            return None
        values = dict(self.result)
        try:
            for each in fields(kind):
                if IN_WORKDIR.items() <= each.metadata.items():
                    values[each.name] = workdir.absolute(values[each.name])
            result = kind(**values)
        except (TypeError, KeyError, AttributeError):
            return None
        return StageOutcome(
            key=self.key,
            result=result,
            seconds=self.seconds,
            run_id=self.run_id,
            skipped=True,
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a stage is started if it has to run."""

    forced_by: str | None = None
    """The ID of the ``--force`` that the stage belongs to; None without one."""
    anew: bool = False
    """Whether earlier results and unfinished work don't count."""


WITHOUT_FORCE = Attempt()


def next_attempt(old: StageRecord | None, *, force: bool, full_run: str | None = None) -> Attempt:
    """How a stage is started: ``--force`` resumes what a killed ``--force`` has started.

    Args:
        old: the record of the stage's key.
        force: whether the command has ``--force``.
        full_run: the ID of the ``--force`` of the full run that the stage is part of.
    """
    belongs = old is not None and (not old.finished or old.forced_by == full_run)
    forced_by = old.forced_by if old and belongs else None
    if force and not forced_by:
        return Attempt(full_run or uuid.uuid4().hex, anew=True)
    return Attempt(full_run if force and full_run else forced_by)


def start(
    workdir: Workdir,
    key: StageKey,
    new_run: Callable[[str | None], str],
    attempt: Attempt = WITHOUT_FORCE,
) -> StageRecord:
    """Record that a stage has started.

    Args:
        workdir: that holds the records.
        key: of the stage.
        new_run: opens the MLflow run; it is given the id of an unfinished run to resume, or None.
        attempt: from ``next_attempt``.
    """
    old = read_record(workdir, key)
    unfinished = old if old and not old.finished and not attempt.anew else None
    record = StageRecord(
        key=key,
        run_id=new_run(unfinished.run_id if unfinished else None),
        started=time.time(),
        forced_by=attempt.forced_by,
        discard=attempt.anew or (unfinished is not None and unfinished.discard),
    )
    _write(workdir, record)
    return record


def discarded(workdir: Workdir, record: StageRecord) -> StageRecord:
    """Record that what earlier runs have left is deleted: from now on the stage can be resumed."""
    record = replace(record, discard=False)
    _write(workdir, record)
    return record


def finish(
    workdir: Workdir, record: StageRecord, seconds: float, result: StageResult | None
) -> None:
    """Record a stage's result; from now on it can be skipped."""
    values = {}
    if result is not None:
        values = asdict(result)
        for each in fields(result):
            if IN_WORKDIR.items() <= each.metadata.items():
                values[each.name] = workdir.relative(values[each.name])
    _write(workdir, replace(record, finished=time.time(), seconds=seconds, result=values))


def read_record(workdir: Workdir, key: StageKey) -> StageRecord | None:
    """The record of a key; None if there is none that can be read."""
    return _read(workdir.record(key.stage, key.digest))


@dataclass(frozen=True, slots=True)
class StageHistory:
    """The records of a stage."""

    finished: list[StageRecord]
    """The one that finished last at the end."""
    unfinished: list[StageRecord]
    """The one that started last at the end."""
    unreadable: int
    """Damaged ones, and those of another version of this project."""


def history(workdir: Workdir, stage: str) -> StageHistory:
    """All records of a stage."""
    files = storage.list_files(workdir.records(stage))
    read = [_read(file.path) for file in files if file.path.endswith(".json")]
    records = [record for record in read if record]
    return StageHistory(
        sorted((r for r in records if r.finished), key=lambda record: record.finished or 0),
        sorted((r for r in records if not r.finished), key=lambda record: record.started),
        len(read) - len(records),
    )


def finished_records(workdir: Workdir, stage: str) -> list[StageRecord]:
    """All finished records of a stage, the one that finished last at the end."""
    return history(workdir, stage).finished


def newest(workdir: Workdir, kind: type[R], stage: str, key: str | None = None) -> StageOutcome[R]:
    """The outcome of the run of an earlier stage that finished last, for a stage run alone.

    Args:
        workdir: that holds the records.
        kind: of the earlier stage's result.
        stage: that needs it; it logs which outcome it uses.
        key: digest of the only stage key to use; by default any.

    Raises:
        UserError: the earlier stage has not finished in this workdir yet.
    """
    for record in reversed(finished_records(workdir, kind.stage)):
        if key in (None, record.key.digest) and (outcome := record.outcome(kind, workdir)):
            done = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.finished))
            stage_logger(stage).info(
                "using the %s of %s: %s, finished on %s",
                "result" if key else "newest result",
                kind.stage,
                record.key.digest,
                done,
            )
            return outcome
    if key:
        raise UserError(
            f"{workdir.path}: {kind.stage} {key} has not finished here; give another key"
        )
    raise UserError(
        f"{workdir.path}: {kind.stage} has not finished here; run pipelines/{kind.stage}.py first"
    )


def difference(previous: StageKey, key: StageKey) -> str:
    """What has changed since an earlier run, in words."""
    for kind, old, new in (
        ("setting", previous.settings, key.settings),
        ("input", previous.inputs, key.inputs),
    ):
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if changed:
            name = changed[0]
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            before, now = _as_written(old.get(name)), _as_written(new.get(name))
            return f"{kind} {name} changed from {before} to {now}{more}"
    assert previous.code != key.code
    return "its code has changed"


def _as_written(value: Any) -> str:
    """A setting's value as users write it."""
    if isinstance(value, bool):
        return on_or_off(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _write(workdir: Workdir, record: StageRecord) -> None:
    path = workdir.record(record.key.stage, record.key.digest)
    storage.write_json(path, {"format": RECORD_FORMAT} | asdict(record))


def _read(path: str) -> StageRecord | None:
    try:
        value = storage.read_json(path)
        if value.pop("format") != RECORD_FORMAT:
            return None
        return StageRecord(**(value | {"key": StageKey(**value["key"])}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
