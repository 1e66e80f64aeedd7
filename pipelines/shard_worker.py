"""What a preprocess task runs on its node; it imports no more than the work needs.

A worker process that had to import MLflow first would begin seconds later.
"""

import gc
import importlib
from collections.abc import Mapping
from typing import Any

from alexnet import sharding
from alexnet.errors import UserError
from alexnet.planning import Encoding, Unit
from alexnet.storage import one_line


class ShardMaker:
    """The Ray Data actor: one unit of work in, what became of it out."""

    def __init__(self) -> None:
        # What decoding needs, so that the first images do not wait for it.
        for module in ("alexnet.resizing", "alexnet.summing"):
            importlib.import_module(module)
        # Half a million objects of these modules stay for good; to look through them for garbage
        # takes seconds, not least when the process ends.
        gc.freeze()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Make one shard, unless an actor that was lost has made it.

        Errors that a person can do something about are returned as text: Ray would try them
        again and print a traceback.
        """
        unit = Unit(**(row["unit"] | {"encoding": Encoding(**row["unit"]["encoding"])}))
        outcome = {"number": row["number"], "source_error": "", "write_error": ""}
        try:
            if not sharding.is_made(unit):
                sharding.make_shard(unit)
        except UserError as error:
            outcome["source_error"] = one_line(error)
        except OSError as error:
            outcome["write_error"] = one_line(error)
        return outcome
