"""``alexnet diff``: what differs between two runs."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from plain_workflow import PlainWorkflow

from alexnet.errors import UserError
from pipelines import diff
from pipelines.configuration.command_settings import DiffSettings
from pipelines.results.command_results import DiffResult
from pipelines.stage_keys.checkout import commit
from pipelines.tracking.run_info import RunInfo, find_run
from pipelines.tracking.store import connect


def run_info(**changes: Any) -> RunInfo:
    values: dict[str, Any] = {
        "run_id": "1" * 32,
        "name": "train",
        "stage": "train",
        "params": {"epochs": "4", "seed": "0"},
        "metrics": {"train_loss": 1.5, "system/cpu": 3.0},
        "tags": {"input.shards": "abc", "code.version": "c0de", "git.dirty": "no"},
        "datasets": {"shards": "abcdef"},
    }
    return RunInfo(**values | changes)


def test_differences_are_sorted_into_kinds() -> None:
    other = run_info(
        params={"epochs": "5", "seed": "0", "ema": "0.9"},
        metrics={"train_loss": 1.25, "system/cpu": 4.0},
        tags={"input.shards": "xyz", "code.version": "beef"},
        datasets={},
    )
    found = diff.differences_of(run_info(), other)
    assert [(d.kind, d.name, d.first, d.second) for d in found] == [
        ("settings", "ema", diff.ABSENT, "0.9"),
        ("settings", "epochs", "4", "5"),
        ("data", "shards", "abcdef", "xyz"),
        ("code", "code.version", "c0de", "beef"),
        ("code", "git.dirty", "no", diff.ABSENT),
        ("results", "train_loss", "1.5", "1.25"),
    ]
    assert diff.differences_of(run_info(), run_info()) == []


def test_full_runs_are_compared_stage_by_stage() -> None:
    stages = {stage: run_info(run_id=stage, stage=stage) for stage in ("train", "evaluate")}
    changed = run_info(run_id="changed", stage="evaluate", params={})
    first = run_info(stage="full_run", tags={f"run.{stage}": stage for stage in stages})
    second = run_info(
        run_id="2" * 32, stage="full_run", tags={"run.train": "train", "run.evaluate": "changed"}
    )
    known = stages | {"changed": changed}
    result = diff.compare_runs(first, second, known.__getitem__)
    assert result.stages == ["train", "evaluate"]
    assert {d.stage for d in result.differences} == {"evaluate"}
    # A stage's run is compared with that of the same stage in the full run.
    assert diff.compare_runs(changed, first, known.__getitem__).differences


def test_runs_of_different_stages_have_nothing_in_common() -> None:
    with pytest.raises(UserError, match="is a run of train, other of evaluate; give two runs"):
        diff.compare_runs(
            run_info(), run_info(name="other", stage="evaluate"), lambda _: run_info()
        )


@pytest.mark.slow
def test_real_runs_by_id_name_and_key(
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workflow = PlainWorkflow(tmp_path, empty_database)
    workflow.install(monkeypatch)
    first = workflow.run(epochs=1, champion="always").stages["train"]["run_id"]
    second = workflow.run(epochs=2, champion="always").stages["train"]["run_id"]
    workdir = {"workdir": str(workflow.workdir)}

    def command(*runs: str) -> DiffResult:
        return diff.run(DiffSettings.model_validate(workdir | {"runs": list(runs)}))

    result = command(first, second)
    epochs = next(d for d in result.differences if (d.kind, d.name) == ("settings", "epochs"))
    assert (epochs.first, epochs.second) == ("1", "2")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "settings", "epochs", "1", "2"] in printed
    store = connect(DiffSettings.model_validate(workdir | {"runs": [first, second]}))
    by_id = find_run(store, first)
    assert find_run(store, by_id.tags["stage.key"]) == by_id
    assert command(by_id.tags["stage.key"], first).differences == []
    assert find_run(store, find_run(store, second).name).stage == "train"
    store.client.delete_run(first)
    with pytest.raises(UserError, match="was deleted in MLflow; `mlflow runs restore"):
        command(first, second)
    with pytest.raises(UserError, match="no run of this experiment has this id, name or stage"):
        command("it's nothing", second)
    with pytest.raises(UserError, match="no run of this experiment"):
        command("'\"", second)


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    git("init", "-q")
    commit.cache_clear()
    assert commit(tmp_path) is None, "there is no commit yet"
    (tmp_path / "a.py").write_text("A = 1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    commit.cache_clear()
    clean = commit(tmp_path)
    assert clean
    assert (len(clean.id), clean.dirty) == (40, False)
    (tmp_path / "new.txt").touch()
    (tmp_path / "a.py").write_text("A = 2\n")
    commit.cache_clear()
    assert commit(tmp_path) == (clean.id, True)
