"""What is made from results: JSON lines and metrics, on whose keys other programs rely; tables."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from factories import evaluate_result

from pipelines.preprocess import VerifiedOutcome
from pipelines.results.command_results import BatchInferenceResult
from pipelines.results.records import StageKey, StageOutcome
from pipelines.results.run_summary import as_markdown, figures, location, summary_lines
from pipelines.results.stage_results import (
    DryRunResult,
    FullRunResult,
    PreprocessResult,
    PromoteResult,
    StageResult,
    TrainResult,
    VerifyResult,
)

PREPROCESS = PreprocessResult(
    images=51,
    train_images=39,
    val_images=12,
    classes=4,
    rejected=1,
    shards_made=5,
    shards_kept=2,
    images_per_second=20.5,
    bytes=123456,
    digest="0123456789abcdef",
    shards="/work/shards/0123456789abcdef",
    content="0123abcd",
    files_found=60,
    files_used=53,
    files_ignored=6,
    ignored_by_rule={"macOS": 6},
)
TRAIN = TrainResult(
    images=78,
    epochs=2,
    steps=10,
    images_per_second=12.3,
    train_loss=1.2345,
    val_top1_error=25.0,
    val_top5_error=8.333,
    checkpoint="/work/training/abc/step_000000010",
    model="models:/m-1",
)
EVALUATE = evaluate_result(models=["models:/m-1", "models:/m-2"])
PROMOTE = PromoteResult(
    registered_model="alexnet",
    version="3",
    champion=True,
    reason="no version was champion before; 16.67 % top-1 error on 12 images",
    model="models:/alexnet/3",
    champion_version="3",
    compared_with="2",
    comparable=True,
    both_right=5,
    only_version_right=6,
    only_champion_right=0,
    both_wrong=1,
    error_reduction=50.0,
    error_reduction_low=14.5,
    error_reduction_high=74.5,
    mcnemar_p=0.03125,
    chance_p=None,
)
RESULTS: list[StageResult] = [PREPROCESS, TRAIN, EVALUATE, PROMOTE]

KEYS = {
    "preprocess": [
        "stage",
        "images",
        "train_images",
        "val_images",
        "classes",
        "rejected",
        "shards_made",
        "shards_kept",
        "images_per_second",
        "bytes",
        "digest",
        "shards",
        "content",
        "files_found",
        "files_used",
        "files_ignored",
        "ignored_by_rule",
    ],
    "train": [
        "stage",
        "images",
        "epochs",
        "steps",
        "images_per_second",
        "train_loss",
        "val_top1_error",
        "val_top5_error",
        "checkpoint",
        "model",
    ],
    "evaluate": [
        "stage",
        "images",
        "top1_error",
        "top1_error_low",
        "top1_error_high",
        "top5_error",
        "top5_error_low",
        "top5_error_high",
        "centre_top1_error",
        "centre_top1_error_low",
        "centre_top1_error_high",
        "centre_top5_error",
        "centre_top5_error_low",
        "centre_top5_error_high",
        "top1_accuracy",
        "calibration_error",
        "models",
        "validation",
        "predictions",
    ],
    "promote": [
        "stage",
        "registered_model",
        "version",
        "champion",
        "reason",
        "model",
        "champion_version",
        "compared_with",
        "comparable",
        "both_right",
        "only_version_right",
        "only_champion_right",
        "both_wrong",
        "error_reduction",
        "error_reduction_low",
        "error_reduction_high",
        "mcnemar_p",
        "chance_p",
    ],
}
METRICS = {
    "preprocess": {
        "images": 51.0,
        "train_images": 39.0,
        "val_images": 12.0,
        "classes": 4.0,
        "rejected": 1.0,
        "shards_made": 5.0,
        "shards_kept": 2.0,
        "images_per_second": 20.5,
        "bytes": 123456.0,
        "files_found": 60.0,
        "files_used": 53.0,
        "files_ignored": 6.0,
    },
    "train": {"images": 78.0, "epochs": 2.0, "steps": 10.0},
    "evaluate": {
        "images": 12.0,
        "top1_error": 16.667,
        "top1_error_low": 4.697,
        "top1_error_high": 44.803,
        "top5_error": 0.0,
        "top5_error_low": 0.0,
        "top5_error_high": 24.249,
        "centre_top1_error": 25.0,
        "centre_top1_error_low": 8.894,
        "centre_top1_error_high": 53.23,
        "centre_top5_error": 8.333,
        "centre_top5_error_low": 1.487,
        "centre_top5_error_high": 35.388,
        "top1_accuracy": 83.333,
        "calibration_error": 3.25,
    },
    "promote": {
        "champion": 1.0,
        "comparable": 1.0,
        "both_right": 5.0,
        "only_version_right": 6.0,
        "only_champion_right": 0.0,
        "both_wrong": 1.0,
        "error_reduction": 50.0,
        "error_reduction_low": 14.5,
        "error_reduction_high": 74.5,
        "mcnemar_p": 0.03125,
    },
}


def outcome_of(result: StageResult, *, skipped: bool = False) -> StageOutcome[Any]:
    key = StageKey(stage=result.stage, settings={}, inputs={}, code="")
    return StageOutcome(key=key, result=result, seconds=1.5, run_id="run", skipped=skipped)


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.stage)
def test_the_json_of_a_stage(result: StageResult) -> None:
    value = result.to_json()
    assert list(value) == KEYS[result.stage]
    assert value["stage"] == result.stage
    for field in fields(result):
        assert value[field.name] == getattr(result, field.name)
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.stage)
def test_the_metrics_of_a_stage(result: StageResult) -> None:
    metrics = result.metrics()
    assert metrics == METRICS[result.stage]
    assert {type(value) for value in metrics.values()} == {float}


def test_values_that_do_not_exist_are_no_metrics() -> None:
    few_classes = evaluate_result(top5_error=None, top5_error_low=None, centre_top5_error=None)
    assert few_classes.to_json()["top5_error"] is None
    assert not {"top5_error", "top5_error_low", "centre_top5_error"} & few_classes.metrics().keys()


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.stage)
def test_the_json_line_of_a_stage_tells_how_it_ran(result: StageResult, skipped: bool) -> None:
    value = outcome_of(result, skipped=skipped).to_json()
    assert list(value) == [*KEYS[result.stage], "seconds", "run_id", "skipped"]
    assert (value["seconds"], value["run_id"], value["skipped"]) == (1.5, "run", skipped)


def test_verified_shards_are_counted_at_the_end_of_the_json_line() -> None:
    verified = VerifyResult(shards_verified=7, shards_remade=1)
    value = VerifiedOutcome(outcome_of(PREPROCESS), verified).to_json()
    assert list(value)[-2:] == ["shards_verified", "shards_remade"]
    assert value == outcome_of(PREPROCESS).to_json() | {"shards_verified": 7, "shards_remade": 1}


def test_the_json_line_of_a_dry_run() -> None:
    values = {
        "images": 52,
        "train_images": 40,
        "val_images": 12,
        "classes": 4,
        "shards": 7,
        "source_bytes": 1000,
        "estimated_bytes": 2000,
        "estimated_seconds": 0.25,
        "files_found": 60,
        "files_used": 54,
        "files_ignored": 6,
        "ignored_by_rule": {"macOS": 6},
        "rejected": 0,
        "sampled": 52,
        "sample_rejected": 1,
    }
    expected = {"stage": "preprocess", "dry_run": True} | values
    value = DryRunResult(**values).to_json()  # type: ignore[arg-type]
    assert list(value.items()) == list(expected.items())


def test_the_json_line_and_metrics_of_batch_inference() -> None:
    result = BatchInferenceResult(
        images=10,
        rejected=1,
        files_ignored=4,
        seconds=2.5,
        images_per_second=4.0,
        parts_made=2,
        parts_kept=3,
        predictions="/out",
        model="models:/m-1",
    )
    assert list(result.to_json().items()) == [
        ("stage", "batch_inference"),
        ("images", 10),
        ("rejected", 1),
        ("files_ignored", 4),
        ("seconds", 2.5),
        ("images_per_second", 4.0),
        ("parts_made", 2),
        ("parts_kept", 3),
        ("predictions", "/out"),
        ("page", None),
        ("model", "models:/m-1"),
    ]
    assert result.metrics() == {
        "images": 10.0,
        "rejected": 1.0,
        "files_ignored": 4.0,
        "seconds": 2.5,
        "images_per_second": 4.0,
        "parts_made": 2.0,
        "parts_kept": 3.0,
    }


def test_the_json_line_of_a_full_run() -> None:
    stages = {result.stage: outcome_of(result).to_json() for result in RESULTS}
    result = FullRunResult(
        images=51,
        rejected=0,
        images_per_second=12.3,
        seconds=99.5,
        workdir="/work",
        skipped=["preprocess"],
        stages=stages,
    )
    value = result.to_json()
    assert list(value) == [
        "stage",
        "images",
        "rejected",
        "images_per_second",
        "seconds",
        "workdir",
        "skipped",
        "stages",
    ]
    assert value["stage"] == "full_run"
    assert value["rejected"] == 0
    assert value["stages"] == stages
    assert list(value["stages"]) == ["preprocess", "train", "evaluate", "promote"]


def test_a_full_run_of_some_stages_has_only_their_numbers() -> None:
    result = FullRunResult(seconds=1.0, workdir="/work", skipped=[], stages={})
    expected = {
        "stage": "full_run",
        "seconds": 1.0,
        "workdir": "/work",
        "skipped": [],
        "stages": {},
    }
    assert list(result.to_json().items()) == list(expected.items())


OUTCOMES = [
    replace(outcome_of(PREPROCESS, skipped=True), reason="unchanged since 2012-12-03 10:15"),
    replace(outcome_of(TRAIN), reason="setting epochs changed from 1 to 2"),
    replace(outcome_of(EVALUATE), reason="first run"),
    replace(outcome_of(PROMOTE), reason="first run"),
]


def test_the_table_of_a_full_run() -> None:
    header, *rows = summary_lines(OUTCOMES, None)
    starts = [header.index(title) for title in ("stage", "time", "why", "result", "location")]
    cells = [
        [row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for row in rows
    ]
    assert [row[:3] for row in cells] == [
        ["preprocess", "skipped", "unchanged since 2012-12-03 10:15"],
        ["train", "2s", "setting epochs changed from 1 to 2"],
        ["evaluate", "2s", "first run"],
        ["promote", "2s", "first run"],
    ]
    assert [row[3] for row in cells] == [
        "51 images of 4 classes, 1 rejected, 20 images/s",
        "2 epochs, training loss 1.234, validation error 25.0 % top-1, 12 images/s",
        "error 16.67 % top-1 (4.70 to 44.80 %), 0.00 % top-5",
        "version 3 is champion",
    ]
    assert [row[4] for row in cells] == [
        PREPROCESS.shards,
        "models:/m-1",
        EVALUATE.predictions,
        "models:/alexnet/3",
    ]


def test_a_terminal_that_is_wide_enough_shows_the_table() -> None:
    table = summary_lines(OUTCOMES, None)
    width = max(map(len, table))
    assert summary_lines(OUTCOMES, width) == table
    assert summary_lines(OUTCOMES, width - 1) != table


@pytest.mark.parametrize("columns", [40, 68, 80])
def test_a_narrower_terminal_shows_the_same_in_several_lines(columns: int) -> None:
    lines = summary_lines(OUTCOMES, columns)
    locations = {location(outcome.result) for outcome in OUTCOMES}
    assert all(len(line) <= columns for line in lines if line.strip() not in locations)
    assert lines[0].startswith("preprocess  skipped")
    words = " ".join(lines).split()
    assert words == [
        word
        for outcome, time in zip(OUTCOMES, ["skipped", "2s", "2s", "2s"], strict=True)
        for word in (
            f"{outcome.result.stage} {time} {figures(outcome.result)} {outcome.reason} "
            f"{location(outcome.result)}"
        ).split()
    ]


def test_a_path_is_never_broken() -> None:
    long = replace(PREPROCESS, shards="/data/a folder with spaces" + "/x" * 50)
    assert f"  {long.shards}" in summary_lines([outcome_of(long)], 40)


def test_the_figures_of_other_outcomes() -> None:
    candidate = replace(PROMOTE, champion=False, champion_version="2")
    assert figures(candidate) == "version 3 is candidate; version 2 stays champion"
    lone = replace(PROMOTE, champion=False, champion_version=None)
    assert figures(lone) == "version 3 is candidate; there is no champion"
    assert "top-5" not in figures(evaluate_result(top5_error=None))
    kept = replace(PREPROCESS, images_per_second=0.0)
    assert figures(kept) == "51 images of 4 classes, 1 rejected"
    assert figures(replace(TRAIN, epochs=1)).startswith("1 epoch, ")


def test_the_table_in_markdown() -> None:
    rows = as_markdown(OUTCOMES).splitlines()
    assert len(rows) == 2 + len(OUTCOMES)
    assert all(row.count("|") == 4 for row in rows)
    assert rows[2].startswith("| preprocess | skipped, nothing changed | 51 images of 4 classes")
