"""The whole workflow: preprocess, train, evaluate, promote.

A stage whose inputs, settings and code have not changed is skipped; after a crash the same
command goes on where it stopped. Without options it trains on an embedded sample of handwritten
digits, a few minutes on two cores.

    python pipelines/full_run.py
    ray job submit -- python pipelines/full_run.py
    python pipelines/full_run.py --preset ilsvrc2012 --source /data/ilsvrc2012 --workdir /data/work
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from alexnet import storage
from pipelines import evaluate, preprocess, promote, train
from pipelines.console.cli import run_script
from pipelines.console.progress import duration
from pipelines.settings import (
    EvaluateSettings,
    FullRunSettings,
    PreprocessSettings,
    PromoteSettings,
    StageName,
    TrainSettings,
)
from pipelines.stages import Figures, Outcome, Parent, StageKey, StageRecord, begin, finish
from pipelines.tracking import server
from pipelines.tracking.run import Run, close_run, open_run
from pipelines.tracking.store import Store, connect, require_server

STAGES: Mapping[StageName, Callable[[FullRunSettings, Parent], Outcome]] = {
    "preprocess": lambda s, parent: preprocess.run(s.part(PreprocessSettings), parent),
    "train": lambda s, parent: train.run(s.part(TrainSettings), parent),
    "evaluate": lambda s, parent: evaluate.run(s.part(EvaluateSettings), parent),
    "promote": lambda s, parent: promote.run(s.part(PromoteSettings), parent),
}


def run(settings: FullRunSettings) -> Figures:
    """Run the chosen stages, each in an MLflow run nested in one for all."""
    begun = time.monotonic()
    storage.make_folder(settings.workdir)
    server.check_reachable(settings.tracking_uri)
    outcomes: dict[StageName, Outcome] = {}
    with _parent_run(settings, outcomes) as parent:
        for name in _chosen(settings):
            outcomes[name] = STAGES[name](settings, parent)
    seconds = time.monotonic() - begun
    print(f"full_run: done in {duration(seconds)}. To look at the runs:", flush=True)
    print(f"  {connect(settings).ui_command()}", flush=True)
    stages = {name: outcome.figures for name, outcome in outcomes.items()}
    counted = {
        key: stages[name][key]
        for name, key in (
            ("preprocess", "images"),
            ("preprocess", "rejected"),
            ("train", "images_per_second"),
        )
        if name in stages
    }
    return {
        "stage": "full_run",
        **counted,
        "seconds": round(seconds, 1),
        "workdir": settings.workdir,
        "skipped": [name for name, outcome in outcomes.items() if outcome.skipped],
        "stages": stages,
    }


def _chosen(settings: FullRunSettings) -> list[StageName]:
    names = list(STAGES)
    if settings.only:
        return [settings.only]
    return names[names.index(settings.from_) :] if settings.from_ else names


@contextmanager
def _parent_run(
    settings: FullRunSettings, outcomes: Mapping[StageName, Outcome]
) -> Iterator[Parent]:
    """The run that the stages' runs are nested in.

    It is opened when the first stage asks for it, so that doing nothing leaves no trace. A full
    run that did not finish is gone on with.
    """
    identity = StageKey(stage="full_run", settings=settings.results(), inputs={}, code="")
    opened: list[tuple[Store, StageRecord]] = []

    def parent() -> str:
        if not opened:
            store = connect(settings)
            record = begin(
                settings.workdir,
                identity,
                lambda old: open_run(store, "full_run", resume=old, parent=None),
            )
            opened.append((store, record))
        return opened[0][1].run_id

    try:
        yield parent
    except BaseException as error:
        for store, record in opened:
            close_run(store, record.run_id, error)
        raise
    for store, record in opened:
        with require_server(store.uri):
            run = Run(store, record.run_id)
            run.log_params(settings.model_dump(exclude={"tracking_uri", "force", "only", "from_"}))
            run.set_tags({f"run.{name}": outcome.run_id for name, outcome in outcomes.items()})
            run.log_metrics(_summary(outcomes))
            run.set_description(_note(outcomes))
        close_run(store, record.run_id, None)
        finish(settings.workdir, record, {})


def _summary(outcomes: Mapping[StageName, Outcome]) -> dict[str, float]:
    """The figures by which one compares full runs."""
    chosen = {
        "train": ("train_loss", "images_per_second"),
        "evaluate": ("top1_error", "top5_error", "centre_top1_error", "centre_top5_error"),
        "promote": ("champion",),
    }
    return {
        key: float(outcomes[name].figures[key])  # type: ignore[index]
        for name, keys in chosen.items()
        if name in outcomes
        for key in keys
    }


def _note(outcomes: Mapping[StageName, Outcome]) -> str:
    """What happened, as the first thing that the run's page says."""
    lines = ["| stage | what happened | figures |", "| --- | --- | --- |"]
    for name, outcome in outcomes.items():
        happened = "skipped, nothing changed" if outcome.skipped else "ran"
        plain = {
            key: value
            for key, value in outcome.figures.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        figures = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in plain.items())
        lines.append(f"| {name} | {happened} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(FullRunSettings, run, __doc__)
