"""The updating line in a pseudo-terminal, and that nothing is written where there is none."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from terminal import Terminal, screen

START = """
import os, subprocess, sys, time
from pipelines.console import live_line, progress
from pipelines.console.cli import run_script
from pipelines.console.log import show_in_terminal, stage_logger
from pipelines.console.progress import Progress
from pipelines.console.watchdog import Watchdog
from pipelines.settings import Settings
progress.INTERVAL_S = 0
show_in_terminal()
log = stage_logger("stage")
"""
"""Progress lines without pauses: a line appears for each call unless a bar replaces it."""

COMMAND = (
    START
    + """
class Result:
    def to_json(self):
        return {"stage": "stage"}

def work(settings):
    log.info("begins")
    with Progress("stage", 100, "images") as bar:
        bar.add(50, "3 rejected")
        time.sleep(float(os.environ.get("PAUSE", 1)))
        bar.add(50)
    print("a table")
    return Result()

run_script(Settings, work, "text")
"""
)
END = ["stage: begins", "stage: 100/100 images, N images/s, took Ns", "a table"]


def without_numbers(lines: list[str]) -> list[str]:
    """Lines whose rates and durations are N."""
    return [" ".join("N" if w.isdigit() else w for w in line.split(" ")) for line in lines]


def comparable(lines: list[str]) -> list[str]:
    return [
        "stage: 100/100 images, N images/s, took Ns" if "100/100" in line else line
        for line in lines
    ]


def test_the_screen_of_the_tests() -> None:
    assert screen(b"ab\rc\r\n\x1b[K12345678\r\x1b[Kx", 5) == ["cb", "12345", "x"]
    assert screen(b"\x1b[31mred\r\n", 80) == ["\x1b[31mred"]


def test_a_bar_is_the_last_line_and_is_gone_at_the_end(tmp_path: Path) -> None:
    with Terminal(COMMAND, arguments=["--workdir", str(tmp_path)]) as terminal:
        first, bar = terminal.wait_for("3 rejected")
        assert first == "stage: begins"
        assert bar.startswith("stage  50%|█████")
        assert "left, 3 rejected, " in bar
        assert "50/100 images" in bar
        assert terminal.end() == 0
    *lines, last = terminal.lines()
    assert comparable(lines) == END
    assert json.loads(last) == {"stage": "stage"}
    # The log file has the line that the bar replaced.
    (log,) = (tmp_path / "logs").iterdir()
    assert "50/100 images, " in log.read_text()


def test_other_output_is_above_the_bar() -> None:
    program = START + (
        "with live_line.enabled(True), Progress('stage', 100, 'images') as bar:\n"
        "    bar.add(50)\n"
        "    log.info('of a stage')\n"
        "    print('of Python', file=sys.stderr)\n"
        "    os.write(2, b'of C++\\n')\n"
        "    subprocess.run(['sh', '-c', 'echo of a process >&2'])\n"
        "    os.write(2, (b'x' * 99 + b'\\n') * 1000)\n"
        "    log.info('last')\n"
        "    time.sleep(30)\n"
    )
    others = ["of Python", "of C++", "of a process", *["x" * 99] * 1000]
    with Terminal(program, columns=100) as terminal:
        lines = terminal.wait_for("50/100")
        while len(lines) < len(others) + 3:
            time.sleep(0.1)
            lines = terminal.wait_for("50/100")
    assert lines.pop().startswith("stage  50%|")
    assert lines[0] == "stage: of a stage"
    lines.remove("stage: last")
    assert lines[1:] == others


def test_standard_error_is_a_terminal_again_after_the_bar() -> None:
    program = START + (
        "with live_line.enabled(True):\n"
        "    with Progress('stage', 1, 'images'):\n"
        "        os.write(2, b'no end of line')\n"
        "    print(os.isatty(2))\n"
        "    with Progress('stage', 2, 'images'):\n"
        "        print('again', os.isatty(2), file=sys.stderr)\n"
    )
    with Terminal(program) as terminal:
        assert terminal.end() == 0
    text = "\n".join(terminal.lines())
    assert "no end of line" in text
    assert "\nTrue\n" in text
    assert "again False" in text
    assert "|" not in text


def test_a_narrow_terminal(tmp_path: Path) -> None:
    with Terminal(COMMAND, columns=40, arguments=["--workdir", str(tmp_path)]) as terminal:
        _, bar = terminal.wait_for("3 rejected")
        assert len(bar) < 40
        assert bar.startswith("stage  50%|")
        assert terminal.end() == 0
    lines = [line for line in terminal.lines() if "100/100" not in line]
    assert lines[0] == "stage: begins"
    assert lines[-2:] == ["a table", '{"stage": "stage"}']


def test_ctrl_c_erases_the_bar(tmp_path: Path) -> None:
    variables = {"PAUSE": "60"}
    arguments = ["--workdir", str(tmp_path)]
    with Terminal(COMMAND, variables=variables, arguments=arguments) as terminal:
        terminal.wait_for("3 rejected")
        terminal.press(b"\x03")
        assert terminal.end() == 130
    assert terminal.lines() == [
        "stage: begins",
        "-c: interrupted; the same command resumes where this one stopped",
    ]


def test_a_command_that_hangs_after_ctrl_c_leaves_no_bar(tmp_path: Path) -> None:
    program = COMMAND.replace(
        "        bar.add(50)\n",
        "        try:\n            time.sleep(60)\n        finally:\n            time.sleep(60)\n",
    ).replace(
        "run_script(", "from pipelines.console import interrupt\ninterrupt.GRACE_S = 1\nrun_script("
    )
    with Terminal(program, arguments=["--workdir", str(tmp_path)]) as terminal:
        terminal.wait_for("3 rejected")
        time.sleep(1.5)
        terminal.press(b"\x03")
        assert terminal.end() == 130
    assert terminal.lines() == [
        "stage: begins",
        "interrupted; the same command resumes where this one stopped",
    ]


def test_libraries_draw_no_bars() -> None:
    program = "import pipelines\nfrom tqdm import tqdm\nprint(list(tqdm(range(3))))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[0, 1, 2]\n", "")


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({"TERM": "dumb"}, [], ["stage: begins", "50/100", "100/100", "a table"]),
        ({}, ["--quiet"], ["a table"]),
    ],
)
def test_lines_instead_of_a_bar(
    variables: dict[str, str], options: list[str], expected: list[str], tmp_path: Path
) -> None:
    arguments = ["--workdir", str(tmp_path), *options]
    with Terminal(COMMAND, variables=variables, arguments=arguments) as terminal:
        assert terminal.end() == 0
    *lines, last = terminal.lines()
    assert len(lines) == len(expected)
    assert all(text in line for text, line in zip(expected, lines, strict=True))
    assert last == '{"stage": "stage"}'
    assert b"\x1b" not in terminal.output


def test_no_bar_beside_a_pipe_that_may_end_in_the_same_terminal(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with Terminal(COMMAND, arguments=["--workdir", str(tmp_path)], stdout=writing) as terminal:
        os.close(writing)
        assert terminal.end() == 0
    assert terminal.output == b""
    with open(reading) as file:
        assert [line.split(",")[0] for line in file] == [
            "stage: begins\n",
            "stage: 50/100 images",
            "stage: 100/100 images",
            "a table\n",
            '{"stage": "stage"}\n',
        ]


def test_a_file_has_all_lines_while_the_terminal_has_the_bar(tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    with (
        output.open("w") as file,
        Terminal(COMMAND, arguments=["--workdir", str(tmp_path)], stdout=file.fileno()) as terminal,
    ):
        assert len(terminal.wait_for("50/100 images")) == 1
        assert terminal.end() == 0
    assert terminal.lines() == []
    assert "stage: 50/100 images" in output.read_text()


def test_without_a_terminal_no_control_character_is_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "--workdir", str(tmp_path)], capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout
    assert b"\r" not in done.stdout
    assert b"stage: 50/100 images, " in done.stdout


def test_the_bar_in_another_encoding(tmp_path: Path) -> None:
    variables = {"PYTHONIOENCODING": "latin-1", "NO_COLOR": "1"}
    arguments = ["--workdir", str(tmp_path)]
    with Terminal(COMMAND, variables=variables, arguments=arguments) as terminal:
        _, bar = terminal.wait_for("3 rejected")
        assert bar.startswith("stage  50%|####")


def test_a_wait_is_shown_with_its_duration_and_is_gone_at_the_end() -> None:
    program = START + (
        "with live_line.enabled(True):\n"
        "    with Watchdog('stage', lambda: 'waiting for x'):\n"
        "        time.sleep(3.2)\n"
        "    log.info('done')\n"
    )
    with Terminal(program) as terminal:
        assert terminal.wait_for("waiting for x (1s)") == ["stage: waiting for x (1s)"]
        terminal.wait_for("waiting for x (2s)")
        assert terminal.end() == 0
    assert terminal.lines() == ["stage: done"]


def test_a_wait_in_a_stage_with_a_bar() -> None:
    program = START + (
        "progress.LONG_S = 3\n"
        "with live_line.enabled(True), Progress('stage', 9, 'images', waiting_for=lambda: 'x'):\n"
        "    time.sleep(30)\n"
    )
    with Terminal(program) as terminal:
        (line,) = terminal.wait_for("waiting 1s for the first results")
        terminal.wait_for("s for x, 0/9 images")
    assert line.startswith("stage   0%|")


def test_the_newest_of_several_lines_is_shown() -> None:
    program = START + (
        "with live_line.enabled(True), live_line.shown(lambda _: 'first'):\n"
        "    with live_line.shown(lambda _: ''), live_line.shown(lambda _: 1 / 0):\n"
        "        time.sleep(1)\n"
        "        with live_line.shown(lambda _: 'second'):\n"
        "            time.sleep(2)\n"
        "    time.sleep(30)\n"
    )
    with Terminal(program) as terminal:
        assert terminal.wait_for("first") == ["first"]
        assert terminal.wait_for("second") == ["second"]
        assert terminal.wait_for("first") == ["first"]
