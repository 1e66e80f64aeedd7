"""Updates whose bits do not depend on the number of workers, for training on CPUs.

A sum of floating-point numbers depends on the order of its terms, and a matrix product on how many
rows it has and how many threads compute it. So here a global batch is always divided into
``MICROBATCHES`` parts, whatever the number of workers. Each is computed by itself, in one thread,
and their gradients are added in the order of a fixed binary tree:

    (microbatch 0 + microbatch 1) + (microbatch 2 + microbatch 3)

A worker computes some consecutive microbatches, several at the same time if it has several
threads, and adds up what it has of the tree. Then all workers exchange these sums and each computes
the rest.

Sums of losses are exact, so their order does not matter: each term is rounded to a multiple of
``LOSS_STEP``, and float64 represents any sum of these below 2**29.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.shards.order import MICROBATCHES, parts_of

LOSS_STEP = 2.0**-24

T = TypeVar("T")

Node = tuple[int, int]
"""A node of the tree: its first microbatch and the number of its microbatches, a power of 2."""


class MicrobatchResult(NamedTuple):
    """What one microbatch contributes to an update."""

    loss: Tensor
    """Sum of cross-entropies, a multiple of ``LOSS_STEP``, float64."""
    logits: Tensor
    gradients: list[Tensor]
    """In the order of the network's parameters."""


@dataclass(frozen=True, slots=True)
class ExactWorker:
    """One worker of an exact training, and the threads in which it computes microbatches."""

    rank: int
    world_size: int
    pool: ThreadPoolExecutor

    @classmethod
    def create(cls, rank: int, world_size: int, threads: int) -> "ExactWorker":
        """A worker that computes in ``threads`` threads."""
        assert 0 <= rank < world_size <= MICROBATCHES
        pool = ThreadPoolExecutor(
            threads, "microbatch", initializer=torch.set_num_threads, initargs=(1,)
        )
        return cls(rank, world_size, pool)

    @property
    def microbatches(self) -> range:
        """The microbatches that this worker computes."""
        return microbatches_of_rank(self.rank, self.world_size)


def microbatches_of_rank(rank: int, world_size: int) -> range:
    """The microbatches of one of several workers; their numbers differ by at most 1."""
    return parts_of(range(MICROBATCHES), world_size)[rank]


def microbatch_sizes(rows: int) -> list[int]:
    """The number of images in each microbatch of a global batch; they differ by at most 1."""
    return [len(part) for part in parts_of(range(rows), MICROBATCHES)]


def exact_loss(loss: float) -> float:
    """A loss rounded so that sums of such losses are exact; NaN and infinity stay."""
    return float(round_loss(torch.tensor(loss, dtype=torch.float64)))


def round_loss(loss: Tensor) -> Tensor:
    """As ``exact_loss``, float64."""
    return (loss.double() / LOSS_STEP).round() * LOSS_STEP


def compute_gradients(
    network: nn.Module,
    crops: Tensor,
    labels: Tensor,
    keys: Tensor,
    rows: int,
    worker: ExactWorker,
    *,
    bf16: bool = False,
) -> tuple[Tensor, Tensor]:
    """Set every parameter's gradient to that of the mean loss over the global batch.

    All workers have to call this at the same time.

    Args:
        network: in training mode, on the CPU; the same weights on all workers.
        crops: (b, 3, 224, 224), those of this worker's microbatches, one after the other.
        labels: (b,).
        keys: (b, 3), of dropout.
        rows: images of the global batch.
        worker: this one.
        bf16: whether products are computed in bfloat16.

    Returns:
        The sum of this worker's cross-entropies, and its logits, (b, classes).
    """
    parameters = list(network.parameters())
    sizes = microbatch_sizes(rows)
    shares = [sizes[microbatch] for microbatch in worker.microbatches]
    assert sum(shares) == len(crops)

    def compute(crops: Tensor, labels: Tensor, keys: Tensor) -> MicrobatchResult:
        with torch.autocast(crops.device.type, torch.bfloat16, enabled=bf16):
            logits = network(crops, keys=[keys]).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        gradients = torch.autograd.grad(loss / rows, parameters)
        return MicrobatchResult(round_loss(loss.detach()), logits.detach(), list(gradients))

    parts = zip(*(torch.split(values, shares) for values in (crops, labels, keys)), strict=True)
    futures: dict[int, Future[MicrobatchResult]] = {
        microbatch: worker.pool.submit(compute, *part)
        for microbatch, part in zip(worker.microbatches, parts, strict=True)
        if sizes[microbatch]
    }

    def gradients_of(node: Node) -> list[Tensor] | None:
        return tree_sum(
            node,
            lambda leaf: _gradients(futures, leaf),
            _add_lists,
        )

    own = {node: gradients_of(node) for node in largest_nodes(worker.microbatches)}
    results = [future.result() for future in futures.values()]
    for number, parameter in enumerate(parameters):
        mine = {node: sums[number] for node, sums in own.items() if sums is not None}
        gradient = tree_sum(
            (0, MICROBATCHES), _exchange(parameter, mine, sizes, worker).get, operator.add
        )
        assert gradient is not None
        parameter.grad = gradient
    loss = torch.stack([torch.zeros((), dtype=torch.float64), *(r.loss for r in results)]).sum()
    classes = parameters[-1].shape[0]  # fc8's biases.
    logits = torch.cat([torch.empty(0, classes), *(result.logits for result in results)])
    return loss, logits


def tree_sum(node: Node, known: Callable[[Node], T | None], add: Callable[[T, T], T]) -> T | None:
    """The sum of a node's microbatches in the order of the tree.

    Args:
        node: of the tree.
        known: the sum of a node, or None if it has to be computed from the two nodes below; at a
            single microbatch, None means that the microbatch is empty.
        add: of two sums.
    """
    total = known(node)
    first, size = node
    if total is not None or size == 1:
        return total
    left = tree_sum((first, size // 2), known, add)
    right = tree_sum((first + size // 2, size // 2), known, add)
    if left is None or right is None:
        return right if left is None else left
    return add(left, right)


def largest_nodes(microbatches: range) -> list[Node]:
    """The nodes of the tree that together are some consecutive microbatches, as few as possible."""
    nodes, start = [], microbatches.start
    while start < microbatches.stop:
        size = MICROBATCHES
        while start % size or start + size > microbatches.stop:
            size //= 2
        nodes.append((start, size))
        start += size
    return nodes


def _gradients(futures: Mapping[int, Future[MicrobatchResult]], node: Node) -> list[Tensor] | None:
    """The gradients of a microbatch; None for an empty one, and for a node of several."""
    first, size = node
    return futures[first].result().gradients if size == 1 and first in futures else None


def _exchange(
    parameter: nn.Parameter,
    mine: Mapping[Node, Tensor],
    sizes: Sequence[int],
    worker: ExactWorker,
) -> dict[Node, Tensor]:
    """The sums of a parameter's gradients that all workers have computed, by node."""
    if worker.world_size == 1:
        return dict(mine)
    sums: dict[Node, Tensor] = {}
    for rank in range(worker.world_size):
        for node in largest_nodes(microbatches_of_rank(rank, worker.world_size)):
            first, size = node
            if not any(sizes[first : first + size]):
                continue
            own = rank == worker.rank
            sums[node] = mine[node].contiguous() if own else torch.empty(parameter.shape)
            dist.broadcast(sums[node], src=rank)
    return sums


def _add_lists(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    return [a.add_(b) for a, b in zip(left, right, strict=True)]
