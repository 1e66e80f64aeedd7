"""Rules about the code's structure, checked in its syntax trees; nothing is imported or run."""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from alexnet.training.ddp import DEFAULT_BACKEND
from pipelines.configuration.command_settings import BatchInferenceSettings
from pipelines.settings import FullRunSettings, PreprocessCommandSettings, TrainCommandSettings

ROOT = Path(__file__).parents[1]
PACKAGES = ("alexnet", "pipelines")
MAX_LINES = 299


def files_below(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def module_name(file: Path) -> str:
    """``alexnet/storage/__init__.py`` → ``alexnet.storage``."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


FILES = {module_name(file): file for file in files_below(*PACKAGES)}
TESTS = files_below("tests")


def imports_of(node: ast.AST, *, all_scopes: bool) -> Iterator[str]:
    """The names that a tree imports: modules, and attributes of modules.

    Without ``all_scopes``, imports in functions and under ``TYPE_CHECKING`` are left out.
    """
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif not all_scopes and is_deferred(node):
        return
    for child in ast.iter_child_nodes(node):
        yield from imports_of(child, all_scopes=all_scopes)


def is_deferred(node: ast.AST) -> bool:
    """Whether imports inside are not executed when the module is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def own_module(name: str) -> str | None:
    """The module of ``alexnet`` or ``pipelines`` that an imported name is or belongs to."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


def strings_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each string; docstrings and the parts of f-strings are strings too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_import_cycle() -> None:
    graph = {
        name: {
            module
            for imported in imports_of(tree_of(file), all_scopes=False)
            if (module := own_module(imported)) and module != name
        }
        for name, file in FILES.items()
    }
    # Modules that import nothing of the rest are removed until none is left, or a cycle.
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert {name: sorted(imported & graph.keys()) for name, imported in graph.items()} == {}


def test_the_science_does_not_depend_on_the_workflow() -> None:
    forbidden = {"ray", "mlflow", "pipelines"}
    assert [
        (name, imported)
        for name, file in FILES.items()
        if name.startswith("alexnet")
        for imported in imports_of(tree_of(file), all_scopes=True)
        if imported.partition(".")[0] in forbidden
    ] == []


def test_mlflow_is_used_in_one_package() -> None:
    outside = {
        name: file for name, file in FILES.items() if not name.startswith("pipelines.tracking")
    }
    assert [
        (name, imported)
        for name, file in outside.items()
        for imported in imports_of(tree_of(file), all_scopes=True)
        if imported.partition(".")[0] == "mlflow"
    ] == []
    assert [
        (name, line, text)
        for name, file in outside.items()
        for line, text in strings_of(tree_of(file))
        if text.startswith("MLFLOW_")
    ] == []


def calls_of(name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Module and keyword arguments of each call of a function or class in the packages."""
    for module, file in FILES.items():
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
                yield module, {k.arg or "**": ast.unparse(k.value) for k in node.keywords}


def test_no_process_group_is_used_for_tensors_of_several_devices() -> None:
    """From torch 2.15 on, a process group of NCCL refuses devices other than its own."""
    wrappers = list(calls_of("DistributedDataParallel"))
    assert wrappers
    assert all("process_group" in options for _, options in wrappers)
    groups = list(calls_of("new_group"))
    assert groups
    assert all({"backend", "device_id"} <= options.keys() for _, options in groups)
    # Compression hooks use the default process group unless they are given another.
    hooks = [
        ast.unparse(node.args[0])
        for file in FILES.values()
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".register_comm_hook")
    ]
    assert hooks
    assert "None" not in hooks
    # The default process group is for the CPU: every job of Ray Train has gloo's.
    jobs = list(calls_of("TorchTrainer"))
    assert len(jobs) == 2
    assert all(options.get("torch_config") == "TORCH_CONFIG" for _, options in jobs)
    assert [options["backend"] for _, options in calls_of("TorchConfig")] == ["DEFAULT_BACKEND"]
    assert DEFAULT_BACKEND == "gloo"
    assert list(calls_of("init_process_group")) == []
    nccl = [
        name for name, file in FILES.items() for _, s in strings_of(tree_of(file)) if s == "nccl"
    ]
    assert nccl == ["alexnet.training.ddp"]
    operations = ["all_reduce", "all_gather", "broadcast", "reduce", "barrier", "gather_object"]
    users = {name for operation in operations for name, _ in calls_of(operation)}
    assert users == {"pipelines.training.collectives", "alexnet.training.exact"}


