"""What of a workdir is needed: a pure function of a graph of things that need each other.

What is reachable from a root is needed: a root is a registered version, a stage's newest result or
an unfinished run. Everything else may be deleted.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal[
    "version", "alias", "result", "data set", "checkpoints", "evaluation", "run", "model"
]

DELETABLE: tuple[Kind, ...] = ("data set", "checkpoints", "evaluation", "run", "model")
"""What takes space. Of a run and of a model, it is the artifacts."""


class Node(NamedTuple):
    """A thing: its kind, and what it is called among those of its kind."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Graph:
    """Which things there are and what they need. What is needed need not exist."""

    exist: Mapping[Node, int] = field(default_factory=dict)
    """Bytes of each thing."""
    needs: Mapping[Node, frozenset[Node]] = field(default_factory=dict)
    roots: Mapping[Node, str] = field(default_factory=dict)
    """Why each of them is needed, in words."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something is needed, and why."""

    node: Node
    bytes: int
    needed: bool
    reason: str


UNNEEDED = "no registered version, alias, newest result or unfinished run needs it"


def judge(graph: Graph) -> list[Verdict]:
    """A verdict on each thing that exists and takes space, sorted by kind and name."""
    reasons = dict(graph.roots)
    waiting = deque(graph.roots)
    while waiting:
        node = waiting.popleft()
        for needed in graph.needs.get(node, frozenset()) - reasons.keys():
            reasons[needed] = reasons[node]
            waiting.append(needed)
    return [
        Verdict(node, size, node in reasons, reasons.get(node, UNNEEDED))
        for node, size in sorted(graph.exist.items())
        if node.kind in DELETABLE
    ]
