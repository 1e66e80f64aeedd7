"""One process at a time, among those that share a workdir."""

import contextlib
from collections.abc import Iterator

from filelock import FileLock, Timeout

from alexnet import storage
from pipelines.console.log import stage_logger
from pipelines.workdir import Workdir


@contextlib.contextmanager
def exclusive_lock(workdir: Workdir, name: str) -> Iterator[None]:
    """Wait until no other process that shares the workdir holds the lock of this name.

    The lock of a process that dies is released. Object stores have no locks: nothing separates
    two runs there.
    """
    if storage.is_remote(workdir.path):
        yield
        return
    storage.make_folder(workdir.locks)
    lock = FileLock(storage.join(workdir.locks, f"{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        stage_logger(name).info("waiting for another run in %s to end", workdir.path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
