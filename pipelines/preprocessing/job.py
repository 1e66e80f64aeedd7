"""The Ray Data job: one task for each shard; it stops when too many images are rejected."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import ray
from ray.data import ActorPoolStrategy, DataContext

from alexnet.errors import UserError
from alexnet.shards.plan import ShardTask
from alexnet.shards.write import ShardResult, read_result
from pipelines import cluster
from pipelines.clusters.allocation import WorkerResources, request_in_words
from pipelines.clusters.task_errors import raise_packed
from pipelines.console.log import stage_logger
from pipelines.console.progress import Progress
from pipelines.console.stderr_filter import without_actor_pool_note
from pipelines.preprocessing.source import too_many
from pipelines.preprocessing.worker import ShardWriter

LISTED_REJECTS = 20
"""Rejects that are listed when there are too many."""

REPAIRS: Mapping[str, str] = {
    "empty": "copy or unpack them again",
    "truncated": "copy or unpack them again",
    "not an image": "check that the source is a folder of images",
    "not downloaded": "download them",
    "too many pixels": "reduce them",
    "unsupported": "convert them to JPEG",
    "unreadable": "repair them, or restore the files that links lead to",
}
"""What helps against each reason of a reject."""
NOT_THERE = ("empty", "not downloaded")
"""Reasons of images that are not lost but were never copied."""


@dataclass(slots=True)
class RejectCounter:
    """The rejects so far, and the number that is too many."""

    rejects: list[dict[str, str]]
    max_fraction: float
    images: int

    def add(self, result: ShardResult) -> None:
        """Count the rejects of a shard.

        Raises:
            UserError: there are more than allowed; the first ones have been logged.
        """
        self.rejects.extend(result.rejects)
        count = len(self.rejects)
        if not too_many(count, self.images, self.max_fraction):
            return
        log = stage_logger("preprocess")
        for reject in self.rejects[:LISTED_REJECTS]:
            log.info("  %s: %s (%s)", reject["key"], reject["reason"], reject["detail"])
        if count > LISTED_REJECTS:
            log.info("  and %d more", count - LISTED_REJECTS)
        reason, most = Counter(reject["reason"] for reject in self.rejects).most_common(1)[0]
        advice = f"{REPAIRS[reason]} ({most} of them are rejected as {reason})"
        # A larger fraction would make a data set of what is left of another one.
        if reason not in NOT_THERE and 2 * count < self.images:
            enough = -(-1000 * count // self.images) / 1000
            advice += f", remove them, or give --max-reject-fraction {enough} or more"
        raise UserError(
            f"{count} of {self.images:,} images can't be read, which is more than "
            f"--max-reject-fraction {self.max_fraction}; look at the list above, then {advice}; "
            "finished shards are kept"
        )


def make_shards(
    missing: Sequence[ShardTask], rejects: RejectCounter
) -> tuple[dict[ShardTask, ShardResult], float]:
    """Write the shards of some tasks.

    Returns:
        Their results, and the duration in seconds.

    Raises:
        UserError: the source can't be read any more, or too many images are rejected.
        OSError: shards can't be written.
    """
    if not missing:
        return {}, 0.0
    cluster.connect()
    DataContext.get_current().enable_progress_bars = False
    started = time.monotonic()
    items = [{"number": number, "task": asdict(task)} for number, task in enumerate(missing)]
    workers = min(len(items), int(ray.cluster_resources().get("CPU", 1)))
    # Actors with a queue of their own: otherwise a core is idle for a fifth of a second between
    # two tasks, which is a sixth of the time that a shard of 512 images takes.
    compute = ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=3)
    job = ray.data.from_items(items, override_num_blocks=len(items)).map(
        ShardWriter, compute=compute
    )
    job.set_name("preprocess")
    results = {}
    progress = Progress(
        "preprocess",
        sum(task.rows for task in missing),
        "images",
        waiting_for=lambda: (
            "the first results of " + request_in_words(WorkerResources(workers, 0, 1))
        ),
    )
    with progress, without_actor_pool_note():
        for row in job.iter_rows():
            task = missing[row["number"]]
            raise_packed(row["error"])
            results[task] = read_result(task)
            rejects.add(results[task])
            progress.add(task.rows, f"{len(rejects.rejects)} rejected")
    return results, time.monotonic() - started
