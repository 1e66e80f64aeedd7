"""Skipped or run: keys, records, reasons, outcomes."""

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from alexnet.errors import UserError
from pipelines.results.decorations import Decorated
from pipelines.results.records import (
    RECORD_FORMAT,
    StageKey,
    StageOutcome,
    finish,
    finished_records,
    newest,
    start,
)
from pipelines.results.stage_results import PreprocessResult, StageResult, TrainResult
from pipelines.settings import StageSettings
from pipelines.stages import find_reusable, run_stage
from pipelines.tracking.run import Run, code_span
from pipelines.tracking.store import Store, connect
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
    rate: float | None = 1e-05
    version: str | None = None


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    return Workdir(str(tmp_path))


def complete(workdir: Workdir, key: StageKey, run_id: str = "run") -> None:
    record = start(workdir, key, lambda unfinished: unfinished or run_id)
    finish(workdir, record, 2.5, Result())


def reason(workdir: Workdir, key: StageKey, *, force: bool = False, usable: bool = True) -> str:
    return find_reusable(workdir, key, Result, force=force, usable=lambda _: usable)[1]


def reusable(workdir: Workdir, key: StageKey) -> StageOutcome[Result] | None:
    return find_reusable(workdir, key, Result, force=False, usable=lambda _: True)[0]


def test_a_finished_stage_is_skipped(workdir: Workdir) -> None:
    assert reason(workdir, KEY) == "first run"
    complete(workdir, KEY)
    outcome, why = find_reusable(workdir, KEY, Result, force=False, usable=lambda _: True)
    assert outcome is not None
    assert (outcome.key, outcome.seconds, outcome.result) == (KEY, 2.5, Result())
    assert outcome.skipped
    assert why.startswith("unchanged since ")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (replace(KEY, settings={"epochs": 5, "seed": 0}), "setting epochs changed from 4 to 5"),
        (
            replace(KEY, settings={"epochs": 5, "seed": 1}),
            "setting epochs changed from 4 to 5 and 1 more",
        ),
        (
            replace(KEY, settings={**KEY.settings, "compile": True}),
            "setting compile changed from None to on",
        ),
        (
            replace(KEY, settings={**KEY.settings, "lr_drops": [3, 5]}),
            "setting lr_drops changed from None to 3 5",
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
    assert [record.key for record in finished_records(workdir, "train")] == [KEY, other]
    assert reusable(workdir, KEY) is not None


def test_forced_stages_and_lost_results_run_again(workdir: Workdir) -> None:
    complete(workdir, KEY)
    assert reason(workdir, KEY, force=True) == "--force"
    assert reason(workdir, KEY, usable=False) == "its result no longer exists or has changed"


def test_an_unfinished_stage_resumes_its_run(workdir: Workdir) -> None:
    start(workdir, KEY, lambda unfinished: "first")
    assert reason(workdir, KEY) == "resumes an earlier run that did not finish"
    assert start(workdir, KEY, lambda unfinished: unfinished or "second").run_id == "first"
    assert not finished_records(workdir, "train")
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
        assert reason(workdir, KEY) == "first run"
        assert not finished_records(workdir, "train")
    with pytest.raises(UserError, match="train has not finished here"):
        newest(workdir, TrainResult, "evaluate")
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
        "rate": 1e-05,
        "seconds": first.seconds,
    }
    assert run.data.params["seed"] == "0"
    assert run.data.tags["stage"] == "train"
    assert run.data.tags["stage.key"] == KEY.digest
    assert run.data.tags["stage.reason"] == "first run"
    assert run.data.tags["mlflow.note.content"] == (
        "stage `train` · loss `1.5` · images `12,000` · seconds each `0.25` · models `m-1, m-2` · "
        "complete `yes` · rate `1e-05`"
    )

    again = run_stage(
        settings, store, KEY, Result, parent=None, usable=lambda _: True, work=no_work
    )
    assert again == replace(first, skipped=True)
    assert again.to_json() == first.to_json() | {"skipped": True}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: running (first run)"
    assert lines[1].startswith("train: done in ")
    assert lines[2].startswith("train: skipped (unchanged since ")
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
    assert not finished_records(workdir, "train")
    assert reason(workdir, KEY) == "resumes an earlier run that did not finish"


def preprocess_result(workdir: Workdir, images: int) -> PreprocessResult:
    return PreprocessResult(
        images=images,
        train_images=39,
        val_images=12,
        classes=4,
        rejected=1,
        shards_made=5,
        shards_kept=0,
        images_per_second=20.5,
        bytes=123456,
        digest="abc",
        shards=workdir.shards("abc"),
        content="def",
    )


