"""Which stages have finished, and why a stage must run again.

A stage is identified by its settings, the digests of its inputs and the version of the code that
computes its result. When its work is done, a record of these and of its result is written to the
workdir; only then pictures and metrics are logged.
A stage whose record exists is skipped; otherwise the newest record of the stage tells what has
changed. A record of a stage that started and did not finish holds the MLflow run to resume.

``--force`` runs a stage anew, in a new MLflow run. If it is killed, the same command resumes it,
with ``--force`` or without.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from pipelines.console.interrupt import postponed_interrupts
from pipelines.console.lock import exclusive_lock
from pipelines.console.log import stage_logger
from pipelines.console.progress import duration
from pipelines.results.decorations import Decorated, Decorations, run_decorations
from pipelines.results.records import (
    StageKey,
    StageOutcome,
    difference,
    discarded,
    finish,
    finished_records,
    next_attempt,
    read_record,
    start,
)
from pipelines.results.stage_results import StageResult
from pipelines.settings import StageSettings
from pipelines.stage_keys.run_identity import identity_tags, recipe_of, run_name
from pipelines.tracking import server
from pipelines.tracking.run import (
    Run,
    active_run,
    code_span,
    open_run,
    run_status,
)
from pipelines.tracking.store import Store
from pipelines.workdir import Workdir

R = TypeVar("R", bound=StageResult)


class Parent(Protocol):
    """The full run that a stage is part of."""

    @property
    def forced_by(self) -> str | None:
        """The ID of its ``--force``; None without one."""

    def run_id(self) -> str:
        """The id of its MLflow run, which is created at the first call."""


def _nothing() -> None:
    """A stage whose unfinished work is not kept has nothing to discard."""


def find_reusable(
    workdir: Workdir, key: StageKey, kind: type[R], *, force: bool, usable: Callable[[R], bool]
) -> tuple[StageOutcome[R] | None, str]:
    """Whether a stage can be skipped.

    Args:
        workdir: that holds the records.
        key: of the stage as it would run now.
        kind: of the result.
        force: run it in any case.
        usable: whether the result of an earlier run still exists and is the same.

    Returns:
        The earlier outcome to use, or None, and the reason in words.
    """
    if force:
        return None, "--force"
    record = read_record(workdir, key)
    if record and record.finished:
        outcome = record.outcome(kind, workdir)
        if outcome and usable(outcome.result):
            done = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.finished))
            return outcome, f"unchanged since {done}"
        return None, "its result no longer exists or has changed"
    if record:
        return None, "resumes an earlier run that did not finish"
    previous = finished_records(workdir, key.stage)
    return None, difference(previous[-1].key, key) if previous else "first run"


def run_stage(
    settings: StageSettings,
    store: Store,
    key: StageKey,
    kind: type[R],
    *,
    parent: Parent | None,
    usable: Callable[[R], bool],
    work: Callable[[Run], R | Decorated[R]],
    discard: Callable[[], None] = _nothing,
    writes: str | None = None,
) -> StageOutcome[R]:
    """Do a stage's work inside an MLflow run, unless it has been done.

    Args:
        settings: of the stage; they become the run's parameters.
        store: where the run goes.
        key: of the stage as it would run now.
        kind: of the result.
        parent: the full run, if this stage is part of one.
        usable: whether the result of an earlier run still exists and is the same.
        work: computes the result, and resumes what an interrupted run has left; ``Decorated`` with
            what is logged about it afterwards.
        discard: deletes what earlier runs have left, for ``--force``.
        writes: the name of the lock of what the stage writes and other stages read.
    """
    workdir, log = Workdir(settings.workdir), stage_logger(key.stage)
    with exclusive_lock(workdir, key.stage, key.stage):
        attempt = next_attempt(
            read_record(workdir, key),
            force=settings.force,
            full_run=parent.forced_by if parent else None,
        )
        earlier, reason = find_reusable(workdir, key, kind, force=attempt.anew, usable=usable)
        status = run_status(store, earlier.run_id) if earlier else None
        if earlier and status:
            if status != "FINISHED":  # Its command ended after its result was recorded.
                with active_run(store, earlier.run_id) as run:
                    run_decorations(key.stage, _summary(run, earlier.result, earlier.seconds))
            log.info("skipped (%s)", reason)
            return replace(earlier, reason=reason)
        if earlier:
            reason = "its MLflow run no longer exists"
        log.info("running (%s)", reason)
        with exclusive_lock(workdir, writes, key.stage) if writes else contextlib.nullcontext():
            server.wait_for(store.uri)
            parent_id = parent.run_id() if parent else None
            with contextlib.ExitStack() as stack:
                with postponed_interrupts():
                    record = start(
                        workdir,
                        key,
                        lambda unfinished: open_run(
                            store,
                            key.stage,
                            resume=unfinished,
                            parent=parent_id,
                            name=run_name(key.stage, settings, key.inputs),
                        ),
                        attempt,
                    )
                    run = stack.enter_context(active_run(store, record.run_id))
                run.log_params(settings.model_dump(exclude={"tracking_uri", "force", "quiet"}))
                run.set_tags(
                    {"stage": key.stage, "stage.key": key.digest, "stage.reason": reason}
                    | identity_tags(key.inputs, key.code, recipe_of(settings))
                )
                if record.discard:
                    discard()
                    record = discarded(workdir, record)
                done = work(run)
                result, decorations = (
                    (done.result, done.decorations) if isinstance(done, Decorated) else (done, {})
                )
                seconds = round(time.time() - record.started, 1)
                finish(workdir, record, seconds, result)
                server.wait_for(store.uri)
                run_decorations(key.stage, {**_summary(run, result, seconds), **decorations})
        log.info("done in %s", duration(seconds))
        return StageOutcome(
            key=key,
            result=result,
            seconds=seconds,
            run_id=record.run_id,
            skipped=False,
            reason=reason,
        )


def _summary(run: Run, result: StageResult, seconds: float) -> Decorations:
    return {
        "the metrics": lambda: run.log_metrics(result.metrics() | {"seconds": seconds}),
        "the description": lambda: run.set_description(_description(result)),
    }


def _description(result: StageResult) -> str:
    """The result in Markdown: the first thing that the run's page shows."""
    words = []
    for name, value in result.to_json().items():
        if value is not None:
            words.append(f"{name.replace('_', ' ')} {code_span(_in_words(value))}")
    return " · ".join(words)


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and 0 < abs(value) < 0.001:
        return f"{value:.3g}"
    if isinstance(value, int | float):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value)
