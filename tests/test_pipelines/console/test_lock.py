"""Shared and exclusive locks between real processes."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from pipelines.console.lock import exclusive_lock, shared_lock
from pipelines.workdir import Workdir

LOCKS = {"exclusive": exclusive_lock, "shared": shared_lock}


def hold(kind: str, folder: Path, stage: str = "evaluate") -> AbstractContextManager[None]:
    return LOCKS[kind](Workdir(str(folder)), "data", stage)


@contextmanager
def held_elsewhere(kind: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds a lock as the stage ``train``."""
    code = f"""
import time
from pipelines.console.lock import {kind}_lock
from pipelines.workdir import Workdir
with {kind}_lock(Workdir({str(folder)!r}), "data", "train"):
    print("held", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("theirs", "ours"), [("exclusive", "shared"), ("shared", "exclusive")])
def test_writers_and_readers_wait_for_each_other_and_say_for_whom(
    theirs: str, ours: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held_elsewhere(theirs, tmp_path) as process:
        killer = threading.Timer(0.7, process.kill)
        killer.start()
        started = time.monotonic()
        with hold(ours, tmp_path):
            assert time.monotonic() - started > 0.5
    line = capsys.readouterr().out
    host = socket.gethostname()
    assert line.startswith(f"evaluate: waiting for train (process {process.pid} on {host}, since ")
    assert line.count("\n") == 1


def test_readers_do_not_wait_for_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held_elsewhere("shared", tmp_path), hold("shared", tmp_path):
        pass
    assert capsys.readouterr().out == ""


def test_a_new_reader_waits_behind_a_waiting_writer(tmp_path: Path) -> None:
    order = []
    with held_elsewhere("shared", tmp_path) as process:

        def write() -> None:
            with hold("exclusive", tmp_path, "preprocess"):
                order.append("writer")
                time.sleep(0.3)

        writer = threading.Thread(target=write)
        writer.start()
        time.sleep(0.5)
        threading.Timer(0.5, process.kill).start()
        with hold("shared", tmp_path):
            order.append("reader")
        writer.join()
    assert order == ["writer", "reader"]


def test_nothing_is_left_of_locks_but_their_names(tmp_path: Path) -> None:
    for kind in LOCKS:
        with hold(kind, tmp_path):
            names = os.listdir(tmp_path / "locks" / "data")
            assert len(names) == 1
            assert names[0].startswith(f"evaluate@{socket.gethostname()}.{os.getpid()}.")
    assert os.listdir(tmp_path / "locks" / "data") == []
    with pytest.raises(ZeroDivisionError), hold("exclusive", tmp_path):
        _ = 1 // 0
    with hold("exclusive", tmp_path):
        pass


def test_object_stores_have_no_locks(tmp_path: Path) -> None:
    with exclusive_lock(Workdir("s3://bucket/work"), "data", "train"):
        pass
