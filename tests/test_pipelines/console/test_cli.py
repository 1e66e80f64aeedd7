"""The command line: precedence of settings, one line for each error, exit status, remedies."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ray.exceptions import RayTaskError

from alexnet import errors
from alexnet.errors import CorruptShardError, UserError
from pipelines.configuration.command_settings import BatchInferenceSettings
from pipelines.console.cli import REMEDIES, explain, read_settings, run_script
from pipelines.presets import PRESETS
from pipelines.settings import (
    EvaluateSettings,
    FullRunSettings,
    PreprocessCommandSettings,
    PreprocessSettings,
    Settings,
    TrainSettings,
)

ROOT = Path(__file__).parents[3]
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
        (["--recipe", "vgg"], ["--recipe", "paper", "source145", "'vgg'"]),
        (["--only", "trian"], ["--only", "'train'", "'trian'"]),
        (["--only", "train", "--from", "train"], ["--only", "--from"]),
        (["--learning-rate", "-1"], ["--learning-rate", "greater than 0"]),
        (["--workdir", "s3://bucket/run"], ["s3://bucket/run", "--tracking-uri"]),
        (
            ["--workdir", "s3://b/run", "--tracking-uri", "http://h", "--shuffle-rows", "all"],
            ["--shuffle-rows all", "s3://b/run", "give --shuffle-rows windows"],
        ),
        (["--config", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["--preset", "cifar"], ["--preset", "'sample'", "'cifar'"]),
        (["--source", ""], ["--source", "at least 1 character"]),
        (["--epochs"], ["--epochs", "expected one argument"]),
        (["--lr-drops", "3", "3"], ["--lr-drops: each epoch once", "['3', '3']"]),
        (["--registered-model", "a'b"], ["--registered-model: a name without quotation marks"]),
        (["--tracking-uri", "http://host:99999"], ["--tracking-uri: ", "a port from 1 to 65535"]),
        (["--tracking-uri", "http://host:abc"], ["--tracking-uri: ", "a port from 1 to 65535"]),
        (["--tracking-uri", "https://[::1"], ["--tracking-uri: ", "a port from 1 to 65535"]),
        (["--tracking-uri", "http://"], ["--tracking-uri: a server is a host"]),
        (["--tracking-uri", ""], ["--tracking-uri", "at least 1 character"]),
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
        ("epochs: 2026-13-45\n", ["YAML", "month must be in 1..12"]),
        ("[" * 5000, ["YAML"]),
        ("preset: [a]\n", ["preset", "'sample'", "['a']"]),
        ("preset: {a: 1}\n", ["preset", "'sample'", "{'a': 1}"]),
        ("lr_drops: [2, 2]\n", ["lr_drops: each epoch once"]),
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


def test_a_list_of_models_serves_all_scripts(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    arguments = ["--config", str(config), "--images", "x", "--output", "y"]
    for text in ("model: models:/a/1", "model: [models:/a/1]"):
        config.write_text(text)
        assert read_settings(EvaluateSettings, arguments[:2], "text").model == ["models:/a/1"]
        assert read_settings(BatchInferenceSettings, arguments, "text").model == ["models:/a/1"]
    config.write_text("model: [models:/a/1, models:/a/2]\nnum_workers: 1:4\n")
    both = read_settings(BatchInferenceSettings, arguments, "text").model
    assert both == ["models:/a/1", "models:/a/2"]
    chosen = read_settings(BatchInferenceSettings, [*arguments, "--model", "models:/a/1"], "text")
    assert (chosen.model, chosen.num_workers) == (["models:/a/1"], (1, 4))


def test_a_wrong_value_of_a_preset_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "sample", {"epochs": 0})
    with pytest.raises(UserError, match=r"^preset sample: epochs: .*greater than or equal to 1"):
        read([])


@pytest.mark.parametrize(
    ("arguments", "preset", "rows", "epochs"),
    [
        ([], "sample", 128, 4),
        (["--source", "x"], "none", 1024, None),
        (["--source", "x", "--preset", "sample"], "sample", 128, 4),
        (["--only", "train"], None, 1024, None),
        (["--from", "evaluate"], None, 1024, None),
        (["--only", "preprocess"], "sample", 128, 4),
    ],
)
def test_the_preset_of_the_images(
    arguments: list[str], preset: str | None, rows: int, epochs: int | None
) -> None:
    settings = read(arguments)
    assert (settings.preset, settings.rows_per_shard, settings.epochs) == (preset, rows, epochs)


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
    config.write_text("normalization: off\noverlapping_pooling: on\nchannels_last: 'on'\n")
    settings = read(["--config", str(config)])
    assert (settings.normalization, settings.overlapping_pooling) == (False, True)
    assert settings.channels_last is True
    assert read(["--overlapping-pooling", "off"]).overlapping_pooling is False
    with pytest.raises(UserError, match=r"^--normalization: on or off, not 'none'$"):
        read(["--normalization", "none"])


def test_on_and_off_are_written_as_words() -> None:
    written = read(["--normalization", "off"]).model_dump()
    assert (written["normalization"], written["overlapping_pooling"]) == ("off", "on")
    assert FullRunSettings.model_validate(written).normalization is False


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


@dataclass(frozen=True)
class Result:
    """What a command returns in these tests."""

    values: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return dict(self.values)


@pytest.mark.parametrize(
    ("error", "status", "stderr"),
    [
        (None, 0, ""),
        (UserError("the file\n is bad"), 2, "prog: the file is bad\n"),
        (
            CorruptShardError("a.parquet: damaged"),
            2,
            "prog: a.parquet: damaged; run pipelines/preprocess.py --verify, which writes damaged "
            "shards again\n",
        ),
        (OSError("the disk\n is full"), 1, "prog: failed: the disk is full\n"),
        (RuntimeError("a bug"), 1, "prog: failed: a bug\n"),
        (KeyboardInterrupt(), 130, "prog: interrupted; the same command resumes"),
    ],
)
def test_exit_status_and_last_line(
    error: BaseException | None,
    status: int,
    stderr: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(settings: FullRunSettings) -> Result:
        print("progress")
        if error:
            raise error
        return Result({"stage": "x", "images": 3})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/some/prog"])
    with pytest.raises(SystemExit) as caught:
        run_script(FullRunSettings, work, "text")
    assert caught.value.code == status
    out, err = capsys.readouterr()
    assert err.endswith(stderr) or stderr in err
    assert ("Traceback" in err) == isinstance(error, RuntimeError)
    if status == 0:
        assert json.loads(out.splitlines()[-1]) == {"stage": "x", "images": 3}
    else:
        assert out == "progress\n"


def kinds_of_errors() -> set[type[UserError]]:
    """The subclasses of ``UserError`` in ``alexnet.errors``."""
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return {kind for kind in classes if issubclass(kind, UserError) and kind is not UserError}


def test_every_kind_of_error_has_a_remedy() -> None:
    assert kinds_of_errors() == set(REMEDIES)


@pytest.mark.parametrize("kind", REMEDIES, ids=lambda kind: kind.__name__)
def test_a_remedy_names_existing_scripts_and_options(kind: type[UserError]) -> None:
    line = explain(kind("a\n reason"))
    assert line == f"a reason; {REMEDIES[kind]}"
    scripts = re.findall(r"pipelines/\S+?\.py", line)
    assert all((ROOT / script).is_file() for script in scripts)
    settings: dict[str, type[Settings]] = {
        "pipelines/preprocess.py": PreprocessCommandSettings,
        "pipelines/evaluate.py": EvaluateSettings,
    }
    without = FullRunSettings.model_fields | BatchInferenceSettings.model_fields
    fields = settings[scripts[0]].model_fields if scripts else without
    flags = re.findall(r"--[a-z0-9-]+", line)
    assert scripts or flags
    assert {flag[2:].replace("-", "_") for flag in flags} <= set(fields)


def test_the_remedy_of_an_error_in_a_ray_actor() -> None:
    wrapped = RayTaskError("actor", "Traceback", CorruptShardError("a.parquet: damaged"))
    error = wrapped.as_instanceof_cause()
    assert isinstance(error, UserError)
    assert explain(error) == explain(CorruptShardError("a.parquet: damaged"))


def test_other_errors_have_no_remedy() -> None:
    assert explain(UserError("a\n reason; do that")) == "a reason; do that"


@pytest.mark.parametrize("option", ["--source", "--workdir"])
def test_paths_that_are_not_utf8(tmp_path: Path, option: str) -> None:
    """As Python shows them; a source is kept as text, a workdir is refused."""
    path = f"{tmp_path}/caf\udce9"
    if option == "--source":
        settings = read(["--source", path])
        assert settings.source == f"{tmp_path}/caf\\xe9" == settings.part(PreprocessSettings).source
        return
    with pytest.raises(UserError, match=r"^--workdir: .* not UTF-8; rename it") as caught:
        read(["--workdir", path])
    assert "caf" in str(caught.value)


COMMAND = """
import sys
from pathlib import Path
from pipelines.console.cli import run_script
from pipelines.console.log import stage_logger
from pipelines.settings import Settings

