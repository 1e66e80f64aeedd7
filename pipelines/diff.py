"""What differs between two runs: settings, data, code and results.

A run is named by its MLflow id, its name or its stage key (the name of its folder in the workdir).
Of two full runs, the runs of each stage are compared.

    alexnet diff 0a1b2c3d4e5f60718293a4b5c6d7e8f9 9f8e7d6c5b4a39281706f5e4d3c2b1a0
    alexnet diff "train source145 sample 2026-11-26" 5d41402abc4b2a76 --workdir /data/work
"""

from collections.abc import Callable, Mapping
from typing import NoReturn

from alexnet.errors import UserError
from pipelines.configuration.command_settings import DiffSettings
from pipelines.console.cli import run_script, show
from pipelines.console.table import table
from pipelines.results.command_results import Difference, DiffResult
from pipelines.stage_keys.run_identity import CODE_TAGS, INPUT_TAG
from pipelines.tracking.run_info import RunInfo, find_run
from pipelines.tracking.store import connect

ABSENT = "—"


def run(settings: DiffSettings) -> DiffResult:
    """Compare two runs.

    Raises:
        UserError: one of them does not exist, or they have no stage in common.
    """
    store = connect(settings)
    first, second = (find_run(store, name) for name in settings.runs)
    result = compare_runs(first, second, lambda run_id: find_run(store, run_id))
    show(settings, in_words(result))
    return result


def compare_runs(first: RunInfo, second: RunInfo, find: Callable[[str], RunInfo]) -> DiffResult:
    """The differences of two runs, or of the stages that two full runs have in common.

    Args:
        first: a run.
        second: another one.
        find: returns a run, by its id.

    Raises:
        UserError: they have no stage in common, or a stage's run was deleted.
    """
    of_first, of_second = _stages(first), _stages(second)
    common = [stage for stage in of_first if stage in of_second]
    if not common:
        raise UserError(
            f"{first.name} is a run of {first.stage}, {second.name} of {second.stage}; give two "
            "runs of the same stage, or full runs"
        )
    known = {first.run_id: first, second.run_id: second}

    def run_info(run_id: str) -> RunInfo:
        return known.get(run_id) or find(run_id)

    differences = [
        difference
        for stage in common
        for difference in differences_of(run_info(of_first[stage]), run_info(of_second[stage]))
    ]
    return DiffResult(
        first=first.run_id, second=second.run_id, stages=common, differences=differences
    )


def _stages(run: RunInfo) -> dict[str, str]:
    """Ids of runs by stage."""
    return run.children or {run.stage: run.run_id}


def differences_of(first: RunInfo, second: RunInfo) -> list[Difference]:
    """What differs between two runs of one stage."""
    sides = [_by_kind(first), _by_kind(second)]
    return [
        Difference(
            kind=kind,
            stage=first.stage,
            name=name,
            first=one.get(name, ABSENT),
            second=other.get(name, ABSENT),
        )
        for kind in sides[0]
        for one, other in [(sides[0][kind], sides[1][kind])]
        for name in sorted({**one, **other})
        if one.get(name) != other.get(name)
    ]


def _by_kind(run: RunInfo) -> dict[str, Mapping[str, str]]:
    """What is compared, by kind, name by name."""
    inputs = {
        name.removeprefix(INPUT_TAG): value
        for name, value in run.tags.items()
        if name.startswith(INPUT_TAG)
    }
    return {
        "settings": run.params,
        "data": inputs | dict(run.datasets),
        "code": {name: run.tags[name] for name in CODE_TAGS if name in run.tags},
        "results": {
            name: f"{value:g}"
            for name, value in run.metrics.items()
            if not name.startswith("system/")
        },
    }


def in_words(result: DiffResult) -> list[str]:
    """The differences as a table for the terminal."""
    if not result.differences:
        return [f"no difference in {', '.join(result.stages)}"]
    return table(
        ["stage", "kind", "name", "first", "second"],
        [[d.stage, d.kind, d.name, d.first, d.second] for d in result.differences],
    )


def main() -> NoReturn:
    """The command."""
    run_script(DiffSettings, run, __doc__)


if __name__ == "__main__":
    main()
