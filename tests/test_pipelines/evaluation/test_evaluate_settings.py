"""The settings of an evaluation that decide its result, and wrong ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plain_workflow import PlainWorkflow
from pydantic import ValidationError

from alexnet.errors import UserError
from pipelines import evaluate, status
from pipelines.configuration.command_settings import StatusSettings
from pipelines.console.cli import CheckFailedError
from pipelines.results.records import StageOutcome
from pipelines.results.stage_results import EvaluateResult
from pipelines.settings import EvaluateSettings
from pipelines.tracking import registry
from pipelines.workdir import Workdir


def run(workdir: Path, **values: Any) -> StageOutcome[EvaluateResult]:
    return evaluate.run(EvaluateSettings.model_validate({"workdir": str(workdir)} | values))


def test_wrong_settings_are_one_line(finished_workdir: Path, workflow: PlainWorkflow) -> None:
    with pytest.raises(UserError, match=r"^--coefficients: 2 for 1 models; give one for each$"):
        run(finished_workdir, coefficients=[1, 2])
    with pytest.raises(UserError, match=r"^--tune-coefficients: is for several --model"):
        run(finished_workdir, tune_coefficients="on")
    newest = run(finished_workdir).result.models[0]
    with pytest.raises(UserError, match=rf"^--model: {newest} is given twice; give each model "):
        run(finished_workdir, model=[newest, newest])
    for wrong in ([0, 0], [-1, 2], []):
        with pytest.raises(ValidationError, match="coefficients"):
            EvaluateSettings.model_validate({"coefficients": wrong})


@pytest.fixture
def workflow(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> PlainWorkflow:
    made = PlainWorkflow(tmp_path_factory.mktemp("workflow"), empty_database)
    made.install(monkeypatch)
    return made


def test_features_are_evaluated_once_and_again_if_they_are_lost(
    finished_workdir: Path, workflow: PlainWorkflow
) -> None:
    first = run(finished_workdir)
    wanted = run(finished_workdir, features="fc7")
    assert (first.skipped, wanted.skipped) == (True, False)
    assert first.key.digest != wanted.key.digest
    assert not run(finished_workdir, features="fc7").skipped, "there is no file of features"
    folder = Path(Workdir(str(finished_workdir)).predictions(wanted.key.digest)).parent
    (folder / "features.parquet").touch()
    assert run(finished_workdir, features="fc7").skipped
    assert run(finished_workdir).skipped


def test_status_accepts_a_given_average(finished_workdir: Path, workflow: PlainWorkflow) -> None:
    for record in (finished_workdir / "stages" / "evaluate").iterdir():
        record.unlink()
    assert not run(finished_workdir, coefficients=[2]).skipped
    with pytest.raises(CheckFailedError) as caught:
        status.run(StatusSettings.model_validate({"workdir": str(finished_workdir)}))
    states = {stage["stage"]: stage for stage in caught.value.result.to_json()["stages"]}
    assert "coefficients" not in states["evaluate"]["reason"]


def test_what_needs_several_models_or_one(
    finished_workdir: Path, workflow: PlainWorkflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(finished_workdir).result.models[0]
    known = registry.get_model_info
    monkeypatch.setattr(
        registry, "get_model_info", lambda store, uri: replace(known(store, first), uri=uri)
    )
    wrong: list[dict[str, Any]] = [
        {"features": "fc7"},
        {"features": "fc7", "tune_coefficients": "on"},
        {"coefficients": [1, 2], "tune_coefficients": "on"},
    ]
    for values in wrong:
        with pytest.raises(UserError, match=r"^--(features|tune-coefficients): "):
            run(finished_workdir, model=[first, "models:/other"], **values)
