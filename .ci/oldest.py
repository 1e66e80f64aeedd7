"""Print constraints that pin every dependency of pyproject.toml to its lower bound.

    python .ci/oldest.py > oldest.txt
    python -m pip install -c oldest.txt -e '.[test]'

Only direct dependencies are pinned; theirs are the newest that fit.
"""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?>=(?P<version>[0-9.]+)")


def lower_bounds(pyproject: Path) -> list[str]:
    """One line ``name==version`` for each dependency, those of the extra ``test`` included.

    Raises:
        ValueError: a dependency is not of the form ``name>=version`` or ``name[extra]>=version``.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["test"]
    lines = []
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise ValueError(f"{pyproject}: {requirement}: expected name>=version")
        lines.append(f"{match['name']}=={match['version']}")
    return lines


if __name__ == "__main__":
    print("\n".join(lower_bounds(PYPROJECT)))
