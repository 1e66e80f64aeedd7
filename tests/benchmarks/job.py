"""What the training job leaves of the bare step's speed.

    python tests/benchmarks/job.py --output job.json

``bare`` is ``step.py``'s training step, from patches in memory. ``job`` is ``pipelines/train.py``:
Ray Train, shards, augmentation, curves to MLflow. Its rate is the median of the curve
``images_per_second`` after the first points. They take turns, and each job stands between two
bare runs, whose mean it is compared with.

As measured on two cores: .87. The same loop in a process without Ray keeps up with the bare step.
Beside the training Ray has a dozen processes. Each that waits for tasks asks every 10 ms whether a
signal has come (``CoreWorker::RunTaskExecutionLoop`` of Ray's ``core_worker.cc``, where the period
is written out: no setting changes it), a hundred wake-ups and .9 % of a core apiece. Together they
take 10 to 13 % of a core, and whenever one of them runs, or an image is decoded, both threads of
the step wait. More cores than threads were not at hand to see it without that.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from preprocess import jpegs, make_source

from alexnet.allocation import KEEP_FREED_MEMORY

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BATCH = 128
WARM_UP = 3
"""Points of the curve, of two steps each, that are left out."""


def pipeline(script: str, *options: str) -> dict[str, Any]:
    """The figures of one of the project's scripts."""
    command = [sys.executable, str(ROOT / "pipelines" / script), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def bare(classes: int, steps: int) -> float:
    """Images a second of the step alone."""
    command = [sys.executable, str(HERE / "step.py"), "--contestant=source145"]
    command += [f"--batch={BATCH}", f"--classes={classes}"]
    done = subprocess.run(
        command,
        env=os.environ | KEEP_FREED_MEMORY,
        input="\n" * steps,
        capture_output=True,
        text=True,
        check=True,
    )
    ready, *seconds = done.stdout.splitlines()
    assert (ready, len(seconds)) == ("ready", steps)
    return float(BATCH / statistics.median(map(float, seconds)))


def job(workdir: Path) -> float:
    """Images a second of the whole job, once it goes."""
    options = f"--workdir {workdir} --force --epochs 1 --learning-rate 0.0001 --log-steps 2"
    figures = pipeline("train.py", *options.split(), f"--batch-size={BATCH}", "--device=cpu")
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    curve = client.get_metric_history(figures["run_id"], "images_per_second")
    assert len(curve) > 2 * WARM_UP
    return float(statistics.median(point.value for point in curve[WARM_UP:-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of each bare run")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alexnet-job-") as scratch:
        folder = Path(scratch)
        source = make_source(jpegs(folder), folder / "source", given.images)
        options = f"--source {source} --workdir {folder / 'work'} --rows-per-shard 512"
        classes = pipeline("preprocess.py", *options.split())["classes"]
        alone = [bare(classes, given.steps)]
        jobs = []
        for _ in range(given.rounds):
            jobs.append(job(folder / "work"))
            alone.append(bare(classes, given.steps))
            print(f"job {jobs[-1]:.1f}, bare {alone[-2]:.1f} and {alone[-1]:.1f}", flush=True)
    beside = [(a + b) / 2 for a, b in itertools.pairwise(alone)]
    result = {
        "batch": BATCH,
        "images_per_second": {
            "job": round(statistics.median(jobs), 1),
            "bare": round(statistics.median(alone), 1),
        },
        "job / bare": round(statistics.median(a / b for a, b in zip(jobs, beside, strict=True)), 3),
    }
    print(json.dumps(result, indent=2))
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
