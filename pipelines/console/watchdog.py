"""What is waited for when nothing happens, and for how long: lines, or one that is updated."""

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pipelines.console import live_line
from pipelines.console.bar import wait_line
from pipelines.console.log import log_progress

FIRST_S = 10.0
"""Seconds without any event until the first line."""
INTERVAL_S = 30.0
"""Seconds between two lines."""

LIVE_FIRST_S = 1.0
"""Seconds without any event until a terminal shows what is waited for."""

POLL_S = 0.5


class Watchdog:
    """Logs what is waited for while its block runs and nothing happens; a terminal shows it."""

    def __init__(
        self,
        stage: str,
        waiting_for: Callable[[], str | None],
        live: live_line.Source | None = None,
    ) -> None:
        """Prepare; the block starts it.

        Args:
            stage: whose lines these are.
            waiting_for: what is waited for, in words; None if nothing is, which counts as an
                event. It is called in another thread, and errors in it are ignored.
            live: what a terminal shows all the time, by default what is waited for.
        """
        self._stage, self._waiting_for = stage, waiting_for
        self._live = live or self._text
        self._waits_for: str | None = None
        self._shown = contextlib.ExitStack()
        self._ended = threading.Event()
        self.reset()

    def reset(self) -> None:
        """Something has happened: the wait begins again."""
        self._since = time.monotonic()
        self._due = FIRST_S

    def waited(self) -> float:
        """Seconds since the last event."""
        return time.monotonic() - self._since

    def __enter__(self) -> Self:
        self.reset()
        self._shown.enter_context(live_line.shown(self._live))
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._shown.close()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            waited = self.waited()
            due = waited >= self._due
            if not due and not (live_line.is_shown() and waited >= LIVE_FIRST_S):
                continue
            if due:
                self._due += INTERVAL_S
            with contextlib.suppress(Exception):  # For example of a cluster that is going down.
                self._waits_for = self._waiting_for()
                if self._waits_for is None:
                    self.reset()
                elif due and not self._ended.is_set():
                    log_progress(self._stage, f"{self._waits_for} ({int(waited)}s so far)")

    def _text(self, columns: int) -> str:
        if self._waits_for is None or self.waited() < LIVE_FIRST_S:
            return ""
        return wait_line(f"{self._stage}: {self._waits_for}", self.waited(), columns)
