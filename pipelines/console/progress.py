"""One line every few seconds: how far, how fast, how long still."""

import time
from dataclasses import dataclass, field

EVERY = 5.0
"""Seconds between two lines."""


@dataclass(slots=True)
class Progress:
    """Progress of one stage towards a known total."""

    stage: str
    total: int
    unit: str
    done: int = 0
    begun: float = field(default_factory=time.monotonic)
    printed: float = field(default_factory=time.monotonic)

    def add(self, count: int, remark: str = "") -> None:
        """Count some more; print a line if the last one is old."""
        self.done += count
        if time.monotonic() - self.printed >= EVERY and self.done < self.total:
            self.printed = time.monotonic()
            rate = self.rate()
            left = duration((self.total - self.done) / rate) if rate else "?"
            print(self._line(f"{rate:,.0f} {self.unit}/s, {left} left", remark), flush=True)

    def end(self) -> None:
        """Print the last line."""
        seconds = time.monotonic() - self.begun
        print(self._line(f"{self.rate():,.0f} {self.unit}/s, {duration(seconds)}"), flush=True)

    def rate(self) -> float:
        """Units a second since the beginning."""
        return self.done / max(time.monotonic() - self.begun, 1e-9)

    def _line(self, *parts: str) -> str:
        counted = f"{self.done:,}/{self.total:,} {self.unit}"
        return f"{self.stage}: " + ", ".join(part for part in (counted, *parts) if part)


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
