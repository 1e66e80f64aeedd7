"""``alexnet gc``: what nothing needs is listed and deleted, and never anything else."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_workflow import STAGES, PlainWorkflow
from pydantic import ValidationError

from alexnet.errors import UserError
from pipelines import collect_garbage
from pipelines.configuration.command_settings import GarbageSettings
from pipelines.inspection.needs import DELETABLE, Graph, Node, judge
from pipelines.results.command_results import GarbageResult
from pipelines.results.records import history, start
from pipelines.workdir import Workdir

KINDS = st.sampled_from(["version", "result", "data set", "checkpoints", "evaluation", "run"])
NODES = st.builds(Node, KINDS, st.sampled_from("abc"))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Some nodes, also such as no longer exist, in any relation: with cycles and loops."""
    exist = draw(st.dictionaries(NODES, st.integers(0, 9)))
    needs = draw(st.dictionaries(NODES, st.frozensets(NODES, max_size=4)))
    roots = draw(st.dictionaries(NODES, st.sampled_from(["newest", "alias"]), max_size=3))
    return Graph(exist, needs, roots)


def needed_nodes(graph: Graph) -> set[Node]:
    """The smallest set that has the roots and what its members need, by repeated passes."""
    needed = set(graph.roots)
    while more := {n for node in needed for n in graph.needs.get(node, frozenset())} - needed:
        needed |= more
    return needed


@given(graphs())
def test_never_what_is_needed_and_everything_reported(graph: Graph) -> None:
    verdicts = judge(graph)
    taking_space = {node for node in graph.exist if node.kind in DELETABLE}
    assert [v.node for v in verdicts] == sorted(taking_space)
    needed = needed_nodes(graph)
    for verdict in verdicts:
        assert verdict.needed == (verdict.node in needed)
        assert verdict.bytes == graph.exist[verdict.node]
        assert verdict.reason
        assert (verdict.reason in graph.roots.values()) == verdict.needed


@given(graphs(), NODES, NODES)
def test_more_needs_and_more_roots_never_free_anything(graph: Graph, one: Node, two: Node) -> None:
    free = {v.node for v in judge(graph) if not v.needed}
    edges = graph.needs.get(one, frozenset()) | {two}
    for more in (
        Graph(graph.exist, {**graph.needs, one: edges}, graph.roots),
        Graph(graph.exist, graph.needs, {**graph.roots, one: "alias"}),
    ):
        assert {v.node for v in judge(more) if not v.needed} <= free


def collect(workdir: Path, **settings: Any) -> GarbageResult:
    return collect_garbage.run(GarbageSettings.model_validate({"workdir": str(workdir)} | settings))


def files_of(workdir: Path) -> Mapping[str, int]:
    folders = ("shards", "training", "evaluations", "mlartifacts")
    return {
        str(path.relative_to(workdir)): path.stat().st_size
        for folder in folders
        for path in (workdir / folder).rglob("*")
        if path.is_file()
    }


def test_an_empty_workdir_has_no_garbage(mlflow_workdir: str) -> None:
    assert collect(Path(mlflow_workdir)).garbage == []


def test_a_missing_workdir_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; check --workdir"):
        collect(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_delete_and_dry_run_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        GarbageSettings(dry_run=True, delete=True)


def test_records_that_cannot_be_read_are_refused(mlflow_workdir: str) -> None:
    record = Path(mlflow_workdir, "stages", "train", "0123456789abcdef.json")
    record.parent.mkdir(parents=True)
    record.write_text('{"format": 1}')
    with pytest.raises(UserError, match="another version of this project"):
        collect(Path(mlflow_workdir), delete=True)


@pytest.fixture
def workflow(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> PlainWorkflow:
    workflow = PlainWorkflow(tmp_path, empty_database)
    workflow.install(monkeypatch)
    return workflow


@pytest.mark.slow
def test_what_a_deleted_version_needed_is_freed_and_the_rest_works(
    workflow: PlainWorkflow, capsys: pytest.CaptureFixture[str]
) -> None:
    first = workflow.run(epochs=1, champion="always")
    second = workflow.run(epochs=2, champion="always")
    workdir = workflow.workdir
    everything = files_of(workdir)
    assert collect(workdir).garbage == [], "both are registered"
    workflow.client.delete_model_version("alexnet", "1")
    capsys.readouterr()
    listed = collect(workdir)
    assert files_of(workdir) == everything, "without --delete nothing is changed"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["what", "where", "size", "needed", "why"]
    assert sum(" no " in line for line in lines[1:]) == len(listed.garbage)
    expected = {
        ("checkpoints", Path(first.stages["train"]["checkpoint"]).name),
        ("model", first.stages["train"]["model"]),
        ("evaluation", Path(first.stages["evaluate"]["predictions"]).parent.name),
        ("run", first.stages["train"]["run_id"]),
        ("run", first.stages["evaluate"]["run_id"]),
        ("run", first.stages["promote"]["run_id"]),
    }
    found = {(garbage.kind, garbage.name) for garbage in listed.garbage}
    # Runs have artifacts only if something was logged.
    assert found <= expected
    assert {pair for pair in expected if pair[0] != "run"} <= found
    assert ("run", first.stages["evaluate"]["run_id"]) in found
    assert listed.bytes + listed.bytes_needed == sum(everything.values())
    deleted = collect(workdir, delete=True)
    assert {(g.kind, g.name) for g in deleted.garbage} == found
    left = files_of(workdir)
    assert sum(everything.values()) - sum(left.values()) == deleted.bytes > 0
    assert not any(Path(garbage.path).exists() for garbage in deleted.garbage)
    assert collect(workdir).garbage == []
    assert workflow.run(epochs=2, champion="always").skipped == STAGES
    assert workflow.model(second)["epochs"] == 2
    # What was logged stays: parameters and curves of the run whose artifacts were deleted.
    assert workflow.client.get_run(first.stages["train"]["run_id"]).data.params["epochs"] == "1"
    assert workflow.curve(first)
    again = workflow.run(epochs=1, champion="always")
    assert again.skipped == ["preprocess"], "what was deleted is made again"


@pytest.mark.slow
def test_what_an_unfinished_run_resumes_with_is_kept(workflow: PlainWorkflow) -> None:
    workflow.run(epochs=1, champion="always")
    workflow.run(epochs=2, champion="always")
    workflow.client.delete_model_version("alexnet", "1")
    workdir = Workdir(str(workflow.workdir))
    first = history(workdir, "train").finished[0]
    start(workdir, first.key, lambda _: first.run_id)
    kept = {first.key.digest, first.run_id}
    assert not kept & {garbage.name for garbage in collect(workflow.workdir).garbage}


def test_an_incomplete_data_set_is_garbage_unless_preprocess_is_unfinished(
    finished_workdir: Path,
) -> None:
    (data_set,) = (finished_workdir / "shards").iterdir()
    shutil.copytree(data_set, data_set.with_name("0" * 16))
    (data_set.with_name("0" * 16) / "manifest.json").unlink()
    assert [(g.kind, g.name) for g in collect(finished_workdir).garbage] == [("data set", "0" * 16)]
    workdir = Workdir(str(finished_workdir))
    (record,) = history(workdir, "preprocess").finished
    start(workdir, record.key, lambda _: record.run_id)
    assert collect(finished_workdir).garbage == []
