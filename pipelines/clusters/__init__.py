"""Ray clusters: the address, the share of each worker, errors from tasks and actors."""
