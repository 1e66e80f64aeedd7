"""The kernel of the update, run by Triton's interpreter on the CPU."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from alexnet.training.optimizer import update_by_torch_operations

STEPS = (0.01, 0.01, 0.001)
"""The learning rate of each."""
SHAPES = {"one program": (7,), "several": (5, 3, 11, 13), "exact": (2, 1024)}
INTERPRET = """
import sys, torch
from alexnet.kernels.momentum import update_in_one_pass
tensors = torch.load(sys.argv[1])
for rates, weight, velocity, gradient, decay in tensors.values():
    for rate in rates:
        update_in_one_pass(
            weight, velocity, gradient, momentum=0.9, decay=decay * rate, rate=rate
        )
torch.save(tensors, sys.argv[1])
"""


@pytest.mark.slow
def test_the_kernel_computes_the_rule_within_rounding(tmp_path: os.PathLike[str]) -> None:
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, shape in SHAPES.items():
        weight, velocity, gradient = (torch.randn(shape, generator=generator) for _ in range(3))
        if len(shape) == 4:
            weight, velocity, gradient = (
                x.to(memory_format=torch.channels_last) for x in (weight, velocity, gradient)
            )
        tensors[name] = (STEPS, weight, velocity, gradient, 0.0 if name == "exact" else 0.5)
    path = os.path.join(tmp_path, "tensors.pt")
    torch.save(tensors, path)
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRET, path], env=environment, check=True)
    updated = torch.load(path)
    for name, (rates, weight, velocity, gradient, decay) in tensors.items():
        before = weight.clone()
        exact = [x.double() for x in (weight, velocity, gradient)]
        for rate in rates:
            for w, v, g in (exact, (weight, velocity, gradient)):
                update_by_torch_operations(w, v, g, momentum=0.9, decay=decay * rate, rate=rate)
        _, fused_weight, fused_velocity, fused_gradient, _ = updated[name]
        assert torch.equal(fused_gradient, gradient)
        assert not torch.equal(fused_weight, before)
        for fused, in_float64 in ((fused_weight, exact[0]), (fused_velocity, exact[1])):
            np.testing.assert_allclose(fused.double(), in_float64, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_machine_code_for_gpus_reads_three_values_and_writes_two() -> None:
    """Compiled for a GPU of compute capability 8.0; no GPU is needed for that."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from alexnet.kernels.momentum import BLOCK, update_kernel

    pointers = dict.fromkeys(["weight", "velocity", "gradient"], "*fp32")
    numbers = {"count": "i32"} | dict.fromkeys(["momentum", "decay", "rate"], "fp32")
    source = ASTSource(update_kernel, pointers | numbers | {"block": "constexpr"}, {"block": BLOCK})
    ptx = compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
    elements = BLOCK // (4 * 32)  # Of each thread: by default there are four warps of 32.
    assert ptx.count("ld.global") == 3 * elements
    assert ptx.count("st.global") == 2 * elements
    assert "ld.local" not in ptx
