"""The command ``alexnet``: its sub-commands are the scripts."""

import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.console import main as main_module
from pipelines.console.main import COMMANDS, main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls a function with command-line arguments; returns its exit status."""

    def run(function: Callable[[], None], *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", list(arguments))
        with pytest.raises(SystemExit) as caught:
            function()
        assert isinstance(caught.value.code, int)
        return caught.value.code

    return run


def test_the_console_script_is_this_function() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["alexnet"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


def test_sub_commands_are_those_of_the_contract() -> None:
    stages = ["preprocess", "train", "evaluate", "promote"]
    assert list(COMMANDS) == [
        "run",
        *stages,
        "compare",
        "predict",
        "ui",
        "diff",
        "lineage",
        "gc",
        "status",
    ]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_sub_commands(
    run: Callable[..., int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, "alexnet", *arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, command in COMMANDS.items():
        assert [name, *command.help.split()] in lines


def test_an_unknown_sub_command_exits_with_2(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, "alexnet", "trian") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "alexnet: trian: no such command; see alexnet --help\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_sub_command_has_the_options_of_its_script(
    run: Callable[..., int], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = f"{COMMANDS[name].module}.py"
    assert (ROOT / "pipelines" / script).is_file()
    module = importlib.import_module(f"pipelines.{COMMANDS[name].module}")

    def help_text(program: str) -> list[str]:
        # The width of a program's name changes the line breaks of its usage.
        return capsys.readouterr().out.replace(program, "PROGRAM", 1).split()

    assert run(module.main, script, "--help") == 0
    of_script = help_text(script)
    assert run(main, "alexnet", name, "--help") == 0
    of_sub_command = help_text(f"alexnet {name}")
    assert of_sub_command == of_script
    assert of_script[:2] == ["usage:", "PROGRAM"]
    assert "--config" in of_script


def test_a_wrong_option_is_reported_under_the_sub_commands_name(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, "alexnet", "train", "--epochz", "3") == 2
    expected = "alexnet train: --epochz: no such option; did you mean --epochs?\n"
    assert capsys.readouterr().err == expected


def test_a_dry_run(
    run: Callable[..., int],
    raw_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "work"
    options = ["--source", str(raw_images), "--workdir", str(workdir), "--dry-run"]
    assert run(main, "alexnet", "preprocess", *options) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["stage"], result["dry_run"]) == ("preprocess", True)
    assert (result["train_images"], result["val_images"]) == (40, 12)
    assert not workdir.exists()


@pytest.mark.parametrize("arguments", [["--help"], ["trian"]])
def test_help_and_mistakes_need_no_slow_imports(arguments: list[str]) -> None:
    code = (
        "import atexit, sys\n"
        f"from {main_module.__name__} import main\n"
        "slow = {'ray', 'mlflow', 'torch'}\n"
        "atexit.register(lambda: print('imported', slow & set(sys.modules), file=sys.stderr))\n"
        f"sys.argv = ['alexnet', *{arguments}]\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stderr.splitlines()[-1] == "imported set()"