def test_the_outcome_of_the_stage_that_finished_last(
    workdir: Workdir, capsys: pytest.CaptureFixture[str]
) -> None:
    key = replace(KEY, stage="preprocess")
    for number in range(3):
        record = start(workdir, replace(key, settings={"seed": number}), lambda _: "run")
        finish(workdir, record, 3.5, preprocess_result(workdir, number))
    outcome = newest(workdir, PreprocessResult, "train")
    assert outcome.result == preprocess_result(workdir, 2)
    assert (outcome.key.settings, outcome.run_id) == ({"seed": 2}, "run")
    assert (outcome.seconds, outcome.skipped) == (3.5, True)
    line = capsys.readouterr().out
    assert line.startswith(f"train: using the newest result of preprocess: {outcome.key.digest}, ")


def test_paths_in_records_are_relative_to_the_workdir(workdir: Workdir, tmp_path: Path) -> None:
    key = replace(KEY, stage="preprocess")
    finish(workdir, start(workdir, key, lambda _: "run"), 1.0, preprocess_result(workdir, 1))
    text = Path(workdir.record("preprocess", key.digest)).read_text()
    assert json.loads(text)["result"]["shards"] == "shards/abc"
    assert str(tmp_path) not in text


def test_a_stage_that_is_needed_is_named(workdir: Workdir) -> None:
    with pytest.raises(UserError, match=r"preprocess has not finished.*pipelines/preprocess\.py"):
        newest(workdir, PreprocessResult, "train")


def test_a_result_with_other_fields_is_passed_over(workdir: Workdir) -> None:
    complete(workdir, KEY)
    with pytest.raises(UserError, match="train has not finished here"):
        newest(workdir, TrainResult, "evaluate")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 3}', ""])
def test_a_damaged_record_is_passed_over(workdir: Workdir, text: str) -> None:
    complete(workdir, KEY)
    Path(workdir.record("train", KEY.digest)).write_text(text)
    assert not finished_records(workdir, "train")
    assert reason(workdir, KEY) == "first run"
    complete(workdir, KEY)
    assert reusable(workdir, KEY) is not None


def finished_run(settings: StageSettings, store: Store, work: Callable[[Run], Any]) -> str:
    """Run the stage and then skip it; returns the id of its MLflow run."""

    def no_work(_: Run) -> NoReturn:
        raise AssertionError("a stage whose result is recorded is skipped")

    with contextlib.suppress(KeyboardInterrupt):
        run_stage(settings, store, KEY, Result, parent=None, usable=lambda _: True, work=work)
    second = run_stage(
        settings, store, KEY, Result, parent=None, usable=lambda _: True, work=no_work
    )
    assert (second.skipped, second.result) == (True, Result())
    return second.run_id


def test_the_record_is_final_before_anything_is_logged_about_it(
    mlflow_workdir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, workdir = StageSettings(workdir=mlflow_workdir), Workdir(mlflow_workdir)
    store = connect(settings)
    seen: list[str] = []

    def draw() -> None:
        assert finished_records(workdir, "train")
        seen.append("drawn")
        raise ValueError("a formula\nwithout end")

    def work(_: Run) -> Decorated[Result]:
        return Decorated(Result(), {"a.png": draw, "b.png": lambda: seen.append("b.png")})

    run_id = finished_run(settings, store, work)
    assert seen == ["drawn", "b.png"]
    warnings = [line for line in capsys.readouterr().out.splitlines() if "could not" in line]
    assert warnings == [
        "train: a.png could not be logged (a formula without end); the result is complete without"
    ]
    run = store.client.get_run(run_id)
    assert (run.info.status, run.data.metrics["images"]) == ("FINISHED", 12000.0)


@pytest.mark.parametrize("interrupted", ["log_metrics", "set_description"])
def test_an_interrupt_after_the_record_costs_no_work(
    mlflow_workdir: str, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    """Ctrl-C ends the command; the next one logs the metrics and the description."""
    settings = StageSettings(workdir=mlflow_workdir)
    store = connect(settings)
    original = getattr(Run, interrupted)

    def work(_: Run) -> Result:
        def interrupt(*_: object) -> NoReturn:
            monkeypatch.setattr(Run, interrupted, original)
            raise KeyboardInterrupt

        monkeypatch.setattr(Run, interrupted, interrupt)
        return Result()

    run = store.client.get_run(finished_run(settings, store, work))
    assert (run.info.status, run.data.metrics["images"]) == ("FINISHED", 12000.0)
    assert "images `12,000`" in run.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("text", ["a", "`", "a``b`", "<b>\n# x|y", "``` `", "$x$ *a* _b_ [c](d)"])
def test_code_in_markdown_is_what_it_is(text: str) -> None:
    span = code_span(text)
    # CommonMark: the span ends at the first run of as many backticks as it begins with.
    fence = re.match("`+", span)
    assert fence
    begin, *inside, end = re.findall("`+", span)
    assert begin == end == fence[0] not in inside
    content = span.removeprefix(begin).removesuffix(end)
    assert content in (text.replace("\n", r"\n"), f" {text} ")
