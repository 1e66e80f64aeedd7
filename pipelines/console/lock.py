"""One process at a time, among those that share a workdir."""

import contextlib
from collections.abc import Iterator

from filelock import FileLock, Timeout

from alexnet import storage


@contextlib.contextmanager
def exclusive_lock(workdir: str, name: str) -> Iterator[None]:
    """Wait until no other process that shares the workdir is inside a block of the same name.

    A process that dies gives up its place. Object stores know no locks: nothing keeps two runs
    apart there.
    """
    if storage.is_remote(workdir):
        yield
        return
    folder = storage.join(workdir, "locks")
    storage.make_folder(folder)
    lock = FileLock(storage.join(folder, f"{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{name}: waiting for another run that is at work in {workdir}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
