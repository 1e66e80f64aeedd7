"""What has been done already, and why something must be done again.

A stage is identified by its settings, the digests of what it reads and the version of the code
that makes its result. When it ends, a record of these and of its figures is written to
``<workdir>/stages/<stage>/<key>.json``. A stage whose record exists is skipped; otherwise the
record it had last says what has changed. A record that was begun but not finished names the
tracking run to go on with.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from alexnet import storage
from alexnet.errors import UserError
from pipelines.console.lock import exclusive_lock
from pipelines.console.progress import duration
from pipelines.settings import StageSettings
from pipelines.tracking.run import Run, active_run, open_run, run_exists
from pipelines.tracking.store import Store

BOUNDARY = (
    "alexnet.plots",
    "pipelines.cluster",
    "pipelines.console",
    "pipelines.settings",
    "pipelines.tracking",
)
"""Code that changes no result: a stage's code version leaves it out. What the settings decide is
in the stage's key by value."""

Figures = dict[str, Any]

Parent = Callable[[], str]
"""Gives the id of the full run that a stage is part of, opening it if need be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKey:
    """What decides a stage's result."""

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Digests (or names that never change their meaning) of what the stage reads."""
    code: str
    """From ``alexnet.provenance.code_version``."""

    @property
    def key(self) -> str:
        """16 hexadecimal digits."""
        text = json.dumps([self.stage, self.settings, self.inputs, self.code], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """A stage that was begun, and finished if it has figures."""

    stage: str
    key: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: str
    run_id: str
    """The MLflow run that documents it."""
    begun: float
    finished: float | None = None
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A stage's figures, and whether they are from an earlier run."""

    figures: Figures
    run_id: str
    skipped: bool


def find_reusable(
    workdir: str,
    identity: StageKey,
    *,
    force: bool,
    usable: Callable[[StageRecord], bool],
) -> tuple[StageRecord | None, str]:
    """Whether a stage can be skipped.

    Args:
        workdir: where records lie.
        identity: of the stage as it would run now.
        force: run it in any case.
        usable: whether a finished record's results still exist.

    Returns:
        The finished record to use, or None, and the reason in words.
    """
    record = _read(_path(workdir, identity.stage, identity.key))
    if force:
        return None, "--force"
    if record and record.finished:
        if usable(record):
            done = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.finished))
            return record, f"nothing has changed since it ran on {done}"
        return None, "its result is no longer there"
    if record:
        return None, "it was begun and not finished"
    previous = latest(workdir, identity.stage)
    return None, _difference(previous, identity) if previous else "it has not run yet"


def run_stage(
    settings: StageSettings,
    store: Store,
    identity: StageKey,
    *,
    parent: Parent | None,
    usable: Callable[[StageRecord], bool],
    work: Callable[[Run, StageRecord], Figures],
) -> Outcome:
    """Do a stage's work inside an MLflow run, unless it has been done.

    Args:
        settings: of the stage; they become the run's parameters.
        store: where the run goes.
        identity: of the stage as it would run now.
        parent: the full run, if this stage is part of one.
        usable: whether a finished record's results still exist, apart from its MLflow run.
        work: makes the result and returns the figures.
    """

    def still_there(record: StageRecord) -> bool:
        return run_exists(store, record.run_id) and usable(record)

    with exclusive_lock(settings.workdir, identity.stage):
        record, reason = find_reusable(
            settings.workdir, identity, force=settings.force, usable=still_there
        )
        if record:
            print(f"{identity.stage}: skipped, {reason}", flush=True)
            return Outcome(record.figures | {"skipped": True}, record.run_id, skipped=True)
        print(f"{identity.stage}: running, {reason}", flush=True)
        record = begin(
            settings.workdir,
            identity,
            lambda old: open_run(
                store, identity.stage, resume=old, parent=parent() if parent else None
            ),
        )
        with active_run(store, record.run_id) as run:
            run.log_params(settings.model_dump(exclude={"tracking_uri", "force"}))
            run.set_tags(
                {"stage": identity.stage, "stage.key": identity.key, "stage.reason": reason}
            )
            figures = work(run, record)
            run.set_description(_note(figures))
            seconds = round(time.time() - record.begun, 1)
            figures = figures | {"seconds": seconds, "run_id": record.run_id, "skipped": False}
            run.log_metrics({"seconds": seconds})
        finish(settings.workdir, record, figures)
        print(f"{identity.stage}: done in {duration(seconds)}", flush=True)
        return Outcome(figures, record.run_id, skipped=False)


def _note(figures: Figures) -> str:
    """What came of a stage and where it lies, as the first thing that the run's page says."""
    words = []
    for name, value in figures.items():
        text = f"{value:,}" if type(value) in (int, float) else value
        text = ", ".join(text) if isinstance(text, list) else str(text)
        words.append(f"{name.replace('_', ' ')} `{text}`")
    return " · ".join(words)


def begin(workdir: str, identity: StageKey, new_run: Callable[[str | None], str]) -> StageRecord:
    """Record that a stage has begun.

    Args:
        workdir: where records lie.
        identity: of the stage.
        new_run: opens the tracking run; given the id of an unfinished one, it goes on with that.
    """
    path = _path(workdir, identity.stage, identity.key)
    old = _read(path)
    run_id = new_run(old.run_id if old and not old.finished else None)
    record = StageRecord(**_fields(identity), key=identity.key, run_id=run_id, begun=time.time())
    storage.write_json(path, asdict(record))
    return record


def finish(workdir: str, record: StageRecord, figures: Figures) -> None:
    """Record a stage's figures; from now on it can be skipped."""
    done = replace(record, finished=time.time(), figures=figures)
    storage.write_json(_path(workdir, record.stage, record.key), asdict(done))


def latest(workdir: str, stage: str) -> StageRecord | None:
    """The finished record of a stage that ended last."""
    return max(finished(workdir, stage), key=lambda record: record.finished or 0, default=None)


def finished(workdir: str, stage: str) -> list[StageRecord]:
    """All finished records of a stage."""
    files = storage.list_files(storage.join(workdir, "stages", stage))
    return [record for file in files if (record := _read(file.path)) and record.finished]


def require(workdir: str, stage: str) -> StageRecord:
    """Like ``latest``.

    Raises:
        UserError: the stage has not finished in this workdir yet.
    """
    record = latest(workdir, stage)
    if record is None:
        raise UserError(f"{workdir}: {stage} has not finished here; run pipelines/{stage}.py first")
    return record


def _fields(identity: StageKey) -> dict[str, Any]:
    return {
        "stage": identity.stage,
        "settings": dict(identity.settings),
        "inputs": dict(identity.inputs),
        "code": identity.code,
    }


def _difference(previous: StageRecord, identity: StageKey) -> str:
    """What has changed since a record, in words."""
    for kind, old, new in (
        ("setting", previous.settings, identity.settings),
        ("input", previous.inputs, identity.inputs),
    ):
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if changed:
            name = changed[0]
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"{kind} {name} changed from {old.get(name)} to {new.get(name)}{more}"
    assert previous.code != identity.code
    return "its code has changed"


def _path(workdir: str, stage: str, key: str) -> str:
    return storage.join(workdir, "stages", stage, f"{key}.json")


def _read(path: str) -> StageRecord | None:
    if not storage.is_file(path):
        return None
    try:
        return StageRecord(**storage.read_json(path))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a stage's record ({error}); delete it") from error
