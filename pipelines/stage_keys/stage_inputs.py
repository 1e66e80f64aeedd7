"""The inputs of each stage by which its key tells whether they have changed."""

from collections.abc import Sequence

from alexnet.shards.format import STATISTICS
from alexnet.shards.manifest import Manifest
from pipelines.results.records import StageOutcome
from pipelines.results.stage_results import EvaluateResult


def train_inputs(manifest: Manifest) -> dict[str, str]:
    """Of a training: the shards and their pixel statistics."""
    return {
        "shards": manifest.content_digest()[:16],
        "statistics": manifest.files[STATISTICS][:16],
    }


def evaluate_inputs(models: Sequence[str], manifest: Manifest) -> dict[str, str]:
    """Of an evaluation: MLflow's URIs of the models, and the validation shards."""
    return {
        "models": " ".join(models),
        "validation": manifest.content_digest("val")[:16],
    }


def promote_inputs(evaluation: StageOutcome[EvaluateResult]) -> dict[str, str]:
    """Of a promotion: the model, and its evaluation."""
    return {
        "model": evaluation.result.models[0],
        "evaluation": evaluation.key.digest,
        "evaluation.run": evaluation.run_id,
    }
