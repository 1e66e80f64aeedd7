"""Lines and progress of remote workers, shown by the driver.

Ray can forward all that workers print, but mixes it with its own messages and prefixes each
line. Here only what is meant for the user arrives, in order.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.console import live_line
from pipelines.console.log import log_progress, stage_logger
from pipelines.console.progress import Update

POLL_INTERVAL_S = 0.5
"""Seconds between two requests for new lines."""


class WorkerLog:
    """A Ray actor that keeps lines until the driver takes them."""

    def __init__(self) -> None:
        self.lines: list[str | Update] = []
        self.checkpoint_requested = False

    def emit(self, line: str | Update) -> bool:
        """Add a line, or how far the work has got; returns whether a checkpoint is requested."""
        self.lines.append(line)
        return self.checkpoint_requested

    def request_checkpoint(self) -> None:
        """Let every later ``emit`` return True."""
        self.checkpoint_requested = True

    def drain(self) -> list[str | Update]:
        """All lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


@contextlib.contextmanager
def worker_log(stage: str, on_line: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """A ``WorkerLog`` actor whose lines are logged, and whose progress is shown, in the block.

    Workers call ``emit.remote``.

    Args:
        stage: whose lines these are.
        on_line: called for each line.
    """
    # On the driver's own node: with any other node, the actor could be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(WorkerLog).remote()
    ended = threading.Event()
    newest: Update | None = None

    def show() -> None:
        nonlocal newest
        with contextlib.suppress(RayActorError):  # Lines are lost then, but not the training.
            for line in ray.get(actor.drain.remote()):
                if isinstance(line, Update):
                    newest = line
                    log_progress(stage, line.line)
                else:
                    stage_logger(stage).info("%s", line)
                on_line()

    def bar(columns: int) -> str:
        return newest.bar(stage, columns) if newest else ""

    def poll() -> None:
        while not ended.wait(POLL_INTERVAL_S):
            show()

    poller = threading.Thread(target=poll, name="worker-log", daemon=True)
    poller.start()
    try:
        with live_line.shown(bar):
            yield actor
    finally:
        ended.set()
        poller.join()
        show()
        ray.kill(actor)
