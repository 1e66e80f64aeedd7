"""The settings' command line: precedence, and one clear line for every mistake."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from alexnet.errors import UserError
from pipelines.console.cli import read_settings, run_script
from pipelines.presets import PRESETS
from pipelines.settings import (
    BatchInferenceSettings,
    EvaluateSettings,
    FullRunSettings,
    PreprocessSettings,
    Settings,
    TrainSettings,
)

KINDS = (
    FullRunSettings,
    PreprocessSettings,
    TrainSettings,
    EvaluateSettings,
    BatchInferenceSettings,
)


def read(arguments: list[str]) -> FullRunSettings:
    return read_settings(FullRunSettings, arguments, "text")


def test_values_come_from_default_preset_file_and_command_line(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("epochs: 7\nbatch-size: 64\nlearning_rate: 0.5\n")
    settings = read(["--config", str(config), "--batch-size", "16"])
    assert settings.seed == 0, "built-in default"
    assert settings.recipe == PRESETS["sample"]["recipe"], "preset"
    assert settings.rows_per_shard == PRESETS["sample"]["rows_per_shard"], "preset"
    assert settings.epochs == 7, "file"
    assert settings.learning_rate == 0.5, "file"
    assert settings.batch_size == 16, "command line"


def test_the_preset_can_come_from_the_file(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("preset: ilsvrc2012\n")
    settings = read(["--config", str(config)])
    assert settings.preset == "ilsvrc2012"
    assert settings.rows_per_shard == PRESETS["ilsvrc2012"]["rows_per_shard"]
    assert settings.epochs is None, "the recipe's"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_only_known_settings_in_range(name: str) -> None:
    assert set(PRESETS[name]) <= set(FullRunSettings.model_fields)
    read(["--preset", name])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochz", "3"], ["--epochz", "did you mean --epochs"]),
        (["--epochs", "0"], ["--epochs", "greater than or equal to 1", "'0'"]),
        (["--epochs", "many"], ["--epochs", "integer", "'many'"]),
        (["--recipe", "caffe"], ["--recipe", "paper", "source145", "'caffe'"]),
        (["--only", "trian"], ["--only", "'train'", "'trian'"]),
        (["--only", "train", "--from", "train"], ["--only", "--from"]),
        (["--learning-rate", "-1"], ["--learning-rate", "greater than 0"]),
        (["--workdir", "s3://bucket/run"], ["s3://bucket/run", "--tracking-uri"]),
        (["--config", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["--preset", "cifar"], ["--preset", "'sample'", "'cifar'"]),
        (["--source", ""], ["--source", "at least 1 character"]),
        (["--epochs"], ["--epochs", "expected one argument"]),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read(arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3\n", ["epoch", "did you mean epochs"]),
        ("epochs: 0\n", ["epochs", "greater than or equal to 1"]),
        ("- 1\n", ["epochs: 5"]),
        ("epochs: [\n", ["YAML"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    with pytest.raises(UserError) as caught:
        read(["--config", str(config)])
    for word in [str(config), *words]:
        assert word in str(caught.value)


def test_one_file_serves_all_scripts_but_unknown_options_stay_errors(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("epochs: 5\nrows_per_shard: 99\n")
    arguments = ["--config", str(config)]
    assert read_settings(PreprocessSettings, arguments, "text").rows_per_shard == 99
    assert read_settings(TrainSettings, arguments, "text").epochs == 5
    with pytest.raises(UserError, match="--epochs"):
        read_settings(PreprocessSettings, ["--epochs", "5"], "text")


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read(["--workdir", "here", "--source", "s3://bucket/raw/"])
    assert settings.workdir == str(tmp_path / "here")
    assert settings.source == "s3://bucket/raw"


def test_the_default_workdir_is_absolute_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read([]).workdir == str(tmp_path / "work")


def test_numbers_to_choose_from_are_read_from_text() -> None:
    settings = read(["--towers", "1", "--gpus-per-worker", "1"])
    assert (settings.towers, settings.gpus_per_worker) == (1, 1)
    arguments = ["--images", "x", "--output", "y", "--views", "10"]
    assert read_settings(BatchInferenceSettings, arguments, "text").views == 10
    with pytest.raises(UserError, match="--towers: input should be 1 or 2"):
        read(["--towers", "3"])


def test_on_and_off_are_words_also_in_yaml(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("normalization: off\noverlapping_pooling: on\n")
    settings = read(["--config", str(config)])
    assert (settings.normalization, settings.overlapping_pooling) == ("off", "on")
    assert read(["--overlapping-pooling", "off"]).overlapping_pooling == "off"
    with pytest.raises(UserError, match="--normalization: input should be 'on' or 'off'"):
        read(["--normalization", "none"])


@pytest.mark.parametrize(
    ("text", "least", "most"), [("4", 4, 4), ("1:4", 1, 4), ("2:2", 2, 2), (3, 3, 3)]
)
def test_workers_are_a_number_or_a_range(
    tmp_path: Path, text: str | int, least: int, most: int
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(json.dumps({"num_workers": text}))
    settings = read(["--config", str(config)])
    assert settings.num_workers == (least, most)
    for kind in (TrainSettings, EvaluateSettings):
        part = settings.part(kind)
        assert kind.model_validate(part.model_dump()) == part
    shown = settings.model_dump()["num_workers"]
    assert shown == (least if least == most else text)


@pytest.mark.parametrize("text", ["0", "4:1", "0:2", "1:", ":2", "1:2:3", "two", "1.5", "-1"])
def test_other_ranges_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"--num-workers: .*as in 1:4") as caught:
        read([f"--num-workers={text}"])
    assert "\n" not in str(caught.value)


def test_several_models_are_a_list() -> None:
    settings = read_settings(EvaluateSettings, ["--model", "models:/a/1", "models:/a/2"], "text")
    assert settings.model == ["models:/a/1", "models:/a/2"]


def test_required_options_are_named() -> None:
    with pytest.raises(UserError, match="--images is required"):
        read_settings(BatchInferenceSettings, ["--output", "/tmp/x"], "text")


@pytest.mark.parametrize("kind", KINDS)
def test_help_describes_every_option(
    kind: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        read_settings(kind, ["--help"], "What it does.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert "--" + (field.alias or name).replace("_", "-") in text


def test_every_result_setting_belongs_to_one_stage_of_the_full_run() -> None:
    every = set(read([]).results())
    stages = [read([]).part(kind).results() for kind in (PreprocessSettings, TrainSettings)]
    shared = set(stages[0]) & set(stages[1])
    assert shared == {"seed"}
    assert set(stages[0]) | set(stages[1]) <= every
    assert not {"workdir", "tracking_uri", "num_workers", "device", "force"} & every


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (UserError("the file\n is bad"), 2, "prog: the file is bad\n"),
        (RuntimeError("a bug"), 1, "prog: failed: a bug\n"),
        (KeyboardInterrupt(), 1, "interrupted"),
    ],
)
def test_exit_status_and_last_line(
    error: BaseException | None,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(settings: FullRunSettings) -> dict[str, Any]:
        print("progress")
        if error:
            raise error
        return {"stage": "x", "images": 3}

    monkeypatch.setattr(sys, "argv", ["/some/prog"])
    with pytest.raises(SystemExit) as caught:
        run_script(FullRunSettings, work, "text")
    assert caught.value.code == status
    out, err = capsys.readouterr()
    assert err.endswith(said) or said in err
    assert ("Traceback" in err) == (status == 1 and not isinstance(error, KeyboardInterrupt))
    if status == 0:
        assert json.loads(out.splitlines()[-1]) == {"stage": "x", "images": 3}
