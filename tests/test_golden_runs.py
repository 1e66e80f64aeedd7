"""No change of arithmetic goes unnoticed: the losses of short trainings are those that are kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden_runs import KEPT, GoldenRun, compare, differences, golden_runs, kind_of_cpu, losses_of

from alexnet.shards.manifest import Manifest

QUICK = ("source145", "source145, exact", "paper")
RUNS = [
    pytest.param(run, id=run.name, marks=[] if run.name in QUICK else pytest.mark.long)
    for run in golden_runs()
]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_losses_are_those_that_are_kept(dataset: Manifest, run: GoldenRun) -> None:
    kept = {kind: {run.name: losses[run.name]} for kind, losses in _kept().items()}
    found = {run.name: losses_of(run, dataset)}
    assert compare(kept, found, kind_of_cpu()) == []


def test_every_run_is_kept() -> None:
    names = {run.name for run in golden_runs()}
    assert all(losses.keys() == names for losses in _kept().values())
    assert len(names) == 22


def test_one_changed_bit_is_noticed_on_the_same_kind_of_cpu() -> None:
    losses = [2.5, 1.25]
    kept = {"same": {"run": [loss.hex() for loss in losses]}}
    changed = [2.5, float(np.nextafter(1.25, 2))]
    found = {"run": [loss.hex() for loss in changed]}
    (line,) = compare(kept, found, "same")
    assert line == f"run: 1 of 2 losses, from update 2 on: 1.25 became {changed[1]!r}"
    assert compare(kept, found, "another") == []
    far = {"run": [(2.5).hex(), (1.3).hex()]}
    assert compare(kept, far, "another") == [
        "run: 1 of 2 losses, from update 2 on: 1.25 became 1.3"
    ]
    assert compare(kept, kept["same"], "same") == []


def test_runs_that_are_missing_are_named() -> None:
    one, two = {"a": ["0x1.0p+0"]}, {"b": ["0x1.0p+0"], "a": ["0x1.0p+0"] * 2}
    assert differences(one, two, same_kind=True) == ["a: 2 losses, 1 are kept", "b: not kept"]
    assert differences(two, one, same_kind=False) == [
        "a: 1 losses, 2 are kept",
        "b: is kept, but no longer run",
    ]


def _kept() -> dict[str, dict[str, list[str]]]:
    kept: dict[str, dict[str, list[str]]] = json.loads(Path(KEPT).read_text())
    return kept
