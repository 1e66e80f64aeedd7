"""Which code made a result: a digest of its source text."""

import hashlib
import importlib.util
from collections.abc import Sequence


def code_version(modules: Sequence[str]) -> str:
    """Digest of the source text of some modules (``alexnet.images`` ...)."""
    digest = hashlib.sha256()
    for name in sorted(modules):
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        with open(spec.origin, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]
