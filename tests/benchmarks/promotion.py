"""How often the promotion rule is wrong, and how small an improvement it finds.

    python tests/benchmarks/promotion.py --output promotion.json

Pairs of models are simulated for validation sets of several sizes: each image is classified
correctly by both, by one of them or by neither. Equal models have the same error rate, and each is
right alone on ``--alone`` of the images. The better model of an unequal pair is right on more of
these, by the improvement. The rule is that of ``pipelines/promote.py`` with its default settings;
"lower error" is the rule without McNemar's test.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet.predictions import Predictions
from alexnet.significance import wilson_interval
from pipelines.promotion.decision import decide
from pipelines.settings import PromoteSettings
from pipelines.tracking.registry import Version

SIZES = (360, 1000, 2000, 3925, 10_000, 50_000)
"""Images. 360: the embedded sample, 3925: Imagenette, 50,000: ILSVRC2012."""
CHAMPION, CANDIDATE = Version("1", {}), Version("2", {})


def predictions(correct: NDArray[np.bool_], keys: list[str]) -> Predictions:
    """Predictions of class 0, which are correct where the true class is 0."""
    best = np.where(correct, 0, 1)[:, None]
    return Predictions(
        keys=keys,
        labels=np.zeros(len(correct), np.int64),
        best=best,
        probabilities=np.ones(best.shape, np.float32),
        centre_best=best,
        wnids=("n0", "n1"),
        models=("models:/m-1",),
        validation="same",
    )


def simulate(
    images: int, pairs: int, *, error: float, alone: float, improvement: float, seed: int
) -> Mapping[str, float]:
    """Fractions of the pairs whose second model is promoted.

    Args:
        images: of the validation set.
        pairs: simulated.
        error: rate of the first model.
        alone: fraction of the images on which only the first model is right.
        improvement: error rate of the first model minus that of the second.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    only_second = alone + improvement
    outcomes = (1 - error - alone, alone, only_second, error - only_second)
    keys = [str(index) for index in range(images)]
    promoted = lower = 0
    for _ in range(pairs):
        outcome = random.choice(4, images, p=outcomes)
        first, second = outcome < 2, (outcome == 0) | (outcome == 2)
        lower += int(second.sum() > first.sum())
        promoted += decide(
            PromoteSettings(),
            CANDIDATE,
            predictions(second, keys),
            CHAMPION,
            predictions(first, keys),
            evaluation="",
        ).wins
    low, high = wilson_interval(promoted, pairs)
    return {
        "images": images,
        "improvement": improvement,
        "promoted": promoted / pairs,
        "promoted_low": round(low, 4),
        "promoted_high": round(high, 4),
        "lower_error": lower / pairs,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--pairs", type=int, default=1000, help="of models, for each case [1000]")
    parser.add_argument("--error", type=float, default=0.4, help="of the champion [0.4]")
    parser.add_argument("--alone", type=float, default=0.08, help="see above [0.08]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    options = parser.parse_args(arguments)
    started, rows = time.monotonic(), []
    for improvement in (0.0, 0.01, 0.03):
        for images in SIZES:
            rows.append(
                simulate(
                    images,
                    options.pairs,
                    error=options.error,
                    alone=options.alone,
                    improvement=improvement,
                    seed=options.seed,
                )
            )
            print(rows[-1], flush=True)
    settings = vars(options) | {"output": str(options.output)}
    value = {"settings": settings, "seconds": time.monotonic() - started, "cases": rows}
    options.output.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
