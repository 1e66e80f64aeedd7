"""The whole workflow: preprocess, train, evaluate, promote.

A stage whose inputs, settings and code have not changed is skipped; after a crash the same
command resumes where it stopped. Without options it trains on an embedded sample of handwritten
digits, a few minutes on two cores.

    python pipelines/full_run.py
    ray job submit -- python pipelines/full_run.py
    python pipelines/full_run.py --preset ilsvrc2012 --source /data/ilsvrc2012 --workdir /data/work
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from alexnet import storage
from pipelines import evaluate, preprocess, promote, train
from pipelines.console.cli import run_script, show
from pipelines.console.interrupt import postponed_interrupts
from pipelines.console.log import stage_logger
from pipelines.console.output import terminal_columns
from pipelines.console.progress import duration
from pipelines.results.decorations import Decorations, run_decorations
from pipelines.results.records import (
    StageKey,
    StageOutcome,
    StageRecord,
    finish,
    next_attempt,
    read_record,
    start,
)
from pipelines.results.run_summary import as_markdown, summary_lines
from pipelines.results.stage_results import FullRunResult
from pipelines.settings import (
    EvaluateSettings,
    FullRunSettings,
    PreprocessSettings,
    PromoteSettings,
    StageName,
    TrainSettings,
)
from pipelines.stage_keys.run_identity import identity_tags, recipe_of, run_name
from pipelines.stages import Parent
from pipelines.tracking import server
from pipelines.tracking.run import Run, close_run, open_run
from pipelines.tracking.store import connect, require_server
from pipelines.workdir import Workdir

Outcomes = Mapping[StageName, StageOutcome[Any]]

STAGES: tuple[StageName, ...] = ("preprocess", "train", "evaluate", "promote")


def _run_stage(
    name: StageName, settings: FullRunSettings, parent: Parent, outcomes: Outcomes
) -> StageOutcome[Any]:
    """Run a stage on the outcomes of the stages before it, as far as they are part of this run."""
    preprocessed, trained = outcomes.get("preprocess"), outcomes.get("train")
    match name:
        case "preprocess":
            return preprocess.run(settings.part(PreprocessSettings), parent)
        case "train":
            return train.run(settings.part(TrainSettings), parent, preprocessed)
        case "evaluate":
            return evaluate.run(settings.part(EvaluateSettings), parent, preprocessed, trained)
        case "promote":
            return promote.run(settings.part(PromoteSettings), parent, outcomes.get("evaluate"))


def run(settings: FullRunSettings) -> FullRunResult:
    """Run the chosen stages, each in an MLflow run nested in one for all."""
    started = time.monotonic()
    storage.make_folder(settings.workdir)
    server.check_reachable(settings.tracking_uri)
    outcomes: dict[StageName, StageOutcome[Any]] = {}
    with _parent_run(settings, outcomes) as parent:
        for name in _chosen(settings):
            outcomes[name] = _run_stage(name, settings, parent, outcomes)
    seconds = time.monotonic() - started
    log = stage_logger("full_run")
    log.info("done in %s", duration(seconds))
    show(settings, summary_lines(outcomes.values(), terminal_columns(sys.stdout)))
    store = connect(settings)
    log.info("to look at the runs:")
    log.info("  %s", store.ui_command())
    log.info("  %s", store.runs_address())
    return _result(settings, outcomes, seconds)


def _result(settings: FullRunSettings, outcomes: Outcomes, seconds: float) -> FullRunResult:
    preprocessed, trained = outcomes.get("preprocess"), outcomes.get("train")
    return FullRunResult(
        images=preprocessed.result.images if preprocessed else None,
        rejected=preprocessed.result.rejected if preprocessed else None,
        images_per_second=trained.result.images_per_second if trained else None,
        seconds=round(seconds, 1),
        workdir=settings.workdir,
        skipped=[name for name, outcome in outcomes.items() if outcome.skipped],
        stages={name: outcome.to_json() for name, outcome in outcomes.items()},
    )


def _chosen(settings: FullRunSettings) -> list[StageName]:
    names = list(STAGES)
    if settings.only:
        return [settings.only]
    return names[names.index(settings.from_) :] if settings.from_ else names


class _ParentRun:
    """The MLflow run of the full run; created or resumed at the first request for its id."""

    def __init__(self, settings: FullRunSettings) -> None:
        self.workdir = Workdir(settings.workdir)
        self.opened: tuple[Run, StageRecord] | None = None
        self._settings = settings
        source = settings.source
        self._key = StageKey(
            stage="full_run",
            settings=settings.results(),
            inputs={
                "source": self.workdir.relative(source) if source else settings.preset or "",
                "stages": " ".join(_chosen(settings)),
            },
            code="",
        )
        unfinished = read_record(self.workdir, self._key)
        self.is_unfinished = unfinished is not None and not unfinished.finished
        self._attempt = next_attempt(unfinished, force=settings.force)

    @property
    def forced_by(self) -> str | None:
        """The ID of the ``--force`` that the stages belong to; None without one."""
        return self._attempt.forced_by

    def run_id(self) -> str:
        """The run's id."""
        if self.opened is None:
            store = connect(self._settings)
            with postponed_interrupts():
                record = start(
                    self.workdir,
                    self._key,
                    lambda unfinished: open_run(
                        store,
                        "full_run",
                        resume=unfinished,
                        parent=None,
                        name=run_name("full_run", self._settings, self._key.inputs),
                    ),
                    self._attempt,
                )
                self.opened = Run(store, record.run_id), record
        return self.opened[0].run_id


