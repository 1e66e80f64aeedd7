"""The verdict of ``--check-devices``: what is the bottleneck, and what helps."""

import math
from dataclasses import replace

import pytest
import torch

from alexnet.diagnostics.copies import DeviceCopy
from alexnet.diagnostics.devices import DeviceInfo, StepTimes
from alexnet.diagnostics.equivalence import Comparison
from pipelines.training.device_report import DeviceCheckResult, DeviceReport, verdict

GOOD = Comparison(logits=1e-15, gradients=1e-14, layer="conv1.weight")
COPY = DeviceCopy(torch.device("cuda:0"), torch.device("cuda:1"), (128, 13), torch.float32, "fc6")


def report(
    towers: list[float],
    network: float | None,
    *,
    launch: float | None = 0.001,
    copy_seconds: float = 0.0,
    peer: bool | None = True,
    comparison: Comparison = GOOD,
) -> DeviceReport:
    """Of an update that takes 10 ms."""
    times = StepTimes(
        step_seconds=0.01,
        launch_seconds=launch,
        tower_seconds=towers,
        network_seconds=network,
        peak_bytes={},
    )
    return DeviceReport(
        images=128,
        devices=[],
        peer_access=peer,
        copies=[(COPY, copy_seconds)] if towers else [],
        backward_bytes=0,
        times=times,
        comparison=comparison,
    )


@pytest.mark.parametrize(
    ("measured", "overlap", "expected"),
    [
        (report([0.008, 0.008], 0.009), "1.8 of 2.0", "as they should"),
        (report([0.005, 0.005], 0.01, launch=0.0095), "1.0 of 2.0", "give more images"),
        (report([0.006, 0.006], 0.01, copy_seconds=0.001), "1.2 of 2.0", "use GPUs with NVLink"),
        (
            report([0.006, 0.006], 0.01, copy_seconds=0.001, peer=False),
            "1.2 of 2.0",
            "can't copy to each other directly",
        ),
        (report([0.004, 0.008], 0.01), "1.2 of 2.0", "tower 1 is the bottleneck"),
        (report([0.006, 0.006], 0.01), "1.2 of 2.0", "torch.profiler"),
        (report([], None, peer=None), "usable", "--precision tf32 or bf16"),
        (report([], None, launch=0.0099, peer=None), "usable", "larger --batch-size"),
        (report([], None, launch=None, peer=None), "usable", "CPU cores limit"),
    ],
)
def test_the_verdict_names_the_bottleneck(
    measured: DeviceReport, overlap: str, expected: str
) -> None:
    text = verdict(measured)
    assert text.startswith("usable; ")
    assert overlap in text
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize("difference", [0.5, math.nan])
def test_wrong_results_are_the_verdict_before_any_speed(difference: float) -> None:
    wrong = replace(GOOD, gradients=difference)
    two = verdict(report([0.008, 0.008], 0.009, comparison=wrong))
    one = verdict(report([], None, peer=None, comparison=wrong))
    assert all("do not train on them" in text for text in (one, two))
    assert "IOMMU" in two
    assert "IOMMU" not in one


@pytest.mark.parametrize(
    ("launch", "expected"),
    [(0.0095, "launching is the bottleneck"), (0.002, "launching is not the bottleneck")],
)
def test_a_line_says_whether_launching_is_the_bottleneck(launch: float, expected: str) -> None:
    """Also if the towers overlap as they should."""
    device = DeviceInfo(
        device="cuda:0",
        name="",
        memory=None,
        towers=[0, 1],
        last_layer=True,
        parameters=0,
        bytes=0,
    )
    measured = replace(
        report([0.008, 0.008], 0.009, launch=launch, copy_seconds=0.001), devices=[device]
    )
    assert [line for line in measured.lines() if expected in line]
    result = DeviceCheckResult(report=measured, seconds=1.0).to_json()
    assert result["launch_bound"] == (launch == 0.0095)
