"""Names and tags by which runs are told apart."""

import re
from typing import Any

import pytest

from pipelines.settings import (
    EvaluateSettings,
    FullRunSettings,
    PreprocessSettings,
    StageSettings,
    TrainSettings,
)
from pipelines.stage_keys.run_identity import identity_tags, run_name


@pytest.mark.parametrize(
    ("kind", "values", "inputs", "words"),
    [
        (PreprocessSettings, {"source": "/data/photos"}, {}, "photos"),
        (TrainSettings, {"preset": "sample"}, {"shards": "0" * 16}, "source145 sample"),
        (TrainSettings, {"recipe": "paper"}, {"shards": "12345678abcdef00"}, "paper 12345678"),
        (EvaluateSettings, {"preset": "none"}, {"validation": "abcdefgh12"}, "abcdefgh"),
        (FullRunSettings, {"preset": "ilsvrc2012"}, {"source": ""}, "source145 ilsvrc2012"),
        (FullRunSettings, {"source": "/data/photos"}, {"source": ""}, "source145 photos"),
        (StageSettings, {}, {}, ""),
    ],
)
def test_names(
    kind: type[StageSettings], values: dict[str, Any], inputs: dict[str, str], words: str
) -> None:
    name = run_name("stage", kind.model_validate(values), inputs)
    expected = " ".join(filter(None, ["stage", words]))
    assert re.fullmatch(re.escape(expected) + r" \d{4}-\d\d-\d\d \d\d:\d\d", name)


def test_tags() -> None:
    tags = identity_tags({"shards": "abc"}, "c0de", "paper")
    assert (
        tags.items() >= {"input.shards": "abc", "code.version": "c0de", "recipe": "paper"}.items()
    )
    assert identity_tags({}, "", "").keys() <= {"git.commit", "git.dirty"}
