"""An evaluated model → a version in the model registry, and champion if it beats the present one.

Every promoted version takes the alias candidate. It takes the alias champion, which batch
inference uses, if its ten-view top-1 error is lower on the same validation images and McNemar's
exact test finds the difference significant; the first one does if it is better than chance.
--champion always moves the alias in any case, --champion never leaves it. --rollback gives the
alias back to the version before.

    python pipelines/promote.py --workdir /data/work
    python pipelines/promote.py --workdir /data/work --rollback "wrong on photographs at night"
"""

from dataclasses import replace
from typing import NoReturn

import pyarrow as pa

from alexnet import predictions
from alexnet.errors import UserError
from alexnet.predictions import Predictions
from pipelines.console.cli import run_script
from pipelines.console.log import stage_logger
from pipelines.promotion.decision import Decision, decide
from pipelines.promotion.model_card import Origin, model_card
from pipelines.results.command_results import RollbackResult
from pipelines.results.decorations import Decorated
from pipelines.results.records import StageKey, StageOutcome, newest
from pipelines.results.stage_results import EvaluateResult, PromoteResult
from pipelines.settings import PromoteCommandSettings, PromoteSettings
from pipelines.stage_keys.stage_code import RULES_VERSION
from pipelines.stage_keys.stage_inputs import promote_inputs
from pipelines.stages import Parent, run_stage
from pipelines.tracking import evaluations, registry
from pipelines.tracking.promotion_lock import promotion_lock
from pipelines.tracking.run import Run, active_run, open_run, run_params
from pipelines.tracking.store import Store, connect
from pipelines.workdir import Workdir

EVALUATION_TAG = "evaluation.run"
TABLE = "decision.json"


def run(
    settings: PromoteSettings,
    parent: Parent | None = None,
    evaluated: StageOutcome[EvaluateResult] | None = None,
) -> StageOutcome[PromoteResult]:
    """Register an evaluated model, by default the newest, unless the registry shows it already."""
    workdir = Workdir(settings.workdir)
    chosen = settings.evaluation if isinstance(settings, PromoteCommandSettings) else None
    evaluation = evaluated or newest(workdir, EvaluateResult, "promote", chosen)
    models = evaluation.result.models
    if len(models) > 1:
        raise UserError(
            f"evaluation {evaluation.key.digest} averages {len(models)} models, and only one can "
            "be registered; run pipelines/evaluate.py with one --model first"
        )
    store = connect(settings)
    key = StageKey(
        stage="promote",
        settings=settings.results(),
        inputs=promote_inputs(evaluation),
        code=RULES_VERSION,
    )
    return run_stage(
        settings,
        store,
        key,
        PromoteResult,
        parent=parent,
        usable=lambda result: _is_valid(store, result, evaluation.result.validation),
        work=lambda run: _promote(settings, evaluation, run),
    )


def _promote(
    settings: PromoteSettings, evaluation: StageOutcome[EvaluateResult], run: Run
) -> Decorated[PromoteResult]:
    """Register the model, set the aliases."""
    store, name, evaluated = run.store, settings.registered_model, evaluation.result
    predicted = predictions.read(evaluated.predictions)
    version_tags = {
        "validation.content": evaluated.validation,
        "top1_error": str(evaluated.top1_error),
        EVALUATION_TAG: evaluation.run_id,
    }
    if evaluated.top5_error is not None:
        version_tags["top5_error"] = str(evaluated.top5_error)
    with promotion_lock(store, name):
        version = registry.register(store, name, evaluated.models[0], version_tags)
        registry.set_alias(store, name, "candidate", version.version)
        decision = _decide_and_set(settings, store, version, predicted, evaluation.key.digest)
    verdict = f"{name} version {version.version} is {'' if decision.wins else 'not '}champion: "
    verdict += decision.reason
    stage_logger("promote").info("%s", verdict)
    tags = {"model.version": f"{name}/{version.version}", "verdict": verdict}
    return Decorated(
        _result(name, version.version, decision),
        {
            TABLE: lambda: run.log_table(_table(decision, version.version), TABLE),
            "the verdict": lambda: run.set_tags(tags),
            "the description of the version": lambda: registry.describe(
                store, name, version.version, decision.markdown(version.version)
            ),
            "the model card": lambda: registry.set_card(
                store,
                name,
                version.version,
                _card(store, f"{name}/{version.version}", evaluation),
            ),
        },
    )


def _card(store: Store, version: str, evaluation: StageOutcome[EvaluateResult]) -> str:
    """The model card of a version."""
    model = registry.get_model_info(store, evaluation.result.models[0])
    params = run_params(store, model.run_id)
    origin = Origin(version=version, model=model, evaluation_run=evaluation.run_id, params=params)
    return model_card(origin, evaluation.result)


def _table(decision: Decision, version: str) -> pa.Table:
    table = decision.table(version)
    return pa.table({"decision": list(table), "value": list(table.values())})


