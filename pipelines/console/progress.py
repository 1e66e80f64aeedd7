"""A line every few seconds: how much is done, how fast, and how long the rest takes."""

import time
from dataclasses import dataclass, field

from pipelines.console.log import stage_logger

INTERVAL_S = 5.0
"""Seconds between two lines."""


@dataclass(slots=True)
class Progress:
    """Progress of one stage towards a known total."""

    stage: str
    total: int
    unit: str
    task: str = ""
    """What is done, if the stage does more than one thing."""
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)

    def add(self, count: int, remark: str = "") -> None:
        """Count some more."""
        self.advance_to(self.done + count, remark)

    def advance_to(self, done: int, remark: str = "") -> None:
        """Set what is done; log a line if the last one is old."""
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
        counted = f"{self.done:,}/{self.total:,} {self.unit}"
        line = ", ".join(part for part in (counted, *parts) if part)
        stage_logger(self.stage).info("%s", f"{self.task}: {line}" if self.task else line)


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
