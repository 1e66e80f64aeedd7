"""What of a workdir nothing needs any more, with its size; with --delete it is deleted.

Needed is what a registered version, an alias, the newest result of a stage or an unfinished run
consists of or was made of: data sets, checkpoints, evaluations, models and the artifacts of runs.
Without --delete nothing is changed, which --dry-run says explicitly. Parameters and metrics of
runs always stay, and so do the runs and models of an MLflow server, which other workdirs may use.
To free what a registered version needs, delete the version in MLflow first.

    alexnet gc --workdir /data/work
    alexnet gc --workdir /data/work --delete
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

from alexnet import storage
from alexnet.errors import UserError
from alexnet.shards.manifest import manifest_path
from pipelines.configuration.command_settings import GarbageSettings
from pipelines.console.cli import run_script, show
from pipelines.console.lock import exclusive_lock
from pipelines.console.log import stage_logger
from pipelines.console.table import size_in_words, table
from pipelines.inspection.needs import Node, Verdict, judge
from pipelines.inspection.workdir_graph import Inventory, take_inventory
from pipelines.results.command_results import Garbage, GarbageResult
from pipelines.tracking import contents
from pipelines.tracking.store import Store, connect
from pipelines.workdir import Workdir


def run(settings: GarbageSettings) -> GarbageResult:
    """Find what is not needed, and delete it if the settings say so.

    Raises:
        UserError: there is no such workdir, or it has records that can't be read.
    """
    workdir = Workdir(settings.workdir)
    if not storage.is_folder(workdir.path):
        raise UserError(f"{workdir.path}: no such folder; check --workdir")
    if settings.delete and storage.is_remote(workdir.path):
        raise UserError(
            f"{workdir.path}: object stores have no locks, so another command could be using what "
            "is deleted; delete the folders that are listed without --delete yourself"
        )
    store = connect(settings)
    own_store = settings.tracking_uri is None
    with _all_locks(workdir) if settings.delete else contextlib.nullcontext():
        found = take_inventory(workdir, store, own_store=own_store)
        verdicts = judge(found.graph())
        garbage = [verdict for verdict in verdicts if not verdict.needed]
        show(settings, _in_words(found, verdicts))
        if settings.delete:
            for verdict in garbage:
                _delete(store, found, verdict.node)
                stage_logger("gc").info("deleted %s", found.place(verdict.node))
    return GarbageResult(
        deleted=settings.delete,
        bytes=sum(verdict.bytes for verdict in garbage),
        bytes_needed=sum(verdict.bytes for verdict in verdicts if verdict.needed),
        garbage=[
            Garbage(
                kind=verdict.node.kind,
                name=verdict.node.name,
                path=found.place(verdict.node),
                bytes=verdict.bytes,
                reason=verdict.reason,
            )
            for verdict in garbage
        ],
    )


@contextlib.contextmanager
def _all_locks(workdir: Workdir) -> Iterator[None]:
    """Wait until no stage is running and nothing reads a data set, and let none start.

    The order is that of the stages, which lock a data set after ``preprocess`` and before the
    others: two commands never wait for each other.
    """
    shards = storage.join(workdir.path, "shards")
    with contextlib.ExitStack() as stack:
        stack.enter_context(exclusive_lock(workdir, "preprocess", "gc"))
        names = storage.list_folders(shards) if storage.is_folder(shards) else []
        locks = sorted(Workdir.shards_lock(storage.join(shards, name)) for name in names)
        for name in [*locks, "train", "evaluate", "promote"]:
            stack.enter_context(exclusive_lock(workdir, name, "gc"))
        yield


def _in_words(found: Inventory, verdicts: Sequence[Verdict]) -> list[str]:
    """What is needed and what is not, as a table for the terminal."""
    if not verdicts:
        return ["there is nothing that takes space"]
    return table(
        ["what", "where", "size", "needed", "why"],
        [
            [
                verdict.node.kind,
                found.place(verdict.node),
                size_in_words(verdict.bytes),
                "yes" if verdict.needed else "no",
                verdict.reason,
            ]
            for verdict in verdicts
        ],
    )


def _delete(store: Store, found: Inventory, node: Node) -> None:
    if node in found.runs:
        contents.delete_run_artifacts(store, found.runs[node], time.strftime("%Y-%m-%d"))
    elif node in found.models:
        contents.delete_model(store, found.models[node])
    else:
        folder = found.folders[node]
        if node.kind == "data set":  # First the manifest: what is left of a kill is incomplete.
            manifest = manifest_path(folder)
            if storage.is_file(manifest):
                storage.delete_file(manifest)
        storage.delete_folder(folder)


def main() -> NoReturn:
    """The command."""
    run_script(GarbageSettings, run, __doc__)


if __name__ == "__main__":
    main()
