"""Between a training worker and the driver: lines one way, a request for a checkpoint the other.

A driver that receives SIGTERM has some seconds left. It asks for a checkpoint, so that the steps
since the last one are not lost. Workers can't be called while they train; so the answer to a line
says whether a checkpoint is requested.
"""

import time
from typing import Any

import ray

from pipelines.console.log import stage_logger
from pipelines.console.progress import Update
from pipelines.training.checkpoint_folder import list_checkpoints

CHECKPOINT_GRACE_S = 25.0
"""How long a driver waits for the checkpoint: Kubernetes kills 30 seconds after SIGTERM."""


class DriverLines:
    """A worker's end."""

    def __init__(self, worker_log: Any) -> None:
        """``worker_log``: a ``WorkerLog`` actor."""
        self._worker_log = worker_log
        self._answer: Any = None
        """To a line; an object reference."""
        self._known = False
        """Whether the request has been reported."""

    def emit(self, line: str | Update) -> None:
        """Send a line, without waiting."""
        answer = self._worker_log.emit.remote(line)
        self._answer = self._answer or answer

    def checkpoint_requested(self) -> bool:
        """Whether the driver has requested a checkpoint; True once."""
        if self._known or self._answer is None:
            return False
        ready, _ = ray.wait([self._answer], timeout=0)
        if ready:
            (answer,), self._answer = ready, None
            self._known = bool(ray.get(answer))
        return self._known


def wait_for_checkpoint(worker_log: Any, folder: str) -> None:
    """Request a checkpoint and wait until it is complete, for ``CHECKPOINT_GRACE_S`` at most.

    Args:
        worker_log: the ``WorkerLog`` actor.
        folder: of the training's checkpoints.
    """
    log = stage_logger("train")
    log.info("SIGTERM: saving a checkpoint, for at most %d seconds", CHECKPOINT_GRACE_S)
    before = list_checkpoints(folder)[:1]
    worker_log.request_checkpoint.remote()
    end = time.monotonic() + CHECKPOINT_GRACE_S
    while time.monotonic() < end:
        newest = list_checkpoints(folder)[:1]
        if newest != before:
            log.info("saved %s", newest[0])
            return
        time.sleep(0.1)
    log.info("no checkpoint was complete in time; the one before it stays the newest")