def workflow_flags() -> set[str]:
    """The options of the workflow's commands."""
    return {
        "--" + (field.alias or name).replace("_", "-")
        for kind in (
            FullRunSettings,
            PreprocessCommandSettings,
            TrainCommandSettings,
            BatchInferenceSettings,
        )
        for name, field in kind.model_fields.items()
    } | {"--config"}


def own_flags(tree: ast.Module) -> set[str]:
    """The options that a module's own command line defines."""
    return {
        argument.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "add_argument"
        for argument in node.args
        if isinstance(argument, ast.Constant)
        and isinstance(argument.value, str)
        and argument.value.startswith("--")
    }


def test_the_science_names_no_command_of_the_workflow() -> None:
    """In code, strings, docstrings and comments."""
    problems = []
    for name, file in FILES.items():
        if not name.startswith("alexnet"):
            continue
        flags = workflow_flags() - own_flags(tree_of(file))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            named = re.findall(r"pipelines[/.]\w+", line)
            named += [
                flag for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", line) if flag in flags
            ]
            problems += [(name, number, word) for word in named]
    assert problems == []


def test_names_in_pipelines_hide_no_installed_package() -> None:
    """A script's folder is the first in which Python looks for modules."""
    own = {path.stem for path in (ROOT / "pipelines").iterdir()} - {"__pycache__", "__init__"}
    assert {"preprocess", "training", "console"} <= own
    assert own & (packages_distributions().keys() | sys.stdlib_module_names) == set()


@pytest.mark.parametrize("name", FILES)
def test_modules_are_short(name: str) -> None:
    lines = FILES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES


RE_EXPORTS = {"alexnet.storage"}
SETS_UP_THE_PROCESS = {"pipelines", "pipelines.tracking"}
PROCESS_SETTINGS = {
    "import os",
    "import sys",
    "from pipelines.console.excepthook import end_quietly",
    "sys.excepthook = end_quietly",
}


@pytest.mark.parametrize("name", [n for n, file in FILES.items() if file.stem == "__init__"])
def test_a_packages_init_file_holds_no_code(name: str) -> None:
    docstring, *rest = tree_of(FILES[name]).body
    assert ast.get_docstring(ast.Module([docstring], []))
    for statement in rest:
        text = ast.unparse(statement)
        allowed = text.startswith("__version__ = ")
        if name in RE_EXPORTS:
            allowed |= text.startswith(("__all__ = ", f"from {name}."))
        if name in SETS_UP_THE_PROCESS:
            allowed |= text in PROCESS_SETTINGS or text.startswith("os.environ.setdefault(")
        assert allowed, text


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of private attributes of ``alexnet`` and ``pipelines`` that a test uses."""
    modules = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (
            own_module(alias.name)
            if isinstance(node, ast.Import)
            else f"{node.module}.{alias.name}" in FILES
        )
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and own_module(node.module or ""):
            yield from ((node.lineno, a.name) for a in node.names if is_private(a.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            base = ast.unparse(node.value)
            if base in modules or base in FILES:
                yield node.lineno, f"{base}.{node.attr}"
        elif isinstance(node, ast.Call):
            yield from patched_private_names(node, modules)


def patched_private_names(call: ast.Call, modules: set[str]) -> Iterator[tuple[int, str]]:
    """``setattr(module, "_name", …)`` and ``setattr("package.module._name", …)``."""
    function = ast.unparse(call.func).rpartition(".")[2]
    if function not in ("setattr", "getattr", "delattr", "patch", "object"):
        return
    for argument in call.args[:2]:
        if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
            continue
        base, _, name = argument.value.rpartition(".")
        if is_private(name) and (own_module(base) or ast.unparse(call.args[0]) in modules):
            yield call.lineno, argument.value


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_tests_use_no_private_name(file: Path) -> None:
    assert list(private_names(tree_of(file))) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from alexnet.export import _x", ["_x"]),
        ("from pipelines import train\ntrain._x()", ["train._x"]),
        ("import alexnet.export\nalexnet.export._x", ["alexnet.export._x"]),
        ("import alexnet.export as e\ne._x", ["e._x"]),
        ("from pipelines import train\nm.setattr(train, '_x', 1)", ["_x"]),
        ("m.setattr('pipelines.train._x', 1)", ["pipelines.train._x"]),
        ("from pipelines import train\ntrain.__doc__\nself._x\nm.setattr(train, 'x', 1)", []),
        ("import torch\ntorch._x\nfrom torch import _C", []),
    ],
)
def test_private_names_are_recognized(code: str, found: list[str]) -> None:
    assert [name for _, name in private_names(ast.parse(code))] == found
