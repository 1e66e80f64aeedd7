"""Checkpoints of a Ray Train job: written in the background, restored after a loss.

Rank 0 copies the tensors to the CPU, which takes a moment, and continues to train; a thread writes
them, and then Ray Train registers the checkpoint. A folder gets its name when it is complete, so
an incomplete checkpoint is never restored. Ray keeps the newest and the best by validation error.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from threading import Semaphore

import pyarrow.fs as fs
import ray.train
from ray.train import Checkpoint, CheckpointConfig, CheckpointUploadMode
from torch import Tensor

from alexnet.errors import UserError, one_line
from alexnet.model.towers import AlexNet
from alexnet.training.checkpoint import Snapshot, TrainState, load_checkpoint, save_checkpoint
from alexnet.training.optimizer import MomentumSGD
from pipelines.training.checkpoint_folder import PART, SCORE, checkpoint_name, open_checkpoint

NOT_VALIDATED = 100.0
"""The score of a checkpoint within an epoch: not better than any other."""

KEEP = CheckpointConfig(
    num_to_keep=1, checkpoint_score_attribute=SCORE, checkpoint_score_order="min"
)
"""Ray keeps the best one, and never deletes the newest."""


def report(
    slot: Semaphore, snapshot: Callable[[], Snapshot] | None, train_state: TrainState
) -> None:
    """Start to write a checkpoint and return; called by all workers, at the same steps.

    Args:
        slot: held while a checkpoint of this worker is written: one at a time, since each has a
            copy of all weights.
        snapshot: copies the tensors; None on workers that write no checkpoint.
        train_state: of all workers together.
    """
    validated = train_state.history and not train_state.offset
    metrics = {
        "epoch": train_state.epoch,
        "step": train_state.step,
        SCORE: train_state.history[-1][SCORE] if validated else NOT_VALIDATED,
    }
    if snapshot is None:
        ray.train.report(metrics, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
        return
    slot.acquire()
    tensors = snapshot()

    def write(_: Checkpoint, name: str) -> Checkpoint:
        try:
            return _write(tensors, name)
        finally:
            slot.release()

    ray.train.report(
        metrics,
        # Ray requires a folder here; ours is written in its final place, later.
        checkpoint=Checkpoint(tempfile.gettempdir()),
        checkpoint_dir_name=_new_name(train_state.step),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=write,
        delete_local_checkpoint_after_upload=False,
    )


def _new_name(step: int) -> str:
    """A new folder's name for the checkpoint of a step; a number is added if the name is taken.

    A training that has passed over a damaged checkpoint reaches its step again. Ray identifies
    checkpoints by their paths, so it would delete the new one in place of the old one.
    """
    context = ray.train.get_context().get_storage()
    for number in itertools.count():
        name = checkpoint_name(step, number)
        path = f"{context.experiment_fs_path}/{name}"
        if context.storage_filesystem.get_file_info(path).type == fs.FileType.NotFound:
            return name
    raise AssertionError("itertools.count never ends")


def _write(snapshot: Snapshot, name: str) -> Checkpoint:
    """Write a checkpoint to the job's storage path.

    Raises:
        UserError: the disk is full, or the folder can't be written to.
    """
    context = ray.train.get_context().get_storage()
    filesystem, path = context.storage_filesystem, f"{context.experiment_fs_path}/{name}"
    if not isinstance(filesystem, fs.LocalFileSystem):
        with tempfile.TemporaryDirectory(prefix="alexnet-checkpoint-") as folder:
            save_checkpoint(folder, snapshot)
            fs.copy_files(folder, path, destination_filesystem=filesystem)
        return Checkpoint(path, filesystem)
    part = path + PART
    shutil.rmtree(part, ignore_errors=True)  # A killed run may have left it.
    try:
        os.makedirs(part)
        save_checkpoint(part, snapshot)
        os.rename(part, path)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"{path}: the checkpoint can't be written ({one_line(error)}); earlier "
            "ones are intact: put that right and give the same command again"
        ) from error
    return Checkpoint(path, filesystem)


def restore(
    network: AlexNet,
    optimizer: MomentumSGD,
    average: Mapping[str, Tensor] | None,
    log_line: Callable[[str], None],
    earlier: Sequence[str] = (),
) -> TrainState:
    """Load the newest checkpoint that can be read; start at the beginning if there is none.

    Args:
        network: its weights are set.
        optimizer: its momentum is set.
        average: the averaged weights, which are set.
        log_line: takes a line for each checkpoint that can't be read.
        earlier: checkpoints of earlier starts of the job, the newest first.
    """
    checkpoints = [open_checkpoint(path) for path in earlier]
    if newest := ray.train.get_checkpoint():  # Of this start, which has lost a worker.
        reported = [entry.checkpoint for entry in ray.train.get_all_reported_checkpoints()]
        checkpoints = [newest, *reversed(reported), *checkpoints]
    for checkpoint in {checkpoint.path: checkpoint for checkpoint in checkpoints}.values():
        try:
            with checkpoint.as_directory() as folder:
                return load_checkpoint(folder, network, optimizer, average)
        except (UserError, FileNotFoundError) as error:
            log_line(f"{one_line(error)}; trying an older checkpoint")
    if checkpoints:
        log_line("no checkpoint can be read; starting at the beginning")
    return TrainState()
