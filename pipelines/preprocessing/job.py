"""The Ray Data job that makes shards, one to a task, and stops when too much goes wrong."""

import contextlib
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from alexnet import storage
from alexnet.errors import UserError
from alexnet.shards.plan import ShardTask
from alexnet.shards.write import Report, read_report
from pipelines import cluster
from pipelines.console.progress import Progress
from pipelines.preprocessing.worker import ShardWriter

SHOWN = 20
"""Rejects that are listed when there are too many."""


@dataclass(slots=True)
class RejectCounter:
    """Rejects so far, and how many are too many."""

    found: list[dict[str, str]]
    fraction: float
    images: int

    def add(self, report: Report) -> None:
        """Count a unit's rejects.

        Raises:
            UserError: there are more than allowed; the first ones have been printed.
        """
        self.found.extend(report.rejects)
        if len(self.found) <= self.fraction * self.images:
            return
        for reject in self.found[:SHOWN]:
            print(f"  {reject['key']}: {reject['reason']} ({reject['detail']})")
        if len(self.found) > SHOWN:
            print(f"  and {len(self.found) - SHOWN} more")
        enough = math.ceil(1000 * len(self.found) / self.images) / 1000
        raise UserError(
            f"{len(self.found)} of {self.images:,} images can't be read, which is more than "
            f"--max-reject-fraction {self.fraction:g}; look at the list above, then repair or "
            f"remove them, or give --max-reject-fraction {enough:g} or more; finished shards are "
            "kept"
        )


def start_early() -> None:
    """Begin to start Ray in the background; there is surely work for it."""

    def start() -> None:
        # Otherwise ``make_shards`` will find out too, and can say so.
        with contextlib.suppress(UserError):
            cluster.connect()
        # Ray's processes end with the thread that started them.
        threading.Event().wait()

    threading.Thread(target=start, name="start-early", daemon=True).start()


def make_shards(
    missing: Sequence[ShardTask], rejects: RejectCounter
) -> tuple[dict[ShardTask, Report], float]:
    """Make the shards of some units.

    Returns:
        Their reports, and the seconds that it took.

    Raises:
        UserError: the source can't be read any more, or too many images are rejected.
        OSError: shards can't be written.
    """
    if not missing:
        return {}, 0.0
    cluster.connect()
    DataContext.get_current().enable_progress_bars = False
    begun = time.monotonic()
    progress = Progress("preprocess", sum(unit.rows for unit in missing), "images")
    items = [{"number": number, "unit": asdict(unit)} for number, unit in enumerate(missing)]
    workers = min(len(items), int(ray.cluster_resources().get("CPU", 1)))
    # Actors with a queue of their own: between two tasks Ray Data would leave a core idle for a
    # fifth of a second, which is a sixth of the time that a shard of 512 images takes.
    compute = ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=3)
    units = ray.data.from_items(items, override_num_blocks=len(items))
    job = units.map(ShardWriter, compute=compute)
    job.set_name("preprocess")
    reports = {}
    for outcome in job.iter_rows():
        unit = missing[outcome["number"]]
        _stop_on_error(unit, outcome)
        reports[unit] = read_report(unit)
        rejects.add(reports[unit])
        progress.add(unit.rows, f"{len(rejects.found)} rejected")
    progress.end()
    return reports, time.monotonic() - begun


def _stop_on_error(unit: ShardTask, outcome: Mapping[str, Any]) -> None:
    if outcome["source_error"]:
        raise UserError(outcome["source_error"])
    if outcome["write_error"]:
        raise OSError(
            f"{storage.join(unit.folder, unit.file)}: can't be written "
            f"({outcome['write_error']}); when it can, give the same command again: finished "
            "shards are kept"
        )
