"""The command ``alexnet``: one sub-command for each script, with the same options.

alexnet run --preset ilsvrc2012 --source /data/ilsvrc2012 --workdir /data/work
alexnet predict --images /data/photos --output /data/predictions
"""

import importlib
import sys
from typing import NamedTuple, NoReturn


class Command(NamedTuple):
    """A sub-command."""

    module: str
    """In the package ``pipelines``; its function ``main`` is called."""
    help: str


COMMANDS = {
    "run": Command("full_run", "the whole workflow: preprocess, train, evaluate, promote"),
    "preprocess": Command("preprocess", "raw images to 256x256 Parquet shards"),
    "train": Command("train", "shards to a trained model"),
    "evaluate": Command("evaluate", "a trained model to its errors on the validation images"),
    "promote": Command("promote", "an evaluated model to a registered version"),
    "compare": Command("compare", "two evaluated models: is one better, and is that chance"),
    "predict": Command("batch_inference", "images anywhere to predictions in Parquet"),
    "ui": Command("ui", "MLflow's UI for the runs of a workdir, until Ctrl-C"),
    "diff": Command("diff", "two runs: settings, data, code and results that differ"),
    "lineage": Command("lineage", "a prediction or a model back to the original bytes"),
    "gc": Command("collect_garbage", "what nothing needs any more; --delete deletes it"),
    "status": Command("status", "which stages are fresh, stale and why, or running and by whom"),
}


def main() -> NoReturn:
    """Run the sub-command that the first argument names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        sys.exit(0)
    if name not in COMMANDS:
        print(f"alexnet: {name}: no such command; see alexnet --help", file=sys.stderr)
        sys.exit(2)
    # Imported only now: Ray, MLflow and torch take seconds.
    module = importlib.import_module(f"pipelines.{COMMANDS[name].module}")
    sys.argv = [f"alexnet {name}", *arguments]
    module.main()
    raise AssertionError("a command exits by itself")


def _help() -> str:
    lines = [f"  {name:<12}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: alexnet COMMAND [OPTIONS]",
            "",
            "commands:",
            *lines,
            "",
            "alexnet COMMAND --help lists a command's options.",
        ]
    )
