"""Compiled loops: with and without a cache, with any number of threads."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet.kernels.jit import jit, parallel_over_batch


def test_a_loop_without_a_source_file_is_compiled_without_a_cache() -> None:
    namespace: dict[str, Any] = {}
    exec("def twice(x):\n    return x + x", namespace)
    twice = jit(namespace["twice"])
    assert twice(21) == 42
    assert twice.signatures, "it is compiled"


@pytest.mark.usefixtures("own_threads")
@given(count=st.integers(0, 40), threads=st.integers(1, 9))
def test_every_row_is_processed_once(count: int, threads: int) -> None:
    torch.set_num_threads(threads)
    rows, results = np.arange(count), np.zeros(count, np.int64)

    def add(rows: Any, results: Any, number: int) -> None:
        results += rows + number

    parallel_over_batch(add, [rows, results], 1)
    assert results.tolist() == [row + 1 for row in range(count)]


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("row", [0, 9])
def test_an_error_in_any_thread_is_raised(row: int) -> None:
    torch.set_num_threads(3)

    def fail(rows: Any) -> None:
        if row in rows:
            raise ValueError("message")

    with pytest.raises(ValueError, match="message"):
        parallel_over_batch(fail, [np.arange(10)])


NORMALIZE = """
import hashlib, sys, torch
from alexnet.model.lrn import WithinMapNorm
from alexnet.recipes import SOURCE145
x = torch.linspace(-300, 300, 2 * 9 * 5 * 5).view(2, 9, 5, 5).requires_grad_()
y = WithinMapNorm(SOURCE145.within_map)(x)
if "backward" in sys.argv:
    y.backward(torch.ones_like(y))
    y = x.grad
print(hashlib.sha256(y.detach().numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.long
def test_processes_share_the_cache(tmp_path: Path) -> None:
    # The first process, like an evaluation, compiles only the forward pass.
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", NORMALIZE, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        return done.stdout

    forward, backward = run(), run("backward")
    cached = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert cached
    assert run("backward") == backward != forward
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == cached
