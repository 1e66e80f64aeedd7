"""The checkpoints in a training's folder: which there are, and which are kept.

The folders' own names and files tell this. Ray Train's list of checkpoints, a file beside them, is
not used: a killed process can leave it incomplete or naming folders that no longer exist, and
another version of Ray does not read it. It is deleted before each start.
"""

import os
import re

from ray.train import Checkpoint

from alexnet import storage
from alexnet.errors import UserError
from alexnet.training.checkpoint import TrainState, verify_checkpoint
from pipelines.console.log import stage_logger

SCORE = "val_top1_error"
PART = ".part"
"""Suffix of a folder that is not complete."""

RAY_LIST = "checkpoint_manager_snapshot.json"
"""Ray Train's list, from which it would restore the job."""


def checkpoint_name(step: int, number: int = 0) -> str:
    """A folder's name; ``number`` distinguishes the checkpoints of one step."""
    return f"step_{step:09d}" + (f"_{number}" if number else "")


def list_checkpoints(folder: str) -> list[str]:
    """Paths of the checkpoints below a folder, the newest first; some may be damaged."""
    names = storage.list_folders(folder)
    matches = [re.fullmatch(r"step_(\d+)(?:_(\d+))?", name) for name in names]
    found = [(int(match[1]), int(match[2] or 0), match[0]) for match in matches if match]
    return [storage.join(folder, name) for _, _, name in sorted(found, reverse=True)]


def open_checkpoint(path: str) -> Checkpoint:
    """A checkpoint as Ray Train handles it; ``as_directory`` makes it a local folder."""
    filesystem, inner = storage.locate(path)
    return Checkpoint(os.fsdecode(inner), filesystem)


def forget_ray_list(folder: str) -> None:
    """Let Ray Train begin a new list of checkpoints."""
    path = storage.join(folder, RAY_LIST)
    if storage.is_file(path):
        storage.delete_file(path)


def prune_checkpoints(folder: str) -> None:
    """Keep the newest checkpoint that is whole and the best by validation error, if there is one.

    In object stores nothing is deleted.
    """
    if storage.is_remote(folder):
        return
    whole: dict[str, TrainState] = {}
    damaged: dict[str, UserError] = {}
    for path in list_checkpoints(folder):
        try:
            whole[path] = verify_checkpoint(path)
        except UserError as error:
            damaged[path] = error
    if not whole:
        return
    for problem in damaged.values():
        stage_logger("train").info("%s; it is deleted, since another one is whole", problem)
    best = min(whole, key=lambda path: _score(whole[path]))
    incomplete = [name for name in storage.list_folders(folder) if name.endswith(PART)]
    paths = [*whole, *damaged, *(storage.join(folder, name) for name in incomplete)]
    for path in set(paths) - {next(iter(whole)), best}:
        storage.delete_folder(path)


def _score(state: TrainState) -> float:
    """The validation error in per cent; infinite for a checkpoint within an epoch."""
    return state.history[-1][SCORE] if state.history and not state.offset else float("inf")
