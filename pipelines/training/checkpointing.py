"""Checkpoints of a running job: written beside the training, found again after a loss.

Rank 0 copies the tensors to the CPU, which takes a moment, and goes on learning; a thread writes
them, and then Ray Train registers the checkpoint. A folder gets its name when it is complete, so
a half-written one is never found. Ray keeps the newest and the best by validation error.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from threading import Semaphore

import pyarrow.fs as fs
import ray.train
from ray.train import Checkpoint, CheckpointConfig, CheckpointUploadMode, Result
from torch import Tensor

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.model.towers import AlexNet
from alexnet.training.checkpoint import Snapshot, TrainState, load, save
from alexnet.training.optimizer import MomentumSGD

SCORE = "val_top1_error"
NOT_VALIDATED = 100.0
"""What a checkpoint within an epoch counts as: no better than any other."""

KEEP = CheckpointConfig(
    num_to_keep=1, checkpoint_score_attribute=SCORE, checkpoint_score_order="min"
)
"""The best; Ray never deletes the newest."""

PART = ".part"
"""Ends the name of a folder that is not complete."""


def report(idle: Semaphore, take: Callable[[], Snapshot] | None, position: TrainState) -> None:
    """Hand over a checkpoint and go on; called by all workers, at the same steps.

    Args:
        idle: held while a checkpoint of this worker is written. One at a time: each has a copy of
            all weights.
        take: copies the tensors; None on the workers that bring none.
        position: of the training.
    """
    validated = position.history and not position.offset
    metrics = {
        "epoch": position.epoch,
        "step": position.step,
        SCORE: position.history[-1][SCORE] if validated else NOT_VALIDATED,
    }
    if take is None:
        ray.train.report(metrics, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
        return
    idle.acquire()
    snapshot = take()

    def write(_: Checkpoint, name: str) -> Checkpoint:
        try:
            return _write(snapshot, name)
        finally:
            idle.release()

    ray.train.report(
        metrics,
        # Ray asks for a folder; ours does not exist before it is written where it stays.
        checkpoint=Checkpoint(tempfile.gettempdir()),
        checkpoint_dir_name=_new_name(position.step),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=write,
        delete_local_checkpoint_after_upload=False,
    )


def _new_name(step: int) -> str:
    """A folder for the checkpoint of a step, with a number added where there is one already.

    A training that fell back past a damaged checkpoint comes to its step again, and Ray, which
    knows the old one by its path, would delete the new one in its place.
    """
    context = ray.train.get_context().get_storage()
    name = f"step_{step:09d}"
    for number in itertools.count(1):
        path = f"{context.experiment_fs_path}/{name}"
        if context.storage_filesystem.get_file_info(path).type == fs.FileType.NotFound:
            return name
        name = f"step_{step:09d}_{number}"
    raise AssertionError("there are endless numbers")


def _write(snapshot: Snapshot, name: str) -> Checkpoint:
    """Put a checkpoint where Ray keeps them.

    Raises:
        UserError: there is no room, or the place can't be written to.
    """
    context = ray.train.get_context().get_storage()
    filesystem, path = context.storage_filesystem, f"{context.experiment_fs_path}/{name}"
    if not isinstance(filesystem, fs.LocalFileSystem):
        with tempfile.TemporaryDirectory(prefix="alexnet-checkpoint-") as folder:
            save(folder, snapshot)
            fs.copy_files(folder, path, destination_filesystem=filesystem)
        return Checkpoint(path, filesystem)
    part = path + PART
    shutil.rmtree(part, ignore_errors=True)  # A run that was killed may have left it.
    try:
        os.makedirs(part)
        save(part, snapshot)
        os.rename(part, path)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"{path}: the checkpoint can't be written ({one_line(error)}); those before "
            "it are intact: mend that and give the same command again"
        ) from error
    return Checkpoint(path, filesystem)


def restore(
    network: AlexNet,
    optimizer: MomentumSGD,
    average: Mapping[str, Tensor] | None,
    say: Callable[[str], None],
) -> TrainState:
    """Go on from the newest checkpoint that can be read, or from the beginning if there is none.

    Raises:
        UserError: there are checkpoints and none of them can be read.
    """
    newest = ray.train.get_checkpoint()
    if newest is None:
        return TrainState()
    others = [found.checkpoint for found in ray.train.get_all_reported_checkpoints()]
    known = {checkpoint.path: checkpoint for checkpoint in [newest, *reversed(others)]}
    problems = []
    for checkpoint in known.values():
        try:
            with checkpoint.as_directory() as folder:
                return load(folder, network, optimizer, average)
        except (UserError, OSError) as error:
            problems.append(one_line(error))
            say(f"{problems[-1]}; looking for an older checkpoint")
    raise UserError(f"{problems[0]}; no older one can be read: begin again with --force")


def prune_checkpoints(result: Result, folder: str) -> None:
    """Delete what killed runs left in a finished training's folder, on a local disk."""
    kept = {os.path.basename(found.path) for found, _ in result.best_checkpoints}
    assert result.checkpoint
    kept.add(os.path.basename(result.checkpoint.path))
    if storage.is_remote(folder):
        return
    for name in os.listdir(folder):
        if name.startswith("step_") and name not in kept:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