def _decide_and_set(
    settings: PromoteSettings,
    store: Store,
    version: registry.Version,
    predicted: Predictions,
    evaluation: str,
) -> Decision:
    """Decide about the alias ``champion``, and move it if the version wins.

    Other promotions wait meanwhile, but other programs may move the alias at any time.
    """
    name, log = settings.registered_model, stage_logger("promote")
    champion = registry.by_alias(store, name, "champion")
    expected = registry.last_set(store, name, "champion")
    if expected and expected != _number(champion):
        log.info(
            "the alias champion was moved from version %s to %s by another program",
            expected,
            _number(champion) or "none",
        )
    while True:
        of_champion = _predictions_of(store, champion, predicted.validation) if champion else None
        decision = decide(
            settings, version, predicted, champion, of_champion, evaluation=evaluation
        )
        now = registry.by_alias(store, name, "champion")
        if _number(now) == _number(champion):
            break
        log.info(
            "the alias champion was moved from version %s to %s meanwhile; deciding again",
            _number(champion) or "none",
            _number(now) or "none",
        )
        champion = now
    if not decision.wins or _number(champion) == version.version:
        return decision
    registry.set_tags(
        store, name, version.version, {registry.PREVIOUS_TAG: _number(champion) or ""}
    )
    registry.set_alias(store, name, "champion", version.version)
    now = registry.by_alias(store, name, "champion")
    if _number(now) != version.version:
        why = f"the alias was moved to version {_number(now) or 'none'} by another program"
        return replace(decision.not_set(why), compared_with=_number(now))
    return decision


def _number(version: registry.Version | None) -> str | None:
    return version.version if version else None


def _predictions_of(store: Store, version: registry.Version, validation: str) -> Predictions | None:
    """A version's predictions for the validation images with this content digest."""
    evaluated = evaluations.find(store, models=version.source)
    runs = [found.run_id for found in evaluated if found.validation == validation]
    for run_id in dict.fromkeys([*runs, version.tags.get(EVALUATION_TAG, "")]):
        found = evaluations.read_predictions(store, run_id) if run_id else None
        if found and found.validation == validation:
            return found
    return None


def _result(name: str, version: str, decision: Decision) -> PromoteResult:
    counts = decision.counts
    low, high = counts.interval if counts else (None, None)
    return PromoteResult(
        registered_model=name,
        version=version,
        champion=decision.wins,
        reason=decision.reason,
        model=f"models:/{name}/{version}",
        champion_version=version if decision.wins else decision.compared_with,
        compared_with=decision.compared_with,
        comparable=not decision.unknown,
        both_right=counts.both if counts else None,
        only_version_right=counts.only_second if counts else None,
        only_champion_right=counts.only_first if counts else None,
        both_wrong=counts.neither if counts else None,
        error_reduction=round(100 * counts.difference, 3) if counts else None,
        error_reduction_low=None if low is None else round(100 * low, 3),
        error_reduction_high=None if high is None else round(100 * high, 3),
        mcnemar_p=counts.p_value if counts else None,
        chance_p=decision.chance,
    )


def _is_valid(store: Store, result: PromoteResult, validation: str) -> bool:
    """Whether a promotion would come to the same result.

    The aliases must point to the versions that they pointed to after it. If the champion had no
    predictions for the same images, it must still have none.
    """
    name = result.registered_model
    candidate = registry.by_alias(store, name, "candidate")
    champion = registry.by_alias(store, name, "champion")
    if (_number(candidate), _number(champion)) != (result.version, result.champion_version):
        return False
    return result.comparable or not champion or _predictions_of(store, champion, validation) is None


def roll_back(settings: PromoteCommandSettings) -> RollbackResult:
    """Give the alias ``champion`` back to the version that had it before.

    Raises:
        UserError: there is no champion, or the version before is not known or was deleted.
    """
    store, name, reason = connect(settings), settings.registered_model, settings.rollback
    assert reason
    if registry.by_alias(store, name, "champion") is None:
        raise UserError(f"{name} has no champion to roll back; check --registered-model")
    run_id = open_run(store, "rollback", resume=None, parent=None)
    with active_run(store, run_id) as run, promotion_lock(store, name):
        champion = registry.by_alias(store, name, "champion")
        assert champion, "nothing but a promotion moves it"
        before = registry.get_version(store, name, _before(store, name, champion))
        registry.set_alias(store, name, "champion", before.version)
        # A later promotion of the same evaluation must not undo the rollback.
        registry.set_tags(store, name, champion.version, {registry.ROLLED_BACK_TAG: reason})
        line = f"champion is version {before.version} again instead of {champion.version}: {reason}"
        for version in (champion, before):
            registry.describe(store, name, version.version, f"Rollback: {line}")
        run.set_tags({"stage": "rollback", "verdict": f"{name}: {line}"})
    stage_logger("promote").info("%s: %s", name, line)
    return RollbackResult(
        registered_model=name,
        champion_version=before.version,
        rolled_back=champion.version,
        reason=reason,
    )


def _before(store: Store, name: str, champion: registry.Version) -> str:
    """The number of the version that was champion before."""
    last = registry.last_set(store, name, "champion")
    moved = last is not None and last != champion.version
    before = last if moved else champion.tags.get(registry.PREVIOUS_TAG)
    if not before:
        raise UserError(
            f"{name} version {champion.version} had no champion before it; promote another "
            "evaluation with --champion always instead"
        )
    return before


def command(settings: PromoteCommandSettings) -> StageOutcome[PromoteResult] | RollbackResult:
    """Promote, or roll back."""
    return roll_back(settings) if settings.rollback else run(settings)


def main() -> NoReturn:
    """The command."""
    run_script(PromoteCommandSettings, command, __doc__)


if __name__ == "__main__":
    main()
