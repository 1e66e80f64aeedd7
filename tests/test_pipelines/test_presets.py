"""Which numbers a stage uses without ``--preset``, and the line that names what set them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from alexnet.shards.manifest import Manifest, write_manifest
from alexnet.sources.read import read_source
from alexnet.sources.sample import LABELS
from pipelines import cluster, preprocess, train
from pipelines.console.cli import read_settings
from pipelines.preprocessing import source
from pipelines.preprocessing import stage as preprocess_stage
from pipelines.preprocessing.source import is_sample
from pipelines.results.records import StageKey, StageOutcome
from pipelines.results.stage_results import PreprocessResult
from pipelines.settings import FullRunSettings, PreprocessSettings, StageSettings, TrainSettings

SAMPLE_NUMBERS = {"epochs": 4, "batch_size": 16, "learning_rate": 0.002, "lr_drops": [3]}
RECIPE_NUMBERS = {"epochs": 90, "batch_size": 128, "learning_rate": 0.01, "lr_drops": None}


@dataclass
class Stage:
    """What a stage that would run was given."""

    settings: StageSettings
    key: StageKey


@pytest.fixture(autouse=True)
def _no_stage_runs(sample_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_stage(settings: StageSettings, _: Any, key: StageKey, *__: Any, **___: Any) -> Stage:
        return Stage(settings, key)

    for module in (preprocess_stage, train):
        monkeypatch.setattr(module, "run_stage", run_stage)
    monkeypatch.setattr(cluster, "connect_in_background", lambda: None)
    monkeypatch.setattr(source, "write_sample", lambda folder: os.symlink(sample_source, folder))


def outcome(manifest: Manifest) -> StageOutcome[PreprocessResult]:
    result = PreprocessResult(
        images=1,
        train_images=1,
        val_images=0,
        classes=1,
        rejected=0,
        shards_made=1,
        shards_kept=0,
        images_per_second=0.0,
        bytes=1,
        digest=manifest.plan_digest,
        shards=manifest.folder,
        content=manifest.content_digest(),
    )
    key = StageKey(stage="preprocess", settings={}, inputs={}, code="")
    return StageOutcome(key=key, result=result, seconds=0.0, run_id="run", skipped=True)


@pytest.fixture
def sample(dataset: Manifest, tmp_path: Path) -> Manifest:
    """A manifest as of shards that were made from the sample, in a workdir that moved since."""
    folder = tmp_path / "shards"
    folder.mkdir()
    made = replace(dataset, folder=str(folder), source="/elsewhere/work/sample", labels=LABELS)
    write_manifest(made)
    return made


def trained(settings: TrainSettings, manifest: Manifest) -> dict[str, Any]:
    stage: Any = train.run(settings, preprocessed=outcome(manifest))
    assert isinstance(stage, Stage)
    return {name: stage.key.settings[name] for name in SAMPLE_NUMBERS}


def train_settings(workdir: str, arguments: Sequence[str]) -> TrainSettings:
    return read_settings(TrainSettings, ["--workdir", workdir, *arguments], "text")


def test_a_recipe_keeps_its_numbers_on_shards_that_are_not_the_samples(
    dataset: Manifest, mlflow_workdir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = train_settings(mlflow_workdir, ["--recipe", "paper", "--batch-size", "64"])
    assert trained(settings, dataset) == RECIPE_NUMBERS | {"batch_size": 64}
    assert capsys.readouterr().out == (
        "train: recipe paper (--recipe), epochs 90 (recipe paper), batch size 64 (--batch-size), "
        "learning rate 0.01 (recipe paper)\n"
    )


def test_the_samples_shards_have_the_samples_numbers(
    sample: Manifest, mlflow_workdir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(train_settings(mlflow_workdir, []), sample) == SAMPLE_NUMBERS
    assert capsys.readouterr().out == (
        "train: recipe source145 (preset sample), epochs 4 (preset sample), batch size 16 (preset "
        "sample), learning rate 0.002 (preset sample), lr drops 3 (preset sample)\n"
    )
    config = tmp_path / "mine.yaml"
    config.write_text("epochs: 4\n")
    given = train_settings(mlflow_workdir, ["--config", str(config), "--learning-rate", "0.02"])
    assert trained(given, sample) == SAMPLE_NUMBERS | {"learning_rate": 0.02}
    line = capsys.readouterr().out
    assert "epochs 4 (mine.yaml), " in line
    assert "learning rate 0.02 (--learning-rate), " in line


def test_a_chosen_preset_holds_for_all_shards(
    dataset: Manifest, sample: Manifest, mlflow_workdir: str
) -> None:
    chosen = train_settings(mlflow_workdir, ["--preset", "sample", "--recipe", "paper"])
    assert trained(chosen, dataset) == SAMPLE_NUMBERS
    none = train_settings(mlflow_workdir, ["--preset", "none", "--recipe", "paper"])
    assert trained(none, sample) == RECIPE_NUMBERS


def test_a_full_run_of_the_training_alone_uses_the_shards_preset(
    dataset: Manifest, sample: Manifest, mlflow_workdir: str
) -> None:
    arguments = ["--workdir", mlflow_workdir, "--only", "train", "--recipe", "paper"]
    settings = read_settings(FullRunSettings, arguments, "text").part(TrainSettings)
    assert trained(settings, dataset) == RECIPE_NUMBERS
    assert trained(settings, sample) == SAMPLE_NUMBERS


@pytest.mark.parametrize("kind", [FullRunSettings, PreprocessSettings])
@pytest.mark.parametrize(
    ("foreign", "more", "rows", "words"),
    [
        (False, [], 128, "128 (preset sample)"),
        (False, ["--rows-per-shard", "128"], 128, "128 (--rows-per-shard)"),
        (True, [], 1024, "1024 (default)"),
        (True, ["--preset", "sample"], 128, "128 (preset sample)"),
        (True, ["--preset", "imagenette"], 512, "512 (preset imagenette)"),
    ],
)
def test_the_rows_of_a_shard(
    kind: type[FullRunSettings | PreprocessSettings],
    foreign: bool,
    more: list[str],
    rows: int,
    words: str,
    raw_images: Path,
    mlflow_workdir: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--workdir", mlflow_workdir, *(["--source", str(raw_images)] if foreign else [])]
    settings = read_settings(kind, arguments + more, "text").part(PreprocessSettings)
    stage: Any = preprocess.run(settings)
    assert stage.key.settings["rows_per_shard"] == rows
    assert capsys.readouterr().out.splitlines()[-1] == f"preprocess: rows per shard {words}"


def test_settings_made_without_a_command_line_have_the_same_numbers(
    dataset: Manifest, sample: Manifest, mlflow_workdir: str
) -> None:
    settings = TrainSettings(workdir=mlflow_workdir, recipe="paper", epochs=7)
    assert trained(settings, dataset) == RECIPE_NUMBERS | {"epochs": 7}
    assert trained(settings, sample) == SAMPLE_NUMBERS | {"epochs": 7}
    whole = FullRunSettings.model_validate({"workdir": mlflow_workdir})
    stage: Any = preprocess.run(whole.part(PreprocessSettings))
    assert stage.key.settings["rows_per_shard"] == 128


def test_the_sample_is_recognized(dataset: Manifest, sample: Manifest) -> None:
    assert is_sample(sample)
    assert not is_sample(dataset)
    assert not is_sample(replace(sample, source="/data/digits")), "given as --source"
    assert not is_sample(replace(sample, labels=LABELS[:9]))


def test_the_samples_classes_are_those_of_its_archives(sample_source: Path) -> None:
    assert read_source(str(sample_source)).labels == LABELS
