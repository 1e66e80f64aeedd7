"""Lines that remote workers say, printed by the driver.

Ray can forward all that workers print, but mixes it with its own messages and prefixes each
line. Here only what is meant for a person arrives, in order.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

EVERY = 0.5
"""Seconds between two looks at the board."""


class WorkerLog:
    """A Ray actor that keeps lines until the driver takes them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def emit(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)

    def drain(self) -> list[str]:
        """All lines since the last call."""
        taken, self.lines = self.lines, []
        return taken


@contextlib.contextmanager
def worker_log() -> Iterator[Any]:
    """A board whose lines are printed until the block ends; workers call ``emit.remote``."""
    # On the driver's own node: another could be lost with the board on it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    handle = ray.remote(num_cpus=0, scheduling_strategy=here)(WorkerLog).remote()
    ended = threading.Event()

    def show() -> None:
        with contextlib.suppress(RayActorError):  # Lines are lost then, but not the training.
            for line in ray.get(handle.drain.remote()):
                print(line, flush=True)

    def watch() -> None:
        while not ended.wait(EVERY):
            show()

    watcher = threading.Thread(target=watch, name="terminal", daemon=True)
    watcher.start()
    try:
        yield handle
    finally:
        ended.set()
        watcher.join()
        show()
        ray.kill(handle)
