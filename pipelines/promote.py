"""An evaluated model → a version in the model registry, and champion if it beats the present one.

Every promoted version takes the alias candidate. It takes the alias champion, which batch
inference uses, if there is none yet or if its ten-view top-1 error is lower on the same
validation images; --champion always moves the alias in any case, --champion never leaves it.

    python pipelines/promote.py --workdir /data/work
"""

from typing import NoReturn

from alexnet.errors import UserError
from pipelines.console.cli import run_script
from pipelines.console.log import stage_logger
from pipelines.decorations import Decorated
from pipelines.records import StageKey, StageOutcome, newest
from pipelines.results import EvaluateResult, PromoteResult
from pipelines.settings import PromoteSettings
from pipelines.stages import Parent, run_stage
from pipelines.tracking import registry
from pipelines.tracking.run import Run
from pipelines.tracking.store import Store, connect
from pipelines.workdir import Workdir

VALIDATION_TAG, ERROR_TAG = "validation.content", "top1_error"
RULES_VERSION = "1"
"""Raised when the rule that picks the champion changes."""


def run(
    settings: PromoteSettings,
    parent: Parent | None = None,
    evaluated: StageOutcome[EvaluateResult] | None = None,
) -> StageOutcome[PromoteResult]:
    """Register an evaluated model, by default the newest, unless the registry shows it already."""
    workdir = Workdir(settings.workdir)
    evaluation = evaluated or newest(workdir, EvaluateResult, "promote")
    models = evaluation.result.models
    if len(models) > 1:
        raise UserError(
            f"the newest evaluation averages {len(models)} models, and only one can be registered; "
            "run pipelines/evaluate.py with one --model first"
        )
    store = connect(settings)
    key = StageKey(
        stage="promote",
        settings=settings.results(),
        inputs={
            "model": models[0],
            "evaluation": evaluation.key.digest,
            "evaluation.run": evaluation.run_id,
        },
        code=RULES_VERSION,
    )
    return run_stage(
        settings,
        store,
        key,
        PromoteResult,
        parent=parent,
        usable=lambda result: _is_in_registry(store, result),
        work=lambda run: _promote(settings, evaluation, run),
    )


def _promote(
    settings: PromoteSettings, evaluation: StageOutcome[EvaluateResult], run: Run
) -> Decorated[PromoteResult]:
    """Register the model, set the aliases."""
    store, name, evaluated = run.store, settings.registered_model, evaluation.result
    champion = registry.by_alias(store, name, "champion")
    tags = {
        VALIDATION_TAG: evaluated.validation,
        ERROR_TAG: str(evaluated.top1_error),
        "top5_error": str(evaluated.top5_error),
        "evaluation.run": evaluation.run_id,
    }
    version = registry.register(store, name, evaluated.models[0], tags)
    registry.set_alias(store, name, "candidate", version)
    wins, reason = decide_champion(settings, champion, version, evaluated)
    if wins:
        registry.set_alias(store, name, "champion", version)
    verdict = f"{name} version {version} is {'' if wins else 'not '}champion: {reason}"
    stage_logger("promote").info("%s", verdict)
    result = PromoteResult(
        registered_model=name,
        version=version,
        champion=wins,
        reason=reason,
        model=f"models:/{name}/{version}",
        champion_version=version if wins else champion.version if champion else None,
    )
    tags = {"model.version": f"{name}/{version}", "verdict": verdict}
    return Decorated(result, {"the verdict": lambda: run.set_tags(tags)})


def _is_in_registry(store: Store, result: PromoteResult) -> bool:
    """Whether the aliases point to the versions that they pointed to after the promotion."""
    name = result.registered_model
    candidate = registry.by_alias(store, name, "candidate")
    champion = registry.by_alias(store, name, "champion")
    versions = (candidate.version if candidate else None, champion.version if champion else None)
    return versions == (result.version, result.champion_version)


def decide_champion(
    settings: PromoteSettings,
    champion: registry.Version | None,
    version: str,
    evaluated: EvaluateResult,
) -> tuple[bool, str]:
    """Whether a version becomes champion, and why."""
    error = evaluated.top1_error
    if champion and champion.version == version:
        return True, "it was champion already"
    if settings.champion != "better":
        return settings.champion == "always", f"--champion {settings.champion}"
    if champion is None:
        return True, f"the first of its name, {error} % top-1 error"
    if champion.tags.get(VALIDATION_TAG) != evaluated.validation:
        return False, (
            f"version {champion.version} was evaluated on other validation images; "
            "--champion always replaces it all the same"
        )
    best = float(champion.tags[ERROR_TAG])
    compared = f"{error} % top-1 error against {best} % of version {champion.version}"
    return error < best, compared


def main() -> NoReturn:
    """The command."""
    run_script(PromoteSettings, run, __doc__)


if __name__ == "__main__":
    main()
