"""A line every few seconds: how much is done, how fast, and how long the rest takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from pipelines.console.log import stage_logger
from pipelines.console.watchdog import Watchdog

INTERVAL_S = 5.0
"""Seconds between two lines."""


@dataclass(slots=True)
class Progress:
    """Progress of one stage towards a known total.

    While its block runs, it also logs that nothing has been done for a while; at the block's end
    it logs the last line.
    """

    stage: str
    total: int
    unit: str
    task: str = ""
    """What is done, if the stage does more than one thing."""
    waiting_for: Callable[[], str] = lambda: "more"
    """What is waited for when nothing has been done at first."""
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)
    _watchdog: Watchdog = field(init=False)

    def __post_init__(self) -> None:
        self._watchdog = Watchdog(self.stage, self._standstill)

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
        self.done = done
        if time.monotonic() - self.printed >= INTERVAL_S and self.done < self.total:
            self.printed = time.monotonic()
            rate = self.rate()
            left = duration((self.total - self.done) / rate) if rate else "?"
            self._log(f"{rate:,.0f} {self.unit}/s, {left} left", remark)

    def end(self) -> None:
        """Log the last line."""
        seconds = time.monotonic() - self.started
        self._log(f"{self.rate():,.0f} {self.unit}/s, {duration(seconds)}")

    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def _log(self, *parts: str) -> None:
        stage_logger(self.stage).info("%s", self._line(*parts))

    def _line(self, *parts: str) -> str:
        counted = f"{self.done:,}/{self.total:,} {self.unit}"
        line = ", ".join(part for part in (counted, *parts) if part)
        return f"{self.task}: {line}" if self.task else line

    def _standstill(self) -> str:
        # Once there are results, the workers have what they wait for at the start.
        return self._line(f"waiting for {'the next results' if self.done else self.waiting_for()}")


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
