"""Ray clusters of several nodes on this computer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster


@contextmanager
def cluster_of(head: dict[str, Any], *others: dict[str, Any]) -> Iterator[Cluster]:
    """A cluster of nodes with the options of ``Cluster.add_node``, joined until the block ends."""
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for options in others:
        cluster.add_node(**options)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
