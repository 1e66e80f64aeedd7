"""Memory of a process that runs the network: freed tensors are kept for the next batch."""

KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_ARENA_MAX": "1",
}
"""Environment variables with which a process that uses glibc reuses large freed blocks.

Every training step allocates and frees the same few hundred megabytes of activations. By default
each large block is mapped afresh and its pages are faulted in one by one: 55,000 faults a second
were seen, and a fifth of a step's time. An exported network, whose normalization is a dozen
operations on a CPU, labels twice as many patches with the variables (93 a second, without 42).

They are read when a process starts: set from within (mallopt(3)), they don't reach a thread that
has a heap of its own already, as the one has in which Ray Train runs the training. Other C
libraries take no notice of them.
"""
