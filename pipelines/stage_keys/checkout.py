"""The Git commit of the code that runs, if it runs from a checkout."""

import functools
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_TIMEOUT_S = 10


class Commit(NamedTuple):
    """A commit, and whether files that Git tracks differ from it."""

    id: str
    dirty: bool


@functools.cache
def commit(root: Path = ROOT) -> Commit | None:
    """The commit that is checked out; None if the code is no checkout, or Git is missing."""
    # An installed package may lie in a checkout of something else.
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return Commit(head, bool(_git(root, "status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=_TIMEOUT_S,
    ).stdout.strip()
