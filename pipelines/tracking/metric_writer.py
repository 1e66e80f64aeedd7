"""Training metrics, written in the background, whether the tracking server answers or not.

A point goes into a queue, and a thread writes the queue in batches, in order. While the server
does not answer, the thread retries and the training continues. A checkpoint stores the points that
are still pending, so that they are not lost with the process.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

MAX_QUEUE = 100_000
"""Pending points, enough for a million updates at ten per point; then the oldest are dropped."""
MAX_BATCH_VALUES = 1000
"""Values that MLflow accepts in one request."""
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.2, 5.0
"""Seconds between two attempts; each pause is twice the one before."""


class Point(NamedTuple):
    """The values of several metrics at one step."""

    step: int
    time: int
    """Milliseconds since 1970."""
    values: Mapping[str, float]

    @property
    def kind(self) -> str:
        """One metric's name stands for the point: the store holds all of a point or nothing."""
        return min(self.values)


class StoreUnavailableError(Exception):
    """The store did not answer; whether it carried the request out is not known."""


class MetricSink(Protocol):
    """A store of points. Both methods raise StoreUnavailableError, or another error if refused."""

    def last_step(self, metric: str) -> int:
        """The highest step of a metric in the store, -1 if none."""

    def write(self, points: Sequence[Point]) -> None:
        """Write all of the points or none."""


class MetricWriter:
    """Writes points in the background: an error is never fatal, no point is written twice.

    A point whose step is not above the last one of its kind in the store is in the store already,
    from before a restart or from a request whose answer was lost, and is skipped.
    """

    def __init__(
        self,
        store: MetricSink,
        pending_metrics: Iterable[tuple[int, int, Mapping[str, float]]] = (),
    ) -> None:
        """``pending_metrics``: what the run's earlier writer returned from ``pending``."""
        self.dropped = 0
        """Points that were dropped from a full queue, or refused by the store."""
        self._store = store
        self._waiting = deque(Point(*point) for point in pending_metrics)
        self._batch: list[Point] = []
        self._last_steps: dict[str, int] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._keep_writing, name="metric-writer", daemon=True).start()

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Queue a point; returns at once."""
        point = Point(step, int(time.time() * 1000), dict(values))
        with self._changed:
            self._waiting.append(point)
            while len(self._waiting) > MAX_QUEUE:
                self._waiting.popleft()
                self.dropped += 1
            self._changed.notify_all()

    def pending(self) -> list[Point]:
        """The points that may not be in the store, in order."""
        with self._changed:
            return [*self._batch, *self._waiting]

    def flush(self, seconds: float) -> int:
        """Wait until everything is written, at most so long; returns how many points are not."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._batch or self._waiting), seconds)
            return self.dropped + len(self._batch) + len(self._waiting)

    def _keep_writing(self) -> None:
        pause = MIN_BACKOFF_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._batch or self._waiting)
                self._fill_batch()
            refused = 0
            try:
                self._write_batch()
            except StoreUnavailableError:
                self._last_steps.clear()
                time.sleep(pause)
                pause = min(2 * pause, MAX_BACKOFF_S)
                continue
            except Exception:  # Whatever it is, it must not stop the training.
                refused = len(self._batch)
            pause = MIN_BACKOFF_S
            with self._changed:
                self.dropped += refused
                self._batch.clear()
                self._changed.notify_all()

    def _fill_batch(self) -> None:
        values = sum(len(point.values) for point in self._batch)
        while (
            self._waiting and (values := values + len(self._waiting[0].values)) <= MAX_BATCH_VALUES
        ):
            self._batch.append(self._waiting.popleft())

    def _write_batch(self) -> None:
        for kind in {point.kind for point in self._batch} - self._last_steps.keys():
            self._last_steps[kind] = self._store.last_step(kind)
        new = [point for point in self._batch if point.step > self._last_steps[point.kind]]
        if new:
            self._store.write(new)
        self._last_steps |= {point.kind: point.step for point in new}
