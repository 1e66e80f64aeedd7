"""Skipped or run: keys, records, reasons, outcomes."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import pytest

from alexnet.errors import UserError
from pipelines.results import PreprocessResult, StageResult, TrainResult
from pipelines.settings import StageSettings
from pipelines.stages import (
    RECORD_FORMAT,
    StageKey,
    StageRecord,
    find_reusable,
    finish,
    latest,
    require,
    run_stage,
    start,
)
from pipelines.tracking.run import Run
from pipelines.tracking.store import connect
from pipelines.workdir import Workdir

KEY = StageKey(
    stage="train",
    settings={"epochs": 4, "seed": 0},
    inputs={"shards": "abc"},
    code="c0de",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(StageResult):
    """A result that is quickly computed."""

    stage = "train"
    has_curves = frozenset({"loss"})

    loss: float = 1.5
    images: int = 12000
    seconds_each: float = 0.25
    models: list[str] = field(default_factory=lambda: ["m-1", "m-2"])
    complete: bool = True


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    return Workdir(str(tmp_path))


def complete(workdir: Workdir, key: StageKey, run_id: str = "run") -> None:
    record = start(workdir, key, lambda unfinished: unfinished or run_id)
    finish(workdir, record, 2.5, {"loss": 1.5})


def reason(workdir: Workdir, key: StageKey, *, force: bool = False, usable: bool = True) -> str:
    return find_reusable(workdir, key, force=force, usable=lambda record: usable)[1]


def reusable(workdir: Workdir, key: StageKey) -> StageRecord | None:
    return find_reusable(workdir, key, force=False, usable=lambda record: True)[0]


def test_a_finished_stage_is_skipped(workdir: Workdir) -> None:
    assert reason(workdir, KEY) == "it has not run yet"
    complete(workdir, KEY)
    record, why = find_reusable(workdir, KEY, force=False, usable=lambda record: True)
    assert record is not None
    assert (record.key, record.seconds, record.result) == (KEY, 2.5, {"loss": 1.5})
    assert why.startswith("nothing has changed since it ran on ")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (replace(KEY, settings={"epochs": 5, "seed": 0}), "setting epochs changed from 4 to 5"),
        (
            replace(KEY, settings={"epochs": 5, "seed": 1}),
            "setting epochs changed from 4 to 5 and 1 more",
        ),
        (replace(KEY, inputs={"shards": "xyz"}), "input shards changed from abc to xyz"),
        (replace(KEY, code="beef"), "its code has changed"),
    ],
)
def test_the_reason_names_what_has_changed(workdir: Workdir, key: StageKey, words: str) -> None:
    complete(workdir, KEY)
    assert key.digest != KEY.digest
    assert reason(workdir, key) == words


def test_the_digest_does_not_depend_on_the_order_of_settings() -> None:
    assert replace(KEY, settings={"seed": 0, "epochs": 4}).digest == KEY.digest
    assert len(KEY.digest) == 16


def test_a_return_to_earlier_settings_reuses_the_earlier_result(workdir: Workdir) -> None:
    other = replace(KEY, settings={"epochs": 5, "seed": 0})
    complete(workdir, KEY)
    complete(workdir, other)
    assert latest(workdir, "train") == reusable(workdir, other)
    assert reusable(workdir, KEY) is not None


def test_forced_stages_and_lost_results_run_again(workdir: Workdir) -> None:
    complete(workdir, KEY)
    assert reason(workdir, KEY, force=True) == "--force"
    assert reason(workdir, KEY, usable=False) == "its result no longer exists"


def test_an_unfinished_stage_resumes_its_run(workdir: Workdir) -> None:
    start(workdir, KEY, lambda unfinished: "first")
    assert reason(workdir, KEY) == "it started and did not finish"
    assert start(workdir, KEY, lambda unfinished: unfinished or "second").run_id == "first"
    assert latest(workdir, "train") is None
    complete(workdir, KEY)
    assert start(workdir, KEY, lambda unfinished: unfinished or "third").run_id == "third"


def test_records_of_another_format_are_passed_over(workdir: Workdir) -> None:
    complete(workdir, KEY)
    path = Path(workdir.record("train", KEY.digest))
    record = json.loads(path.read_text())
    assert record["format"] == RECORD_FORMAT
    older = {name: value for name, value in record.items() if name != "format"}
    for other in (older, record | {"format": RECORD_FORMAT + 1}, {"format": 1, "figures": {}}):
        path.write_text(json.dumps(other))
        assert reusable(workdir, KEY) is None
        assert reason(workdir, KEY) == "it has not run yet"
        assert latest(workdir, "train") is None
    with pytest.raises(UserError, match="train has not finished here"):
        require(workdir, TrainResult)
    complete(workdir, KEY)
    assert reusable(workdir, KEY) is not None


def test_a_stage_that_is_run_and_then_skipped(
    mlflow_workdir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = StageSettings(workdir=mlflow_workdir)
    store = connect(settings)

    def work(run: Run) -> Result:
        run.log_metrics({"loss": 7.0})
        return Result()

    def no_work(_: Run) -> NoReturn:
        raise AssertionError("a finished stage is skipped")

    first = run_stage(settings, store, KEY, Result, parent=None, usable=lambda _: True, work=work)
    assert (first.key, first.result, first.skipped) == (KEY, Result(), False)
    assert first.seconds >= 0
    run = store.client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    # ``has_curves``: the curve's last point stays the metric's value.
    assert run.data.metrics == {
        "loss": 7.0,
        "images": 12000.0,
        "seconds_each": 0.25,
        "complete": 1.0,
        "seconds": first.seconds,
    }
    assert run.data.params["seed"] == "0"
    assert run.data.tags["stage"] == "train"
    assert run.data.tags["stage.key"] == KEY.digest
    assert run.data.tags["stage.reason"] == "it has not run yet"
    assert run.data.tags["mlflow.note.content"] == (
        "stage `train` · loss `1.5` · images `12,000` · seconds each `0.25` · models `m-1, m-2` · "
        "complete `True`"
    )

    again = run_stage(
        settings, store, KEY, Result, parent=None, usable=lambda _: True, work=no_work
    )
    assert again == replace(first, skipped=True)
    assert again.to_json() == first.to_json() | {"skipped": True}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: running, it has not run yet"
    assert lines[1].startswith("train: done in ")
    assert lines[2].startswith("train: skipped, nothing has changed since it ran on ")
    assert len(lines) == 3

    lost = run_stage(settings, store, KEY, Result, parent=None, usable=lambda _: False, work=work)
    assert (lost.skipped, lost.run_id == first.run_id) == (False, False)


def test_a_failed_stage_is_not_recorded_as_finished(mlflow_workdir: str) -> None:
    settings, workdir = StageSettings(workdir=mlflow_workdir), Workdir(mlflow_workdir)
    store = connect(settings)

    def fail(_: Run) -> NoReturn:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        run_stage(settings, store, KEY, Result, parent=None, usable=lambda _: True, work=fail)
    assert latest(workdir, "train") is None
    assert reason(workdir, KEY) == "it started and did not finish"


def test_the_outcome_of_the_stage_that_finished_last(workdir: Workdir) -> None:
    values = {
        "images": 51,
        "train_images": 39,
        "val_images": 12,
        "classes": 4,
        "rejected": 1,
        "shards_made": 5,
        "shards_kept": 0,
        "images_per_second": 20.5,
        "bytes": 123456,
        "digest": "abc",
        "shards": "/work/shards/abc",
    }
    key = replace(KEY, stage="preprocess")
    record = start(workdir, key, lambda _: "run")
    finish(workdir, record, 3.5, values)
    outcome = require(workdir, PreprocessResult)
    assert outcome.result == PreprocessResult(**values)  # type: ignore[arg-type]
    assert (outcome.key, outcome.run_id) == (key, "run")
    assert (outcome.seconds, outcome.skipped) == (3.5, True)


def test_a_stage_that_is_needed_is_named(workdir: Workdir) -> None:
    with pytest.raises(UserError, match=r"preprocess has not finished.*pipelines/preprocess\.py"):
        require(workdir, PreprocessResult)


def test_a_result_with_other_fields_is_an_error_with_a_remedy(workdir: Workdir) -> None:
    complete(workdir, KEY)
    with pytest.raises(UserError, match=rf"record {KEY.digest} of train .* with --force"):
        require(workdir, TrainResult)


@pytest.mark.parametrize("text", ["{", "[]", f'{{"format": {RECORD_FORMAT}}}'])
def test_a_damaged_record_is_named(workdir: Workdir, text: str) -> None:
    complete(workdir, KEY)
    path = workdir.record("train", KEY.digest)
    Path(path).write_text(text)
    with pytest.raises(UserError, match=f"{path}: not a stage's record"):
        latest(workdir, "train")
