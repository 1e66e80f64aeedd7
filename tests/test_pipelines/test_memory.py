"""What the workflow remembers: full runs whose settings, sources, code and registry change.

``plain_workflow`` describes what is replaced.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from plain_workflow import STAGES, PlainWorkflow, write_source

from alexnet.errors import UserError
from pipelines.preprocessing import stage as preprocess_stage

pytestmark = pytest.mark.slow


@pytest.fixture
def workflow(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> PlainWorkflow:
    workflow = PlainWorkflow(tmp_path, empty_database)
    workflow.install(monkeypatch)
    return workflow


def test_a_second_run_skips_everything(workflow: PlainWorkflow) -> None:
    workflow.run()
    result = workflow.run()
    assert result.skipped == STAGES


def test_earlier_settings_give_the_earlier_model(workflow: PlainWorkflow) -> None:
    first = workflow.run(epochs=1, champion="always")
    second = workflow.run(epochs=2, champion="always")
    third = workflow.run(epochs=1, champion="always")
    models = [run.stages["train"]["model"] for run in (first, second, third)]
    assert models[0] == models[2] != models[1]
    for run, model in zip((first, second, third), models, strict=True):
        assert run.stages["evaluate"]["models"] == [model]
    assert third.skipped == ["preprocess", "train", "evaluate"], "the champion is another"
    assert workflow.alias("champion") == models[0]


def test_an_earlier_source_gives_the_earlier_shards(workflow: PlainWorkflow) -> None:
    contents = []
    for version in (1, 2, 1):
        write_source(workflow.source, version)
        result = workflow.run()
        contents.append(workflow.content(result))
        assert result.stages["preprocess"]["content"] == contents[-1]
    assert contents[0] == contents[2] != contents[1]


def test_a_failure_after_the_manifest_is_a_warning(
    workflow: PlainWorkflow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space for a figure")

    with monkeypatch.context() as patch:
        patch.setattr(preprocess_stage, "log_result", fail)
        first = workflow.run()
    assert first.skipped == []
    assert "data set could not be logged (no space for a figure)" in capsys.readouterr().out
    assert workflow.run().skipped == ["preprocess", "train", "evaluate", "promote"]


@pytest.mark.parametrize(
    "change",
    [
        lambda workflow: shutil.rmtree(workflow.workdir / "stages"),
        lambda workflow: (workflow.workdir / "mlflow.db").unlink(),
        lambda workflow: workflow.source.rename(workflow.folder / "moved"),
    ],
    ids=["records lost", "tracking store lost", "source moved"],
)
def test_a_complete_data_set_is_kept(
    workflow: PlainWorkflow, change: Callable[[PlainWorkflow], object]
) -> None:
    workflow.run()
    made = len(workflow.made)
    change(workflow)
    if not workflow.source.exists():
        workflow.source = workflow.folder / "moved"
    workflow.run()
    assert len(workflow.made) == made


def test_force_makes_the_shards_again(workflow: PlainWorkflow) -> None:
    workflow.run()
    made = len(workflow.made)
    workflow.run(force=True)
    assert len(workflow.made) == 2 * made


def test_an_alias_that_was_moved_is_set_again(workflow: PlainWorkflow) -> None:
    workflow.run(epochs=1)
    first = workflow.run(epochs=2, champion="always")
    workflow.client.set_registered_model_alias("alexnet", "champion", "1")
    result = workflow.run(epochs=2, champion="always")
    assert result.skipped == ["preprocess", "train", "evaluate"]
    assert workflow.alias("champion") == first.stages["train"]["model"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "move", [shutil.move, pytest.param(shutil.copytree, marks=pytest.mark.long)]
)
def test_a_moved_or_copied_workdir_uses_its_own_files(
    workflow: PlainWorkflow, move: Callable[[Path, Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first = workflow.run()
    kill_before(workflow, "epoch 2", epochs=3)
    old, workflow.workdir = workflow.workdir, workflow.folder / "elsewhere"
    move(old, workflow.workdir)
    for path in old.rglob("*"):
        if path.is_file():
            path.write_bytes(b"not to be read")
    before, made = tree(old), workflow.made.copy()
    capsys.readouterr()
    result = workflow.run()
    assert result.skipped == STAGES
    output = capsys.readouterr().out
    line = f"artifacts are in {workflow.workdir}/mlartifacts, no longer in {old}/mlartifacts"
    assert output.count(line) == 1
    assert Path(result.stages["preprocess"]["shards"]).is_relative_to(workflow.workdir)
    assert Path(result.stages["evaluate"]["predictions"]).is_relative_to(workflow.workdir)
    assert workflow.model(result) == workflow.model(first)
    third = workflow.run(epochs=3)
    assert (third.skipped, workflow.made) == (["preprocess"], made)
    assert [epoch for _, epoch in workflow.epochs] == [1, 2, 1, 2, 3]
    assert workflow.curve(third) == [(1, 2.0), (2, 2.0), (3, 2.0)]
    for run in (first, third):
        model = run.stages["train"]["model"].removeprefix("models:/")
        location = workflow.client.get_logged_model(model)
        assert Path(location.artifact_location).is_relative_to(workflow.workdir)
    assert str(old) not in capsys.readouterr().out
    assert tree(old) == before
    records = [path.read_text() for path in (workflow.workdir / "stages").rglob("*.json")]
    assert not any(str(old) in text for text in records)


@pytest.mark.parametrize(
    "move", [shutil.move, pytest.param(shutil.copytree, marks=pytest.mark.long)]
)
def test_a_source_in_the_workdir_moves_with_it(
    workflow: PlainWorkflow, move: Callable[..., Path]
) -> None:
    workflow.source = workflow.source.rename(workflow.workdir / "raw")
    workflow.run()
    old, workflow.workdir = workflow.workdir, workflow.folder / "elsewhere"
    move(old, workflow.workdir)
    workflow.source = workflow.workdir / "raw"
    assert workflow.run().skipped == STAGES
    assert workflow.run(force=True).skipped == []
    for path in workflow.workdir.glob("shards/*/manifest.json"):
        assert str(workflow.folder) not in path.read_text()


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        *(pytest.param(d, marks=pytest.mark.long) for d in (b"", b"[]", b'{"format": 3}', b"\xff")),
    ],
)
def test_a_damaged_record_is_computed_again(workflow: PlainWorkflow, damage: bytes) -> None:
    workflow.run()
    made = len(workflow.made)
    for path in (workflow.workdir / "stages").rglob("*.json"):
        path.write_bytes(damage)
        (path.parent / ".DS_Store").write_bytes(b"\0")
        (path.parent / "x.json.1.tmp").write_bytes(b"{")
    assert workflow.run().skipped == []
    assert len(workflow.made) == made
    assert len(workflow.run().skipped) == 4


def test_a_stage_alone_says_what_it_uses(
    workflow: PlainWorkflow, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow.run(epochs=1)
    workflow.run(epochs=2)
    workflow.run(only="promote")
    assert "promote: using the newest result of evaluate: " in capsys.readouterr().out


def test_a_model_of_other_classes_is_refused(workflow: PlainWorkflow) -> None:
    result = workflow.run()
    other = workflow.folder / "other"
    for split in ("train", "val"):
        shutil.copytree(workflow.source / split, other / split)
        (other / split / "red").rename(other / split / "green")
    workflow.run(source=str(other), only="preprocess")
    model = [result.stages["train"]["model"]]
    evaluated = workflow.evaluated
    with pytest.raises(UserError, match="was trained on 2 other classes than the 2 of"):
        workflow.run(source=str(other), only="evaluate", model=model)
    assert workflow.evaluated == evaluated


class Kill(BaseException):
    """A killed command."""


def kill_before(workflow: PlainWorkflow, work: str, **settings: object) -> None:
    """A command that is killed before a piece of work."""

    def on_work(what: str) -> None:
        if what == work:
            raise Kill

    workflow.on_work = on_work
    with pytest.raises(Kill):
        workflow.run(**settings)
    workflow.on_work = lambda what: None


FORCED_WORK = [
    *(pytest.param(work, marks=pytest.mark.long) for work in ("epoch 1", "model", "evaluation")),
    "shard val/part-00001.parquet",
    "epoch 2",
]


@pytest.mark.parametrize(
    "force",
    [
        pytest.param(True, id="with --force"),
        pytest.param(False, id="without --force", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("work", FORCED_WORK)
def test_a_killed_force_is_resumed(workflow: PlainWorkflow, work: str, force: bool) -> None:
    first = workflow.run(rows_per_shard=2)
    made = workflow.made.copy()
    workflow.made.clear()
    kill_before(workflow, work, rows_per_shard=2, force=True)
    result = workflow.run(rows_per_shard=2, force=force)
    assert workflow.made == made
    if force or not work.startswith("shard"):
        assert workflow.model(result)["training"] == 2
        assert [epoch for _, epoch in workflow.epochs] == [1, 2, 1, 2]
        assert workflow.curve(result) == [(1, 2.0), (2, 2.0)]
        assert result.stages["train"]["run_id"] != first.stages["train"]["run_id"]
    assert workflow.run(rows_per_shard=2).skipped == STAGES
    workflow.run(rows_per_shard=2, force=True)
    assert workflow.made == 2 * made


def test_the_points_of_a_discarded_training_are_not_in_the_curve(workflow: PlainWorkflow) -> None:
    kill_before(workflow, "epoch 2")
    result = workflow.run(force=True)
    assert workflow.curve(result) == [(1, 2.0), (2, 2.0)]


def test_a_force_killed_before_it_deleted_anything_begins_anew(
    workflow: PlainWorkflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow.run()

    def kill(folder: str) -> None:
        raise Kill

    for stage in ("preprocess", "train"):
        with monkeypatch.context() as patch:
            patch.setattr("alexnet.storage.delete_folder", kill)
            with pytest.raises(Kill):
                workflow.run(force=True, only=stage)
        result = workflow.run()
    assert len(workflow.made) == 4
    assert workflow.model(result)["training"] == 2


def test_a_full_run_killed_at_its_end_is_finished(
    workflow: PlainWorkflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.full_run.close_run", kill)
        with pytest.raises(Kill):
            workflow.run(force=True)
    made = len(workflow.made)
    assert workflow.run(force=True).skipped == STAGES
    assert {run.info.status for run in workflow.client.search_runs(["1"])} == {"FINISHED"}
    assert workflow.run(force=True).skipped == []
    assert len(workflow.made) == 2 * made


def test_full_runs_on_other_sources_have_other_runs(workflow: PlainWorkflow) -> None:
    kill_before(workflow, "epoch 1")
    workflow.source = workflow.folder / "other"
    write_source(workflow.source, 2)
    workflow.run()
    runs = workflow.client.search_runs(["1"])
    assert [run.data.tags["stage"] for run in runs].count("full_run") == 2


def test_a_missing_shard_alone_is_made_again(workflow: PlainWorkflow) -> None:
    result = workflow.run(rows_per_shard=2)
    workflow.made.clear()
    shards = Path(result.stages["preprocess"]["shards"])
    (shards / "train" / "part-00001.parquet").unlink()
    (shards / "val" / "part-00000.parquet").write_bytes(b"")
    result = workflow.run(rows_per_shard=2)
    assert sorted(workflow.made) == ["train/part-00001.parquet", "val/part-00000.parquet"]
    assert result.skipped == ["train", "evaluate", "promote"]
    (shards / "statistics.npz").unlink()
    workflow.made.clear()
    assert workflow.run(rows_per_shard=2).skipped == ["train", "evaluate", "promote"]
    assert len(workflow.made) == 4


@pytest.mark.parametrize("damaged", ["origin.json", "train-00000.json"])
def test_damaged_notes_of_an_unfinished_data_set(workflow: PlainWorkflow, damaged: str) -> None:
    kill_before(workflow, "shard val/part-00000.parquet", rows_per_shard=2)
    (path,) = workflow.workdir.glob(f"shards/*/parts/{damaged}")
    json.loads(path.read_text())
    path.write_text('{"file')
    assert workflow.run(rows_per_shard=2).stages["preprocess"]["images"] == 8


def test_an_evaluation_with_another_result_is_promoted_again(workflow: PlainWorkflow) -> None:
    workflow.run()
    workflow.code["evaluate"] = "1"
    result = workflow.run()
    assert result.skipped == ["preprocess", "train"]
    version = workflow.client.get_model_version_by_alias("alexnet", "candidate")
    assert version.tags["evaluation.run"] == result.stages["evaluate"]["run_id"]
    again = workflow.run(only="evaluate", force=True)
    result = workflow.run()
    assert result.skipped == ["preprocess", "train", "evaluate"]
    version = workflow.client.get_model_version_by_alias("alexnet", "candidate")
    assert version.tags["evaluation.run"] == again.stages["evaluate"]["run_id"]


def test_a_forced_full_run_resumes_the_forced_stage_of_another_command(
    workflow: PlainWorkflow,
) -> None:
    workflow.run()
    kill_before(workflow, "epoch 2", only="train", force=True)
    kill_before(workflow, "evaluation", force=True)
    result = workflow.run(force=True)
    assert result.skipped == ["preprocess", "train"]
    assert workflow.model(result)["training"] == 2
    assert [epoch for _, epoch in workflow.epochs] == [1, 2, 1, 2]
