"""Ray clusters of several nodes on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster


@contextmanager
def cluster_of(head: dict[str, Any], *others: dict[str, Any]) -> Iterator[Cluster]:
    """A cluster of nodes with the options of ``Cluster.add_node``, joined until the block ends."""
    found = Cluster(initialize_head=True, head_node_args=head)
    for options in others:
        found.add_node(**options)
    ray.init(address=found.address, log_to_driver=False)
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
