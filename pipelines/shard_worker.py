"""What a preprocess task runs on its node; it imports no more than the work needs.

A worker process that had to import MLflow first would begin seconds later.
"""

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
        prepare()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Make one shard.

        Errors that a person can do something about are returned as text: Ray would try them
        again and print a traceback.
        """
        value = row["unit"]
        unit = Unit(**(value | {"encoding": Encoding(**value["encoding"])}))
        outcome = {"number": row["number"], "source_error": "", "write_error": ""}
        try:
            sharding.make_shard(unit)
        except UserError as error:
            outcome["source_error"] = one_line(error)
        except OSError as error:
            outcome["write_error"] = one_line(error)
        return outcome


def prepare() -> None:
    """Import what decoding needs, so that the first images of a worker do not wait for it."""
    importlib.import_module("alexnet.resizing")
