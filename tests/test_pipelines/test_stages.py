"""Skip or run: identities, records, and the reasons given."""

from dataclasses import replace
from pathlib import Path

import pytest

from alexnet.errors import UserError
from pipelines.settings import StageSettings
from pipelines.stages import StageKey, begin, find_reusable, finish, latest, require, run_stage
from pipelines.tracking.store import connect

IDENTITY = StageKey(
    stage="train",
    settings={"epochs": 4, "seed": 0},
    inputs={"shards": "abc"},
    code="c0de",
)


def complete(workdir: str, identity: StageKey, run_id: str = "run") -> None:
    finish(workdir, begin(workdir, identity, lambda old: old or run_id), {"loss": 1.5})


def reason(workdir: str, identity: StageKey, *, force: bool = False, usable: bool = True) -> str:
    return find_reusable(workdir, identity, force=force, usable=lambda record: usable)[1]


def test_a_finished_stage_is_skipped(tmp_path: Path) -> None:
    workdir = str(tmp_path)
    assert reason(workdir, IDENTITY) == "it has not run yet"
    complete(workdir, IDENTITY)
    record, why = find_reusable(workdir, IDENTITY, force=False, usable=lambda record: True)
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
def test_a_change_is_named(tmp_path: Path, identity: StageKey, words: str) -> None:
    complete(str(tmp_path), IDENTITY)
    assert identity.key != IDENTITY.key
    assert reason(str(tmp_path), identity) == words


def test_going_back_to_earlier_settings_finds_the_earlier_result(tmp_path: Path) -> None:
    workdir, other = str(tmp_path), replace(IDENTITY, settings={"epochs": 5, "seed": 0})
    complete(workdir, IDENTITY)
    complete(workdir, other)
    assert (
        latest(workdir, "train")
        == find_reusable(workdir, other, force=False, usable=lambda _: True)[0]
    )
    assert find_reusable(workdir, IDENTITY, force=False, usable=lambda record: True)[0] is not None


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
    store = connect(settings)
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
