"""What a preprocess task runs on its node; it imports no more than the work needs.

A worker process that had to import MLflow first would begin seconds later.
"""

import gc
import importlib
from collections.abc import Mapping
from typing import Any

from alexnet.errors import UserError, one_line
from alexnet.shards.codec import Encoding
from alexnet.shards.plan import ShardTask
from alexnet.shards.write import is_made, make_shard


class ShardWriter:
    """The Ray Data actor: one unit of work in, what became of it out."""

    def __init__(self) -> None:
        # What decoding needs, so that the first images do not wait for it.
        for module in ("alexnet.shards.resize", "alexnet.shards.pixel_accumulator"):
            importlib.import_module(module)
        # Half a million objects of these modules stay for good; to look through them for garbage
        # takes seconds, not least when the process ends.
        gc.freeze()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Make one shard, unless an actor that was lost has made it.

        Errors that a person can do something about are returned as text: Ray would try them
        again and print a traceback.
        """
        unit = ShardTask(**(row["unit"] | {"encoding": Encoding(**row["unit"]["encoding"])}))
        outcome = {"number": row["number"], "source_error": "", "write_error": ""}
        try:
            if not is_made(unit):
                make_shard(unit)
        except UserError as error:
            outcome["source_error"] = one_line(error)
        except OSError as error:
            outcome["write_error"] = one_line(error)
        return outcome
