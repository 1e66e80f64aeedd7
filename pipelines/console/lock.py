"""Locks between the commands that share a workdir: exclusive for writing, shared for reading.

Every holder has locked a file of its own, whose name tells who it is:

    locks/<name>/train@host.4711.20121203-101500.lock

A new holder first locks ``locks/<name>.lock``, so that one at a time looks for the others. An
exclusive holder keeps that lock and waits until every other holder's file is free; a shared one
releases it. The operating system releases the locks of a process that dies.
"""

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from filelock import FileLock, Timeout

from alexnet import storage
from pipelines.console.log import stage_logger
from pipelines.console.watchdog import Watchdog
from pipelines.workdir import Workdir

POLL_INTERVAL_S = 0.2
"""Seconds between two attempts to lock a file."""

_HOLDER = re.compile(
    r"(?P<stage>\w+)@(?P<host>.+)\.(?P<pid>\d+)\.\d{8}-(?P<hour>\d\d)(?P<minute>\d\d)\d\d\.lock"
)


@dataclass(frozen=True, slots=True)
class Holder:
    """A command that holds a lock."""

    stage: str
    host: str
    pid: str
    since: str
    """``HH:MM``, local time."""

    def in_words(self) -> str:
        """``train (process 4711 on host, since 10:15)``."""
        return f"{self.stage} (process {self.pid} on {self.host}, since {self.since})"


@contextlib.contextmanager
def exclusive_lock(workdir: Workdir, name: str, stage: str) -> Iterator[None]:
    """Wait until no other process holds the lock of this name, then hold it.

    Object stores have no locks: nothing separates two commands there.

    Args:
        workdir: that the processes share.
        name: of what is written.
        stage: that writes it.
    """
    with _lock(workdir, name, stage, exclusive=True):
        yield


@contextlib.contextmanager
def shared_lock(workdir: Workdir, name: str, stage: str) -> Iterator[None]:
    """Wait until no other process holds the exclusive lock, then hold a shared one.

    Args:
        workdir: that the processes share.
        name: of what is read.
        stage: that reads it.
    """
    with _lock(workdir, name, stage, exclusive=False):
        yield


@contextlib.contextmanager
def _lock(workdir: Workdir, name: str, stage: str, *, exclusive: bool) -> Iterator[None]:
    if storage.is_remote(workdir.path):
        yield
        return
    folder = storage.join(workdir.locks, name)
    storage.make_folder(folder)
    first, own = FileLock(f"{folder}.lock"), FileLock(storage.join(folder, _file_name(stage)))
    try:
        _acquire(first, folder, stage)
        if exclusive:
            for other in _files(folder):
                lock = FileLock(other)
                _acquire(lock, folder, stage)
                # No process holds it: its owner has died, or ended just now.
                _release(lock)
        own.acquire()
        if not exclusive:
            first.release()
        yield
    finally:
        _release(own)
        first.release()


def _release(lock: FileLock) -> None:
    """Release a holder's lock and delete its file."""
    if lock.is_locked:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _acquire(lock: FileLock, folder: str, stage: str) -> None:
    """Lock a file; log who holds it if it is not free at once, and then how long it takes."""
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=0)
        return

    def waiting_for() -> str:
        names = ", ".join(holder.in_words() for holder in holders(folder))
        return f"waiting for {names or 'another command'} to end"

    stage_logger(stage).info("%s", waiting_for())
    with Watchdog(stage, waiting_for):
        while True:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                return
            time.sleep(POLL_INTERVAL_S)


def holders(folder: str) -> list[Holder]:
    """The commands that hold locks in a folder; it may be read-only or missing.

    Whether a file is locked is tested with a shared lock for an instant, which needs no permission
    to write: the owners of the files lock them exclusively.
    """
    found = []
    for path in _files(folder):
        match = _HOLDER.fullmatch(os.path.basename(path))
        if match and _is_locked(path):
            since = f"{match['hour']}:{match['minute']}"
            found.append(Holder(match["stage"], match["host"], match["pid"], since))
    return found


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Its owner has just ended.
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _files(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(os.path.join(folder, name) for name in names if name.endswith(".lock"))


def _file_name(stage: str) -> str:
    since = time.strftime("%Y%m%d-%H%M%S")
    return f"{stage}@{socket.gethostname()}.{os.getpid()}.{since}.lock"
