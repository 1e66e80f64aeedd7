"""``alexnet status``: fresh, stale and why, running and by whom, without writing anything."""

import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from plain_workflow import STAGES

from alexnet.errors import UserError
from alexnet.shards.format import Shard
from alexnet.shards.manifest import Manifest, write_manifest
from pipelines import status
from pipelines.configuration.command_settings import StatusSettings
from pipelines.console.cli import CheckFailedError
from pipelines.console.lock import exclusive_lock
from pipelines.console.main import main
from pipelines.results.command_results import StatusResult
from pipelines.results.records import StageKey, finish, history, start
from pipelines.results.stage_results import PreprocessResult, TrainResult
from pipelines.stage_keys import stage_code
from pipelines.workdir import Workdir

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def code(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Version of each stage's code, as ``PlainWorkflow`` has it."""
    versions = dict.fromkeys(STAGES, "0")

    def version(entries: Sequence[str], **_: object) -> str:
        return next(versions[s] for s, known in stage_code.CODE.items() if known == entries)

    monkeypatch.setattr(status, "code_version", version)
    return versions


def look(workdir: Path, **settings: object) -> StatusResult:
    try:
        return status.run(
            StatusSettings.model_validate({"workdir": str(workdir), "json": True} | settings)
        )
    except CheckFailedError as error:
        return cast(StatusResult, error.result)


def states(result: StatusResult) -> list[str]:
    return [stage.state for stage in result.stages]


def change_database(workdir: Path, statement: str) -> None:
    with sqlite3.connect(workdir / "mlflow.db") as database:
        database.execute(statement)


def test_after_a_full_run_everything_is_fresh(finished_workdir: Path) -> None:
    result = look(finished_workdir)
    assert states(result) == ["fresh"] * 4, result
    assert result.fresh
    assert result.store_checked
    assert all(re.match("finished on 20", stage.reason) for stage in result.stages)


def test_an_empty_folder_has_run_nothing(tmp_path: Path) -> None:
    assert states(look(tmp_path)) == ["never run"] * 4
    assert list(tmp_path.iterdir()) == []


def test_a_missing_workdir_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; check --workdir"):
        look(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def of_shards(workdir: Path) -> Path:
    return next((workdir / "shards").iterdir())


@pytest.mark.parametrize(
    ("change", "stage", "reason"),
    [
        (
            lambda work: next(work.glob("shards/*/train/*.parquet")).unlink(),
            "preprocess",
            "its result no longer exists or has changed",
        ),
        (
            lambda work: shutil.rmtree(of_shards(work)),
            "preprocess",
            "its result no longer exists or has changed",
        ),
        (
            lambda work: shutil.rmtree(work / "evaluations"),
            "evaluate",
            "its result no longer exists or has changed",
        ),
        (
            lambda work: change_database(
                work, "UPDATE logged_models SET lifecycle_stage='deleted'"
            ),
            "train",
            "its model no longer exists in MLflow",
        ),
        (
            lambda work: change_database(
                work, "DELETE FROM registered_model_aliases WHERE alias = 'champion'"
            ),
            "promote",
            "the alias champion points to none, not version 1",
        ),
        (
            lambda work: change_database(
                work, "UPDATE registered_model_aliases SET version = 7 WHERE alias = 'candidate'"
            ),
            "promote",
            "the alias candidate points to version 7, not version 1",
        ),
        (
            lambda work: change_database(
                work,
                "UPDATE runs SET lifecycle_stage = 'deleted' WHERE name LIKE '%evaluate%'",
            ),
            "evaluate",
            "its MLflow run no longer exists",
        ),
    ],
)
def test_what_was_deleted_or_moved_makes_its_stage_stale(
    change: Callable[[Path], object], stage: str, reason: str, finished_workdir: Path
) -> None:
    change(finished_workdir)
    result = look(finished_workdir)
    assert {s.stage: s.reason for s in result.stages if s.state == "stale"} == {stage: reason}


def test_a_deleted_experiment_takes_its_runs_along(finished_workdir: Path) -> None:
    change_database(finished_workdir, "UPDATE experiments SET lifecycle_stage = 'deleted'")
    reasons = {stage.reason for stage in look(finished_workdir).stages}
    assert reasons == {"its MLflow run no longer exists"}


@pytest.mark.parametrize("stage", ["preprocess", "train", "evaluate"])
def test_changed_code_makes_its_stage_stale(
    stage: str, code: dict[str, str], finished_workdir: Path
) -> None:
    code[stage] = "1"
    result = look(finished_workdir)
    assert {s.stage: s.reason for s in result.stages if s.state == "stale"} == {
        stage: "its code has changed"
    }


def rewrite(workdir: Path, stage: str, change: Callable[[dict[str, object]], object]) -> None:
    (path,) = (workdir / "stages" / stage).glob("*.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_newer_training_makes_the_evaluation_stale(finished_workdir: Path) -> None:
    workdir = Workdir(str(finished_workdir))
    (record,) = history(workdir, "train").finished
    key = replace(record.key, settings=dict(record.key.settings) | {"epochs": 9})
    outcome = record.outcome(TrainResult, workdir)
    assert outcome
    newer = start(workdir, key, lambda _: record.run_id)
    model = "models:/m-" + "0" * 32
    finish(workdir, newer, 1.0, replace(outcome.result, model=model))
    change_database(
        finished_workdir,
        f"UPDATE logged_models SET model_id = '{model.removeprefix('models:/')}'",
    )
    result = look(finished_workdir)
    assert states(result) == ["fresh", "fresh", "stale", "fresh"]
    assert result.stages[1].key == key.digest
    assert result.stages[2].reason.startswith("input models changed from models:/m-")


def test_a_new_setting_makes_its_stage_stale(finished_workdir: Path) -> None:
    rewrite(finished_workdir, "train", lambda record: record["key"]["settings"].pop("compile"))  # type: ignore[index]
    assert look(finished_workdir).stages[1].reason == "setting compile changed from None to off"


def test_records_of_an_earlier_version_are_named(finished_workdir: Path) -> None:
    for stage in STAGES:
        rewrite(finished_workdir, stage, lambda record: record.update(format=1))
    result = look(finished_workdir)
    assert states(result) == ["never run"] * 4
    assert result.stages[0].reason == (
        "1 records are damaged or of another version of this project: the stage runs again once"
    )


def test_a_killed_stage_is_unfinished(finished_workdir: Path) -> None:
    workdir = Workdir(str(finished_workdir))
    (record,) = history(workdir, "train").finished
    start(workdir, record.key, lambda _: record.run_id)
    trained = look(finished_workdir).stages[1]
    assert trained.state == "unfinished"
    assert trained.reason.endswith("the same command resumes it")


def test_a_running_stage_names_who_runs_it(finished_workdir: Path) -> None:
    with exclusive_lock(Workdir(str(finished_workdir)), "train", "train"):
        result = look(finished_workdir)
    assert states(result) == ["fresh", "running", "fresh", "fresh"]
    assert f"process {os.getpid()} on " in result.stages[1].reason
    assert result.running == [result.stages[1].reason.removeprefix("by ")]
    assert look(finished_workdir).running == []


def test_a_tracking_server_is_not_asked(finished_workdir: Path) -> None:
    change_database(finished_workdir, "DELETE FROM registered_model_aliases")
    result = look(finished_workdir, tracking_uri="http://127.0.0.1:1")
    assert states(result) == ["fresh"] * 4
    assert not result.store_checked


def test_a_damaged_database_is_one_line(finished_workdir: Path) -> None:
    (finished_workdir / "mlflow.db").write_bytes(b"no database, by no means" * 100)
    with pytest.raises(UserError, match=r"mlflow\.db: can't be read .*; restore this file"):
        look(finished_workdir)


def test_a_read_only_workdir(finished_workdir: Path) -> None:
    for path in [finished_workdir, *finished_workdir.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    before = {str(path) for path in finished_workdir.rglob("*")}
    assert states(look(finished_workdir)) == ["fresh"] * 4
    assert {str(path) for path in finished_workdir.rglob("*")} == before


def command(workdir: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    code = (
        "import atexit, sys\n"
        f"from {main.__module__} import main\n"
        "slow = {'ray', 'mlflow', 'torch'}\n"
        "atexit.register(lambda: print('imported', slow & set(sys.modules), file=sys.stderr))\n"
        f"sys.argv = ['alexnet', 'status', '--workdir', {str(workdir)!r}, *{options!r}]\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_a_workdir_of_a_million_images_takes_less_than_two_seconds(tmp_path: Path) -> None:
    """Seconds of the CPU, since other processes of this computer must not decide."""
    workdir = Workdir(str(tmp_path))
    folder = Path(workdir.shards("0" * 16))
    shards = {"train": [], "val": []}  # type: dict[str, list[Shard]]
    for number in range(1300):
        split = "train" if number < 1250 else "val"
        name = f"{split}/part-{number:05d}.parquet"
        shards[split].append(Shard(name, 1024, 5, f"{number:064x}"))
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"shard")
    (folder / "rejects.parquet").touch()
    (folder / "statistics.npz").touch()
    manifest = Manifest(
        folder=str(folder),
        plan_digest="0" * 16,
        source="/raw",
        layout="archives",
        settings={},
        labels=(),
        shards={split: tuple(found) for split, found in shards.items()},
        rejected={"train": 0, "val": 0},
        files={"rejects.parquet": "0" * 64, "statistics.npz": "1" * 64},
    )
    write_manifest(manifest)
    result = PreprocessResult(
        images=1_331_200,
        train_images=1_280_000,
        val_images=51_200,
        classes=1000,
        rejected=0,
        shards_made=1300,
        shards_kept=0,
        images_per_second=1.0,
        bytes=1,
        digest="0" * 16,
        shards=str(folder),
        content=manifest.content_digest(),
    )
    key = StageKey(stage="preprocess", settings={}, inputs={}, code="0")
    finish(workdir, start(workdir, key, lambda _: "run"), 1.0, result)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command(tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 1
    *table, last = done.stdout.splitlines()
    assert [line.split()[:2] for line in table[1:]] == [
        ["preprocess", "stale"],
        ["train", "never"],
        ["evaluate", "never"],
        ["promote", "never"],
    ]
    assert json.loads(last)["stages"][0]["state"] == "stale"
    line, imported = done.stderr.splitlines()
    assert line.endswith(
        ": not fresh: preprocess (stale), train (never run), evaluate (never run), "
        "promote (never run)"
    )
    assert imported == "imported set()"
    assert seconds < 2, f"{seconds:.2f} s"
    assert not Path(workdir.logs).exists()
    only_json = command(tmp_path, "--json").stdout
    assert only_json == last + "\n"
