"""The settings of an evaluation that decide its result, and wrong ones."""

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
from pipelines.settings import EvaluateSettings, FullRunSettings
from pipelines.workdir import Workdir


def run(workdir: Path, **values: Any) -> StageOutcome[EvaluateResult]:
    return evaluate.run(EvaluateSettings.model_validate({"workdir": str(workdir)} | values))


@pytest.mark.parametrize("settings", [EvaluateSettings, FullRunSettings])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"coefficients": [1, 2]}, "--coefficients: 2 for 1 models; give one for each"),
        ({"coefficients": [1], "model": ["a", "b"]}, "--coefficients: 1 for 2 models"),
        ({"coefficients": [0, 0], "model": ["a", "b"]}, "coefficients"),
        ({"coefficients": [-1, 2], "model": ["a", "b"]}, "coefficients"),
        ({"coefficients": []}, "coefficients"),
        ({"features": "fc7", "model": ["a", "b"]}, "--features: those of several models "),
        ({"tune_coefficients": "on"}, "--tune-coefficients: is for several --model"),
        (
            {"tune_coefficients": "on", "coefficients": [1, 2], "model": ["a", "b"]},
            "--tune-coefficients: is for several --model, without --coefficients",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(
    settings: type[EvaluateSettings], values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        settings.model_validate(values)


def test_a_model_that_is_given_twice_is_refused(
    finished_workdir: Path, workflow: PlainWorkflow
) -> None:
    newest = run(finished_workdir).result.models[0]
    with pytest.raises(UserError, match=rf"^--model: {newest} is given twice; give each model "):
        run(finished_workdir, model=[newest, newest])


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
