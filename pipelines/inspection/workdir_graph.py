"""The graph of what a workdir and its MLflow store hold, for ``needs.judge``.

A result needs its run and what it consists of; a training also the data set that it read, and an
evaluation its models. A registered version needs its model, the model's training with its
checkpoints and data set, its promotion, and the evaluation by which it was promoted.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from alexnet import storage
from alexnet.errors import UserError
from alexnet.shards.manifest import Manifest
from pipelines.inspection.needs import Graph, Node
from pipelines.results.datasets import readable_manifest
from pipelines.results.records import StageOutcome, StageRecord, history
from pipelines.results.stage_results import (
    EvaluateResult,
    PreprocessResult,
    PromoteResult,
    StageResult,
    TrainResult,
)
from pipelines.tracking import contents
from pipelines.tracking.contents import StoredModel, StoredRun
from pipelines.tracking.store import Store
from pipelines.workdir import Workdir

RESULTS: tuple[type[StageResult], ...] = (
    PreprocessResult,
    TrainResult,
    EvaluateResult,
    PromoteResult,
)
_OTHER_STAGES = ("full_run",)


@dataclass(slots=True)
class Inventory:
    """A graph, and where its nodes are."""

    exist: dict[Node, int] = field(default_factory=dict)
    needs: defaultdict[Node, set[Node]] = field(default_factory=lambda: defaultdict(set))
    roots: dict[Node, str] = field(default_factory=dict)
    folders: dict[Node, str] = field(default_factory=dict)
    """Of data sets, checkpoints and evaluations."""
    runs: dict[Node, StoredRun] = field(default_factory=dict)
    models: dict[Node, StoredModel] = field(default_factory=dict)
    manifests: list[tuple[Node, Manifest]] = field(default_factory=list)

    def graph(self) -> Graph:
        """What is judged."""
        return Graph(self.exist, {n: frozenset(v) for n, v in self.needs.items()}, self.roots)

    def place(self, node: Node) -> str:
        """The folder that would be deleted."""
        if node in self.folders:
            return self.folders[node]
        return self.runs[node].artifacts if node in self.runs else self.models[node].artifacts


def take_inventory(workdir: Workdir, store: Store, *, own_store: bool) -> Inventory:
    """Look at the workdir's folders, its records and the store; nothing is changed.

    Args:
        workdir: that is looked at.
        store: its tracking store.
        own_store: whether the store is the workdir's own; else its runs and models are left out.

    Raises:
        UserError: a record can't be read, so that it is not known what is needed.
    """
    found = Inventory()
    _add_folders(found, workdir)
    _add_store(found, store, own_store=own_store)
    for result in RESULTS:
        _add_records(found, workdir, result)
    for stage in _OTHER_STAGES:
        for record in history(workdir, stage).unfinished:
            found.roots[Node("run", record.run_id)] = f"an unfinished {stage}"
    return found


def _add_folders(found: Inventory, workdir: Workdir) -> None:
    for kind, parent in (
        ("data set", storage.join(workdir.path, "shards")),
        ("checkpoints", workdir.checkpoints),
        ("evaluation", storage.join(workdir.path, "evaluations")),
    ):
        for name in storage.list_folders(parent) if storage.is_folder(parent) else ():
            node = Node(kind, name)  # type: ignore[arg-type]  # The kinds above.
            found.folders[node] = storage.join(parent, name)
            found.exist[node] = size_of(found.folders[node])
            if kind == "data set" and (manifest := readable_manifest(found.folders[node])):
                found.manifests.append((node, manifest))


def size_of(folder: str) -> int:
    """Bytes of all files in a folder; 0 if there is none."""
    if not storage.is_folder(folder):
        return 0
    return sum(file.size for file in storage.list_files(folder))


def _add_store(found: Inventory, store: Store, *, own_store: bool) -> None:
    stages = {result.stage for result in RESULTS}
    for run in contents.stage_runs(store) if own_store else ():
        if run.stage not in stages:  # Of commands, such as compare: nothing makes them again.
            continue
        node = Node("run", run.run_id)
        if size := size_of(run.artifacts):
            found.exist[node], found.runs[node] = size, run
        if run.stage == "train" and run.key:
            found.needs[node].add(Node("checkpoints", run.key))
        if run.stage == "evaluate" and run.key:
            found.needs[node].add(Node("evaluation", run.key))
    for model in contents.models(store) if own_store else ():
        node = Node("model", model.uri)
        found.exist[node], found.models[node] = size_of(model.artifacts), model
        found.needs[node].add(Node("run", model.run_id))
    for version in contents.versions(store):
        node = Node("version", version.name)
        aliases = "".join(f", alias {alias}" for alias in version.aliases)
        found.roots[node] = f"version {version.name}{aliases}"
        found.needs[node].add(Node("model", version.source))
        if evaluation := version.tags.get("evaluation.run"):
            found.needs[node].add(Node("run", evaluation))


def _add_records(found: Inventory, workdir: Workdir, kind: type[StageResult]) -> None:
    past = history(workdir, kind.stage)
    outcomes = [(record, record.outcome(kind, workdir)) for record in past.finished]
    if past.unreadable or not all(outcome for _, outcome in outcomes):
        raise UserError(
            f"{workdir.records(kind.stage)}: has records that are damaged or of another version of "
            "this project, so it is not known what they need; move them away if their results "
            "are no longer wanted"
        )
    for record, outcome in outcomes:
        assert outcome
        node = _result_node(record)
        found.needs[node] |= {Node("run", record.run_id), *_needs(found, outcome)}
        if isinstance(outcome.result, TrainResult):
            found.needs[Node("model", outcome.result.model)].add(node)
        if isinstance(outcome.result, EvaluateResult):
            found.needs[Node("run", record.run_id)].add(node)
        if isinstance(outcome.result, PromoteResult):
            found.needs[_version_node(outcome.result)].add(node)
    if past.finished:
        found.roots[_result_node(past.finished[-1])] = f"the newest result of {kind.stage}"
    for record in past.unfinished:
        _add_unfinished(found, record)


def _result_node(record: StageRecord) -> Node:
    return Node("result", f"{record.key.stage}/{record.key.digest}")


def _version_node(result: PromoteResult) -> Node:
    return Node("version", f"{result.registered_model}/{result.version}")


def _needs(found: Inventory, outcome: StageOutcome[Any]) -> Iterator[Node]:
    """What a result consists of and was made of."""
    key, result = outcome.key, outcome.result
    if isinstance(result, PreprocessResult):
        yield Node("data set", result.digest)
    elif isinstance(result, TrainResult):
        yield Node("checkpoints", key.digest)
        yield Node("model", result.model)
        yield from _data_sets(found, key.inputs.get("shards", ""), None)
    elif isinstance(result, EvaluateResult):
        yield Node("evaluation", key.digest)
        yield from (Node("model", model) for model in result.models)
        yield from _data_sets(found, result.validation, "val")
    elif isinstance(result, PromoteResult):
        yield _version_node(result)
        yield Node("result", f"evaluate/{key.inputs.get('evaluation', '')}")


def _data_sets(found: Inventory, digest: str, split: str | None) -> Iterator[Node]:
    """The data sets whose content digest, in one split or in all, begins so."""
    for node, manifest in found.manifests:
        if digest and manifest.content_digest(split).startswith(digest):
            yield node


def _add_unfinished(found: Inventory, record: StageRecord) -> None:
    """What an interrupted stage resumes with."""
    node, stage = _result_node(record), record.key.stage
    found.roots[node] = f"an unfinished {stage}"
    found.needs[node] |= {
        Node("run", record.run_id),
        Node("checkpoints", record.key.digest),
        *_data_sets(found, record.key.inputs.get("shards", ""), None),
        *_data_sets(found, record.key.inputs.get("validation", ""), "val"),
    }
    if stage == "preprocess":  # The record does not name its folder, which has no manifest yet.
        complete = {node for node, _ in found.manifests}
        incomplete = {n for n in found.folders if n.kind == "data set"} - complete
        found.needs[node] |= incomplete
