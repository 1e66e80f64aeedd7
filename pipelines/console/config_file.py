"""The file that ``--config`` names: settings in YAML, for one script or for all of them."""

import difflib
from typing import Any

import yaml

from alexnet.errors import UserError
from pipelines.configuration.command_settings import BatchInferenceSettings
from pipelines.settings import (
    FullRunSettings,
    PreprocessCommandSettings,
    PromoteCommandSettings,
    TrainCommandSettings,
)

KNOWN_KEYS = {
    field.alias or name
    for kind in (
        FullRunSettings,
        PreprocessCommandSettings,
        TrainCommandSettings,
        PromoteCommandSettings,
        BatchInferenceSettings,
    )
    for name, field in kind.model_fields.items()
}
"""One file may serve all scripts, so a ``--config`` file may hold any script's settings."""


class _Loader(yaml.SafeLoader):
    """YAML in which ``1:4`` is text: it would be 64, a number in base 60."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        """An int, or text."""
        return node.value if ":" in node.value else super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_config_file(path: str) -> dict[str, Any]:
    """The settings in a file, by their names with underscores; their values are not checked.

    Raises:
        UserError: the file can't be read, or contains a setting that no script has.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, _Loader) or {}
    # ValueError: bytes that are no text, a date that does not exist.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: can't be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: settings are lines of the form 'epochs: 5'")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key in values:
        if key not in KNOWN_KEYS:
            near = difflib.get_close_matches(key, KNOWN_KEYS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{path}: {key}: no such setting{hint}")
    return values
