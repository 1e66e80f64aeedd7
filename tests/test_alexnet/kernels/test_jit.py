"""Compiled loops: with or without a place to keep them, on any number of threads."""

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


def test_a_loop_without_a_file_is_compiled_although_it_cannot_be_kept() -> None:
    space: dict[str, Any] = {}
    exec("def twice(x):\n    return x + x", space)
    twice = jit(space["twice"])
    assert twice(21) == 42
    assert twice.signatures, "it ran as Python"


@pytest.mark.usefixtures("own_threads")
@given(count=st.integers(0, 40), threads=st.integers(1, 9))
def test_every_row_is_worked_on_once(count: int, threads: int) -> None:
    torch.set_num_threads(threads)
    rows, seen = np.arange(count), np.zeros(count, np.int64)

    def visit(some: Any, visits: Any, more: int) -> None:
        visits += some + more

    parallel_over_batch(visit, [rows, seen], 1)
    assert seen.tolist() == [row + 1 for row in range(count)]


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("row", [0, 9])
def test_an_error_in_any_thread_arrives(row: int) -> None:
    torch.set_num_threads(3)

    def fail(rows: Any) -> None:
        if row in rows:
            raise ValueError("this one")

    with pytest.raises(ValueError, match="this one"):
        parallel_over_batch(fail, [np.arange(10)])


STEP = """
import hashlib, sys, torch
from alexnet.model.lrn import WithinMapNorm
from alexnet.recipes import SOURCE145
x = torch.linspace(-300, 300, 2 * 9 * 5 * 5).view(2, 9, 5, 5).requires_grad_()
y = WithinMapNorm(SOURCE145.within_map)(x)
if "learn" in sys.argv:
    y.backward(torch.ones_like(y))
    y = x.grad
print(hashlib.sha256(y.detach().numpy().tobytes()).hexdigest())
"""


def test_kept_loops_serve_the_next_process(tmp_path: Path) -> None:
    # Evaluation first leaves a part of the loops behind; training has to get on with it.
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def step(*arguments: str) -> str:
        command = [sys.executable, "-c", STEP, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        return done.stdout

    evaluated, learned = step(), step("learn")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    assert kept
    assert step("learn") == learned != evaluated
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == kept
