"""Signals that end a command, sent to real processes."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from pipelines.console.interrupt import MESSAGE, run_in_thread

PROLOGUE = """
import contextlib, os, signal, subprocess, sys, threading, time
from pipelines.console import interrupt
from pipelines.console.interrupt import Interrupted

def ready():
    print("ready", flush=True)

def wait():
    for _ in range(600):
        time.sleep(0.1)
"""
"""In one long sleep, a signal that arrives just before it would have to wait for its end."""


@contextmanager
def started(code: str, *, before: str = "") -> Iterator["subprocess.Popen[str]"]:
    """A Python process that has printed ``ready``."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{PROLOGUE}\n{code}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    line = process.stdout.readline()
    assert line == "ready\n", process.communicate()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_signal_is_an_exception_with_an_exit_status(number: int, status: int) -> None:
    code = """
with interrupt.signals_as_exceptions():
    try:
        ready()
        wait()
    except Interrupted as error:
        print("cleaned up", flush=True)
        interrupt.exit_now(error.exit_status)
"""
    # Where the tests themselves run under ``nohup``, SIGHUP would be ignored.
    default = f"import signal; signal.signal({int(number)}, signal.SIG_DFL)"
    if number == signal.SIGINT:
        default = ""
    with started(code, before=default) as process:
        process.send_signal(number)
        assert process.communicate(timeout=10) == ("cleaned up\n", "")
        assert process.returncode == status


def test_later_signals_do_not_interrupt_the_clean_up() -> None:
    code = """
with interrupt.signals_as_exceptions():
    try:
        ready()
        wait()
    except Interrupted as error:
        ready()
        time.sleep(1)
        print("cleaned up", flush=True)
        interrupt.exit_now(error.exit_status)
"""
    with started(code) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10) == ("cleaned up\n", "")
        assert process.returncode == 130


def test_a_clean_up_that_hangs_ends_all_the_same() -> None:
    code = """
interrupt.GRACE_S = 0.5
with interrupt.signals_as_exceptions():
    try:
        ready()
        wait()
    finally:
        wait()
"""
    with started(code) as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 143
        assert errors == f"{MESSAGE}\n"


def test_what_the_process_has_started_ends_with_it() -> None:
    code = """
child = subprocess.Popen(["sleep", "60"])
print("ready", flush=True)
print(child.pid, flush=True)
interrupt.exit_now(130)
"""
    with started(code) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.wait(timeout=10)
        end = time.monotonic() + 5
        while psutil.pid_exists(child) and time.monotonic() < end:
            time.sleep(0.05)
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_a_signal_that_is_ignored_at_the_start_stays_ignored() -> None:
    code = """
with interrupt.signals_as_exceptions():
    ready()
    time.sleep(1)
    print("done", flush=True)
"""
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    with started(code, before=before) as process:
        process.send_signal(signal.SIGHUP)
        assert process.communicate(timeout=10) == ("done\n", "")
        assert process.returncode == 0


def test_a_wait_for_a_thread_ends_at_a_signal() -> None:
    code = """
with interrupt.signals_as_exceptions():
    try:
        interrupt.run_in_thread(lambda: (ready(), wait()), "sleeper")
    except Interrupted as error:
        interrupt.exit_now(error.exit_status)
"""
    with started(code) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130


def test_handlers_that_a_library_sets_in_c_are_replaced() -> None:
    """Ray's core sets one for SIGTERM, which Python does not know of; here the default is set."""
    code = """
import ctypes
with interrupt.signals_as_exceptions():
    try:
        ctypes.CDLL(None).signal(signal.SIGTERM, 0)
        interrupt.restore_handlers()
        ready()
        wait()
    except Interrupted as error:
        interrupt.exit_now(error.exit_status)
"""
    with started(code) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 143


def test_a_postponed_signal_is_raised_at_the_end_of_the_block() -> None:
    code = """
with interrupt.signals_as_exceptions():
    try:
        with interrupt.postponed_interrupts(), interrupt.postponed_interrupts():
            ready()
            time.sleep(1)
            print("written", flush=True)
        print("not reached", flush=True)
    except Interrupted as error:
        interrupt.exit_now(error.exit_status)
"""
    with started(code) as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10)[0] == "written\n"
        assert process.returncode == 143


def test_the_result_and_the_error_of_a_thread() -> None:
    assert run_in_thread(lambda: 3, "three") == 3
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 // 0, "error")


def test_ctrl_c_during_the_imports_is_one_word() -> None:
    code = """
import time
import pipelines
print("ready", flush=True)
for _ in range(600):
    time.sleep(0.1)
"""
    with started("", before=code) as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == ("", "interrupted\n")
        assert process.returncode == 130
