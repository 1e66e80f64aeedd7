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
            ``number``, ``source_error`` and ``write_error``; errors that a user can put right are
            returned as text, since Ray would retry them and print a traceback.
        """
        task = ShardTask(**(row["task"] | {"encoding": Encoding(**row["task"]["encoding"])}))
        outcome = {"number": row["number"], "source_error": "", "write_error": ""}
        try:
            if finished_result(task) is None:
                make_shard(task)
        except UserError as error:
            outcome["source_error"] = one_line(error)
        except OSError as error:
            outcome["write_error"] = one_line(error)
        return outcome
