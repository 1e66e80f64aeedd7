"""Named defaults. A preset's values stand between the built-in ones and a ``--config`` file's."""

from typing import Any

SAMPLE: dict[str, Any] = {
    "recipe": "source145",
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 0.002,
    "lr_drops": [2],
    "rows_per_shard": 128,
    "log_steps": 5,
}

IMAGENETTE: dict[str, Any] = {
    "recipe": "source145",
    "epochs": 60,
    "batch_size": 32,
    "learning_rate": 0.002,
    "rows_per_shard": 512,
}

ILSVRC2012: dict[str, Any] = {
    "recipe": "source145",
    "rows_per_shard": 1024,
    "checkpoint_steps": 2000,
    "log_steps": 50,
}

PRESETS = {"sample": SAMPLE, "imagenette": IMAGENETTE, "ilsvrc2012": ILSVRC2012}
