"""What a training job keeps of the bare step's speed: Ray Train, shards, augmentation, MLflow.

    python tests/benchmarks/job.py --workdir work --output job.json

``--workdir`` holds preprocessed shards of some thousand images (``pipelines/preprocess.py``). In
turns, the bare step is timed in a process of its own, on one batch in memory (see ``step.py``), and
``pipelines/train.py`` trains for one epoch; compared is its rate between two points of the curves,
after the first ones, in which memory is touched for the first time.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

HERE = Path(__file__).parent
WARM_UP = 3
"""Points of the curves that don't count."""


def bare(batch: int, steps: int) -> float:
    """Images a second of the step alone."""
    command = [sys.executable, str(HERE / "step.py"), "--contestant=source145", f"--batch={batch}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        seconds = []
        for _ in range(steps):
            process.stdin.write("\n")
            seconds.append(float(process.stdout.readline()))
        process.stdin.close()
    return batch / statistics.median(seconds)


def job(workdir: str, batch: int, seed: int) -> dict[str, Any]:
    """Train for an epoch; the rates at the points of the curves."""
    command = [sys.executable, str(HERE.parents[1] / "pipelines" / "train.py"), "--force"]
    options = ["--epochs=1", "--learning-rate=0.002", "--log-steps=5", "--device=cpu"]
    options += [f"--workdir={workdir}", f"--batch-size={batch}", f"--seed={seed}"]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    client = MlflowClient(f"sqlite:///{Path(workdir).resolve()}/mlflow.db")
    points = client.get_metric_history(figures["run_id"], "images_per_second")
    rates = [point.value for point in points][WARM_UP:]
    return {"median": statistics.median(rates), "points": rates}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--output")
    for name, default in (("batch", 128), ("rounds", 2), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    rounds = []
    for number in range(given.rounds):
        before = bare(given.batch, given.steps)
        whole = job(given.workdir, given.batch, number)
        after = bare(given.batch, given.steps)
        alone = statistics.mean([before, after])
        rounds.append({"bare": [before, after], "job": whole, "ratio": whole["median"] / alone})
        print(json.dumps({"bare": alone, "job": whole["median"]}), flush=True)
    result = {
        "batch": given.batch,
        "ratio": round(statistics.median(r["ratio"] for r in rounds), 3),
        "rounds": rounds,
    }
    if given.output:
        Path(given.output).write_text(json.dumps(result, indent=2))
    print(json.dumps({"batch": given.batch, "ratio": result["ratio"]}))


if __name__ == "__main__":
    main()