@contextmanager
def _parent_run(settings: FullRunSettings, outcomes: Outcomes) -> Iterator[Parent]:
    """The run that the stages' runs are nested in.

    Nothing is recorded if no stage requests it: if all are skipped. A full run that did not
    finish is resumed, and finished even if all stages are skipped now.
    """
    parent = _ParentRun(settings)
    started = time.monotonic()
    try:
        yield parent
        if parent.is_unfinished:
            parent.run_id()
    except BaseException as error:
        if parent.opened:
            run, _ = parent.opened
            close_run(run.store, run.run_id, error)
        raise
    if parent.opened:
        run, record = parent.opened
        with require_server(run.store.uri):
            run_decorations("full_run", _decorations(run, settings, outcomes))
        close_run(run.store, run.run_id, None)
        finish(parent.workdir, record, time.monotonic() - started, None)


def _decorations(run: Run, settings: FullRunSettings, outcomes: Outcomes) -> Decorations:
    excluded = {"tracking_uri", "force", "quiet", "only", "from_"}
    tags = {f"run.{name}": outcome.run_id for name, outcome in outcomes.items()}
    preprocessed = outcomes.get("preprocess")
    inputs = {"shards": preprocessed.result.content[:16]} if preprocessed else {}
    tags |= identity_tags(inputs, "", recipe_of(settings))
    return {
        "the parameters": lambda: run.log_params(settings.model_dump(exclude=excluded)),
        "the tags": lambda: run.set_tags(tags),
        "the metrics": lambda: run.log_metrics(_summary(outcomes)),
        "the description": lambda: run.set_description(as_markdown(outcomes.values())),
    }


SUMMARY_METRICS: Mapping[StageName, tuple[str, ...]] = {
    "train": ("train_loss", "images_per_second"),
    "evaluate": ("top1_error", "top5_error", "centre_top1_error", "centre_top5_error"),
    "promote": ("champion",),
}
"""Fields of the stages' results by which full runs are compared."""


def _summary(outcomes: Outcomes) -> dict[str, float]:
    return {
        field: float(value)
        for name, fields in SUMMARY_METRICS.items()
        if name in outcomes
        for field in fields
        if (value := getattr(outcomes[name].result, field)) is not None
    }


def main() -> NoReturn:
    """The command."""
    run_script(FullRunSettings, run, __doc__)


if __name__ == "__main__":
    main()
