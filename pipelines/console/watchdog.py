"""A line when nothing has happened for a while: what is waited for, and how long."""

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pipelines.console.log import stage_logger

FIRST_S = 10.0
"""Seconds without any event until the first line."""
INTERVAL_S = 30.0
"""Seconds between two lines."""

POLL_S = 0.5


class Watchdog:
    """Logs what is waited for while its block runs and nothing happens."""

    def __init__(self, stage: str, waiting_for: Callable[[], str | None]) -> None:
        """Prepare; the block starts it.

        Args:
            stage: whose lines these are.
            waiting_for: what is waited for, in words; None if nothing is, which counts as an
                event. It is called in another thread, and errors in it are ignored.
        """
        self._stage, self._waiting_for = stage, waiting_for
        self._ended = threading.Event()
        self.reset()

    def reset(self) -> None:
        """Something has happened: the wait begins again."""
        self._since = time.monotonic()
        self._due = FIRST_S

    def __enter__(self) -> Self:
        self.reset()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            waited = time.monotonic() - self._since
            if waited < self._due:
                continue
            self._due += INTERVAL_S
            with contextlib.suppress(Exception):  # For example of a cluster that is going down.
                self._report(waited, self._waiting_for())

    def _report(self, waited: float, text: str | None) -> None:
        if text is None:
            self.reset()
        elif not self._ended.is_set():
            stage_logger(self._stage).info("%s (%ds so far)", text, waited)
