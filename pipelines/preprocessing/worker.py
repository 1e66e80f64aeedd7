"""The Ray Data actor of ``preprocess``; it imports no more than the work needs.

With MLflow among its imports, a worker process would start seconds later.
"""

import gc
import importlib
from collections.abc import Mapping
from typing import Any

from alexnet.errors import UserError, one_line
from alexnet.shards.codec import Encoding
from alexnet.shards.plan import ShardTask
from alexnet.shards.write import finished_result, make_shard
from pipelines.task_errors import pack


class ShardWriter:
    """Writes one shard for each row."""

    def __init__(self) -> None:
        # These import torch; otherwise the first images would wait for it.
        for module in ("alexnet.shards.resize", "alexnet.shards.pixel_accumulator"):
            importlib.import_module(module)
        # These modules' half a million objects live as long as the process. Searching them for
        # garbage takes seconds, not least when the process ends.
        gc.freeze()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Write one shard, unless an actor that was lost has written it.

        Args:
            row: ``task``, the fields of a ``ShardTask``, and ``number``.

        Returns:
            ``number`` and ``error``: a packed ``UserError`` or ``OSError``; empty if there is none.
        """
        task = ShardTask(**(row["task"] | {"encoding": Encoding(**row["task"]["encoding"])}))
        packed = b""
        try:
            if finished_result(task) is None:
                make_shard(task)
        except UserError as error:
            packed = pack(error)
        except OSError as error:
            message = (
                f"{task.shard_path}: can't be written ({one_line(error)}); when it can, give the "
                "same command again: finished shards are kept"
            )
            packed = pack(OSError(message))
        return {"number": row["number"], "error": packed}
