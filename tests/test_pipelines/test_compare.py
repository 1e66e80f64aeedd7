"""Two evaluated models: counts, keys, p-value and interval, from any kind of name."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from factories import predictions_table

from alexnet.errors import UserError
from alexnet.shards.format import read_row_group, write_table
from alexnet.shards.manifest import Manifest
from pipelines import compare
from pipelines.configuration.command_settings import CompareSettings
from pipelines.results.command_results import CompareResult
from pipelines.results.records import StageKey, StageRecord, finish
from pipelines.results.stage_results import PreprocessResult
from pipelines.settings import Settings
from pipelines.tracking import evaluations, registry
from pipelines.tracking.registry import ModelInfo
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import Store, connect
from pipelines.workdir import Workdir

LABELS = [0, 1, 2] * 4
FIRST = [0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 2, 0]
"""Wrong for the last three images."""
SECOND = [1, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 0]
"""Wrong for the first and the last image."""


@pytest.fixture
def store(mlflow_workdir: str) -> Store:
    return connect(Settings(workdir=mlflow_workdir))


def log_evaluation(store: Store, table: pa.Table, model: str, key: str, validation: str) -> None:
    run_id = open_run(store, "evaluate", resume=None, parent=None)
    with active_run(store, run_id) as run:
        run.set_tags({"stage": "evaluate", "stage.key": key})
        evaluations.tag(run, [model], validation)
        evaluations.log_predictions(run, table)


@pytest.fixture
def evaluated(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """``models:/a/1`` and ``models:/a/2`` are evaluated, ``models:/a/3`` is not."""
    for version, best in ((1, FIRST), (2, SECOND)):
        table = predictions_table(LABELS, best, model=f"models:/m-{version}")
        log_evaluation(store, table, f"models:/m-{version}", f"{version:016x}", "same")
    monkeypatch.setattr(
        registry,
        "get_model_info",
        lambda store, uri: ModelInfo(f"models:/m-{uri[-1]}", "run", ()),
    )
    return store


def run(folder: Path, *names: str) -> CompareResult:
    values: dict[str, Any] = {"workdir": str(folder), "evaluations": list(names)}
    return compare.run(CompareSettings.model_validate(values))


def check(result: CompareResult) -> None:
    assert result.images == 12
    assert (result.first_error, result.second_error) == (25.0, 16.667)
    counts = (result.both_right, result.only_first_right, result.only_second_right)
    assert counts == (8, 1, 2)
    assert result.both_wrong == 1
    assert result.right_to_wrong == ["val/00000.JPEG"]
    assert result.wrong_to_right == ["val/00009.JPEG", "val/00010.JPEG"]
    assert result.mcnemar_p == 1.0
    assert result.error_reduction == pytest.approx(8.333)
    assert result.error_reduction_low < 0 < result.error_reduction_high


def test_two_models(evaluated: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(run(tmp_path, "models:/a/1", "models:/a/2"))
    shown = capsys.readouterr().out
    assert "compare: A: models:/a/1, 25.00 % top-1 error" in shown
    assert "from right to wrong: val/00000.JPEG" in shown
    assert "McNemar's exact p = 1, 12 images" in shown
    rows = [line.split(": ", 1)[1].split() for line in shown.splitlines()]
    assert ["A", "right", "8", "1"] in rows
    assert ["A", "wrong", "2", "1"] in rows


def test_evaluations_and_files(evaluated: Store, tmp_path: Path) -> None:
    path = tmp_path / "second.parquet"
    write_table(str(path), predictions_table(LABELS, SECOND))
    check(run(tmp_path, "0000000000000001", str(path)))


def test_a_comparison_in_mlflow(evaluated: Store, tmp_path: Path) -> None:
    run(tmp_path, "models:/a/1", "models:/a/2")
    (logged,) = evaluated.client.search_runs([evaluated.experiment_id], "tags.stage = 'compare'")
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["only_second_right"] == 2
    assert logged.data.metrics["mcnemar_p"] == 1
    path = evaluated.client.download_artifacts(logged.info.run_id, "changed_images.json")
    table = json.loads(Path(path).read_text())
    assert table["columns"] == ["key", "change", "class", "A", "B"]
    assert table["data"][0] == [
        "val/00000.JPEG",
        "right to wrong",
        "n00000000",
        "n00000000",
        "n00000001",
    ]
    assert [row[1] for row in table["data"][1:]] == ["wrong to right"] * 2


def test_the_figure_shows_images_of_the_workdir(
    dataset: Manifest, store: Store, tmp_path: Path
) -> None:
    keys = [
        key
        for group in dataset.row_groups("val")
        for key in read_row_group(group, ["key"])["key"].to_pylist()
    ]
    content = dataset.content_digest("val")
    for name, best in (("a", FIRST), ("b", SECOND)):
        table = predictions_table(LABELS, best, keys=keys, classes=4, validation=content)
        write_table(str(tmp_path / name), table)
    workdir = Workdir(str(tmp_path))
    key = StageKey(stage="preprocess", settings={}, inputs={}, code="")
    preprocessed = PreprocessResult(
        images=51,
        train_images=39,
        val_images=12,
        classes=4,
        rejected=1,
        shards_made=7,
        shards_kept=0,
        images_per_second=1.0,
        bytes=1,
        digest=dataset.plan_digest,
        shards=dataset.folder,
        content=dataset.content_digest(),
    )
    finish(workdir, StageRecord(key=key, run_id="run", started=1.0), 1.0, preprocessed)
    run(tmp_path, str(tmp_path / "a"), str(tmp_path / "b"))
    (logged,) = store.client.search_runs([store.experiment_id], "tags.stage = 'compare'")
    files = [file.path for file in store.client.list_artifacts(logged.info.run_id)]
    assert "changed_images.png" in files


def test_models_that_never_differ(evaluated: Store, tmp_path: Path) -> None:
    result = run(tmp_path, "models:/a/1", "models:/a/1")
    assert (result.mcnemar_p, result.error_reduction) == (1.0, 0.0)
    assert result.right_to_wrong == result.wrong_to_right == []


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("models:/a/3", "has no evaluation with predictions; run pipelines/evaluate.py --model "),
        ("0000000000000003", "0000000000000003: has no evaluation with predictions; give the key"),
        ("a3", "a3: no such file, no MLflow URI"),
        ("damaged.parquet", "damaged.parquet: not a file of predictions"),
        ("other_images.parquet", "were evaluated on different validation images; run pipelines"),
        ("other_classes.parquet", "were evaluated on 3 and 6 different classes; run pipelines"),
    ],
)
def test_what_can_not_be_compared(
    evaluated: Store, tmp_path: Path, second: str, words: str
) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    other = predictions_table(LABELS, SECOND, validation="other")
    write_table(str(tmp_path / "other_images.parquet"), other)
    other = predictions_table(LABELS, SECOND, classes=6, validation="other")
    write_table(str(tmp_path / "other_classes.parquet"), other)
    name = str(tmp_path / second) if second.endswith(".parquet") else second
    with pytest.raises(UserError, match=words) as caught:
        run(tmp_path, "models:/a/1", name)
    assert "\n" not in str(caught.value)
    assert evaluated.client.search_runs([evaluated.experiment_id], "tags.stage = 'compare'") == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "alexnet compare: EVALUATION is required; see --help"),
        (["models:/a/1"], "alexnet compare: EVALUATION: give exactly two, not ['models:/a/1']"),
    ],
)
def test_two_names_are_required(
    arguments: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["alexnet compare", *arguments])
    with pytest.raises(SystemExit) as caught:
        compare.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines() == [line]


def test_the_command_prints_json(
    evaluated: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["models:/a/1", "models:/a/2", "--workdir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["alexnet compare", *options])
    stdout = sys.stdout
    with pytest.raises(SystemExit) as caught:
        compare.main()
    monkeypatch.setattr(sys, "stdout", stdout)
    assert caught.value.code == 0
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert value["stage"] == "compare"
    assert value["right_to_wrong"] == ["val/00000.JPEG"]
    assert list(value)[:4] == ["stage", "first", "second", "images"]
