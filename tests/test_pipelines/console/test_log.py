"""The lines of a command, in the terminal and in its log file."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from chaos import small_file_system

from alexnet import storage
from alexnet.errors import CorruptShardError
from pipelines import preprocess
from pipelines.console.cli import run_script, show
from pipelines.console.log import current_log_file, log_file, show_in_terminal, stage_logger
from pipelines.settings import Settings
from pipelines.workdir import Workdir

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def only_log(workdir: Path) -> str:
    """The text of the only log file in a workdir."""
    (path,) = (workdir / "logs").iterdir()
    return path.read_text(encoding="utf-8")


def exit_status(main: Any, *arguments: str) -> int:
    """The exit status of a command, or of a function that behaves like one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(arguments))
        with pytest.raises(SystemExit) as caught:
            main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def run_failing(error: BaseException, workdir: Path) -> int:
    """The exit status of a command that logs a line and raises an error."""

    def work(_: Settings) -> NoReturn:
        stage_logger("train").info("reading %s", "shards")
        raise error

    return exit_status(
        lambda: run_script(Settings, work, "text"), "train.py", "--workdir", str(workdir)
    )


def test_a_line_is_short_in_the_terminal_and_has_time_level_and_stage_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log_file(Workdir(str(tmp_path)), "full_run"):
        stage_logger("preprocess").info("%d shards → done", 3)
        stage_logger("train").warning("slow")
    assert capsys.readouterr().out == "preprocess: 3 shards → done\ntrain: slow\n"
    first, second = only_log(tmp_path).splitlines()
    assert re.fullmatch(TIME + r" INFO    alexnet\.preprocess: 3 shards → done", first)
    assert re.fullmatch(TIME + r" WARNING alexnet\.train: slow", second)
    (path,) = (tmp_path / "logs").iterdir()
    assert re.fullmatch(rf"full_run-\d{{8}}-\d{{6}}-{os.getpid()}\.log", path.name)


def test_warnings_of_libraries_are_in_the_file_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log_file(Workdir(str(tmp_path)), "train"):
        for library in ("ray", "mlflow", "PIL"):
            logging.getLogger(f"{library}.part").error("about %s", library)
    assert capsys.readouterr().out == ""
    lines = [re.sub(TIME, "", line).split() for line in only_log(tmp_path).splitlines()]
    assert lines == [
        ["ERROR", f"{library}.part:", "about", library] for library in ("ray", "mlflow", "PIL")
    ]


def test_the_file_is_created_with_the_first_line(tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    with log_file(Workdir(str(workdir)), "train"):
        assert current_log_file() is None
        assert not workdir.exists()
        stage_logger("train").info("line")
        path = current_log_file()
        assert path is not None
        assert Path(path).parent == workdir / "logs"
        assert "line" in Path(path).read_text()
    assert current_log_file() is None
    stage_logger("train").info("after the command")
    assert "after" not in only_log(workdir)


def test_a_command_without_lines_creates_no_file(tmp_path: Path) -> None:
    with log_file(Workdir(str(tmp_path)), "train"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_creates_no_file(
    raw_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--source", str(raw_images), "--workdir", str(tmp_path / "work"), "--dry-run"]
    assert exit_status(preprocess.main, "preprocess.py", *options) == 0
    assert '"dry_run": true' in capsys.readouterr().out
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "option", [["--rows-per-shard", "0"], ["--sauce", "x"], ["--source", "/no/such/folder"]]
)
def test_a_wrong_setting_creates_no_file(
    tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--workdir", str(tmp_path), *option]
    assert exit_status(preprocess.main, "preprocess.py", *options) == 2
    assert option[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_is_in_the_file_with_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(RuntimeError("a bug"), tmp_path) == 1
    printed = capsys.readouterr()
    assert printed.out == "train: reading shards\n"
    assert printed.err.endswith("train.py: failed: a bug\n")
    first, second, *traceback = only_log(tmp_path).splitlines()
    assert first.endswith("INFO    alexnet.train: reading shards")
    assert second.endswith("ERROR   pipelines.failures: a bug")
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1] == "RuntimeError: a bug"


def test_a_users_error_is_in_the_file_with_its_remedy_and_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(CorruptShardError("a.parquet: damaged"), tmp_path) == 2
    assert capsys.readouterr().out == "train: reading shards\n"
    _, line = only_log(tmp_path).splitlines()
    assert "ERROR   pipelines.failures: a.parquet: damaged; run pipelines/preprocess.py" in line


def test_handlers_are_removed_at_the_end(tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("", "ray", "mlflow")]
    before = [list(logger.handlers) for logger in loggers]
    with pytest.raises(RuntimeError), log_file(Workdir(str(tmp_path)), "train"):
        raise RuntimeError
    assert [logger.handlers for logger in loggers] == before


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What is written to object stores, by URI."""
    written: dict[str, bytes] = {}
    monkeypatch.setattr(storage, "write_bytes", written.__setitem__)
    return written


def test_the_file_of_a_remote_workdir_is_uploaded_at_the_end(uploads: dict[str, bytes]) -> None:
    with log_file(Workdir("s3://bucket/work"), "train"):
        stage_logger("train").info("line")
        path = current_log_file()
        assert path is not None
        assert Path(path).exists()
        assert uploads == {}
    assert not Path(path).exists()
    ((uri, content),) = uploads.items()
    assert re.fullmatch(rf"s3://bucket/work/logs/train-\d{{8}}-\d{{6}}-{os.getpid()}\.log", uri)
    assert content.decode().endswith("INFO    alexnet.train: line\n")


def test_a_remote_workdir_gets_no_empty_file(uploads: dict[str, bytes]) -> None:
    with log_file(Workdir("s3://bucket/work"), "train"):
        pass
    assert uploads == {}


def test_a_failed_upload_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(uri: str, data: bytes) -> NoReturn:
        raise OSError(f"{uri}: access denied")

    monkeypatch.setattr(storage, "write_bytes", fail)
    with log_file(Workdir("s3://bucket/work"), "train"):
        stage_logger("train").info("line")


def test_a_log_file_that_can_not_be_created_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file, where the folder should be")
    with log_file(Workdir(str(tmp_path)), "train"):
        stage_logger("train").info("line")
        assert current_log_file() is None
    assert capsys.readouterr().out == "train: line\n"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, 1) as folder:
        (folder / "other").write_bytes(bytes(2**20 - 16384))
        yield folder


def test_a_full_disk_costs_lines_only(full_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log_file(Workdir(str(full_disk)), "train"):
        for number in range(300):
            stage_logger("train").info("%d %s", number, "x" * 100)
        assert current_log_file() is not None
    assert len(capsys.readouterr().out.splitlines()) == 300
    assert "0 x" in only_log(full_disk)


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_commands_print_warnings_and_the_json_line_only(
    quiet: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass
    class Result:
        def to_json(self) -> dict[str, Any]:
            return {"stage": "train"}

    def work(settings: Settings) -> Result:
        stage_logger("train").info("epoch 1")
        stage_logger("train").warning("a figure is missing")
        show(settings, ["a table"])
        return Result()

    options = ["--workdir", str(tmp_path), *(["--quiet"] if quiet else [])]
    assert exit_status(lambda: run_script(Settings, work, "text"), "train.py", *options) == 0
    lines = ["train: epoch 1", "train: a figure is missing", "a table", '{"stage": "train"}']
    assert capsys.readouterr().out.splitlines() == (lines[1::2] if quiet else lines)
    assert "epoch 1" in only_log(tmp_path)
    show_in_terminal()
