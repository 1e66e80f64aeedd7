"""A fake of ``ray.train`` for one training worker; no cluster is started."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as fs
import pytest
import ray.train
from ray.train import Checkpoint


class FakeRayTrain:
    """Replaces the functions of ``ray.train`` that a worker calls, for the length of a test.

    The worker has rank 0 of 1. Its checkpoints are written at once, into ``folder``. To resume from
    a checkpoint, put it into ``checkpoints``.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.checkpoints: list[Checkpoint] = []
        """Those that Ray Train would hold, the newest last."""
        self.metrics: list[dict[str, Any]] = []
        """Of each report."""
        replacements = {
            "get_context": self._context,
            "get_checkpoint": lambda: self.checkpoints[-1] if self.checkpoints else None,
            "get_all_reported_checkpoints": self._reported_checkpoints,
            "report": self._report,
        }
        for name, function in replacements.items():
            monkeypatch.setattr(ray.train, name, function)

    def _context(self) -> SimpleNamespace:
        storage = SimpleNamespace(
            storage_filesystem=fs.LocalFileSystem(), experiment_fs_path=str(self.folder)
        )
        return SimpleNamespace(
            get_world_rank=lambda: 0, get_world_size=lambda: 1, get_storage=lambda: storage
        )

    def _reported_checkpoints(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(checkpoint=checkpoint) for checkpoint in self.checkpoints]

    def _report(self, metrics: dict[str, Any], **options: Any) -> None:
        checkpoint = options["checkpoint_upload_fn"](None, options["checkpoint_dir_name"])
        self.metrics.append(metrics)
        self.checkpoints.append(checkpoint)
