"""The Ray Data actor of ``preprocess``; it imports no more than the work needs.

With MLflow among its imports, a worker process would start seconds later.
"""

import gc
import importlib
from collections.abc import Mapping
from typing import Any

from alexnet.shards.codec import Encoding
from alexnet.shards.plan import ShardTask
from alexnet.shards.write import finished_result, make_shard
from pipelines.clusters.task_errors import pack_writing_errors


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

        def write() -> None:
            if finished_result(task) is None:
                make_shard(task)

        packed = pack_writing_errors(write, task.shard_path, "shards")
        return {"number": row["number"], "error": packed}