class Result:
    def to_json(self):
        return {"name": "\\u732b\\udce9"}

def work(settings):
    for number in range(int(sys.stdin.read())):
        print("printed", number, "\\u732b\\udce9")
        stage_logger("stage").info("logged %d \\u732b\\udce9\\nforged: line\\x1b[31m", number)
    Path(settings.workdir, "done").touch()
    return Result()

run_script(Settings, work, "text")
"""


def run_command(
    tmp_path: Path, lines: int, shell: str = "{}", code: str = COMMAND, **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    path = tmp_path / "command.py"
    path.write_text(code)
    command = shlex.join([sys.executable, str(path), "--workdir", str(tmp_path)])
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell.format(command)],
        input=str(lines).encode(),
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


@pytest.mark.parametrize(
    "environment", [{}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_any_output_takes_any_name(tmp_path: Path, environment: dict[str, str]) -> None:
    ended = run_command(tmp_path, 1, **environment)
    assert (ended.returncode, ended.stderr) == (0, b"")
    printed, logged, result = ended.stdout.splitlines()
    assert printed.startswith(b"printed 0 ")
    assert printed.endswith(b"\\udce9")
    assert logged.endswith(rb"\udce9\nforged: line\x1b[31m")
    assert json.loads(result) == {"name": "\u732b\udce9"}
    (log,) = (tmp_path / "logs").iterdir()
    (line,) = log.read_text(encoding="utf-8").splitlines()
    assert line.endswith("alexnet.stage: logged 0 \u732b\\udce9\\nforged: line\\x1b[31m")


def test_a_reader_that_ends_early_is_no_error(tmp_path: Path) -> None:
    ended = run_command(tmp_path, 100_000, "{} | head -1")
    assert (ended.returncode, ended.stderr) == (141, b"")
    assert ended.stdout.startswith(b"printed 0 ")


def test_logged_lines_that_nobody_reads_do_not_end_the_work(tmp_path: Path) -> None:
    code = "\n".join(line for line in COMMAND.splitlines() if "print(" not in line)
    ended = run_command(tmp_path, 3000, "{} | head -1", code)
    assert (ended.returncode, ended.stderr) == (141, b"")
    assert ended.stdout.startswith(b"stage: logged 0 ")
    assert (tmp_path / "done").exists()


def test_missing_permission_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def work(settings: Settings) -> NoReturn:
        raise PermissionError(13, "Permission denied", f"{settings.workdir}/stages")

    monkeypatch.setattr(sys, "argv", ["train.py", "--workdir", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        run_script(Settings, work, "text")
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"train.py: {tmp_path}/stages: permission denied; have the permissions changed, or give "
        "other folders"
    )
