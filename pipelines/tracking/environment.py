"""MLflow's own variables for what settings name too; an option or a file wins.

MLflow itself is not imported here, since a command reads its settings first.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping

VARIABLES = {"tracking_uri": "MLFLOW_TRACKING_URI", "experiment": "MLFLOW_EXPERIMENT_NAME"}
"""By the name of the setting."""


def settings_of_environment() -> Mapping[str, str]:
    """The settings whose variable is set and not empty."""
    return {name: os.environ[key] for name, key in VARIABLES.items() if os.environ.get(key)}


@contextlib.contextmanager
def restored_variables() -> Iterator[None]:
    """After the block, the variables of stores have the values that they had before."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
