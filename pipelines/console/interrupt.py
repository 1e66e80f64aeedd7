"""Signals that end a command, as an exception in the main thread.

Ray sets signal handlers of its own where it is called in the main thread: with Ray Train's, Ctrl-C
has no effect after a training, and the third one exits with status 0. So what sets handlers is
called in another thread, for which the main thread waits. Ray's C++ core sets one in any thread,
which prints a report of a crash: ``restore_handlers`` replaces it.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from types import FrameType
from typing import NoReturn, TypeVar

import psutil

from pipelines.console import live_line

GRACE_S = 10.0
"""Seconds after a signal until the process ends in any case."""

MESSAGE = "interrupted; the same command resumes where this one stopped"

_POLL_S = 0.1
_SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]

T = TypeVar("T")

_timers: list[threading.Timer] = []
"""What ends the process after a signal, if one has been received."""
_received: list[int] = []
"""The signal that has been received, if one has."""
_postponing: list[None] = []
"""An element for each block of ``postponed_interrupts`` that runs."""


class Interrupted(KeyboardInterrupt):
    """A signal has asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_status(self) -> int:
        """As a shell reports a process that the signal has ended."""
        return 128 + self.number


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Inside, the first of Ctrl-C, SIGTERM and SIGHUP raises ``Interrupted``.

    Later ones are ignored, so that they can't interrupt the clean-up; ``GRACE_S`` after the first
    one the process ends, even if the clean-up hangs. A signal that is ignored when the command
    starts, as under ``nohup``, stays ignored.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        if not _received:
            for number in handled:
                signal.signal(number, before[number])


def restore_handlers() -> None:
    """Set the handlers that Python knows once more; without effect in other threads."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.getsignal(number))


@contextlib.contextmanager
def postponed_interrupts() -> Iterator[None]:
    """Inside, a signal raises nothing; it does at the end of the block, which must be short."""
    _postponing.append(None)
    try:
        yield
    finally:
        _postponing.pop()
    if _received and not _postponing:
        raise Interrupted(_received[0])


def _interrupt(number: int, _: FrameType | None) -> None:
    if _received:
        return
    _received.append(number)
    interrupted = Interrupted(number)
    end_after(GRACE_S, interrupted.exit_status)
    if not _postponing:
        raise interrupted


def exit_now(status: int) -> NoReturn:
    """End the process and all that it has started.

    Ray would take seconds to stop the processes of a cluster that was started here.
    """
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(status)


def end_after(seconds: float, status: int) -> None:
    """End the process ``seconds`` from now, in place of an earlier such time."""

    def end() -> None:
        live_line.close()
        os.write(2, f"{MESSAGE}\n".encode())
        exit_now(status)

    for earlier in _timers:
        earlier.cancel()
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    _timers[:] = [timer]


def run_in_thread(work: Callable[[], T], name: str, *, keep: bool = False) -> T:
    """Do the work in a new thread and wait for it; a signal ends the wait.

    Args:
        work: to be done.
        name: of the thread.
        keep: whether the thread lives on after the work, which ends with the process otherwise.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        if keep:
            threading.Event().wait()

    threading.Thread(target=run, name=name, daemon=True).start()
    while not future.done():
        restore_handlers()
        with contextlib.suppress(FutureTimeoutError):
            future.exception(timeout=_POLL_S)
    return future.result()
