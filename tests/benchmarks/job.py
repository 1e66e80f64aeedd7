"""The speed of the training job compared with that of the training step alone.

    python tests/benchmarks/job.py --output job.json

``step`` is ``step.py``'s training step, with crops that are in memory. ``job`` is
``pipelines/train.py``: Ray Train, shards, augmentation, metrics to MLflow. Its rate is the median
of the metric ``images_per_second`` without the first points. They are measured in turn: each job is
compared with the mean of the two measurements of the step before and after it.

As measured on two cores, the ratio is .87. The same loop in a process without Ray is as fast as the
step. During training Ray has a dozen other processes. Each one that waits for tasks checks every
10 ms whether it has received a signal (``CoreWorker::RunTaskExecutionLoop`` in Ray's
``core_worker.cc``; the period is a constant in the source, no setting changes it). That is a
hundred wake-ups per second and .9 % of a core for each. Together they take 10 to 13 % of a core.
Whenever one of them runs, or an image is decoded, both threads of the step wait. A computer with
more cores than threads was not available for a measurement without this effect.
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

from pipelines.cluster import KEEP_FREED_MEMORY

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BATCH = 128
WARM_UP = 3
"""Points of the metric, of two steps each, that are not used."""


def run_script(script: str, *options: str) -> dict[str, Any]:
    """The result of one of the project's scripts."""
    command = [sys.executable, str(ROOT / "pipelines" / script), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def step_rate(classes: int, steps: int) -> float:
    """Images per second of the step alone."""
    command = [sys.executable, str(HERE / "step.py"), "--variant=source145"]
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


def job_rate(workdir: Path, *options: str) -> float:
    """Images per second of the whole job, without its start."""
    common = f"--workdir {workdir} --force --learning-rate 0.0001 --log-steps 2 --log-seconds 0"
    result = run_script("train.py", *common.split(), *options)
    client = MlflowClient(f"sqlite:///{workdir}/mlflow.db")
    points = client.get_metric_history(result["run_id"], "images_per_second")
    assert len(points) > 2 * WARM_UP
    return float(statistics.median(point.value for point in points[WARM_UP:-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of each measurement of the step")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alexnet-job-") as scratch:
        folder = Path(scratch)
        source = make_source(jpegs(folder), folder / "source", options.images)
        arguments = f"--source {source} --workdir {folder / 'work'} --rows-per-shard 512"
        classes = run_script("preprocess.py", *arguments.split())["classes"]
        step_rates = [step_rate(classes, options.steps)]
        job_rates = []
        for _ in range(options.rounds):
            job_rates.append(
                job_rate(folder / "work", "--epochs=1", f"--batch-size={BATCH}", "--device=cpu")
            )
            step_rates.append(step_rate(classes, options.steps))
            print(
                f"job {job_rates[-1]:.1f}, step {step_rates[-2]:.1f} and {step_rates[-1]:.1f}",
                flush=True,
            )
    mean_step_rates = [(a + b) / 2 for a, b in itertools.pairwise(step_rates)]
    result = {
        "batch": BATCH,
        "images_per_second": {
            "job": round(statistics.median(job_rates), 1),
            "step": round(statistics.median(step_rates), 1),
        },
        "job / step": round(
            statistics.median(a / b for a, b in zip(job_rates, mean_step_rates, strict=True)), 3
        ),
    }
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
