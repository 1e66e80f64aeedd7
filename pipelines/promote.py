"""An evaluated model → a version in the model registry, and champion if it beats the present one.

Every promoted version takes the alias candidate. It takes the alias champion, which batch
inference uses, if there is none yet or if its ten-view top-1 error is lower on the same
validation images; --champion always moves the alias in any case, --champion never leaves it.

    python pipelines/promote.py --workdir /data/work
"""

from alexnet.errors import UserError
from pipelines import stages
from pipelines.console.cli import run_script
from pipelines.settings import PromoteSettings
from pipelines.stages import Figures, Outcome, StageKey, StageRecord, run_stage
from pipelines.tracking import registry
from pipelines.tracking.run import Run
from pipelines.tracking.store import Store, connect

VALIDATION, ERROR = "validation.content", "top1_error"
VERSION_OF_RULES = "1"
"""Raised when the rule that picks the champion changes."""


def run(settings: PromoteSettings, parent: stages.Parent | None = None) -> Outcome:
    """Register the model evaluated last, or find that it has been done."""
    evaluation = stages.require(settings.workdir, "evaluate")
    models = evaluation.figures["models"]
    if len(models) > 1:
        raise UserError(
            f"the newest evaluation averages {len(models)} models, and only one can be registered; "
            "run pipelines/evaluate.py with one --model first"
        )
    store = connect(settings)
    identity = StageKey(
        stage="promote",
        settings=settings.results(),
        inputs={"model": models[0], "evaluation": evaluation.key},
        code=VERSION_OF_RULES,
    )
    return run_stage(
        settings,
        store,
        identity,
        parent=parent,
        usable=lambda record: (
            registry.by_alias(store, settings.registered_model, "candidate") is not None
        ),
        work=lambda run, record: _work(settings, store, evaluation, run),
    )


def _work(settings: PromoteSettings, store: Store, evaluation: StageRecord, run: Run) -> Figures:
    name, figures = settings.registered_model, evaluation.figures
    champion = registry.by_alias(store, name, "champion")
    tags = {
        VALIDATION: figures["validation"],
        ERROR: str(figures["top1_error"]),
        "top5_error": str(figures["top5_error"]),
        "evaluation.run": evaluation.run_id,
    }
    version = registry.register(store, name, figures["models"][0], tags)
    registry.set_alias(store, name, "candidate", version)
    wins, reason = decide_champion(settings, champion, version, figures)
    if wins:
        registry.set_alias(store, name, "champion", version)
    verdict = f"{name} version {version} is {'' if wins else 'not '}champion: {reason}"
    print(f"promote: {verdict}", flush=True)
    run.set_tags({"model.version": f"{name}/{version}", "verdict": verdict})
    run.log_metrics({"champion": float(wins)})
    return {
        "stage": "promote",
        "registered_model": name,
        "version": version,
        "champion": wins,
        "reason": reason,
        "model": f"models:/{name}/{version}",
    }


def decide_champion(
    settings: PromoteSettings,
    champion: registry.Version | None,
    version: str,
    figures: Figures,
) -> tuple[bool, str]:
    """Whether a version becomes champion, and why."""
    error = figures["top1_error"]
    if champion and champion.version == version:
        return True, "it was champion already"
    if settings.champion != "better":
        return settings.champion == "always", f"--champion {settings.champion}"
    if champion is None:
        return True, f"the first of its name, {error} % top-1 error"
    if champion.tags.get(VALIDATION) != figures["validation"]:
        return False, (
            f"version {champion.version} was evaluated on other validation images; "
            "--champion always replaces it all the same"
        )
    best = float(champion.tags[ERROR])
    compared = f"{error} % top-1 error against {best} % of version {champion.version}"
    return error < best, compared


if __name__ == "__main__":
    run_script(PromoteSettings, lambda settings: run(settings).figures, __doc__)
