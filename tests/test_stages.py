"""Skip or run: identities, records, and the reasons given."""

import ast
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from alexnet.errors import UserError
from alexnet.provenance import code_version
from pipelines import evaluate, preprocess, tracking, train
from pipelines.settings import StageSettings
from pipelines.stages import Identity, begin, decide, finish, latest, require, run_stage

IDENTITY = Identity(
    stage="train",
    settings={"epochs": 4, "seed": 0},
    inputs={"shards": "abc"},
    code="c0de",
)


def complete(workdir: str, identity: Identity, run_id: str = "run") -> None:
    finish(workdir, begin(workdir, identity, lambda old: old or run_id), {"loss": 1.5})


def reason(workdir: str, identity: Identity, *, force: bool = False, usable: bool = True) -> str:
    return decide(workdir, identity, force=force, usable=lambda record: usable)[1]


def test_a_finished_stage_is_skipped(tmp_path: Path) -> None:
    workdir = str(tmp_path)
    assert reason(workdir, IDENTITY) == "it has not run yet"
    complete(workdir, IDENTITY)
    record, why = decide(workdir, IDENTITY, force=False, usable=lambda record: True)
    assert record is not None
    assert record.figures == {"loss": 1.5}
    assert why.startswith("nothing has changed")


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (
            replace(IDENTITY, settings={"epochs": 5, "seed": 0}),
            "setting epochs changed from 4 to 5",
        ),
        (
            replace(IDENTITY, settings={"epochs": 5, "seed": 1}),
            "setting epochs changed from 4 to 5 and 1 more",
        ),
        (replace(IDENTITY, inputs={"shards": "xyz"}), "input shards changed from abc to xyz"),
        (replace(IDENTITY, code="beef"), "its code has changed"),
    ],
)
def test_a_change_is_named(tmp_path: Path, identity: Identity, words: str) -> None:
    complete(str(tmp_path), IDENTITY)
    assert identity.key != IDENTITY.key
    assert reason(str(tmp_path), identity) == words


def test_going_back_to_earlier_settings_finds_the_earlier_result(tmp_path: Path) -> None:
    workdir, other = str(tmp_path), replace(IDENTITY, settings={"epochs": 5, "seed": 0})
    complete(workdir, IDENTITY)
    complete(workdir, other)
    assert latest(workdir, "train") == decide(workdir, other, force=False, usable=lambda _: True)[0]
    assert decide(workdir, IDENTITY, force=False, usable=lambda record: True)[0] is not None


def test_force_and_lost_results_run_again(tmp_path: Path) -> None:
    complete(str(tmp_path), IDENTITY)
    assert reason(str(tmp_path), IDENTITY, force=True) == "--force"
    assert reason(str(tmp_path), IDENTITY, usable=False) == "its result is no longer there"


def test_an_unfinished_stage_goes_on_in_its_run(tmp_path: Path) -> None:
    workdir = str(tmp_path)
    begin(workdir, IDENTITY, lambda old: "first")
    assert reason(workdir, IDENTITY) == "it was begun and not finished"
    assert begin(workdir, IDENTITY, lambda old: old or "second").run_id == "first"
    assert latest(workdir, "train") is None
    complete(workdir, IDENTITY)
    assert begin(workdir, IDENTITY, lambda old: old or "third").run_id == "third"


def test_a_stages_page_opens_with_what_came_of_it(tmp_path: Path) -> None:
    settings = StageSettings(workdir=str(tmp_path))
    store = tracking.connect(settings)
    figures = {"images": 12000, "seconds_each": 0.25, "models": ["m-1", "m-2"], "skipped": False}
    outcome = run_stage(
        settings, store, IDENTITY, parent=None, usable=lambda _: True, work=lambda *_: figures
    )
    note = store.client.get_run(outcome.run_id).data.tags["mlflow.note.content"]
    assert note == "images `12,000` · seconds each `0.25` · models `m-1, m-2` · skipped `False`"


def test_a_stage_that_is_needed_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"preprocess has not finished.*pipelines/preprocess\.py"):
        require(str(tmp_path), "preprocess")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    complete(str(tmp_path), IDENTITY)
    path = tmp_path / "stages" / "train" / f"{IDENTITY.key}.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=str(path)):
        latest(str(tmp_path), "train")


def test_the_code_version_follows_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "science_a.py").write_text("x = 1\n")
    (tmp_path / "science_b.py").write_text("y = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = code_version(["science_a", "science_b"])
    assert code_version(["science_b", "science_a"]) == before
    (tmp_path / "science_b.py").write_text("y = 2\n")
    importlib.invalidate_caches()
    assert "science_b" not in sys.modules, "nothing is imported to know its version"
    assert code_version(["science_a", "science_b"]) != before


HARMLESS = {
    train: {"errors", "images", "metrics", "shards"},  # Shards have a digest of their own.
    evaluate: {"augment_loops", "images", "native", "recipes", "towers"},  # Of training only.
    preprocess: {"errors", "provenance", "storage"},
}
"""What a stage's code imports of the science without an effect on its numbers."""


@pytest.mark.parametrize("stage", HARMLESS, ids=lambda stage: stage.__name__)
def test_a_stage_is_done_again_when_anything_that_counts_changes(stage: ModuleType) -> None:
    imported = set()
    for name in stage.CODE:
        source = Path(str(importlib.import_module(name).__file__)).read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module == "alexnet":
                imported |= {f"alexnet.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("alexnet."):
                imported.add(str(node.module))
    assert imported - set(stage.CODE) == {f"alexnet.{name}" for name in HARMLESS[stage]}
