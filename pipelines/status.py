"""Which stages are fresh, stale and why, or running and by whom.

Reads records, manifests and the workdir's MLflow file, no data; writes nothing and waits for
nobody, so it can be used at any time and in a read-only workdir. A stage is fresh if the same
command on the newest result of the stage before it would be skipped. The files of the source are
not looked at, and neither are the runs and aliases of an MLflow server: the commands check them.
Exit status 0 if all stages are fresh, 1 if not.

    alexnet status --workdir /data/work
    alexnet status --workdir /data/work --json
"""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from alexnet import storage
from alexnet.errors import UserError
from alexnet.provenance import code_version
from alexnet.shards.manifest import Manifest
from pipelines.configuration.command_settings import StatusSettings
from pipelines.console.cli import CheckFailedError, run_script, show
from pipelines.console.lock import Holder, holders
from pipelines.console.table import table
from pipelines.results.command_results import StageStatus, StatusResult
from pipelines.results.datasets import holds_content, readable_manifest
from pipelines.results.records import (
    StageHistory,
    StageKey,
    StageOutcome,
    StageRecord,
    difference,
    history,
)
from pipelines.results.stage_results import (
    EvaluateResult,
    PreprocessResult,
    PromoteResult,
    StageResult,
    TrainResult,
)
from pipelines.settings import PreprocessSettings, PromoteSettings, Settings, TrainSettings
from pipelines.stage_keys.stage_code import BOUNDARY, CODE, RULES_VERSION
from pipelines.stage_keys.stage_inputs import evaluate_inputs, promote_inputs, train_inputs
from pipelines.tracking.database_reader import DatabaseReader, read_database
from pipelines.workdir import Workdir


@dataclass(frozen=True, slots=True)
class _Stage:
    """What a stage's records are compared with."""

    result: type[StageResult]
    settings: type[Settings] | None
    """Whose settings are in its key; None if none are."""


_STAGES = {
    "preprocess": _Stage(PreprocessResult, PreprocessSettings),
    "train": _Stage(TrainResult, TrainSettings),
    "evaluate": _Stage(EvaluateResult, None),
    "promote": _Stage(PromoteResult, PromoteSettings),
}


def run(settings: StatusSettings) -> StatusResult:
    """Look at all stages of a workdir.

    Raises:
        UserError: there is no such workdir.
        CheckFailedError: a stage is not fresh.
    """
    workdir = Workdir(settings.workdir)
    if not storage.is_folder(workdir.path):
        raise UserError(f"{workdir.path}: no such folder; check --workdir")
    running = list(_running(workdir))
    if settings.tracking_uri:
        store_checked, stages = False, look_at_stages(workdir, None, running)
    else:
        try:
            with read_database(workdir) as database:
                store_checked = database is not None
                stages = look_at_stages(workdir, database, running)
        except sqlite3.Error as error:
            raise UserError(
                f"{workdir.database}: can't be read ({error}); restore this file or move it away"
            ) from error
    result = StatusResult(
        workdir=workdir.path,
        fresh=all(stage.state == "fresh" for stage in stages),
        store_checked=store_checked,
        running=[holder.in_words() for holder in running],
        stages=stages,
    )
    if not settings.json_:
        show(settings, in_words(result))
    if not result.fresh:
        names = ", ".join(
            f"{stage.stage} ({stage.state})" for stage in stages if stage.state != "fresh"
        )
        raise CheckFailedError(f"not fresh: {names}", result)
    return result


def in_words(result: StatusResult) -> list[str]:
    """The stages as a table for the terminal."""
    lines = table(
        ["stage", "state", "why"],
        [[stage.stage, stage.state, stage.reason] for stage in result.stages],
    )
    return lines + [f"running: {words}" for words in result.running]


def _running(workdir: Workdir) -> Iterator[Holder]:
    """The commands that hold locks, each once."""
    if storage.is_remote(workdir.path):
        return
    seen = set()
    for name in storage.list_folders(workdir.locks) if storage.is_folder(workdir.locks) else ():
        for holder in holders(storage.join(workdir.locks, name)):
            if (holder.stage, holder.host, holder.pid) not in seen:
                seen.add((holder.stage, holder.host, holder.pid))
                yield holder


def look_at_stages(
    workdir: Workdir, database: DatabaseReader | None, running: list[Holder]
) -> list[StageStatus]:
    """The status of each stage, in the order of the workflow.

    Args:
        workdir: that holds the records.
        database: MLflow's; without one, nothing that is in MLflow is checked.
        running: the commands that hold locks.
    """
    newest: dict[str, StageOutcome[Any]] = {}
    found = []
    for stage, kind in _STAGES.items():
        past = history(workdir, stage)
        manifest = _manifest(newest)
        inputs = _inputs(stage, newest, manifest)
        status, outcome = _finished(workdir, database, stage, kind, past, inputs)
        if outcome:
            newest[stage] = outcome
        holder = next((each for each in running if each.stage == stage), None)
        if holder:
            status = StageStatus(stage=stage, state="running", reason=f"by {holder.in_words()}")
        elif unfinished := _unfinished(past):
            status = unfinished
        found.append(status)
    return found


