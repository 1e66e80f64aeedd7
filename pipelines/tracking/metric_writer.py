"""The curves of a training, written in the background, whatever becomes of the tracking server.

A point goes into a queue, and a thread writes the queue in batches, in order. While the server
does not answer, the thread tries again and again and the training goes on. A checkpoint keeps the
points that are not written when it is made, so that they outlive the process.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

MAX_QUEUE = 100_000
"""Points that may wait, a million updates at ten for each point; beyond, the oldest are lost."""
MAX_BATCH_VALUES = 1000
"""Values that MLflow takes at a time."""
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.2, 5.0
"""Seconds between two tries; each pause is twice the one before."""


class Point(NamedTuple):
    """What several curves have at one step."""

    step: int
    time: int
    """Milliseconds since 1970."""
    values: Mapping[str, float]

    @property
    def kind(self) -> str:
        """A point is in the store whole or not at all: one of its curves tells of them all."""
        return min(self.values)


class StoreUnavailableError(Exception):
    """The store did not answer; what became of the request is not known."""


class MetricSink(Protocol):
    """Where the points go. Both raise StoreUnavailableError, or another error if the store refuses."""

    def last_step(self, curve: str) -> int:
        """The highest step that the store has of a curve, -1 if none."""

    def write(self, points: Sequence[Point]) -> None:
        """Write all of the points or none."""


class MetricWriter:
    """Writes points in the background: never fatal, never twice.

    A point whose step is not above the last that the store has of its kind is in the store
    already, from before a restart or from a request whose answer was lost, and is passed over.
    """

    def __init__(
        self,
        store: MetricSink,
        pending_metrics: Iterable[tuple[int, int, Mapping[str, float]]] = (),
    ) -> None:
        """``pending_metrics``: what the writer before gave under this name, perhaps by way of JSON."""
        self.lost = 0
        """Points that were dropped from a full queue, or that the store refused."""
        self._store = store
        self._waiting = deque(Point(*point) for point in pending_metrics)
        self._batch: list[Point] = []
        self._last_steps: dict[str, int] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._keep_writing, name="curves", daemon=True).start()

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Queue a point; returns at once."""
        point = Point(step, int(time.time() * 1000), dict(values))
        with self._changed:
            self._waiting.append(point)
            while len(self._waiting) > MAX_QUEUE:
                self._waiting.popleft()
                self.lost += 1
            self._changed.notify_all()

    def pending(self) -> list[Point]:
        """The points that are not known to be in the store, in order."""
        with self._changed:
            return [*self._batch, *self._waiting]

    def flush(self, seconds: float) -> int:
        """Wait until everything is written, but no longer; returns how many points are not."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._batch or self._waiting), seconds)
            return self.lost + len(self._batch) + len(self._waiting)

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
            except Exception:  # Whatever it is, the training is worth more than its curves.
                refused = len(self._batch)
            pause = MIN_BACKOFF_S
            with self._changed:
                self.lost += refused
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
