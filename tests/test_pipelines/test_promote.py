"""Which version becomes champion."""

import pytest

from pipelines.promote import decide_champion
from pipelines.results import EvaluateResult
from pipelines.settings import PromoteSettings
from pipelines.tracking.registry import Version

EVALUATED = EvaluateResult(
    images=1000,
    top1_error=10.0,
    top5_error=2.0,
    centre_top1_error=11.0,
    centre_top5_error=2.5,
    top1_accuracy=90.0,
    models=["models:/m-1"],
    validation="same",
    predictions="/work/evaluations/abc/predictions.parquet",
)


def champion(error: float, validation: str = "same") -> Version:
    return Version("3", {"top1_error": str(error), "validation.content": validation})


@pytest.mark.parametrize(
    ("rule", "present", "wins", "words"),
    [
        ("better", None, True, "the first of its name, 10.0 % top-1 error"),
        ("better", champion(20.0), True, "10.0 % top-1 error against 20.0 % of version 3"),
        ("better", champion(5.0), False, "10.0 % top-1 error against 5.0 % of version 3"),
        ("better", champion(10.0), False, "10.0 % top-1 error against 10.0 % of version 3"),
        ("better", champion(50.0, "other"), False, "other validation images"),
        ("always", champion(5.0), True, "--champion always"),
        ("never", None, False, "--champion never"),
        ("never", Version("4", {}), True, "already"),
    ],
)
def test_the_alias_moves_only_to_a_better_model(
    rule: str, present: Version | None, wins: bool, words: str
) -> None:
    settings = PromoteSettings.model_validate({"champion": rule})
    won, reason = decide_champion(settings, present, "4", EVALUATED)
    assert won == wins
    assert words in reason
