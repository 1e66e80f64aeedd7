"""Which code made a result: a digest of all modules that its entry modules import.

The digest covers what Python executes and nothing else: comments, docstrings and formatting are
left out. The modules are found by reading import statements, so no list of them is kept by hand.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def code_version(
    entries: Sequence[str], *, boundary: Sequence[str] = (), root: Path = _ROOT
) -> str:
    """16 hexadecimal digits: a digest of the entry modules and of all that they import.

    Args:
        entries: names of modules, ``alexnet.shards.write`` for example.
        boundary: modules and packages whose code does not change a result, such as plots. They
            and what only they import are left out.
        root: the folder that holds the packages.

    Raises:
        FileNotFoundError: an entry is no module below ``root``.
    """
    digest = hashlib.sha256()
    for name in import_closure(entries, boundary=boundary, root=root):
        digest.update(f"{name}\0{_read(_path(name, root)).code}\0".encode())
    return digest.hexdigest()[:16]


def import_closure(
    entries: Sequence[str], *, boundary: Sequence[str] = (), root: Path = _ROOT
) -> list[str]:
    """The entry modules and all modules that they import from the entries' packages, sorted.

    Libraries are left out, although an installed project has them beside it below ``root``.
    Imports inside functions count; those below ``if TYPE_CHECKING`` do not. A package's
    ``__init__`` counts only where something is imported from it.

    Raises:
        FileNotFoundError: an entry is no module below ``root``.
    """
    for name in entries:
        if not _path(name, root).is_file():
            raise FileNotFoundError(f"no module {name} below {root}")
    packages = {name.partition(".")[0] for name in entries}
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        outside = name.partition(".")[0] not in packages or any(
            name == part or name.startswith(f"{part}.") for part in boundary
        )
        if name in found or outside or not _path(name, root).is_file():
            continue
        found.add(name)
        for module, attribute in _read(_path(name, root)).imports:
            is_module = attribute and _path(f"{module}.{attribute}", root).is_file()
            waiting.append(f"{module}.{attribute}" if is_module else module)
    return sorted(found)


class _Module:
    """What a source file imports and executes."""

    def __init__(self, text: str) -> None:
        tree = ast.parse(text)
        self.imports = list(_imports(tree))
        """Modules, and the attributes imported from them ("" for ``import module``)."""
        self.code = _dump(tree)


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> _Module:
    return _Module(text)


def _read(path: Path) -> _Module:
    return _parse(path.read_text(encoding="utf-8"))


def _path(name: str, root: Path) -> Path:
    """The source file of a module or a package; it need not exist."""
    path = root.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import():
                yield from ((alias.name, "") for alias in child.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield from ((module, alias.name) for alias in child.names)
            case _:
                yield from _imports(child)


def _dump(node: ast.AST) -> str:
    """A node and its children as text, without positions, docstrings and empty fields.

    ``ast.dump`` would show fields that differ from one version of Python to the next.
    """
    parts = []
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            parts.append(f"{name}={_dump(value)}")
        elif isinstance(value, list):
            kept = [
                _dump(item) if isinstance(item, ast.AST) else repr(item)
                for item in value
                if not _is_docstring(item)
            ]
            parts += [f"{name}=[{', '.join(kept)}]"] if kept else []
        elif value is not None:
            parts.append(f"{name}={value!r}")
    return f"{type(node).__name__}({', '.join(parts)})"


def _is_docstring(item: object) -> bool:
    """A string that stands alone as a statement: of a module, class, function or attribute."""
    return (
        isinstance(item, ast.Expr)
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, str)
    )