def _manifest(newest: Mapping[str, StageOutcome[Any]]) -> Manifest | None:
    outcome = newest.get("preprocess")
    return readable_manifest(outcome.result.shards) if outcome else None


def _inputs(
    stage: str, newest: Mapping[str, StageOutcome[Any]], manifest: Manifest | None
) -> Mapping[str, str] | None:
    """What the stage would read now; None if it does not exist or is not looked at."""
    if stage == "train" and manifest:
        return train_inputs(manifest)
    if stage == "evaluate" and manifest and "train" in newest:
        return evaluate_inputs([newest["train"].result.model], manifest)
    if stage == "promote" and "evaluate" in newest:
        return promote_inputs(newest["evaluate"])
    return None


def _finished(
    workdir: Workdir,
    database: DatabaseReader | None,
    stage: str,
    kind: _Stage,
    past: StageHistory,
    inputs: Mapping[str, str] | None,
) -> tuple[StageStatus, StageOutcome[Any] | None]:
    """The newest result that is fresh; else the newest one, and why it is stale."""
    newest: tuple[StageStatus, StageOutcome[Any]] | None = None
    for record in reversed(past.finished):
        outcome = record.outcome(kind.result, workdir)
        if outcome is None:
            continue
        reason = _why_stale(database, record, outcome, kind, inputs)
        status = StageStatus(
            stage=stage,
            state="stale" if reason else "fresh",
            reason=reason or f"finished on {_date(record.finished)}",
            key=record.key.digest,
            run_id=record.run_id,
        )
        if not reason:
            return status, outcome
        newest = newest or (status, outcome)
    if newest:
        return newest
    others = past.unreadable + len(past.finished)
    reason = (
        f"{others} records are damaged or of another version of this project: the stage runs "
        "again once"
        if others
        else ""
    )
    return StageStatus(stage=stage, state="never run", reason=reason), None


def _why_stale(
    database: DatabaseReader | None,
    record: StageRecord,
    outcome: StageOutcome[Any],
    kind: _Stage,
    inputs: Mapping[str, str] | None,
) -> str:
    """Why the stage would run again with the same settings; empty if it would be skipped."""
    stage, result = record.key.stage, outcome.result
    expected = StageKey(
        stage=stage,
        settings=_present_settings(record.key.settings, kind),
        inputs=record.key.inputs if inputs is None else inputs,
        code=RULES_VERSION if stage == "promote" else code_version(CODE[stage], boundary=BOUNDARY),
    )
    if expected.digest != record.key.digest:
        return difference(record.key, expected)
    if not _exists(result):
        return "its result no longer exists or has changed"
    if database is None:
        return ""
    if isinstance(result, TrainResult) and not database.has_model(result.model):
        return "its model no longer exists in MLflow"
    if isinstance(result, PromoteResult):
        for alias, number in (
            ("candidate", result.version),
            ("champion", result.champion_version),
        ):
            now = database.by_alias(result.registered_model, alias)
            if now != number:
                was = f"version {number}" if number else "none"
                return (
                    f"the alias {alias} points to {f'version {now}' if now else 'none'}, not {was}"
                )
    return "" if database.has_run(record.run_id) else "its MLflow run no longer exists"


def _present_settings(recorded: Mapping[str, Any], kind: _Stage) -> Mapping[str, Any]:
    """The recorded settings as this version of the project has them."""
    if kind.settings is None:
        return recorded
    return {
        name: recorded.get(name, default) for name, default in kind.settings().results().items()
    }


def _exists(result: StageResult) -> bool:
    """Whether the result's files exist, and those of a data set are the same."""
    if isinstance(result, PreprocessResult):
        return holds_content(result.shards, result.content)
    return not isinstance(result, EvaluateResult) or storage.is_file(result.predictions)


def _unfinished(past: StageHistory) -> StageStatus | None:
    """The run that was interrupted after the newest one that finished."""
    if not past.unfinished:
        return None
    record = past.unfinished[-1]
    if past.finished and (past.finished[-1].finished or 0) > record.started:
        return None
    return StageStatus(
        stage=record.key.stage,
        state="unfinished",
        reason=f"started on {_date(record.started)}; the same command resumes it",
        key=record.key.digest,
        run_id=record.run_id,
    )


def _date(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def main() -> NoReturn:
    """The command."""
    run_script(StatusSettings, run, __doc__)


if __name__ == "__main__":
    main()
