"""How much is done, how fast, and how long the rest takes: a line every few seconds, or a bar."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from pipelines.console.bar import bar_line
from pipelines.console.log import log_progress, stage_logger
from pipelines.console.watchdog import Watchdog

INTERVAL_S = 5.0
"""Seconds between two lines."""
LONG_S = 30.0
"""Seconds without any result until a bar says what is waited for instead of the time left."""


@dataclass(slots=True)
class Progress:
    """Progress of one stage towards a known total.

    While its block runs, a terminal shows a bar instead of the lines, and it is also told that
    nothing has been done for a while; at the block's end the last line is logged.
    """

    stage: str
    total: int
    unit: str
    task: str = ""
    """What is done, if the stage does more than one thing."""
    waiting_for: Callable[[], str] = lambda: "more"
    """What is waited for when nothing has been done at first."""
    done: int = 0
    remark: str = ""
    """What else is told, such as the number of rejects."""
    started: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)
    advanced: float = field(default_factory=time.monotonic)
    """When something was done last, by the monotonic clock, as the two times before."""
    _awaited: str = "the next results"
    _watchdog: Watchdog = field(init=False)

    def __post_init__(self) -> None:
        self._watchdog = Watchdog(self.stage, self._standstill, self.bar)

    def __enter__(self) -> Self:
        self._watchdog.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watchdog.__exit__(kind, error, traceback)
        if error is None:
            self.end()

    def add(self, count: int, remark: str = "") -> None:
        """Count some more."""
        self.advance_to(self.done + count, remark)

    def advance_to(self, done: int, remark: str = "") -> None:
        """Set what is done; log a line if the last one is old."""
        if done > self.done:
            self._watchdog.reset()
        self.done, self.remark, self.advanced = done, remark, time.monotonic()
        if time.monotonic() - self.printed >= INTERVAL_S and self.done < self.total:
            self.printed = time.monotonic()
            log_progress(self.stage, self._line(self._rate_text(), self._left_text(), remark))

    def end(self) -> None:
        """Log the last line."""
        taken = f"took {duration(time.monotonic() - self.started)}"
        line = self._line(self._rate_text(), taken, self.remark)
        stage_logger(self.stage).info("%s", line)

    def rate(self) -> float:
        """Units per second, from the start until something was done last."""
        return self.done / max(self.advanced - self.started, 1e-9)

    def _rate_text(self) -> str:
        return f"{self.rate():,.0f} {self.unit}/s"

    def _left_text(self) -> str:
        if not self.done:
            return "? left"
        passed = time.monotonic() - self.advanced
        return f"{duration(max((self.total - self.done) / self.rate() - passed, 0))} left"

    def _line(self, *parts: str) -> str:
        counted = f"{self.done:,}/{self.total:,} {self.unit}"
        line = ", ".join(part for part in (counted, *parts) if part)
        return f"{self.task}: {line}" if self.task else line

    def _standstill(self) -> str:
        # Once there are results, the workers have what they wait for at the start.
        self._awaited = "the next results" if self.done else self.waiting_for()
        return self._line(f"waiting for {self._awaited}")

    def bar(self, columns: int) -> str:
        """What a terminal shows, at most as long."""
        waited = self._watchdog.waited()
        counted = f"{self.done:,}/{self.total:,} {self.unit}"
        parts = [self._left_text(), self.remark, self._rate_text(), counted, self.task]
        if waited > LONG_S or not self.done:
            # Not ``waiting_for``, which may ask the cluster: a bar must not wait for an answer.
            awaited = self._awaited if waited > LONG_S else "the first results"
            parts = [f"waiting {int(waited)}s for {awaited}", self.remark, counted]
        return bar_line(self.stage, self.done, self.total, [p for p in parts if p], columns)


@dataclass(frozen=True, slots=True)
class Update:
    """How far the work of a remote worker has got."""

    line: str
    """What is logged."""
    done: int
    """Of ``total``, in any unit."""
    total: int
    parts: tuple[str, ...]
    """What a terminal shows beside a bar, the most important first."""

    def bar(self, stage: str, columns: int) -> str:
        """What a terminal shows."""
        return bar_line(stage, self.done, self.total, self.parts, columns)


def duration(seconds: float) -> str:
    """``45s``, ``3m20s``, ``2h05m``, ``6d04h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 2 * 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
